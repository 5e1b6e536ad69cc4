import numpy as np
import pytest

from dev.benchmark import evaluation
from dev.benchmark.detections import generate
from nl_detectron.evaluation.coco import hotcoco

needs_hotcoco = pytest.mark.skipif(
    hotcoco is None, reason="hotcoco is not installed: requirements/base.txt"
)


@needs_hotcoco
def test_table(monkeypatch):
    order = []

    def run(folder, task, side):
        order.append((task, side))
        return evaluation._run(folder, task, side)  # in this process, which has imported PyTorch

    monkeypatch.setattr(evaluation, "run", run)
    table = evaluation.table(num_images=8, num_detections=30, rounds=2)
    assert order == [(task, side) for task in evaluation.TASKS for side in evaluation.SIDES] * 2
    assert "8 generated images with 30 detections each" in table.text
    column = {name: [row[i] for row in table.rows] for i, name in enumerate(table.header)}
    assert column["task"] == ["bbox", "segm", "keypoints", "all"]
    assert column["goal"] == ["≥ 8", "≥ 2.7", "≥ 3", "≥ 5"]
    assert column["figures"] == ["12", "12", "10", ""]
    assert column["largest difference"] == ["0", "0", "0", ""]
    assert all(0.1 < float(peak) < 100 for peak in column["ours, GB"][:3])


@needs_hotcoco
def test_sizes_of_the_suite(monkeypatch):
    monkeypatch.setattr(evaluation, "table", lambda **sizes: sizes)
    full = {"num_images": 5000, "num_detections": 100, "rounds": 2}
    assert list(evaluation.tables(quick=False, device="cpu")) == [full]
    (quick,) = evaluation.tables(quick=True, device="cuda")
    assert quick["num_images"] < 500


def test_a_run_has_a_process_of_its_own(quick_spawn, tmp_path):
    folder = tmp_path / "person_keypoints"
    generate(folder, folder.name, num_images=4, seed=0, num_detections=10)
    ballast = np.ones(2**27)  # 1 GB
    found = evaluation.run(folder, "keypoints", "pycocotools")
    assert found.figures.shape == (10,)
    assert found.seconds > 0
    assert found.peak is None or found.peak < ballast.nbytes


def test_without_hotcoco_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(evaluation, "hotcoco", None)
    (table,) = evaluation.tables(quick=False, device="cpu")
    assert table.rows == ()
    assert "hotcoco is not installed" in table.markdown()
