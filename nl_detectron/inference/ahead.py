"""Work on the items of a sequence ahead of those who need the results, in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")


def ahead(
    function: Callable[[Item], Any],
    items: Iterable[Item],
    *,
    workers: int = 2,
    start: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Item, Future]]:
    """Calls ``function`` for each item in worker threads, for ``workers`` items ahead at most.

    Args:
        start: called once in each of the threads.

    Returns:
        The items in their order, each with a future, whose ``result()`` is what ``function``
        returned, or raises what it raised.
    """
    waiting: deque[tuple[Item, Future]] = deque()
    pool = ThreadPoolExecutor(workers, initializer=start)
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > workers:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:  # also when no more of them are asked for
        for _, future in waiting:
            future.cancel()
        pool.shutdown()
