"""Blocks that keep within each image of a padded batch: as if it were there alone."""

import copy

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone, build_model
from detectron2.structures import ImageList
from torch import nn

from nl_detectron import NonLocalBlock, insert_non_local
from nl_detectron.engine.checks import check_cfg
from nl_detectron.errors import UsageError
from nl_detectron.layers import PAIRWISE_FUNCTIONS
from nl_detectron.modeling.padding import MaskingResNet, image_sizes, scaled, within_images
from tests.models import leave_zero_start, make_non_local, settle, zoo_cfg

SIZES = [(7, 6), (4, 9), (1, 1), (8, 9)]  # odd and even, within 8 x 9


def random_block(pairwise: str, sub_sample: bool, **options) -> NonLocalBlock:
    block = NonLocalBlock(6, pairwise=pairwise, sub_sample=sub_sample, **options).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    return block


def padded_maps() -> torch.Tensor:
    """Of which the padding is as large as the rest: layers before the block have added to it."""
    return torch.randn(len(SIZES), 6, 8, 9, dtype=torch.float64)


@pytest.mark.parametrize("options", [{}, {"norm": lambda channels: nn.GroupNorm(2, channels)}])
@pytest.mark.parametrize("sub_sample", [False, True])
@pytest.mark.parametrize("pairwise", PAIRWISE_FUNCTIONS)
def test_a_block_sees_each_image_alone(pairwise, sub_sample, options):
    block, x = random_block(pairwise, sub_sample, **options), padded_maps()
    z = within_images(block, x, SIZES)
    for index, (height, width) in enumerate(SIZES):
        alone = x[index : index + 1, :, :height, :width].contiguous()
        found = z[index : index + 1, :, :height, :width]
        torch.testing.assert_close(found, block(alone), rtol=1e-12, atol=1e-12)
        outside = torch.ones(8, 9, dtype=torch.bool)
        outside[:height, :width] = False
        assert torch.equal(z[index, :, outside], x[index, :, outside])


