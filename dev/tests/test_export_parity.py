"""The table of exported files beside their models, in a short form."""

import itertools
import sys

import pytest
import torch
from detectron2.modeling import build_model

from dev.decided import decide
from dev.export_parity import HEADERS, ITSELF, MODELS, Row, coco_cfg, main, rows, table
from nl_detectron.errors import UsageError
from nl_detectron.export.parity import Difference
from nl_detectron.model_zoo import list_configs
from tests.examples import example
from tests.export.formats import needs
from tests.models import make_narrow

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


# In the ResNet, the pyramid and the heads of boxes, masks and keypoints: every kind of block, and
# what only another place or option has
EVERYWHERE = (
    (
        ("DisentangledNonLocalBlock", {"POSITION": "before_sum"}),
        ("AsymmetricNonLocalBlock", {"ADD_MEAN": True}),
        ("CrissCrossBlock", {"RECURRENCE": 1}),
        ("EfficientAttentionBlock", {}),
        ("EMABlock", {}),
    ),
    (
        ("LatentGNNBlock", {"NODES": 16}),
        ("CrissCrossBlock", {}),
        ("SimplifiedNonLocalBlock", {}),
        ("GlobalContextBlock", {}),
        ("NonLocalBlock", {"PAIRWISE": "concatenation"}),
    ),
)


def narrow_cfg(name: str, *, width: int = 8):
    cfg = make_narrow(coco_cfg(name), stem=2 * width, res2=4 * width, width=width)
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 32
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 96, 160
    return cfg


def test_models_are_of_the_zoo():
    assert set(MODELS.values()) <= set(list_configs())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "format"), [("mask", "onnx"), ("retinanet", "torchscript")])
def test_narrow_models_are_the_same_as_files(name, format):
    """At the other models' width the scores of one differ by 1.1e-4 on processors with AVX-512."""
    assert_the_same(name, narrow_cfg(name, width=16), format)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kinds", "format"),
    [
        *itertools.product(EVERYWHERE, ("onnx", "torchscript")),
        (EVERYWHERE[0], "torch-export"),  # which takes a minute
    ],
)
def test_models_with_every_kind_of_block_everywhere(kinds, format):
    cfg = narrow_cfg("mask")
    model = cfg.MODEL
    model.BACKBONE.NAME = "build_non_local_pyramid_resnet_fpn_backbone"
    model.KEYPOINT_ON = True
    heads = (model.ROI_BOX_HEAD, model.ROI_MASK_HEAD, model.ROI_KEYPOINT_HEAD)
    for head, kind in zip(heads, ("Box", "Mask", "Keypoint"), strict=True):
        head.NAME = f"NonLocal{kind}Head"
    model.ROI_BOX_HEAD.NUM_CONV, model.ROI_BOX_HEAD.CONV_DIM = 2, 32
    model.ROI_KEYPOINT_HEAD.CONV_DIMS = [32] * 2
    nodes = (model.NON_LOCAL, model.FPN.NON_LOCAL, *(head.NON_LOCAL for head in heads))
    for node, (block, options) in zip(nodes, kinds, strict=True):
        node.update(BLOCK=block, **options)
    for head in heads:
        head.NON_LOCAL.AFTER = [2]
    assert_the_same("mask", cfg, format)


def assert_the_same(name, cfg, format):
    needs(format)
    itself, exported = rows(name, cfg, [format])
    assert itself.format == ITSELF and exported.format == format
    assert len(exported.differences) == 4 and exported.passes
    assert sum(row.counts[0] for row in exported.differences) > 20


def test_random_weights_decide():
    """Scores far from each other, and in the order of none but the best class."""
    model = decide(build_model(narrow_cfg("mask")), example(training=False))
    found = model(example(training=False))[0]["instances"]
    assert len(found) > 10 and len(found.pred_classes.unique()) > 5
    gaps = -found.scores.diff()
    assert found.scores[0] < 1 and gaps.median() > 1e-4
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_row_says_the_worst_of_all_images():
    same = Difference("1", (2, 2), same_classes=True, boxes=1e-4, scores=1e-6, masks=0.999)
    other = Difference("2", (3, 3), same_classes=True, boxes=1e-3, scores=1e-7, masks=1.0)
    row = Row("mask", "onnx", [same, other])
    assert row.passes
    assert row.cells() == (
        *("mask", "onnx", "2", "5", "5", "1.0e-03", "1.0e-06", "0.9990", "-", "ok"),
    )
    worse = Row("mask", "onnx", [same, Difference("2", (3, 2), same_classes=False)])
    assert worse.cells()[-1] == "DIFFERS"
    text = table([row, worse])
    assert all(header in text for header in HEADERS) and text.count("\n") == 3


@pytest.mark.parametrize(("option", "value"), [("models", "yolo"), ("formats", "tflite")])
def test_unknown_names_are_refused(option, value, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["export_parity", f"--{option}", value])
    with pytest.raises(UsageError, match=f"{option} must be some of .*got '{value}'"):
        main()
