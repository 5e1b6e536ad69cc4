"""Equal outputs with mmcv's NonLocal2d, the block that people use today."""

import pytest
import torch

from nl_detectron import NonLocalBlock
from nl_detectron.layers import PAIRWISE_FUNCTIONS

mmcv_non_local = pytest.importorskip("mmcv.cnn.bricks.non_local", reason="needs mmcv-lite")

# mmcv's modules for ours
NAMES = {"theta": "theta", "phi": "phi", "g": "g", "out": "conv_out"}


@pytest.mark.parametrize("pairwise", PAIRWISE_FUNCTIONS)
@pytest.mark.parametrize("sub_sample", [False, True])
@pytest.mark.parametrize("use_scale", [False, True])
def test_equals_mmcv(pairwise, sub_sample, use_scale):
    channels = 16
    block = NonLocalBlock(
        channels,
        pairwise=pairwise,
        sub_sample=sub_sample,
        # mmcv scales the embedded Gaussian only
        use_scale=use_scale and pairwise != "gaussian",
        zero_init=False,
    ).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    peer = mmcv_non_local.NonLocal2d(
        channels, use_scale=use_scale, mode=pairwise, sub_sample=sub_sample
    ).double()
    with torch.no_grad():
        for ours, theirs in NAMES.items():
            conv = getattr(block, ours)
            if conv is None:
                continue
            if sub_sample and isinstance(getattr(peer, theirs), torch.nn.Sequential):
                theirs += ".0"  # followed by the pooling
            peer_layer = peer.get_submodule(theirs)
            getattr(peer_layer, "conv", peer_layer).load_state_dict(conv.state_dict())
        if pairwise == "concatenation":
            peer.concat_project.conv.weight.copy_(block.w_f.reshape(1, -1, 1, 1))
    x = torch.randn(2, channels, 8, 6, dtype=torch.float64)
    torch.testing.assert_close(block(x), peer(x))
