"""Configs and models under test, and how two models are compared."""

from collections.abc import Iterable
from pathlib import Path

import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode, get_cfg
from detectron2.utils.events import EventStorage
from torch import nn

from nl_detectron import add_non_local_config
from nl_detectron.layers import non_local_blocks

from .examples import example

ZOO = {
    "mask": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "keypoint": "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml",
    "c4": "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml",
    "dc5": "COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x.yaml",
    "retinanet": "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
}


class SideBySide(nn.Module):
    """Blocks on the same map: whatever records them takes seconds to begin with anything."""

    def __init__(self, blocks: Iterable[nn.Module]):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(blocks, N, C, *S) of x (N, C, *S)."""
        return torch.stack([block(x) for block in self.blocks])


def base_cfg(config_file: str | Path | None = None) -> CfgNode:
    """A config with our keys, on the CPU and from random weights."""
    cfg = get_cfg()
    add_non_local_config(cfg)
    if config_file:
        cfg.merge_from_file(str(config_file))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    return cfg


def make_narrow(
    cfg: CfgNode, *, stem: int | None = None, res2: int = 16, width: int = 4
) -> CfgNode:
    """Makes a config's ResNet narrow enough to run in a moment."""
    if stem is not None:
        cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = stem
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = res2, width
    return cfg


def leave_zero_start(model: nn.Module) -> nn.Module:
    """Gives a model's non-local blocks weights with which they do something."""
    for block in non_local_blocks(model).values():
        block.reset_parameters(zero_init=False)
    return model


def zoo_cfg(name: str, *, narrow: bool = True) -> CfgNode:
    """A config of Detectron2's zoo, from random weights, that keeps some detections of those."""
    cfg = base_cfg(model_zoo.get_config_file(ZOO[name]))
    cfg.MODEL.RESNETS.NORM = "BN"  # FrozenBN's statistics are of no use with random weights
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    cfg.TEST.DETECTIONS_PER_IMAGE = 10
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 50
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    if narrow:
        make_narrow(cfg, res2=32, width=8)
        cfg.MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS = [16] * 8
    return cfg


def make_non_local(cfg: CfgNode) -> None:
    name = cfg.MODEL.BACKBONE.NAME
    cfg.MODEL.BACKBONE.NAME = name.replace("build_", "build_non_local_")
    cfg.MODEL.ROI_KEYPOINT_HEAD.NAME = "NonLocalKeypointHead"


def settle(model: nn.Module) -> nn.Module:
    """Gives the norms statistics of real activations, without which random weights overflow."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad(), EventStorage():
        model.train()(example(training=True))
    return model


def assert_same_predictions(model: nn.Module, twin: nn.Module) -> None:
    inputs = example(training=False)
    with torch.no_grad():
        expected = model.eval()(inputs)[0]["instances"].get_fields()
        actual = twin.eval()(inputs)[0]["instances"].get_fields()
    assert len(expected["scores"]) > 0 and actual.keys() == expected.keys()
    for name, value in expected.items():
        other = actual[name]
        if name == "pred_boxes":
            value, other = value.tensor, other.tensor
        assert torch.equal(other, value), name


def assert_same_losses(model: nn.Module, twin: nn.Module) -> None:
    inputs = example(training=True)
    losses = []
    for m in (model, twin):
        torch.manual_seed(1)  # of the sampling of proposals
        with EventStorage():
            losses.append(m.train()(inputs))
    assert losses[0].keys() == losses[1].keys()
    for name, value in losses[0].items():
        assert torch.equal(losses[1][name], value), name
    sum(losses[1].values()).backward()
    for name, block in non_local_blocks(twin).items():
        assert block.out.weight.grad.abs().max() > 0, name
