import mmap

import numpy as np
import pytest

from dev.soak.growth import Growth, grow, resident


def test_a_slope_is_told_from_noise():
    rng = np.random.default_rng(0)
    calls = [*range(1, 2001, 20)]
    noise = rng.normal(0, 2, len(calls))
    flat = Growth(calls, [500 + n for n in noise])
    assert flat.is_flat() and abs(flat.slope()) < 0.002
    leak = Growth(calls, [500 + 0.05 * call + n for call, n in zip(calls, noise, strict=True)])
    assert not leak.is_flat() and leak.slope() == pytest.approx(0.05, abs=0.003)
    assert str(leak).startswith(f"{1000 * leak.slope():+.2f} MB in 1,000, at ")


def test_what_fills_at_the_start_is_no_slope():
    calls = [*range(1, 101)]
    assert Growth(calls, [min(500, 100 + 20 * call) for call in calls]).is_flat()


def test_a_real_leak_is_seen():
    kept = []

    def take(_: int) -> mmap.mmap:
        """Two megabytes from the system, and none that this process had before."""
        memory = mmap.mmap(-1, 2_000_000)
        memory.write(b"x" * 2_000_000)
        return memory

    leak = grow(lambda call: kept.append(take(call)), 40)
    assert not leak.is_flat() and leak.slope() == pytest.approx(2, abs=0.3)
    for memory in kept:
        memory.close()
    assert grow(lambda call: take(call).close(), 40).is_flat()
    assert resident() > 10
