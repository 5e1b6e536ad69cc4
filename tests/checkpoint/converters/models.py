"""Models and configs that converted weights are compared in."""

from pathlib import Path

import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from torch import nn

from nl_detectron.checkpoint import NonLocalCheckpointer
from tests.models import base_cfg

MASK = model_zoo.get_config_file("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
KEYPOINT = model_zoo.get_config_file("COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml")


def merged(cfg: CfgNode, overrides: dict) -> CfgNode:
    for key, value in overrides.items():
        cfg.merge_from_list([key, value])
    return cfg


def randomize(model: nn.Module) -> nn.Module:
    """Norms with statistics of their own, so that none can be confused with another."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if getattr(module, "running_var", None) is not None:
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
            module.weight.data += 1
            module.running_var.copy_(
                torch.rand(module.running_var.shape, generator=generator) + 0.5
            )
    return model.eval()


def stages(resnet: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """res2 to res5 of a ResNet of torchvision or timm."""
    relu = getattr(resnet, "relu", None) or resnet.act1
    x = resnet.maxpool(relu(resnet.bn1(resnet.conv1(x))))
    features = {}
    for stage in (1, 2, 3, 4):
        x = resnet.get_submodule(f"layer{stage}")(x)
        features[f"res{stage + 1}"] = x
    return features


def assert_same_features(found: dict, expected: dict) -> None:
    assert expected.keys() <= found.keys()
    for name, feature in expected.items():
        assert feature.std() > 0.01
        torch.testing.assert_close(found[name], feature, msg=name)


def load_backbone(path: Path, overrides: dict, name: str = "build_resnet_backbone") -> nn.Module:
    cfg = merged(base_cfg(), overrides)
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    backbone = build_backbone(cfg).eval()
    NonLocalCheckpointer(backbone, complete=True).load(str(path))
    return backbone.double()
