import signal

from dev.benchmark.step import step_table

from .narrow import NARROW


def test_steps_with_and_without_ours_are_timed_in_turns():
    before = signal.getsignal(signal.SIGTERM)
    table = step_table(size=(64, 96), rounds=1, device="cpu", opts=NARROW)
    assert signal.getsignal(signal.SIGTERM) == before
    [(plain, ours, ratio, alone, share, goal)] = table.rows
    assert float(plain) > 0 and float(ours) > 0 and float(ratio) > 0
    assert 0 < float(alone) / 1000 < float(ours)
    assert float(share) > 1 and goal == "≤ 1.01"
    assert "64×96" in table.text
