"""ResNets of torchvision and timm, converted, compute what they computed there."""

import pytest
import torch
import torchvision
from detectron2.modeling import build_backbone

from nl_detectron.checkpoint import CheckpointError
from nl_detectron.checkpoint.converters import convert_file, convert_resnet

from .models import assert_same_features, base_cfg, load_backbone, merged, randomize, stages

timm = pytest.importorskip("timm", reason="needs timm")


RESNETS = [
    ("torchvision", "resnet18", ".safetensors"),
    ("torchvision", "resnet50", ".pth"),
    ("torchvision", "resnext50_32x4d", ".pth"),
    ("torchvision", "wide_resnet50_2", ".safetensors"),
    ("timm", "resnet34", ".pth"),
    ("timm", "resnet50", ".safetensors"),
    ("timm", "resnext50_32x4d", ".pth"),
]


@pytest.mark.parametrize(("library", "name", "suffix"), RESNETS)
def test_resnet(tmp_path, library, name, suffix):
    peer = (
        getattr(torchvision.models, name)() if library == "torchvision" else timm.create_model(name)
    )
    randomize(peer)
    source, target = tmp_path / "peer.pth", tmp_path / f"ours{suffix}"
    torch.save(peer.state_dict(), source)
    converted = convert_file(str(source), str(target), library=library)
    backbone = load_backbone(target, converted.overrides)
    image = torch.randn(1, 3, 96, 64, dtype=torch.float64)
    with torch.no_grad():
        assert_same_features(backbone(image), stages(peer.double(), image))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet50d", "conv1.0.weight"),  # a deep stem
        ("seresnet50", "se.fc1"),
        ("resnet50_gn", "running_var"),
        ("resnet26", "no ResNet of"),
        ("res2net50_26w_4s", "res2.0.convs"),
        ("resnetv2_50", "stem.conv"),
    ],
)
def test_resnets_that_detectron2_does_not_compute(name, message):
    with pytest.raises(CheckpointError, match=message):
        convert_resnet(timm.create_model(name).state_dict())


@pytest.mark.parametrize("name", ["resnet101", "resnet152", "resnext101_32x8d"])
def test_deeper_resnets_have_all_they_need(name):
    with torch.device("meta"):
        peer = getattr(torchvision.models, name)()
    weights = {n: torch.empty_like(w, device="cpu") for n, w in peer.state_dict().items()}
    converted = convert_resnet(weights)
    with torch.device("meta"):
        backbone = build_backbone(merged(base_cfg(), converted.overrides))
    shapes = {n: w.shape for n, w in backbone.state_dict().items() if "num_batches" not in n}
    built = {n: w.shape for n, w in converted.weights.items() if not n.startswith("res5")}
    assert built == shapes