@pytest.mark.parametrize("pairwise", PAIRWISE_FUNCTIONS)
def test_gradients_are_those_of_each_image_alone(pairwise):
    block, x = random_block(pairwise, True), padded_maps().requires_grad_()
    within_images(block, x, SIZES).square().sum().backward()
    expected = torch.zeros_like(x)
    for index, (height, width) in enumerate(SIZES):
        alone = x[index : index + 1].detach().clone()
        inner = alone[:, :, :height, :width].clone().requires_grad_()
        block(inner).square().sum().backward()
        alone *= 2  # of what passes
        alone[:, :, :height, :width] = inner.grad
        expected[index] = alone[0]
    torch.testing.assert_close(x.grad, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("pairwise", PAIRWISE_FUNCTIONS)
def test_without_padding_no_bit_differs(pairwise):
    block, x = random_block(pairwise, True), padded_maps()
    with torch.no_grad():
        assert torch.equal(within_images(block, x, [(8, 9)] * len(x)), block(x))


def test_sizes_are_read_from_the_padding():
    sizes = [(30, 41), (64, 17), (1, 1), (64, 64)]
    images = [torch.randn(3, *size) for size in sizes]
    images[0][:, -1], images[0][0, 5] = 0.0, 0.0  # the image's own: a row black but for a corner
    images[0][2, -1, 0] = 1e-3
    assert image_sizes(ImageList.from_tensors(images, 32).tensor) == sizes
    assert image_sizes(torch.randn(2, 3, 32, 64)) is None
    assert image_sizes(torch.zeros(1, 3, 32, 32)) == [(1, 1)]  # of nothing but padding


def test_maps_of_an_image_are_as_large_as_those_of_it_alone():
    convolutions = [nn.Conv2d(1, 1, 3, stride=2, padding=1) for _ in range(4)]
    for size in range(1, 70):
        x = torch.zeros(1, 1, size, 1)
        for convolution in convolutions:
            x = convolution(x)
        assert scaled([(size, 1)], 16) == [(x.shape[2], 1)]


@pytest.fixture
def backbone(narrow_cfg):
    """With blocks in two stages, and norms that do not depend on what is in the batch."""
    narrow_cfg.MODEL.RESNETS.NORM = "FrozenBN"
    narrow_cfg.MODEL.NON_LOCAL.AFTER = ["res3.1", "res4.-1"]
    narrow_cfg.MODEL.NON_LOCAL.MASK_PADDING = True
    backbone = leave_zero_start(build_backbone(narrow_cfg)).eval()
    for module in backbone.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.bias.normal_(std=0.1)  # so that layers add to the padding
    for block in (backbone.res3.nl1, backbone.res4.nl5):
        nn.init.normal_(block.out.weight)
    return backbone


def test_blocks_in_a_backbone_get_what_is_of_the_image(backbone):
    """By each block's own input: what is around it has padding in its convolutions."""
    assert type(backbone) is MaskingResNet
    seen = []
    for block in (backbone.res3.nl1, backbone.res4.nl5):
        block.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    images = [torch.randn(3, 61, 95), torch.randn(3, 96, 40)]
    with torch.no_grad():
        backbone(ImageList.from_tensors(images, 32).tensor)
    assert [shape[2:] for shape in seen] == [(8, 12), (12, 5), (4, 6), (6, 3)]


def test_a_backbone_without_padding_is_the_same_bit_for_bit(backbone, narrow_cfg):
    narrow_cfg.MODEL.NON_LOCAL.MASK_PADDING = False
    plain = build_backbone(narrow_cfg).eval()
    plain.load_state_dict(backbone.state_dict())
    alike, padded = torch.randn(2, 3, 64, 96), torch.randn(2, 3, 64, 96)
    padded[0, :, 40:] = 0
    with torch.no_grad():
        assert torch.equal(backbone(alike)["res4"], plain(alike)["res4"])
        one, other = backbone(padded)["res4"], plain(padded)["res4"]
        assert not torch.equal(one[0], other[0])
        torch.testing.assert_close(one[1], other[1])  # its neighbour's padding is none of its own


def test_a_larger_neighbour_does_not_change_what_a_block_adds(backbone):
    """All convolutions but the stem's are 1x1 here, so that the blocks alone could see it."""
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            with torch.no_grad():
                middle = torch.tensor([0.0, 1.0, 0.0])
                module.weight *= middle.outer(middle)
    backbone.double()
    image = torch.randn(3, 64, 64, dtype=torch.float64)
    larger = torch.randn(3, 128, 96, dtype=torch.float64)
    with torch.no_grad():
        alone = backbone(ImageList.from_tensors([image], 32).tensor)["res4"]
        beside = backbone(ImageList.from_tensors([image, larger], 32).tensor)["res4"]
    torch.testing.assert_close(beside[:1, :, :4, :4], alone, rtol=1e-6, atol=1e-6)


def test_a_trace_holds_for_images_of_other_padding(backbone):
    def padded(height: int, width: int) -> torch.Tensor:
        return ImageList.from_tensors([torch.randn(3, height, width)], 32).tensor

    class Res4(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = backbone

        def forward(self, x):
            return self.backbone(x)["res4"]

    with torch.no_grad():
        traced = torch.jit.trace(Res4(), padded(50, 70), check_trace=False)
        for size in ((40, 33), (64, 96), (97, 100)):
            x = padded(*size)
            torch.testing.assert_close(traced(x), backbone(x)["res4"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mask", "c4", "retinanet"])
def test_whole_detectors_run_with_it(name):
    cfg = zoo_cfg(name)
    make_non_local(cfg)
    plain = leave_zero_start(settle(build_model(cfg))).eval()
    cfg.MODEL.NON_LOCAL.MASK_PADDING = True
    model = build_model(cfg).eval()
    model.load_state_dict(plain.state_dict())
    sizes = ((90, 120), (64, 64))
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]
    with torch.no_grad():
        assert len(model([{"image": image} for image in images])) == 2
        found, expected = (m([{"image": images[1]}])[0]["instances"] for m in (model, plain))
    # alone, of a size that needs no padding
    assert torch.equal(found.scores, expected.scores) and len(found) > 0
    assert type(copy.deepcopy(model.backbone)) is type(model.backbone)


def test_what_cannot_be_masked_is_said(narrow_cfg):
    narrow_cfg.MODEL.NON_LOCAL.MASK_PADDING = True
    narrow_cfg.MODEL.NON_LOCAL.NORM = "BN"
    with pytest.raises(UsageError, match="takes its statistics over a batch"):
        check_cfg(narrow_cfg)
    narrow_cfg.MODEL.NON_LOCAL.NORM = ""
    narrow_cfg.MODEL.NON_LOCAL.AFTER = []
    resnet = build_backbone(narrow_cfg)
    resnet.num_classes = 10
    with pytest.raises(ValueError, match="without a classifier"):
        insert_non_local(resnet, mask_padding=True)
    assert "nl4" not in dict(resnet.res4.named_children())
