"""Equal outputs with mmcv's modules: ContextBlock, CrissCrossAttention, GeneralizedAttention."""

import pytest
import torch
from torch import Tensor, nn

from dev.benchmark.family_peers import criss_cross_attention
from nl_detectron.layers import CrissCrossBlock, GlobalContextBlock, SimplifiedNonLocalBlock

mmcv = pytest.importorskip("mmcv", reason="needs mmcv-lite")

CHANNELS = 16


def random_peer(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module.double().eval()


def assert_equal_outputs(block: nn.Module, peer: nn.Module, weights: dict[str, Tensor]) -> None:
    shapes = {name: value.shape for name, value in block.state_dict().items()}
    block.load_state_dict({name: weights[name].reshape(shape) for name, shape in shapes.items()})
    x = torch.randn(2, CHANNELS, 7, 6, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(block(x), peer(x), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("ratio", [1 / 16, 1 / 4])
def test_global_context_equals_context_block(ratio):
    from mmcv.cnn.bricks.context_block import ContextBlock

    peer = random_peer(ContextBlock(CHANNELS, ratio))
    names = {"conv_mask": "conv_mask", "channel_add_conv.0": "transform"}
    names |= {"channel_add_conv.1": "transform_norm", "channel_add_conv.3": "out"}
    weights = {}
    for name, value in peer.state_dict().items():
        layer, _, parameter = name.rpartition(".")
        weights[f"{names[layer]}.{parameter}"] = value
    assert_equal_outputs(GlobalContextBlock(CHANNELS, inner_ratio=ratio).double(), peer, weights)


@pytest.mark.parametrize("recurrence", [1, 2])
def test_criss_cross_equals_criss_cross_attention(recurrence):
    peer = random_peer(criss_cross_attention(CHANNELS)[0])
    gamma, value = peer.gamma.scale, peer.value_conv
    weights = {"theta.weight": peer.query_conv.weight, "theta.bias": peer.query_conv.bias}
    weights |= {"phi.weight": peer.key_conv.weight, "phi.bias": peer.key_conv.bias}
    weights |= {"out.weight": gamma * value.weight, "out.bias": gamma * value.bias}
    block = CrissCrossBlock(CHANNELS, inner_ratio=1 / 8, use_scale=False, recurrence=recurrence)
    assert_equal_outputs(block.double(), nn.Sequential(*[peer] * recurrence), weights)


def test_simplified_equals_attention_by_key_content_alone():
    """With one head; their bias and keys are one vector w, their values and projection W_v."""
    from mmcv.cnn.bricks.generalized_attention import GeneralizedAttention

    peer = GeneralizedAttention(CHANNELS, num_heads=1, attention_type="0010", kv_stride=1)
    random_peer(peer)
    keys, values = peer.key_conv.weight.flatten(1), peer.value_conv.weight.flatten(1)
    weights = {
        "conv_mask.weight": peer.appr_bias @ keys,
        "conv_mask.bias": torch.zeros(1, dtype=torch.float64),
        "out.weight": peer.gamma * peer.proj_conv.weight.flatten(1) @ values,
        "out.bias": peer.gamma * peer.proj_conv.bias,
    }
    assert_equal_outputs(SimplifiedNonLocalBlock(CHANNELS).double(), peer, weights)
