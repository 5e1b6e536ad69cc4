import re
from pathlib import Path

import cv2
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

from far_cue import TASKS, Run, page, pictures, tables, variants_of, write_page
from far_cue.variants import STRIPS
from tests.data.kind_checks import registered_set
from tests.docs.pages import cells_of

from .results import write_result

PROJECT = Path(__file__).resolve().parents[1]


def fill(output, variant, seed, accuracy):
    curve = [[200, 10.0, 50.0], [400, 30.0 + seed, 80.0]]
    figures = {"target_AP": 30.0 + seed, "key_AP": 80.0, "targets_found": 90.0, "seconds": 60.0}
    work = Run("one_key", variant, seed)
    write_result(work, output, curve=curve, **figures | {"target_accuracy": accuracy})


def test_what_is_written_is_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "costs_table", lambda: "THE COSTS")
    monkeypatch.setattr(page, "head_costs_table", lambda: "THE HEADS' COSTS")
    for seed, accuracy in ((1, 50.0), (2, 53.0)):
        fill(tmp_path, "plain", seed, accuracy)
    fill(tmp_path, "dot_product", 2, 99.0)
    fill(tmp_path, "embedded_gaussian_one_rate", 3, 60.0)
    metrics = Run("one_key", "embedded_gaussian_one_rate", 3).folder(tmp_path) / "metrics.json"
    metrics.write_text(f'{{"iteration": 19, "{pictures.ENTROPY}": 0.5}}\n{{"iteration": 39}}\n')
    fill(tmp_path, "dot_product", 9, 0.0)  # of a seed that does not count
    file = write_page(tmp_path, tmp_path / "docs", [1, 2, 3])
    text = file.read_text()
    assert "`make evidence`" in text and "THE COSTS" in text and "THE HEADS' COSTS" in text
    rows = [cells_of(line) for line in text.splitlines() if line.startswith("| ")]
    cells = {row[0]: row[1:] for row in rows[1 : len(variants_of("one_key")) + 1]}
    num_rows = sum(len(variants_of(task)) for task in TASKS)
    assert cells["plain"][:3] == ["2 of 3", "51.5 (50.0 to 53.0)", "90.0 (90.0 to 90.0)"]
    assert cells["plain"][3] == "31.5 (31.0 to 32.0)"
    assert cells["dot product"][:2] == ["1 of 3", "99.0 (99.0 to 99.0)"]
    assert cells["Gaussian"][:3] == ["0 of 3", "not run yet", ""]
    # In the results' tables all but three rows, in that of what is solved all cells but one
    in_both = set(variants_of("one_key")) & set(variants_of("matching_key"))
    assert text.count("not run yet") == num_rows - 3 + 2 * len(in_both) - 1
    assert cv2.imread(str(tmp_path / "docs/docs/results_one_key.png")) is not None
    assert cv2.imread(str(tmp_path / "docs/docs/entropy_one_key.png")) is not None
    written = sorted(str(f.relative_to(tmp_path / "docs")) for f in tmp_path.glob("docs/**/*.*"))
    assert written == ["README.md", "docs/entropy_one_key.png", "docs/results_one_key.png"]
    assert "attention_one_key.png" not in text  # no weights are there


def test_a_seed_has_solved_a_task_from_90_percent_on(tmp_path):
    for seed, accuracy in ((1, 89.9), (2, 90.0), (3, 100.0)):
        fill(tmp_path, "embedded_gaussian", seed, accuracy)
    results = {name: page.read_results(tmp_path, name, [1, 2, 3, 4]) for name in STRIPS}
    cells = {row[0]: row[1:] for row in map(cells_of, tables.solved_table(results).splitlines())}
    assert cells["model"] == ["one key", "matching key"]
    assert cells["embedded Gaussian"] == ["2 of 3", "not run yet"]
    assert "dot product" not in cells  # which is tried on one of them


