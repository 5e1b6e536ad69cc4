import pytest

from dev.benchmark.training import checkpoint_table, overhead_table
from nl_detectron.layers import PAIRWISE_FUNCTIONS

from .narrow import NARROW


def test_overhead():
    table = overhead_table(size=(64, 96), seconds=0, device="cpu", opts=NARROW)
    assert [row[0] for row in table.rows] == ["training step", "inference"]
    for _, plain, ours, ratio, goal in table.rows:
        assert float(plain) >= 0 and float(ours) >= 0 and float(ratio) > 0
        assert goal == "≤ 1.06"
    assert "64×96" in table.text


def test_checkpointing():
    table = checkpoint_table(channels=32, size=(40, 50), seconds=0, device="cpu")
    assert [row[0] for row in table.rows] == list(PAIRWISE_FUNCTIONS)
    result = 32 * 40 * 50 * 4 / 1e6  # MB
    for pairwise, held, less, ratio, _ in table.rows:
        assert float(less) == pytest.approx(1.5 * result, abs=0.06), pairwise  # the result and y
        assert float(less) < float(held)
        assert float(ratio) == pytest.approx(float(less) / float(held), abs=0.15)
