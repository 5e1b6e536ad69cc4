"""The whole experiment in a short form, by the command that does it."""

import json
import subprocess
from pathlib import Path

import cv2
import pytest

RUN = Path(__file__).resolve().parents[1] / "run.py"
VARIANTS = ("plain", "dot_product")


@pytest.mark.slow
def test_only_the_model_with_a_block_sees_the_key(python, tmp_path, generated_sets):
    """From elsewhere, on the easier task with one seed; run again, it finds all done."""
    command = [str(python), str(RUN), "--output", str(tmp_path / "out")]
    command += ["--tasks", "one_key", "--seeds", "7", "--variants", *VARIANTS]
    for number in (1, 2):
        result = subprocess.run(
            command, env=generated_sets, cwd=tmp_path, capture_output=True, text=True
        )
        assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
        assert f"{(number - 1) * 2} of 2 runs are done already" in result.stdout
        assert result.stdout.count("ETA") == (2, 0)[number - 1]

    found = {}
    for variant in VARIANTS:
        folder = tmp_path / "out/one_key" / variant / "seed_7"
        found[variant] = json.loads((folder / "result.json").read_text())
        assert found[variant]["targets_found"] > 75 and found[variant]["key_AP"] > 60
        records = (folder / "metrics.json").read_text()
        assert ("non_local/res4.nl4/output_ratio" in records) == (variant != "plain")
    assert 40 < found["plain"]["target_accuracy"] < 60
    assert found["dot_product"]["target_accuracy"] > 90
    page = (tmp_path / "out/README.md").read_text()
    assert f"{found['dot_product']['target_accuracy']:.1f}" in page
    assert "not run yet" in page  # of all others
    for name in ("results_one_key.png", "attention_one_key.png"):
        assert cv2.imread(str(tmp_path / "out/docs" / name)) is not None
