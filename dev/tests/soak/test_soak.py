"""The short form of what `make soak` tries."""

import pytest

from dev.soak import files, memory, page


@pytest.mark.slow
def test_memory_is_flat_in_training_and_prediction():
    rows = list(memory.rows(calls=40))
    assert len(rows) == 2 * len(memory.LOOKS) and all(row.kept for row in rows), rows


@pytest.mark.slow
def test_the_page_serves_many_in_turn():
    pytest.importorskip("gradio", reason="Gradio is not installed: pip install nl-detectron[app]")
    rows = list(page.rows(calls=20, people=6))
    assert len(rows) == 1 + len(memory.LOOKS) and all(row.kept for row in rows), rows


def test_changed_files_are_read_or_refused(quick_spawn):
    rows = list(files.rows(mutations=100))
    assert [row.tried for row in rows] == [100] * len(files.KINDS)
    assert all(row.kept for row in rows), rows
