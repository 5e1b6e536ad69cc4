from pathlib import Path

import pytest
import torch

from dev.benchmark.table import Table, dtypes, machine, text_of


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
    flags = Path("/proc/cpuinfo")
    if flags.exists():
        assert ("avx2" in name) == ("avx2" in flags.read_text().split())


def test_bfloat16_is_measured_where_the_processor_computes_in_it(monkeypatch):
    for flags, expected in (("fma avx2", 1), ("avx2 avx512_bf16", 2), ("amx_bf16", 2)):
        known = frozenset(flags.split())
        monkeypatch.setattr("dev.benchmark.table.processor_flags", lambda known=known: known)
        assert dtypes("cpu") == ("float32", "bfloat16")[:expected]


def test_texts_are_found_by_their_heading():
    text = text_of("Prediction throughput", images=8, size=800)
    assert text.startswith("Mask R-CNN R50-FPN with one block, 8 JPEG files")
    assert text.endswith("on all sides.") and "\n" not in text
    with pytest.raises(KeyError):
        text_of("Prediction throughput", images=8)
    with pytest.raises(KeyError):
        text_of("Weather")
