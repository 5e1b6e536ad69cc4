from .fixtures import (  # noqa: F401
    browser,
    generated_sets,
    log,
    picture,
    seed,
    tool,
    weights,
)
