"""The config that belongs to a checkpoint."""

import pickle

import pytest
import torch

from nl_detectron.checkpoint import CheckpointError, read_config


def test_config_of_a_checkpoint(tmp_path):
    text = "MODEL:\n  MASK_ON: true\n"
    inside, beside, alone = (tmp_path / name for name in ("in/a.pth", "be/a.pkl", "al/a.pth"))
    for path in (inside, beside, alone):
        path.parent.mkdir()
    torch.save({"model": {}, "config": text}, inside)
    beside.write_bytes(pickle.dumps({"model": {}, "__author__": "x"}))
    (beside.parent / "config.yaml").write_text(text)
    torch.save({"model": {}}, alone)
    assert read_config(str(inside)) == read_config(str(beside)) == text
    assert read_config(str(alone)) is None
    (alone.parent / "a.yaml").write_text("OUTPUT_DIR: x\n")
    assert read_config(str(alone)) == "OUTPUT_DIR: x\n"


def test_no_config_of_what_is_not_there_or_broken(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_config(str(tmp_path / "nowhere.pth"))
    with pytest.raises(CheckpointError, match="cannot be had"):
        read_config("https://127.0.0.1:9/model.pth")
    for name in ("broken.pth", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"broken")
        with pytest.raises(CheckpointError, match=f"{name} is .*cut off"):
            read_config(str(tmp_path / name))


def test_config_of_the_zoo():
    zoo = "detectron2://COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x/137849600/model_final_f10217.pkl"
    assert "MASK_ON: true" in read_config(zoo)


def test_a_file_of_any_size_beside_a_checkpoint_is_not_read(tmp_path):
    torch.save({"model": {}}, tmp_path / "model.pth")
    with open(tmp_path / "config.yaml", "w") as file:
        file.truncate(8 << 30)
    with pytest.raises(CheckpointError, match="config.yaml, is too large"):
        read_config(str(tmp_path / "model.pth"))
