"""The suite runs end to end on tiny maps; memory figures are exact, times are not tested."""

import pytest
import torch

from dev.benchmark import block
from dev.benchmark.attention import attention_table
from dev.benchmark.block import Cell, Textbook
from nl_detectron import NonLocalBlock
from nl_detectron.layers import PAIRWISE_FUNCTIONS

TINY = (6, 5)
SECONDS = {"ours": 0.002, "mmcv": 0.003, "textbook": 0.001, "product": 0.01}


@pytest.fixture(autouse=True)
def small_matrix_product(monkeypatch):
    monkeypatch.setattr("dev.benchmark.measure.MATRIX_SIZE", {"cpu": 64})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_time_table(dtype, monkeypatch):
    """All that is to be timed runs; the figures are those of the times."""

    def alternate(functions, **_):
        for function in functions.values():
            function()
        return {name: SECONDS[name] for name in functions}

    monkeypatch.setattr(block, "alternate", alternate)
    pytest.importorskip("mmcv.cnn.bricks.non_local", reason="needs mmcv-lite")
    cells = [
        Cell(pairwise, sub_sample, training, TINY, channels=16, dtype=dtype)
        for pairwise in PAIRWISE_FUNCTIONS
        for sub_sample in (False, True)
        for training in (False, True)
    ]
    table = block.time_table(iter(cells), "cpu", seconds=0)
    assert [row[:7] for row in table.rows] == [cell.labels for cell in cells]
    for cell, row in zip(cells, table.rows, strict=True):
        milliseconds, mmcv, textbook, goal, limit = row[7:]
        assert (milliseconds, textbook) == ("2.0", "0.50")
        fails = row[0] == "concatenation" and row[2] == "training"
        assert mmcv == ("fails" if fails else "1.50")
        rate = 2 * 64**3 / SECONDS["product"]
        assert float(limit) == pytest.approx(cell.flops / rate / 0.002, abs=0.005)
        assert float(goal) == (10 if row[0] == "concatenation" else 1)


def test_a_peer_that_would_not_fit_is_not_run(monkeypatch):
    monkeypatch.setattr(block, "PEER_LIMIT", 1e3)
    cell = Cell("dot_product", False, False, TINY, channels=16)
    table = block.time_table(iter([cell]), "cpu", seconds=0)
    assert table.rows[0][8:10] == ("would need 0 GB",) * 2
    assert Cell("concatenation", False, False, (50, 84)).peer_bytes == 2 * 1024 * 4200**2 * 4


def test_memory_table():
    pytest.importorskip("mmcv.cnn.bricks.non_local", reason="needs mmcv-lite")
    cells = list(block.memory_cells((TINY,)))
    table = block.memory_table(iter(cells), "cpu")
    assert len(table.rows) == len(cells) == 8
    for row in table.rows:
        assert float(row[9].removeprefix("< ")) > 0
        assert (row[8] == "fails") == (row[0] == "concatenation" and row[2] == "training")


def test_extra_memory_is_that_beyond_inputs_outputs_and_gradients():
    class Add(torch.nn.Module):
        def forward(self, x):
            return x + 1

    cell = Cell("dot_product", False, False, TINY, channels=16)
    scalars = 64  # bytes at most for the constant 1
    assert 0 <= block.extra_memory(Add(), cell, "cpu") <= scalars
    twice = torch.nn.Sequential(Add(), Add())
    between = block.extra_memory(twice, cell, "cpu") - 16 * 30 * 4  # what lies between the two
    assert 0 <= between <= scalars


def test_linear_table_shows_what_grows():
    table = block.linear_table([(8, 8), (16, 8)], "cpu")
    assert [row[:2] for row in table.rows[:2]] == [("gaussian", "64"), ("gaussian", "128")]
    assert len(table.rows) == 8


@pytest.mark.parametrize("pairwise", PAIRWISE_FUNCTIONS)
def test_memory_is_linear(pairwise):
    cells = [Cell(pairwise, False, False, size, channels=8) for size in ((64, 64), (128, 128))]
    small, large = (block.extra_memory(block._ours(cell), cell, "cpu") for cell in cells)
    tile = 2**20 * 4
    assert large <= 4 * small + tile  # of 16,384 positions: a matrix of all pairs has 1.1 GB
    assert large < 10 * 8 * 16384 * 4 + tile


def test_cuda_columns_say_that_they_are_not_measured():
    table = attention_table(((5, 6), (7, 8)), "cpu")
    assert len(table.rows) == 8
    assert all(set(row[3:]) == {"not measured"} for row in table.rows)


@pytest.mark.parametrize("pairwise", PAIRWISE_FUNCTIONS)
@pytest.mark.parametrize("sub_sample", [False, True])
def test_the_textbook_version_computes_the_same(pairwise, sub_sample):
    cell = Cell(pairwise, sub_sample, False, TINY, channels=16, dtype=torch.float64)
    ours = NonLocalBlock(16, pairwise=pairwise, sub_sample=sub_sample, zero_init=False).double()
    peer = Textbook(cell).double()
    state = ours.state_dict()
    if pairwise == "concatenation":
        state["w_f.weight"] = state.pop("w_f").unsqueeze(0)
    peer.load_state_dict(state)
    x = torch.randn(2, 16, *TINY, dtype=torch.float64)
    torch.testing.assert_close(peer(x), ours(x))


def test_flops_are_those_of_the_products():
    # Four projections of 8 x 4 for 30 positions; logits and sums of 4 channels for 30 x 30 pairs
    cell = Cell("embedded_gaussian", False, False, TINY, channels=8)
    assert cell.flops == 2 * (4 * 30 * 8 * 4 + 30 * 30 * (4 + 4))
    assert Cell("embedded_gaussian", False, True, TINY, channels=8).flops == 3 * cell.flops
    pooled = Cell("gaussian", True, False, TINY, batch=2, channels=8)
    whole = Cell("gaussian", False, False, TINY, channels=8)
    assert whole.flops == 2 * (2 * 30 * 8 * 4 + 30 * 30 * (8 / 2 + 4))
    assert pooled.flops == 2 * 2 * (2 * 30 * 8 * 4 + 30 * 9 * (8 + 4))
    # Dot products of 30 positions and 4 channels go through (4, 4) matrices.
    assert Cell("dot_product", False, False, TINY, channels=8).flops == 2 * (
        4 * 30 * 8 * 4 + (30 + 30) * 4 * 4
    )
