"""A block on the levels of an FPN, held against Libra R-CNN's method written anew."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn

from nl_detectron import insert_non_local
from nl_detectron.engine.checks import check_model
from nl_detectron.engine.unused import unused_options
from nl_detectron.errors import UsageError
from nl_detectron.layers import non_local_blocks
from nl_detectron.modeling import insert_in_pyramid, non_local_fpn
from nl_detectron.modeling.pyramid import NonLocalFPN, adaptive_max_pool

LEVELS = ["p2", "p3", "p4", "p5", "p6"]
ODD = (2, 3, 96, 160)  # images whose p5 is 3 x 5 and p6 2 x 3


class Steps(Backbone):
    """Maps of the strides of a ResNet's stages, from almost nothing."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return {f"res{i}": self.conv(F.avg_pool2d(x, 2**i)) for i in (2, 3, 4, 5)}

    def output_shape(self):
        return {f"res{i}": ShapeSpec(channels=4, stride=2**i) for i in (2, 3, 4, 5)}


def make_fpn(first: int = 2) -> FPN:
    names = [f"res{i}" for i in range(first, 6)]
    return FPN(Steps(), names, 8, top_block=LastLevelMaxPool()).eval()


def with_block(fpn: FPN, level: str = "p4", **options) -> FPN:
    """A copy with a block that does something."""
    fpn = copy.deepcopy(fpn)
    block = insert_in_pyramid(fpn, level, **options)
    nn.init.normal_(block.out.weight, std=0.3)
    return fpn


def balanced(features: dict[str, Tensor], level: str, refine: nn.Module) -> dict[str, Tensor]:
    """Libra R-CNN's balanced feature pyramid, eqs. 3 and 4 and its released code's resizing."""
    size, place = features[level].shape[2:], LEVELS.index(level)
    gathered = [
        F.adaptive_max_pool2d(m, size) if i < place else F.interpolate(m, size, mode="nearest")
        for i, m in enumerate(features.values())
    ]
    refined = refine(torch.stack(gathered).mean(0))
    return {
        name: m
        + (
            F.interpolate(refined, m.shape[2:], mode="nearest")
            if i < place
            else F.adaptive_max_pool2d(refined, m.shape[2:])
        )
        for i, (name, m) in enumerate(features.items())
    }


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("add_mean", [False, True])
def test_is_libra_r_cnns_method(level, add_mean):
    plain = make_fpn().double()
    libra = {"inner_ratio": 1.0, "sub_sample": False, "use_scale": False}
    fpn = with_block(plain, level, add_mean=add_mean, **libra)
    x = torch.randn(ODD, dtype=torch.float64)
    refine = fpn.block if add_mean else lambda mean: fpn.block(mean) - mean
    found, expected = fpn(x), balanced(plain(x), level, refine)
    assert list(found) == LEVELS
    for name in LEVELS:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-12)
        assert not torch.equal(found[name], plain(x)[name])


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_pooling_is_pytorchs_adaptive_one(factor):
    for length in range(1, 40):
        x = torch.randn(2, 3, length, 2)
        size = math.ceil(length / factor)
        expected = F.adaptive_max_pool2d(x, (size, 2))
        assert torch.equal(adaptive_max_pool(x, size, 2, factor), expected)
        assert torch.equal(adaptive_max_pool(x.mT, size, 3, factor), expected.mT)


@pytest.mark.parametrize("name", ["resnet_fpn", "retinanet_resnet_fpn"])
def test_the_backbones_equal_detectron2s_at_the_start(narrow_cfg, name):
    cfg = narrow_cfg
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.NON_LOCAL.PAIRWISE = "dot_product"
    cfg.MODEL.BACKBONE.NAME = f"build_non_local_pyramid_{name}_backbone"
    twin = build_backbone(cfg).eval()
    assert unused_options(cfg) == []
    check_model(cfg)
    cfg.MODEL.BACKBONE.NAME = f"build_{name}_backbone"
    plain = build_backbone(cfg).eval()
    assert list(non_local_blocks(twin)) == ["bottom_up.res4.nl4", "nl4"]
    assert twin.block.pairwise == "dot_product"
    assert twin.bottom_up.res4.nl4.pairwise == "embedded_gaussian"
    keys = twin.load_state_dict(plain.state_dict(), strict=False)
    assert not keys.unexpected_keys and all("nl4." in key for key in keys.missing_keys)
    assert twin.output_shape() == plain.output_shape()
    assert (twin.size_divisibility, twin.padding_constraints) == (32, plain.padding_constraints)
    x = torch.randn(ODD)
    for feature, value in plain(x).items():
        assert torch.equal(twin(x)[feature], value), feature
    assert "MODEL.FPN.NON_LOCAL.PAIRWISE dot_product has no effect" in unused_options(cfg)[0]


