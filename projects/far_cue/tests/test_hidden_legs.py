"""A run on hidden legs from end to end, on a few images and for a few iterations."""

import json
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]  # where Python finds far_cue
CODE = """
import sys
from pathlib import Path
from far_cue.run import Run, train_and_measure
opts = ("SOLVER.MAX_ITER", "60", "TEST.EVAL_PERIOD", "30")
tiny = "('people_in_skirts_tiny',)"
opts += ("DATASETS.TRAIN", tiny, "DATASETS.TEST", tiny)
train_and_measure(Run("hidden_legs", "embedded_gaussian_head", 7, opts), Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_joints_are_measured(python, tmp_path, generated_sets):
    command = [str(python), "-c", CODE, str(tmp_path)]
    result = subprocess.run(
        command, env=generated_sets, cwd=PROJECT, capture_output=True, text=True
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    folder = Path(tmp_path, "hidden_legs/embedded_gaussian_head/seed_7")
    found = json.loads((folder / "result.json").read_text())
    assert [point[0] for point in found["curve"]] == [29, 60]
    # Overfitted to eight images as far as visible joints: no proof, but no chance either
    assert found["figures_found"] > 50 and found["visible_placed"] > 10, found
    assert 0 <= found["hidden_placed"] <= 100 and found["seconds"] > 0
    records = (folder / "metrics.json").read_text()
    assert "non_local/roi_heads.keypoint_head.nl4/output_ratio" in records