def test_attention_is_drawn(tmp_path, monkeypatch):
    work, file = Run("one_key", "dot_product", 4), tmp_path / "attention.png"
    with registered_set("far_cue_one_key", tmp_path / "set") as name:
        datasets = {"far_cue_one_key_val": DatasetCatalog.get(name)}
        monkeypatch.setattr(pictures, "DatasetCatalog", datasets)
        assert not pictures.draw_attention(tmp_path, "one_key", [4], file)
        write_result(work, tmp_path)
        assert not pictures.draw_attention(tmp_path, "one_key", [4], file)
        torch.save({"model": build_model(work.cfg(Path())).state_dict()}, work.weights(tmp_path))
        assert pictures.draw_attention(tmp_path, "one_key", [4], file, num_images=2)
    assert cv2.imread(str(file)).shape == (2 * 64, 2 * 320, 3)


def test_by_default_the_seeds_of_each_task_count(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "costs_table", lambda: "")
    monkeypatch.setattr(page, "head_costs_table", lambda: "")
    fill(tmp_path, "plain", TASKS["one_key"].seeds[0], 50.0)
    fill(tmp_path, "plain", 1, 99.0)
    text = write_page(tmp_path, tmp_path / "docs", None).read_text()
    assert "1 of 5" in text.partition("## Matching key")[0]
    assert "50.0 (50.0 to 50.0)" in text


def test_hidden_legs_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "costs_table", str)
    monkeypatch.setattr(page, "head_costs_table", str)
    figures = {"hidden_placed": 51.0, "visible_placed": 99.0, "figures_found": 100.0}
    figures |= {"keypoint_AP": 60.0, "seconds": 90.0, "curve": [[99, 20.0], [199, 60.0]]}
    write_result(Run("hidden_legs", "plain", 1), tmp_path, **figures)
    text = write_page(tmp_path, tmp_path / "docs", [1]).read_text()
    section = text[text.index("## Hidden legs") :]
    row = next(line for line in section.splitlines() if line.startswith("| plain "))
    cells = cells_of(row)
    spreads = [f"{v:.1f} ({v:.1f} to {v:.1f})" for v in (51, 99, 100, 60, 90)]
    assert cells == ["plain", "1 of 1", *spreads]
    assert "docs/results_hidden_legs.png" in section and "attention_hidden_legs.png" not in section
    assert cv2.imread(str(tmp_path / "docs/docs/results_hidden_legs.png")) is not None


def test_hidden_legs_are_drawn(tmp_path, monkeypatch):
    """Even by models that find nothing."""
    file = tmp_path / "legs.png"
    with registered_set("people_in_skirts", tmp_path / "set") as name:
        datasets = {"people_in_skirts_val": DatasetCatalog.get(name)}
        monkeypatch.setattr(pictures, "DatasetCatalog", datasets)
        for variant in ("plain", "embedded_gaussian_head"):
            assert not pictures.draw_legs(tmp_path, "hidden_legs", [4], file)
            work = Run("hidden_legs", variant, 4)
            write_result(work, tmp_path)
            torch.save(
                {"model": build_model(work.cfg(Path())).state_dict()}, work.weights(tmp_path)
            )
        assert pictures.draw_legs(tmp_path, "hidden_legs", [4], file, num_images=2)
    assert cv2.imread(str(file)).shape == (2 * 2 * 128, 4 * 2 * 128, 3)


def test_the_page_that_is_here_is_the_template_with_its_figures():
    """All but the tables; and its pictures exist."""
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    tables = [table.rstrip() for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)]
    *results, solved, costs, head_costs = tables
    sections = {}
    for (name, task), table in zip(TASKS.items(), results, strict=True):
        files = {kind: f"docs/{kind}_{name}.png" for kind in ("results", "attention", "entropy")}
        shown = {kind: file for kind, file in files.items() if f"({file})" in text}
        assert all(cv2.imread(str(PROJECT / file)) is not None for file in shown.values())
        sections[name] = page.Section(task, table, shown)
    assert page.render(sections, solved, costs, head_costs) == text


def test_each_task_has_a_section_of_the_page():
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    for task in TASKS.values():
        assert f"\n## {task.title}\n" in text
