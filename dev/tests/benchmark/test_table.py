import pytest
import torch

from dev.benchmark.table import Table, machine


def test_markdown():
    table = Table("Title", "Some *text*.", ("map", "ratio"), [("25x42", "1.10"), ("a", "b")])
    assert table.markdown() == (
        "## Title\n\nSome *text*.\n\n"
        "| map   | ratio   |\n|-------|---------|\n| 25x42 | 1.10    |\n| a     | b       |\n"
    )


def test_a_row_has_as_many_cells_as_the_header():
    with pytest.raises(ValueError, match="has not the 2 cells"):
        Table("Title", "", ("a", "b"), [("1",)])


def test_machine_is_named():
    name = machine("cpu")
    assert torch.__version__ in name
    assert f"{torch.get_num_threads()} threads" in name
