import json
import subprocess
import sys
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


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_script(tmp_path):
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
