"""Anchors equal to torchvision's."""

import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from nl_detectron.modeling import RoundedAnchorGenerator


def test_equals_torchvision():
    sizes, ratios = ((32,), (64,), (128,)), ((0.5, 1.0, 2.0),) * 3
    peer = AnchorGenerator(sizes, ratios)
    generator = RoundedAnchorGenerator(
        sizes=sizes, aspect_ratios=ratios, strides=[4, 8, 16], offset=0.0
    )
    maps = [torch.zeros(1, 1, 64 // stride, 96 // stride) for stride in (4, 8, 16)]
    expected = peer(ImageList(torch.zeros(1, 3, 64, 96), [(64, 96)]), maps)[0]
    assert torch.equal(torch.cat([boxes.tensor for boxes in generator(maps)]), expected)
