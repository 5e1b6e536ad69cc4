from .fixtures import (  # noqa: F401
    browser,
    generated_sets,
    log,
    picture,
    seed,
    tool,
    weights,
)
from .people_results import truth  # noqa: F401
