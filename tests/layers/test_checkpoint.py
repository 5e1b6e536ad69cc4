"""The block's activation checkpointing: the same training with less memory."""

import copy

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone import BasicStem, ResNet

from dev.benchmark.measure import held_memory
from nl_detectron import BlockOptions, NonLocalBlock, add_non_local_config
from nl_detectron.layers import PAIRWISE_FUNCTIONS
from nl_detectron.modeling import non_local_resnet

all_pairwise = pytest.mark.parametrize("pairwise", PAIRWISE_FUNCTIONS)


def pair(**options) -> tuple[NonLocalBlock, NonLocalBlock]:
    block = NonLocalBlock(16, zero_init=False, **options)
    checkpointed = NonLocalBlock(16, zero_init=False, grad_checkpoint=True, **options)
    checkpointed.load_state_dict(block.state_dict())
    return block, checkpointed


@all_pairwise
@pytest.mark.parametrize("sub_sample", [False, True])
@pytest.mark.parametrize("shape", [(2, 16, 9, 14), (0, 16, 9, 14)])
def test_gradients_are_bitwise_equal(pairwise, sub_sample, shape):
    """And the norm's statistics have seen the batch once."""
    block, checkpointed = pair(pairwise=pairwise, sub_sample=sub_sample, norm="BN")
    if shape[0] == 0:
        block.eval(), checkpointed.eval()  # a batch norm wants something to norm by
    x = torch.randn(shape)
    results = []
    for module in (block, checkpointed):
        given = x.clone().requires_grad_()
        y = module(given)
        (y**2).sum().backward()
        results.append([y, given.grad, *(p.grad for p in module.parameters()), *module.buffers()])
    for expected, actual in zip(*results, strict=True):
        assert torch.equal(actual, expected)


@all_pairwise
@pytest.mark.parametrize("sub_sample", [False, True])
def test_less_is_held_between_forward_and_backward(pairwise, sub_sample):
    block, checkpointed = pair(pairwise=pairwise, sub_sample=sub_sample)
    x = torch.randn(1, 16, 40, 50, requires_grad=True)
    held = held_memory(lambda: checkpointed(x))
    assert held < 0.8 * held_memory(lambda: block(x))
    # y, which a softmax may write into a map of all channels, and the result
    assert 1.5 * x.nbytes <= held < 2.1 * x.nbytes


def test_without_gradients_nothing_changes():
    block, checkpointed = pair()
    x = torch.randn(1, 16, 5, 7)
    with torch.no_grad():
        assert torch.equal(checkpointed(x), block(x))
    checkpointed.eval()
    scripted = torch.jit.script(checkpointed)
    torch.testing.assert_close(scripted(x), block(x))
    assert checkpointed.state_dict().keys() == block.state_dict().keys()


def test_autocast_is_the_same_the_second_time():
    block, checkpointed = pair()
    x = torch.randn(1, 16, 5, 7)
    for module in (block, checkpointed):
        with torch.autocast("cpu", torch.bfloat16):
            y = module(x)
        y.sum().backward()
    assert torch.equal(block.g.weight.grad, checkpointed.g.weight.grad)


def test_config_and_lazy_config_reach_the_blocks():
    cfg = get_cfg()
    add_non_local_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_non_local_resnet_backbone"
    for value in (False, True):
        cfg.MODEL.NON_LOCAL.GRAD_CHECKPOINT = value
        assert build_backbone(cfg, ShapeSpec(channels=3)).res4.nl4.grad_checkpoint is value
    resnet = non_local_resnet(
        stem=BasicStem(out_channels=8),
        stages=ResNet.make_default_stages(18),
        out_features=["res4"],
        non_local_after=["res4.0"],
        non_local_options=BlockOptions(grad_checkpoint=True),
    )
    assert resnet.res4.nl0.grad_checkpoint
    assert copy.deepcopy(resnet).res4.nl0.grad_checkpoint
