from .fixtures import (  # noqa: F401
    browser,
    generated_sets,
    log,
    no_trace_records,
    own_cache,
    picture,
    python,
    seed,
    tool,
    weights,
)
from .people_results import truth  # noqa: F401


def pytest_collection_modifyitems(items: list) -> None:
    """Long tests come first, the projects' before all: none is left with one of them at the end."""

    def late(item: object) -> tuple[bool, bool]:
        return item.get_closest_marker("slow") is None, "projects" not in item.path.parts

    items.sort(key=late)