class Levels(nn.Module):
    def __init__(self, fpn: FPN):
        super().__init__()
        self.fpn = fpn

    def forward(self, x):
        return list(self.fpn(x).values())


@pytest.mark.parametrize("level", ["p4", "p6"])
def test_a_trace_holds_for_other_sizes(level):
    model = Levels(with_block(make_fpn(), level))
    with torch.no_grad():
        traced = torch.jit.trace(model, torch.randn(ODD), check_trace=False)
        for shape in ((1, 3, 64, 128), (2, 3, 224, 96)):
            x = torch.randn(shape)
            for found, expected in zip(traced(x), model(x), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_an_exported_program_holds_for_other_sizes():
    """Of those whose p5 is odd as the example's, for which the FPN itself asks."""
    model, sizes = Levels(with_block(make_fpn(4))), {2: torch.export.Dim.AUTO}
    with torch.no_grad():
        program = torch.export.export(model, (torch.randn(ODD),), dynamic_shapes={"x": sizes})
        for height in (96, 160, 224):
            x = torch.randn(2, 3, height, 160)
            for found, expected in zip(program.module()(x), model(x), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_gradients_copies_and_no_image():
    fpn = with_block(make_fpn())
    x = torch.randn(ODD)
    fpn(x)["p6"].sum().backward()  # to which all levels come through the block
    assert all(p.grad.abs().max() > 0 for p in fpn.fpn_lateral2.parameters())
    assert all(p.grad is not None for p in fpn.block.parameters())
    for twin in (copy.deepcopy(fpn), pickle.loads(pickle.dumps(fpn))):
        assert type(twin) is NonLocalFPN and torch.equal(twin(x)["p3"], fpn(x)["p3"])
    assert fpn(x[:0])["p6"].shape == (0, 8, 2, 3)


def test_in_a_lazy_config():
    fpn = non_local_fpn(
        bottom_up=Steps(), in_features=["res4", "res5"], out_channels=8, non_local_level="p5"
    )
    assert list(non_local_blocks(fpn)) == ["nl5"] and not fpn.add_mean
    with pytest.raises(TypeError, match="out_chanels"):
        non_local_fpn(bottom_up=Steps(), in_features=["res4"], out_chanels=8)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("LEVEL", "p7", "MODEL.FPN.NON_LOCAL: level must be one of p3, p4, p5, p6, got 'p7'"),
        ("MASK_PADDING", True, "MODEL.FPN.NON_LOCAL: mask_padding=True is for blocks in a ResNet"),
        ("INNER_RATIO", -1.0, "MODEL.FPN.NON_LOCAL: inner_ratio must be above 0"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_built(narrow_cfg, key, value, message):
    narrow_cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    narrow_cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    narrow_cfg.MODEL.BACKBONE.NAME = "build_non_local_pyramid_resnet_fpn_backbone"
    narrow_cfg.MODEL.FPN.NON_LOCAL[key] = value
    with pytest.raises(UsageError, match=message) as error:
        check_model(narrow_cfg)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=message):
        build_backbone(narrow_cfg)


def test_a_refusal_leaves_the_model_unchanged():
    fpn = make_fpn()
    with pytest.raises(ValueError, match="level must be one of p2, .*got 'p9'"):
        insert_in_pyramid(fpn, "p9")
    with pytest.raises(ValueError, match="one Detectron2 FPN, ModuleList has 2"):
        insert_in_pyramid(nn.ModuleList([fpn, make_fpn()]))
    with pytest.raises(ValueError, match="wrapped in DataParallel"):
        insert_in_pyramid(nn.DataParallel(fpn))
    assert type(fpn) is FPN and not non_local_blocks(fpn)
    insert_in_pyramid(nn.Sequential(fpn))
    with pytest.raises(ValueError, match="without a non-local block; got a NonLocalFPN"):
        insert_in_pyramid(fpn)
    with pytest.raises(ValueError, match="NonLocalFPN has 0"):
        insert_non_local(fpn)
