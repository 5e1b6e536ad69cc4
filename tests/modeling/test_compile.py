"""torch.compile takes the blocks, and a backbone with them, as one graph: nothing breaks it."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

from nl_detectron import NonLocalBlock
from nl_detectron.layers import PAIRWISE_FUNCTIONS

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


@pytest.mark.parametrize(
    ("pairwise", "sub_sample", "checkpoint"),
    [
        *(
            (pairwise, sub_sample, False)
            for pairwise in PAIRWISE_FUNCTIONS
            for sub_sample in (False, True)
        ),
        ("embedded_gaussian", True, True),
    ],
)
def test_block(pairwise, sub_sample, checkpoint):
    """In inference, and in training with the same gradients."""
    block = NonLocalBlock(
        32,
        pairwise=pairwise,
        sub_sample=sub_sample,
        grad_checkpoint=checkpoint,
        zero_init=False,
    )
    compiled = torch.compile(block, backend=BACKEND, fullgraph=True)
    x = torch.randn(2, 32, 5, 7)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), block(x))
    expected, actual = results(block, block, x), results(block, compiled, x)
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
    found = torch._dynamo.explain(backbone)(x)
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons
    torch._dynamo.reset()
    for training in (True, False):
        backbone.train(training)
        compiled = torch.compile(backbone, backend=BACKEND, fullgraph=True)
        with torch.set_grad_enabled(training):
            expected, actual = backbone(x), compiled(x)
        assert expected.keys() == actual.keys()
        for name, feature in expected.items():
            torch.testing.assert_close(actual[name], feature, rtol=1e-3, atol=1e-3)
