"""A checkpoint that cannot be written leaves the last good one, and one line."""

import shutil

import pytest
import torch
from torch import nn

from nl_detectron.checkpoint import CheckpointError, NonLocalCheckpointer
from nl_detectron.checkpoint.converters import convert_file
from nl_detectron.checkpoint.writing import write_safetensors
from nl_detectron.errors import full_disk, usage_errors
from nl_detectron.files import replacing, write_again
from tests.full_disk import files_of_at_most


def make(folder, **options) -> NonLocalCheckpointer:
    checkpointer = NonLocalCheckpointer(nn.Linear(1000, 1000), str(folder), **options)
    checkpointer.pauses = (0.0, 0.0)
    checkpointer.save("model_0000001")
    nn.init.zeros_(checkpointer.model.weight)
    return checkpointer


def assert_only_the_first_is_there(folder) -> None:
    assert (folder / "last_checkpoint").read_text() == "model_0000001.pth"
    assert {path.name for path in folder.iterdir()} == {"last_checkpoint", "model_0000001.pth"}
    content = torch.load(folder / "model_0000001.pth", weights_only=True)
    assert content["model"]["weight"].abs().max() > 0


@pytest.mark.parametrize("name", ["model_0000001", "model_0000003"])
def test_training_stops_in_one_line(tmp_path, name, log):
    checkpointer = make(tmp_path)
    message = f"checkpoint .*{name}.pth cannot be written: File too large. The last good one is"
    with files_of_at_most(100_000), pytest.raises(CheckpointError, match=message):
        checkpointer.save(name)
    # A record can come by two handlers.
    tries = {id(r) for r in log.records if "(File too large); once more in 0 s" in r.getMessage()}
    assert len(tries) == 2
    assert_only_the_first_is_there(tmp_path)
    checkpointer.save(name)  # once there is room
    assert checkpointer.get_checkpoint_file() == str(tmp_path / f"{name}.pth")


def test_training_goes_on_with_an_alarm(tmp_path, log):
    checkpointer = make(tmp_path, on_error="continue")
    with files_of_at_most(100_000):
        checkpointer.save("model_0000003")
    assert "ALARM: checkpoint " in log.text
    assert f"the last good one is {tmp_path / 'model_0000001.pth'}" in log.text
    assert_only_the_first_is_there(tmp_path)


def test_a_folder_that_was_removed_is_made_again(tmp_path):
    checkpointer = make(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    checkpointer.save("model_0000003")
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "run/model_0000003.pth")


def test_weights_as_safetensors_stop_in_one_line_too(tmp_path):
    """Their library has an error of its own for the system's."""

    def write() -> None:
        write_safetensors(str(tmp_path / "a"), {"w": torch.zeros(1000)}, {})

    with files_of_at_most(1000), pytest.raises(OSError, match="^x cannot be .*: File too large$"):
        write_again(write, "x", pauses=())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_tool_that_cannot_write_says_so_in_one_line(tmp_path, capsys, suffix):
    source, target = tmp_path / "a.pth", tmp_path / f"b.{suffix}"
    torch.save({"model": {"weight": torch.zeros(200, 200)}}, source)
    with files_of_at_most(100_000), pytest.raises(SystemExit) as end, usage_errors():
        convert_file(str(source), str(target))
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert said == f"error: {target} cannot be written: File too large; make room there\n"
    assert list(tmp_path.iterdir()) == [source]


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(FileNotFoundError) as error, usage_errors():
        (tmp_path / "nothing").read_text()
    assert full_disk(error.value) is None
    with pytest.raises(PermissionError) as error, replacing(tmp_path / "a"):
        raise PermissionError(13, "Permission denied")
    assert error.value.filename is None


def test_other_errors_are_no_errors_of_writing():
    def broken() -> None:
        raise RuntimeError("CUDA error")

    with pytest.raises(RuntimeError, match="CUDA error"):
        write_again(broken, "x")


def test_what_goes_wrong_once_is_written_all_the_same(log):
    tries = []

    def write() -> None:
        tries.append(None)
        if len(tries) == 1:
            raise OSError(5, "Input/output error")

    write_again(write, "x", pauses=(0.0,))
    assert len(tries) == 2 and "x cannot be written (Input/output error); once more" in log.text
