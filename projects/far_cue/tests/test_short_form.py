"""The whole experiment in a short form, by the command that does it."""

import json
import subprocess
from pathlib import Path

import cv2
import pytest

PROJECT = Path(__file__).resolve().parents[1]
VARIANT = "dot_product"
AGAIN = f"""
import sys
from pathlib import Path
from far_cue import Run, run_all
run_all([Run("one_key", "{VARIANT}", 7)], Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_model_with_a_block_sees_the_key(python, tmp_path, generated_sets):
    """From elsewhere, on the easier task with one seed; run again, it finds all done.

    That without a block it would be at chance needs no training: test_receptive_field.py has how
    far such models see, and test_strips.py that nothing else tells the answer.
    """
    command = [str(PROJECT / "run.py"), "--output", str(tmp_path / "out")]
    command += ["--tasks", "one_key", "--seeds", "7", "--variants", VARIANT]
    again = ["-c", AGAIN, str(tmp_path / "out")]
    for arguments, folder, done in ((command, tmp_path, 0), (again, PROJECT, 1)):
        result = subprocess.run(
            [str(python), *arguments],
            env=generated_sets,
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
        assert f"{done} of 1 runs are done already" in result.stdout
        assert result.stdout.count("ETA") == 1 - done

    folder = tmp_path / "out/one_key" / VARIANT / "seed_7"
    found = json.loads((folder / "result.json").read_text())
    assert found["targets_found"] > 75 and found["key_AP"] > 60
    assert found["target_accuracy"] > 90
    assert "non_local/res4.nl4/output_ratio" in (folder / "metrics.json").read_text()
    page = (tmp_path / "out/README.md").read_text()
    assert f"{found['target_accuracy']:.1f}" in page
    assert "not run yet" in page  # of all others
    for name in ("results_one_key.png", "attention_one_key.png"):
        assert cv2.imread(str(tmp_path / "out/docs" / name)) is not None
