import gc
import os

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
    """Each process begins with its share of the long tests: none has one of them left at the end.

    xdist gives them equal parts in this order, and who is done takes from the ends of the others.
    """
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    long = [item for item in items if item.get_closest_marker("slow")]
    short = [item for item in items if not item.get_closest_marker("slow")]
    items[:] = [
        item
        for process in range(processes)
        for some in (long, short)
        for item in some[len(some) * process // processes : len(some) * (process + 1) // processes]
    ]


def pytest_collection_finish() -> None:
    """What is imported by now stays: the garbage collector need not look through it each time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
