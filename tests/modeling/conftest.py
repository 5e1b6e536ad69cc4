import pytest
from detectron2.config import CfgNode

from tests.models import base_cfg, make_narrow


@pytest.fixture
def narrow_cfg() -> CfgNode:
    """A ResNet-50 on the CPU, narrow enough to run in a moment."""
    cfg = make_narrow(base_cfg(), stem=8)
    cfg.MODEL.BACKBONE.NAME = "build_non_local_resnet_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.NORM = "BN"
    return cfg
