"""The suite runs end to end on tiny maps, and its plain peers compute what the blocks do."""

import builtins

import pytest
import torch

from dev.benchmark import family
from dev.benchmark.family import PAIRS, Cell
from nl_detectron.layers import NON_LOCAL_BLOCK_REGISTRY

TINY = (9, 8)
PLAIN = [pair for pair in PAIRS if pair.peer == "equations"]


def test_every_block_of_the_registry_has_a_peer():
    kinds = {type(pair.ours(16)).__name__ for pair in PAIRS}
    assert kinds == {name for name, _ in NON_LOCAL_BLOCK_REGISTRY}


def test_family_table(monkeypatch):
    """All that is to be timed runs; the figures are those of the times and the memory."""

    def alternate(functions, **_):
        for function in functions.values():
            function()
        return {"ours": 0.002, "peer": 0.003}

    pytest.importorskip("mmcv", reason="needs mmcv-lite")
    monkeypatch.setattr(family, "alternate", alternate)
    cells = list(family.cells((TINY,), channels=64))
    table = family.family_table(cells, "cpu", seconds=0)
    assert len(table.rows) == len(cells) == 2 * (len(PAIRS) + 3)
    assert {row[4] for row in table.rows} == {"64", "16"}
    for row in table.rows:
        assert row[6:9] == ("2.00", "1.50", "1.00")
        assert float(row[9]) >= 1 and float(row[10]) > 0  # the output is a map
    operations = {(row[0], row[4]): float(row[5]) for row in table.rows}
    positions, channels, inner = TINY[0] * TINY[1], 64, 32
    projections = 4 * positions * channels * inner
    for name, expected in (
        ("embedded Gaussian", projections + 2 * positions**2 * inner),
        ("efficient attention", projections + 2 * positions * inner**2),
    ):
        assert operations[name, "64"] == pytest.approx(expected / 1e9, rel=5e-3)


def test_a_row_says_that_mmcv_is_missing(monkeypatch):
    plain_import = builtins.__import__

    def without_mmcv(name, *args, **kwargs):
        if name.partition(".")[0] == "mmcv":
            raise ImportError(name)
        return plain_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_mmcv)
    for pair in PAIRS:
        row = family.family_table([Cell(pair, False, TINY, 64)], "cpu", seconds=0).rows[0]
        assert (row[7] == row[10] == "needs mmcv-lite") == (pair not in PLAIN)


@pytest.mark.parametrize("pair", PLAIN, ids=lambda pair: pair.name)
def test_the_equations_give_what_the_block_does(pair):
    ours = pair.ours(16, zero_init=False).double()
    peer = pair.theirs(16).double()
    peer.load_state_dict(ours.state_dict())
    x = torch.randn(2, 16, *TINY, dtype=torch.float64)
    torch.testing.assert_close(peer(x), ours(x), rtol=1e-12, atol=1e-12)
