import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_KEYPOINT_HEAD_REGISTRY
from detectron2.modeling.roi_heads import build_box_head, build_keypoint_head, build_mask_head

from nl_detectron import BlockOptions, NonLocalBlock, NonLocalKeypointHead
from nl_detectron.engine.checks import check_model
from nl_detectron.engine.unused import unused_options
from nl_detectron.errors import UsageError
from nl_detectron.layers import non_local_blocks
from nl_detectron.modeling import NonLocalBoxHead, NonLocalMaskHead

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


# Of the box and the mask head: the config's node, its builder, ours, Detectron2's, a layer's name
BOX = ("ROI_BOX_HEAD", build_box_head, "NonLocalBoxHead", "FastRCNNConvFCHead", "conv")
MASK = (
    "ROI_MASK_HEAD",
    build_mask_head,
    "NonLocalMaskHead",
    "MaskRCNNConvUpsampleHead",
    "mask_fcn",
)


def head_cfg(cfg, node: str, name: str):
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL[node].NAME, cfg.MODEL[node].NUM_CONV, cfg.MODEL[node].CONV_DIM = name, 4, 12
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 1, 16
    return cfg


@pytest.mark.parametrize("norm", ["", "BN"])
@pytest.mark.parametrize(("node", "build", "name", "stock", "layer"), [BOX, MASK])
def test_other_heads_equal_detectron2s_at_the_start(
    narrow_cfg, node, build, name, stock, layer, norm
):
    cfg = head_cfg(narrow_cfg, node, stock)
    cfg.MODEL[node].NORM = norm
    cfg.MODEL[node].NON_LOCAL.NORM = norm
    plain = build(cfg, SHAPE).eval()
    in_vain = [f"MODEL.{node}.NON_LOCAL.NORM {norm} has no effect"] if norm else []
    assert [note.partition(" with ")[0] for note in unused_options(cfg)] == in_vain
    cfg.MODEL[node].NAME = name
    check_model(cfg)
    assert unused_options(cfg) == []
    head = build(cfg, SHAPE).eval()
    names = [child for child, _ in head.named_children()]
    assert list(non_local_blocks(head)) == ["nl2", "nl4"]
    for index in (2, 4):
        assert names[names.index(f"nl{index}") - 1] == f"{layer}{index}"
    keys = head.load_state_dict(plain.state_dict(), strict=False)
    assert not keys.unexpected_keys and all(key.startswith("nl") for key in keys.missing_keys)
    x = torch.randn(3, 8, 14, 14)
    run = (lambda h, x: h.layers(x)) if node == "ROI_MASK_HEAD" else (lambda h, x: h(x))
    expected = run(plain, x)
    assert torch.equal(run(head, x), expected)
    assert run(head, x[:0]).shape == (0, *expected.shape[1:])
    torch.nn.init.normal_(head.nl4.out.weight)
    torch.nn.init.ones_(head.nl4.norm.weight if norm else head.nl4.out.bias)
    assert not torch.equal(run(head, x), expected)


@pytest.mark.parametrize(
    ("head", "num_conv", "after", "message"),
    [
        (BOX, 0, [2, 4], "ROI_BOX_HEAD.NON_LOCAL.AFTER = .*no convolutions.*ROI_BOX_HEAD.NUM_CONV"),
        (BOX, 2, [2, 4], r"ROI_BOX_HEAD.NON_LOCAL.AFTER = \[2, 4\]: expected .* 1 to 2"),
        (MASK, 0, [1], "ROI_MASK_HEAD.NON_LOCAL.AFTER = .*no convolutions"),
        (MASK, 4, [5], "ROI_MASK_HEAD.NON_LOCAL.AFTER = .* 1 to 4"),
        (MASK, 4, ["2"], "ROI_MASK_HEAD.NON_LOCAL.AFTER = .* 1 to 4"),
        (BOX, 4, [1, 1], "ROI_BOX_HEAD.NON_LOCAL.AFTER = .* 1 to 4"),
    ],
)
def test_other_heads_refuse_convolutions_that_are_not_there(
    narrow_cfg, head, num_conv, after, message
):
    node, build, name, *_ = head
    cfg = head_cfg(narrow_cfg, node, name)
    cfg.MODEL[node].NUM_CONV, cfg.MODEL[node].NON_LOCAL.AFTER = num_conv, after
    with pytest.raises(ValueError, match=message):
        build(cfg, SHAPE)
    with pytest.raises(UsageError, match=message) as error:
        check_model(cfg)
    assert "\n" not in str(error.value)


def test_other_heads_by_explicit_arguments():
    options = BlockOptions(pairwise="gaussian")
    common = {"conv_dims": [8, 8], "non_local_after": [1], "non_local_options": options}
    box = NonLocalBoxHead(SHAPE, fc_dims=[16], **common)
    mask = NonLocalMaskHead(SHAPE, num_classes=3, **common)
    assert box.nl1.pairwise == mask.nl1.pairwise == "gaussian"
    with pytest.raises(ValueError, match="1 to 1"):  # the second is the transposed one
        NonLocalMaskHead(SHAPE, num_classes=3, conv_dims=[8, 8], non_local_after=[2])


def test_padding_and_box_heads_that_are_not_read(narrow_cfg):
    cfg = head_cfg(narrow_cfg, "ROI_BOX_HEAD", "NonLocalBoxHead")
    cfg.MODEL.ROI_BOX_HEAD.NON_LOCAL.MASK_PADDING = True
    [note] = unused_options(cfg)
    assert "ROI_BOX_HEAD.NON_LOCAL.MASK_PADDING True has no effect: the head's regions" in note
    cfg.MODEL.ROI_HEADS.NAME = "Res5ROIHeads"
    [note] = unused_options(cfg)
    assert "no effect with MODEL.ROI_HEADS.NAME Res5ROIHeads, whose box head is the" in note
