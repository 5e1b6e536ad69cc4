import json
import subprocess
from collections import OrderedDict

import pytest
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn

from nl_detectron.checkpoint import CheckpointError, NonLocalCheckpointer, read_config
from nl_detectron.checkpoint.converters import convert_file
from tests.places import TOOLS

from .models import base_cfg

TOOL = TOOLS / "convert_checkpoint.py"


def test_to_safetensors_and_back(tmp_path):
    model = nn.Sequential(OrderedDict(a=nn.Linear(3, 4), b=nn.BatchNorm1d(4)))
    saver = NonLocalCheckpointer(model, str(tmp_path), cfg=base_cfg(), optimizer=nn.Linear(1, 1))
    saver.save("model_final")
    there, back = tmp_path / "there.safetensors", tmp_path / "back.pth"
    converted = convert_file(str(tmp_path / "model_final.pth"), str(there))
    assert "optimizer" in converted.notes[0]
    convert_file(str(there), str(back))
    for name, tensor in model.state_dict().items():
        assert torch.equal(load_file(there)[name], tensor)
        read = torch.load(back, weights_only=True)["model"][name]
        assert torch.equal(read, tensor) and read.dtype == tensor.dtype
    assert read_config(str(there)) == read_config(str(back)) == base_cfg().dump()
    with pytest.raises(CheckpointError, match="formats to convert to"):
        convert_file(str(back), str(tmp_path / "x.pkl"))


def test_the_script(python, tmp_path):
    def run(*arguments: object) -> subprocess.CompletedProcess:
        command = [str(python), str(TOOL), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True)

    source, target = tmp_path / "r18.pth", tmp_path / "ours.safetensors"
    torch.save(torchvision.models.resnet18().state_dict(), source)
    result = run(source, target, "--from", "torchvision")
    assert result.returncode == 0, result.stderr[-2000:]
    assert 'MODEL.RESNETS.DEPTH "18"' in result.stdout
    with open(target, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert "torch" in json.loads(header["__metadata__"]["versions"])
    refused = run(source, target, "--from", "mmdetection", "--pairwise", "gaussian")
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith("error: not converted: ")


WRITERS = {
    "a tutorial's": lambda weights: {"model_state_dict": weights, "epoch": 3},
    "Lightning's": lambda weights: {
        "state_dict": {f"model.{name}": tensor for name, tensor in weights.items()},
        "pytorch-lightning_version": "2.0",
    },
    "DDP's, compiled": lambda weights: {
        "model": {f"module._orig_mod.{name}": tensor for name, tensor in weights.items()}
    },
}


@pytest.mark.parametrize("writer", WRITERS)
def test_the_containers_of_training_scripts(tmp_path, writer):
    source, target = str(tmp_path / "source.pth"), str(tmp_path / "target.pth")
    resnet = torchvision.models.resnet18().state_dict()
    # mmdetection's names of a backbone
    backbone = {f"backbone.{name}": tensor for name, tensor in resnet.items()}
    for library, weights in (
        ("torchvision", resnet),
        ("timm", resnet),
        ("mmdetection", backbone),
        ("detectron2", {"backbone.bottom_up.stem.conv1.weight": torch.ones(1)}),
    ):
        if library == "detectron2" and writer.startswith("DDP"):
            continue  # whose names are those of DDP in Detectron2's own files, too
        torch.save(weights, source)
        expected = convert_file(source, target, library=library).weights
        torch.save(WRITERS[writer](weights), source)
        converted = convert_file(source, target, library=library).weights
        assert converted.keys() == expected.keys()
        assert all(torch.equal(converted[name], expected[name]) for name in expected)


def test_names_in_a_file_cannot_steer_a_terminal(tmp_path):
    content = {"model": {"conv1.weight": torch.ones(1)}, "epoch\x1b[31m": 3, 7: 1}
    torch.save(content, tmp_path / "source.pth")
    converted = convert_file(str(tmp_path / "source.pth"), str(tmp_path / "target.pth"))
    assert converted.notes == [r"left out, as not of the model: 7, epoch\x1b[31m"]


def test_a_container_of_an_unknown_name(tmp_path):
    torch.save({"net": {"conv1.weight": torch.ones(1)}, "epoch": 3}, tmp_path / "source.pth")
    with pytest.raises(CheckpointError) as error:
        convert_file(
            str(tmp_path / "source.pth"), str(tmp_path / "target.pth"), library="torchvision"
        )
    assert "source.pth holds no tensors: there are none at the top" in str(error.value)
    assert "keys state_dict, model_state_dict, model, " in str(error.value)
    assert str(error.value).endswith("it has net, epoch")
