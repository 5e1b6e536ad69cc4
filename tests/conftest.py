from .fixtures import (  # noqa: F401
    browser,
    generated_sets,
    log,
    own_cache,
    picture,
    python,
    seed,
    tool,
    weights,
)
from .people_results import truth  # noqa: F401


def pytest_collection_modifyitems(items: list) -> None:
    """Long tests come first, so that no process is left with one of them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
