import json
import math
import os
import sys

import cv2
import pytest

from dev.demo import CONFIGS, format_results, main, read_results, run_demo
from nl_detectron.errors import UsageError
from nl_detectron.model_zoo import get_config_file


def test_results_are_those_of_the_last_evaluation(tmp_path):
    records = [
        {"iteration": 9, "bbox/AP": 1.0, "bbox/APl": 2.0, "total_loss": 3.0},
        {"iteration": 19, "bbox/AP": 4.0, "bbox/APl": math.nan, "keypoints/AP50": 5.0},
    ]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, records)))
    results = read_results(tmp_path / "metrics.json")
    assert results == {"bbox": {"AP": 4.0, "APl": None}, "keypoints": {"AP50": 5.0}}
    table = format_results({"people": results}).splitlines()
    assert table[0].split() == ["model", "task", "AP", "AP50", "AP75"]
    assert [line.split() for line in table[2:]] == [
        ["people", "bbox", "4.0", "-", "-"],
        ["people", "keypoints", "-", "5.0", "-"],
    ]


def test_a_training_that_fails_is_reported_and_ends_the_others(tmp_path, monkeypatch):
    script = tmp_path / "train_net.py"
    script.write_text(
        "import os, pathlib, sys, time\n"
        "folder = pathlib.Path(sys.argv[-1])\n"
        "pid = folder.parent / 'endless' / 'pid'\n"
        "if folder.name == 'endless':\n"
        "    pid.write_text(str(os.getpid()))\n"
        "    time.sleep(600)\n"
        "while not (pid.exists() and pid.read_text()):\n"
        "    time.sleep(0.05)\n"
        "raise SystemExit('so and so')\n"
    )
    monkeypatch.setattr("dev.demo.check_cfg", lambda cfg: None)
    for name in ("shapes", "endless"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text("of an earlier run")
    config = "quick_schedules/mask_rcnn_shapes_nl.yaml"
    with pytest.raises(UsageError, match="training failed for shapes; see .*console.txt"):
        run_demo(script, {"shapes": config, "endless": config}, tmp_path)
    assert "so and so" in (tmp_path / "shapes/console.txt").read_text()
    assert not (tmp_path / "shapes/metrics.json").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "endless/pid").read_text()), 0)


@pytest.mark.slow
def test_the_whole_demo(python, tmp_path, generated_sets, monkeypatch, capsys):
    """With two iterations in place of hundreds, on eight images in place of thousands."""
    for variable, value in generated_sets.items():
        monkeypatch.setenv(variable, value)
    configs = {name: tmp_path / f"{name}.yaml" for name in CONFIGS}
    for name, file in configs.items():
        datasets = f"DATASETS:\n  TRAIN: ('{name}_tiny',)\n  TEST: ('{name}_tiny',)\n"
        file.write_text(f"_BASE_: {get_config_file(CONFIGS[name])}\n{datasets}")
    monkeypatch.setattr("dev.demo.CONFIGS", {name: str(file) for name, file in configs.items()})
    monkeypatch.setattr(sys, "executable", str(python))
    opts = ["SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2"]
    opts += ["TEST.DETECTIONS_PER_IMAGE", "5"]
    monkeypatch.setattr(sys, "argv", ["demo.py", "--output", str(tmp_path / "demo"), *opts])
    main()
    shown = capsys.readouterr().out
    assert "metrics.json" in shown and "keypoints" in shown
    results = json.loads((tmp_path / "demo/metrics.json").read_text())
    assert {name: set(tasks) for name, tasks in results.items()} == {
        "shapes": {"bbox", "segm"},
        "people": {"bbox", "segm", "keypoints"},
    }
    # A model that has learned nothing is seen to know nothing.
    for tasks in results.values():
        for figures in tasks.values():
            assert (figures["AP"] or 0) < 1
    assert cv2.imread(str(tmp_path / "demo/predictions.jpg")) is not None
    for name in results:
        folder = tmp_path / "demo" / name
        assert cv2.imread(str(folder / "curves.png")) is not None
        assert cv2.imread(str(folder / "attention.jpg")) is not None
        assert "Attention" in (folder / "report.html").read_text()
        assert len(list((folder / "predictions").glob("*.png"))) == 8
        assert (folder / "model_final.pth").exists() and (folder / "log.txt").exists()
