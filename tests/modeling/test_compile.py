"""torch.compile takes the blocks, and a backbone with them, as one graph: nothing breaks it."""

import itertools

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

from nl_detectron import NonLocalBlock
from nl_detectron.layers import PAIRWISE_FUNCTIONS
from tests.models import SideBySide

# Records and differentiates the graph, but needs no compiler
BACKEND = "aot_eager"


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def results(module: torch.nn.Module, run, x: torch.Tensor) -> list[torch.Tensor]:
    module.zero_grad()
    x = x.clone().requires_grad_()
    y = run(x)
    (y**2).sum().backward()
    return [y.detach(), x.grad, *(p.grad.clone() for p in module.parameters())]


def test_blocks_of_all_forms():
    """In inference, and in training with the same gradients."""
    forms = itertools.product(PAIRWISE_FUNCTIONS, (False, True), (False,))
    blocks = SideBySide(
        NonLocalBlock(
            32,
            pairwise=pairwise,
            sub_sample=sub_sample,
            grad_checkpoint=checkpoint,
            zero_init=False,
        )
        for pairwise, sub_sample, checkpoint in (*forms, ("embedded_gaussian", True, True))
    )
    compiled = torch.compile(blocks, backend=BACKEND, fullgraph=True)
    x = torch.randn(2, 32, 5, 7)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), blocks(x))
    expected, actual = results(blocks, blocks, x), results(blocks, compiled, x)
    for one, other in zip(expected, actual, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)


def test_backbone(narrow_cfg):
    """A ResNet with two blocks and an FPN: one graph, no break, in training and inference."""
    narrow_cfg.MODEL.BACKBONE.NAME = "build_non_local_resnet_fpn_backbone"
    narrow_cfg.MODEL.RESNETS.DEPTH, narrow_cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    narrow_cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    narrow_cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    narrow_cfg.MODEL.FPN.OUT_CHANNELS = 8
    narrow_cfg.MODEL.NON_LOCAL.AFTER = ["res3.0", "res4.-2"]
    backbone = build_backbone(narrow_cfg, ShapeSpec(channels=3))
    for module in backbone.modules():
        if isinstance(module, NonLocalBlock):
            module.reset_parameters(zero_init=False)
    x = torch.randn(1, 3, 64, 96)
    for training in (True, False):
        backbone.train(training)
        compiled = torch.compile(backbone, backend=BACKEND, fullgraph=True)  # or an error
        with torch.set_grad_enabled(training):
            expected, actual = backbone(x), compiled(x)
        assert expected.keys() == actual.keys()
        for name, feature in expected.items():
            torch.testing.assert_close(actual[name], feature, rtol=1e-3, atol=1e-3)
