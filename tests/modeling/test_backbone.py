import pytest
import torch
from detectron2.modeling import build_backbone

from nl_detectron import NonLocalBlock
from nl_detectron.modeling.backbone import BLOCKS_PER_STAGE


def blocks_of(backbone) -> list[str]:
    return [name for name, m in backbone.named_modules() if isinstance(m, NonLocalBlock)]


@pytest.mark.parametrize("depth", BLOCKS_PER_STAGE)
def test_every_depth(narrow_cfg, depth):
    narrow_cfg.MODEL.RESNETS.DEPTH = depth
    if depth < 50:  # Detectron2 allows no other width here
        narrow_cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    narrow_cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    narrow_cfg.MODEL.NON_LOCAL.AFTER = ["res2.-1", "res3.-1", "res4.-2", "res5.-1"]
    last = [count - 1 for count in BLOCKS_PER_STAGE[depth]]
    last[2] -= 1
    backbone = build_backbone(narrow_cfg)
    expected = [f"res{stage}.nl{index}" for stage, index in enumerate(last, start=2)]
    assert blocks_of(backbone) == expected


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("build_non_local_resnet_backbone", ""),
        ("build_non_local_resnet_fpn_backbone", "bottom_up."),
        ("build_non_local_retinanet_resnet_fpn_backbone", "bottom_up."),
    ],
)
def test_each_backbone_equals_detectron2s_at_the_start(narrow_cfg, name, prefix):
    narrow_cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    narrow_cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    narrow_cfg.MODEL.BACKBONE.NAME = name
    non_local = build_backbone(narrow_cfg).eval()
    narrow_cfg.MODEL.BACKBONE.NAME = name.replace("non_local_", "")
    plain = build_backbone(narrow_cfg).eval()
    assert blocks_of(non_local) == [f"{prefix}res4.nl4"]
    assert not blocks_of(plain)
    keys = non_local.load_state_dict(plain.state_dict(), strict=False)
    assert all(f"{prefix}res4.nl4." in key for key in keys.missing_keys)
    assert non_local.output_shape() == plain.output_shape()
    x = torch.randn(2, 3, 64, 96)
    expected = plain(x)
    for feature, value in non_local(x).items():
        assert torch.equal(value, expected[feature]), feature


def test_c4_ends_with_res4(narrow_cfg):
    """C4 models have res5 in the RoI head, so their backbone has no such stage."""
    backbone = build_backbone(narrow_cfg)
    assert blocks_of(backbone) == ["res4.nl4"] and not hasattr(backbone, "res5")
    narrow_cfg.MODEL.NON_LOCAL.AFTER = ["res5.0"]
    with pytest.raises(ValueError, match=r"MODEL.NON_LOCAL.AFTER = \['res5.0'\].*res4.0 to res4.5"):
        build_backbone(narrow_cfg)


def test_dc5(narrow_cfg):
    narrow_cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    narrow_cfg.MODEL.RESNETS.RES5_DILATION = 2
    narrow_cfg.MODEL.NON_LOCAL.AFTER = ["res4.-2", "res5.-2"]
    backbone = build_backbone(narrow_cfg)
    assert blocks_of(backbone) == ["res4.nl4", "res5.nl1"]
    assert backbone(torch.randn(1, 3, 64, 64))["res5"].shape == (1, 128, 4, 4)


def test_resnext(narrow_cfg):
    narrow_cfg.MODEL.RESNETS.NUM_GROUPS = 4
    narrow_cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    backbone = build_backbone(narrow_cfg)
    assert backbone.res4.nl4.in_channels == 64
    assert backbone.res4[0].conv2.groups == 4


def test_config_reaches_the_block(narrow_cfg):
    node = narrow_cfg.MODEL.NON_LOCAL
    node.PAIRWISE, node.INNER_RATIO, node.NORM = "dot_product", 0.25, "BN"
    node.SUB_SAMPLE = node.USE_SCALE = False
    block = build_backbone(narrow_cfg).res4.nl4
    assert (block.pairwise, block.sub_sample, block.use_scale) == ("dot_product", False, False)
    assert block.inner_channels == 16 and isinstance(block.norm, torch.nn.BatchNorm2d)


def test_freeze_at_freezes_the_blocks_of_the_stages_it_freezes(narrow_cfg):
    narrow_cfg.MODEL.BACKBONE.FREEZE_AT = 3
    narrow_cfg.MODEL.NON_LOCAL.AFTER = ["res3.0", "res4.-2"]
    backbone = build_backbone(narrow_cfg)
    assert not any(p.requires_grad for p in backbone.res3.nl0.parameters())
    assert all(p.requires_grad for p in backbone.res4.nl4.parameters())


@pytest.mark.parametrize("depth", [18, 50, 101])
def test_placement_is_refused_before_anything_is_built(narrow_cfg, depth, monkeypatch):
    def build(*_):
        raise AssertionError("built")

    monkeypatch.setattr("nl_detectron.modeling.backbone.build_resnet_backbone", build)
    narrow_cfg.MODEL.RESNETS.DEPTH = depth
    count = BLOCKS_PER_STAGE[depth][2]
    narrow_cfg.MODEL.NON_LOCAL.AFTER = [f"res4.{count}"]
    with pytest.raises(ValueError, match=f"'res4.{count}'.*res4.0 to res4.{count - 1}"):
        build_backbone(narrow_cfg)


def test_unknown_depth(narrow_cfg):
    narrow_cfg.MODEL.RESNETS.DEPTH = 51
    with pytest.raises(ValueError, match=r"\[18, 34, 50, 101, 152\], got 51"):
        build_backbone(narrow_cfg)


def test_adding_the_config_leaves_detectron2s_defaults_alone(narrow_cfg):
    from detectron2.config import get_cfg

    assert "NON_LOCAL" in narrow_cfg.MODEL
    assert "NON_LOCAL" not in get_cfg().MODEL
    assert "OPTIMIZER" not in get_cfg().SOLVER
