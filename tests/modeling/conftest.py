import pytest
from detectron2.config import CfgNode, get_cfg

from nl_detectron import add_non_local_config


@pytest.fixture
def narrow_cfg() -> CfgNode:
    """A ResNet-50 on the CPU, narrow enough to run in a moment."""
    cfg = get_cfg()
    add_non_local_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_non_local_resnet_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 16
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4
    cfg.MODEL.RESNETS.NORM = "BN"
    return cfg
