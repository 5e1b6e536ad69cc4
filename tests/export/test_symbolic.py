"""What stands in for parts of Detectron2 while torch.export records gives what they give."""

import pytest
import torch
from detectron2.modeling import anchor_generator, build_backbone, poolers
from detectron2.modeling.proposal_generator import proposal_utils
from detectron2.structures import Boxes, ImageList
from torch import nn
from torchvision.ops import boxes as box_ops

from nl_detectron.errors import UsageError
from nl_detectron.export.record import check_format
from nl_detectron.export.symbolic import (
    FiniteBoxes,
    batched_nms,
    exported_program,
    grid_offsets,
    of_first_image,
    padded,
    symbolic,
)
from tests.fixtures import QUICK
from tests.models import base_cfg

from .test_nms import THRESHOLD, by_class, candidates


@pytest.mark.parametrize("count", [3000, 20, 2, 0])
@pytest.mark.parametrize("least", [0, -100])
def test_each_class_is_suppressed_alone(count, least):
    boxes, scores, classes = candidates(count)
    boxes = boxes.double() + least
    kept = batched_nms(boxes, scores, classes, THRESHOLD)
    assert torch.equal(kept, by_class(boxes, scores.double(), classes))


def test_norms_are_those_of_evaluation():
    norm = nn.BatchNorm2d(3).eval()
    for values in (*norm.parameters(), norm.running_mean, norm.running_var):
        nn.init.uniform_(values, 0.5, 2)
    x = torch.randn(2, 3, 4, 5)
    expected = norm(x)
    with symbolic():
        assert torch.equal(norm(x), expected)


@pytest.mark.parametrize("divisor", [0, 1, 32])
@pytest.mark.parametrize("constraints", [None, {"size_divisibility": 16}, {}])
def test_an_image_is_padded_as_detectron2_does(divisor, constraints):
    image = torch.rand(3, 33, 64)
    found = padded([image], divisor, padding_constraints=constraints)
    expected = ImageList.from_tensors([image], divisor, padding_constraints=constraints)
    assert torch.equal(found.tensor, expected.tensor)
    assert found.image_sizes == [tuple(size) for size in expected.image_sizes]


@pytest.mark.parametrize(("stride", "offset"), [(4, 0.0), (16, 0.5)])
def test_anchors_are_in_the_same_places(stride, offset):
    like = torch.zeros(1)
    expected = anchor_generator._create_grid_offsets([5, 7], stride, offset, like)
    for found, other in zip(grid_offsets([5, 7], stride, offset, like), expected, strict=True):
        assert torch.equal(found, other) and found.dtype == other.dtype


@pytest.mark.parametrize("count", [3, 0])
def test_boxes_have_the_index_of_their_image(count):
    boxes = [Boxes(torch.rand(count, 4))]
    expected = poolers.convert_boxes_to_pooler_format(boxes)
    assert torch.equal(of_first_image(boxes), expected)


def test_detectron2_is_itself_again():
    before = (vars(ImageList)["from_tensors"], Boxes.__init__, box_ops.batched_nms)
    with pytest.raises(KeyError), symbolic():
        assert proposal_utils.min is torch.sym_min
        raise KeyError
    assert (vars(ImageList)["from_tensors"], Boxes.__init__, box_ops.batched_nms) == before
    assert not hasattr(proposal_utils, "min") and not proposal_utils._is_tracing()


def test_no_other_question_is_answered():
    values = torch.tensor([1.0, torch.inf])
    with FiniteBoxes():
        assert (
            torch.isfinite(values).all() and (torch.isfinite(values) & torch.isfinite(values)).all()
        )
        assert not (values > 1).all()
        assert not (torch.isfinite(values) & (values > 1)).all()


@pytest.mark.parametrize("version", ["2.4.1", "2.11.0+cu128"])
def test_older_versions_of_pytorch_are_named(version, monkeypatch):
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(UsageError, match="needs PyTorch 2.12 or later, this is 2"):
        check_format("torch-export")
    check_format("torchscript")


def test_blocks_that_read_the_padding_are_refused():
    cfg = base_cfg(QUICK["shapes"])
    cfg.MODEL.NON_LOCAL.MASK_PADDING = True
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    with pytest.raises(UsageError, match="format torch-export: blocks with MASK_PADDING"):
        exported_program(lambda image: (image,), build_backbone(cfg), image)
