import re

import pytest

from dev.configs_page import AUTHORS, PAPER, baseline_of, table_row, write_page
from nl_detectron import model_zoo
from tests.docs.pages import cells_of
from tests.places import ROOT

ROW = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_nl_1x.yaml"


def test_baselines():
    assert baseline_of(ROW) == ROW.replace("_nl_", "_")
    ablation = ROW.replace("_nl_", "_nl_embedded_gaussian_full_")
    assert baseline_of(ablation) == ROW.replace("_nl_", "_")
    assert baseline_of("Detectron1-Comparisons/mask_rcnn_R_50_FPN_nl_noaug_1x.yaml") == (
        "Detectron1-Comparisons/mask_rcnn_R_50_FPN_noaug_1x.yaml"
    )
    assert baseline_of(ROW.replace("_nl_", "_")) is None
    assert baseline_of(ROW.replace("_nl_", "_gc_r16_")) == ROW.replace("_nl_", "_")
    syncbn = ROW.replace("_nl_", "_4conv1fc_syncbn_")
    assert baseline_of(syncbn) is None
    assert baseline_of(syncbn.replace("_4conv", "_dnl_c4_c5_4conv")) == syncbn


def written_rows() -> dict[str, list[str]]:
    """The cells of CONFIGS.md by the configs' names."""
    rows = {}
    for line in (ROOT / "CONFIGS.md").read_text().splitlines():
        if match := re.match(r"\| \[.*\]\(configs/(.*?)\)", line):
            rows[match[1]] = cells_of(line)
    return rows


def test_the_page_has_a_row_for_each_config():
    names = [name for name in model_zoo.list_configs() if name.endswith(".yaml")]
    assert set(written_rows()) == set(names)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [ROW, "Detectron1-Comparisons/keypoint_rcnn_R_50_FPN_nl_head_1x.yaml"]
)
def test_the_page_is_what_the_command_prints(name, monkeypatch):
    # Half of the time goes into comparing 80,000 boxes of which NMS, at its threshold of 1, leaves
    # out none.
    monkeypatch.setattr(
        "detectron2.modeling.roi_heads.fast_rcnn.batched_nms",
        lambda boxes, scores, classes, threshold: scores.argsort(descending=True, stable=True),
    )
    assert list(table_row(name, {}).values()) == written_rows()[name]


@pytest.mark.slow
def test_all_of_the_page_but_what_is_counted(monkeypatch):
    """Counting takes seconds a model: with a stand-in for it the page's other text is compared."""
    monkeypatch.setattr("dev.configs_page._cost", lambda cfg, costs: (1, 1))

    def without_figures(text: str) -> list[list[str]]:
        rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
        return [
            row[:3] + row[6:] if len(row) == 8 else row
            for row in rows
            if "---" not in row[-1 if len(row) == 1 else 1]
        ]

    page = (ROOT / "CONFIGS.md").read_text()
    assert without_figures(write_page()) == without_figures(page)


def test_the_papers_rows_come_first_and_in_its_order():
    rows = [cells[1] for cells in list(written_rows().values())[: len(PAPER)]]
    assert rows == [f"Table {table}, {row}: {ap}" for table, row, ap in PAPER.values()]


def test_the_authors_rows_come_next_and_each_has_its_first_line_and_its_baseline():
    rows = dict(list(written_rows().items())[len(PAPER) :][: len(AUTHORS)])
    assert {name: cells[1] for name, cells in rows.items()} == AUTHORS
    assert list(rows) == list(AUTHORS)
    for name, published in AUTHORS.items():
        first_line = (ROOT / "configs" / name).read_text().partition("\n")[0]
        ap = re.search(r"\d\d\.\d(?: / \d\d\.\d)?", published)
        assert ap and f"{ap[0]} AP, published by its authors" in first_line
        assert bool(rows[name][4]) == (baseline_of(name) is not None)
