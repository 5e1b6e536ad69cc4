import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_KEYPOINT_HEAD_REGISTRY
from detectron2.modeling.roi_heads import build_keypoint_head

from nl_detectron import BlockOptions, NonLocalBlock, NonLocalKeypointHead

SHAPE = ShapeSpec(channels=8, height=14, width=14)


@pytest.fixture
def cfg(narrow_cfg):
    narrow_cfg.MODEL.ROI_KEYPOINT_HEAD.NAME = "NonLocalKeypointHead"
    narrow_cfg.MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS = [12] * 7 + [16]
    return narrow_cfg


def test_four_blocks_one_after_every_second_convolution(cfg):
    head = build_keypoint_head(cfg, SHAPE)
    names = [name for name, _ in head.named_children()]
    for index in (2, 4, 6, 8):
        assert names[names.index(f"nl{index}") - 1] == f"conv_fcn_relu{index}"
    assert sum(isinstance(m, NonLocalBlock) for m in head.modules()) == 4
    assert head.nl2.in_channels == 12 and head.nl8.in_channels == 16


@pytest.mark.parametrize("norm", ["", "BN"])
def test_zero_start_survives_the_heads_own_initialisation(cfg, norm):
    cfg.MODEL.ROI_KEYPOINT_HEAD.NON_LOCAL.NORM = norm
    cfg.MODEL.ROI_KEYPOINT_HEAD.NAME = "KRCNNConvDeconvUpsampleHead"
    plain = build_keypoint_head(cfg, SHAPE).eval()
    cfg.MODEL.ROI_KEYPOINT_HEAD.NAME = "NonLocalKeypointHead"
    head = build_keypoint_head(cfg, SHAPE).eval()
    keys = head.load_state_dict(plain.state_dict(), strict=False)
    assert not keys.unexpected_keys
    assert all(key.startswith("nl") for key in keys.missing_keys)
    x = torch.randn(3, 8, 14, 14)
    assert torch.equal(head.layers(x), plain.layers(x))
    assert head.layers(x[:0]).shape == (0, 17, 56, 56)


def test_the_blocks_are_in_the_data_flow(cfg):
    head = build_keypoint_head(cfg, SHAPE)
    x = torch.randn(3, 8, 14, 14)
    before = head.layers(x)
    torch.nn.init.normal_(head.nl6.out.weight)
    assert not torch.equal(head.layers(x), before)


def test_config_reaches_the_blocks(cfg):
    node = cfg.MODEL.ROI_KEYPOINT_HEAD.NON_LOCAL
    node.AFTER, node.PAIRWISE, node.INNER_RATIO = [1], "gaussian", 0.25
    head = build_keypoint_head(cfg, SHAPE)
    assert head.nl1.pairwise == "gaussian" and head.nl1.inner_channels == 3
    assert not hasattr(head, "nl2")


@pytest.mark.parametrize("after", [[0], [9], [2, 2], [-1]])
def test_refuses_convolutions_that_are_not_there(cfg, after):
    cfg.MODEL.ROI_KEYPOINT_HEAD.NON_LOCAL.AFTER = after
    with pytest.raises(ValueError, match="KEYPOINT_HEAD.NON_LOCAL.AFTER = .*1 to 8"):
        build_keypoint_head(cfg, SHAPE)


def test_explicit_arguments_and_typos():
    options = BlockOptions(inner_ratio=0.5, pairwise="dot_product")
    head = NonLocalKeypointHead(
        SHAPE, num_keypoints=5, conv_dims=[8, 8], non_local_after=[2], non_local_options=options
    )
    assert head.nl2.pairwise == "dot_product"
    with pytest.raises(TypeError, match="los_weight"):
        NonLocalKeypointHead(
            SHAPE,
            num_keypoints=5,
            conv_dims=[8, 8],
            non_local_after=[2],
            non_local_options=options,
            los_weight=1.0,
        )


def test_is_registered():
    assert ROI_KEYPOINT_HEAD_REGISTRY.get("NonLocalKeypointHead") is NonLocalKeypointHead
