import threading
import time

import pytest

from nl_detectron.inference.ahead import ahead


def test_in_order_whatever_is_done_first():
    def slow_at_first(item):
        time.sleep(0.05 / (1 + item))
        return item**2

    found = [(item, future.result()) for item, future in ahead(slow_at_first, range(7), workers=3)]
    assert found == [(i, i**2) for i in range(7)]
    assert list(ahead(slow_at_first, [])) == []


def test_an_error_is_its_items_own():
    def broken_at_two(item):
        if item == 2:
            raise OSError("two")
        return item

    futures = dict(ahead(broken_at_two, range(4)))
    with pytest.raises(OSError, match="two"):
        futures[2].result()
    assert [futures[i].result() for i in (0, 1, 3)] == [0, 1, 3]


def test_only_a_few_are_taken_ahead_and_none_after_the_end():
    taken, started = [], []

    def items():
        for i in range(100):
            taken.append(i)
            yield i

    work = ahead(lambda item: item, items(), workers=2, start=lambda: started.append(1))
    for number, (item, future) in enumerate(work):
        assert future.result() == item == number
        assert len(taken) <= number + 3
        if number == 10:
            break
    work.close()
    assert len(taken) <= 13 and 1 <= len(started) <= 2
    assert not any("ThreadPoolExecutor" in thread.name for thread in threading.enumerate())
