"""Half precision under autocast, with activations of magnitude 1e3.

A Gaussian's logits are then of magnitude 1e7, which float16, up to 65,504, cannot hold. What the
block gives back can be held: the tests choose weights for which that is so, as training would.
"""

import copy

import pytest
import torch
from torch import Tensor, nn

from nl_detectron import NonLocalBlock
from nl_detectron.layers import PAIRWISE_FUNCTIONS

CHANNELS = 64
MAGNITUDE = 1e3
TOLERANCE = {torch.float16: 0.01, torch.bfloat16: 0.05}  # relative, a few of the dtype's steps
WEIGHTS_TOLERANCE = {torch.float16: 0.06, torch.bfloat16: 0.15}  # of their gradients

every_case = pytest.mark.parametrize(
    ("pairwise", "sub_sample", "dtype", "size"),
    [
        (pairwise, sub_sample, dtype, size)
        for pairwise in PAIRWISE_FUNCTIONS
        for sub_sample in (False, True)
        for dtype in TOLERANCE
        # The second has fewer positions than channels, on which the dot product goes another way.
        for size in ((21, 17), (3, 5))
    ],
)


def large_block(pairwise: str, sub_sample: bool) -> NonLocalBlock:
    """A block whose embeddings theta and phi of large activations are of magnitude 0.5."""
    block = NonLocalBlock(CHANNELS, pairwise=pairwise, sub_sample=sub_sample, zero_init=False)
    for layer in (block.theta, block.phi):
        if layer is not None:
            nn.init.normal_(layer.weight, std=0.5 * CHANNELS**-0.5 / MAGNITUDE)
            nn.init.normal_(layer.bias, std=0.5)
    for layer in (block.g, block.out):
        nn.init.normal_(layer.weight, std=layer.weight.shape[1] ** -0.5)  # keep the magnitude
    if block.w_f is not None:
        nn.init.normal_(block.w_f)
    return block


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())


@every_case
def test_forward_and_backward_are_close_to_float64(pairwise, sub_sample, dtype, size):
    block = large_block(pairwise, sub_sample)
    reference = copy.deepcopy(block).double()
    x = (torch.randn(2, CHANNELS, *size) * MAGNITUDE).to(dtype).requires_grad_()
    gradient = torch.randn(2, CHANNELS, *size) * 3e-5
    exact = x.detach().double().requires_grad_()
    expected = reference(exact)
    expected.backward(gradient.double())
    with torch.autocast("cpu", dtype=dtype):
        y = block(x)
    assert y.isfinite().all()
    added = expected - exact  # compared alone: x would hide an error in it
    assert added.abs().mean() > 10
    assert relative_error(y.double() - exact, added) < TOLERANCE[dtype]
    y.backward(gradient.to(y.dtype))
    # Where a softmax is saturated, as a Gaussian's of such logits is, its gradient is a difference
    # of nearly equal numbers: what their rounding leaves is multiplied by the activations.
    # With logits in bfloat16, which has 8 bits, nothing of it is left.
    saturated = pairwise == "gaussian"
    if saturated and dtype == torch.bfloat16:
        assert x.grad.isfinite().all()
    else:
        assert relative_error(x.grad, exact.grad) < (0.3 if saturated else TOLERANCE[dtype])
    others = dict(reference.named_parameters())
    for name, actual in block.named_parameters():
        other = others[name]
        assert actual.grad.isfinite().all(), name
        if name == "phi.bias" and pairwise == "embedded_gaussian":
            continue  # zero but for rounding: it adds the same to all keys of a query
        assert relative_error(actual.grad, other.grad) < WEIGHTS_TOLERANCE[dtype], name


@every_case
def test_without_autocast_in_the_dtype_itself(pairwise, sub_sample, dtype, size):
    block = large_block(pairwise, sub_sample)
    x = (torch.randn(2, CHANNELS, *size) * MAGNITUDE).to(dtype)
    with torch.no_grad():
        expected = copy.deepcopy(block).double()(x.double())
        y = block.to(dtype)(x)
    assert y.dtype == dtype
    assert relative_error(y, expected) < TOLERANCE[dtype]
