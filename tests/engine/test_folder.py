import os
import subprocess
import sys

import pytest

from nl_detectron.engine.folder import check_free, only_training_in
from nl_detectron.errors import UsageError

# Another process that trains in the folder, as far as can be seen from outside
HOLDER = """
import fcntl, os, sys, time
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX)
file.write(f"process {os.getpid()} on there")
file.flush()
print("held", flush=True)
time.sleep(60)
"""


def test_a_folder_is_for_one_training_at_a_time(tmp_path):
    check_free("OUTPUT_DIR", str(tmp_path))
    command = [sys.executable, "-c", HOLDER, str(tmp_path / ".lock")]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        message = f"at work there .process {other.pid} on there.; choose another folder"
        with pytest.raises(UsageError, match=message):
            check_free("OUTPUT_DIR", str(tmp_path))
        with pytest.raises(UsageError, match=message), only_training_in("x", str(tmp_path)):
            pass
    finally:
        other.kill()  # however it ends
        other.communicate()
    check_free("OUTPUT_DIR", str(tmp_path))
    with only_training_in("OUTPUT_DIR", str(tmp_path)):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")


def test_what_a_killed_training_left_half_written_is_removed(tmp_path):
    left = ["model_0000003.pth.12-0123abcd.tmp", "last_checkpoint.3-00000000.tmp"]
    kept = ["model_0000003.pth", "mine.tmp", "report.html.12-0123abcd.tmp", "model_final.pth.tmp"]
    for name in (*left, *kept):
        (tmp_path / name).write_text("x")
    with only_training_in("OUTPUT_DIR", str(tmp_path / "new")):
        pass
    with only_training_in("OUTPUT_DIR", str(tmp_path)):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {*kept, ".lock", "new"}
