"""Tiles of the softmax equal the whole of it, in values and gradients, wherever they are cut."""

import pytest
import torch
from torch import Tensor

from nl_detectron.layers import pairwise, symmetric, tiled
from nl_detectron.layers.pairwise import fused_softmax, softmax, softmax_kernel
from nl_detectron.layers.symmetric import symmetric_softmax
from nl_detectron.layers.tiled import tiled_softmax

# Largest error of outputs and gradients, relative to the largest value, of operands of variance 1
BOUNDS = {torch.float64: 1e-14, torch.float32: 5e-6, torch.bfloat16: 5e-2}


@pytest.fixture(params=["one tile", "many tiles"])
def tiles(request, monkeypatch):
    if request.param == "many tiles":
        monkeypatch.setattr(tiled, "TILE_ELEMENTS", 300)
        monkeypatch.setattr(tiled, "TILE_ROWS", 1)
        monkeypatch.setattr(symmetric, "SIDE", 8)


def whole(theta: Tensor, phi: Tensor, g: Tensor, scale: float) -> Tensor:
    return torch.softmax(theta @ phi.transpose(1, 2) * scale, dim=-1) @ g


def in_tiles(theta: Tensor, phi: Tensor, g: Tensor, scale: float) -> Tensor:
    """By symmetry where queries are keys."""
    if phi is theta:
        return symmetric_softmax(theta, g, scale)
    return tiled_softmax(theta, phi, g, scale)


def results(attend, theta, phi, g, dy, dtype) -> list[Tensor]:
    """y and the gradients of the operands, of which phi None stands for theta itself."""
    operands = [x.to(dtype).requires_grad_() for x in (theta, phi, g) if x is not None]
    queries, values = operands[0], operands[-1]
    y = attend(queries, queries if phi is None else operands[1], values, 0.25)
    return [y.detach(), *torch.autograd.grad(y, operands, dy.to(dtype))]


def assert_is_the_whole(attend, *operands: Tensor | None) -> None:
    """In double precision."""
    torch.testing.assert_close(
        results(attend, *operands, torch.float64), results(whole, *operands, torch.float64)
    )


def assert_is_within_bounds(theta, phi, g, dy, dtype) -> None:
    expected = results(whole, theta, phi, g, dy, torch.float64)
    actual = results(in_tiles, theta, phi, g, dy, dtype)
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.dtype == dtype
        assert (ours.double() - theirs).abs().max() <= BOUNDS[dtype] * theirs.abs().max()


# All rows kept for the backward pass (37 x 13), some (100 x 40), none (120 x 120)
@pytest.mark.parametrize("lengths", [(37, 13), (100, 40), (120, 120)])
@pytest.mark.parametrize("queries_are_keys", [False, True])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_equals_the_whole_softmax(tiles, lengths, queries_are_keys, dtype):
    num_queries, num_keys = lengths
    if queries_are_keys:
        num_keys = num_queries
    theta = torch.randn(2, num_queries, 16, dtype=dtype)
    phi = None if queries_are_keys else torch.randn(2, num_keys, 16, dtype=dtype)
    g = torch.randn(2, num_keys, 8, dtype=dtype)
    dy = torch.randn(2, num_queries, 8, dtype=dtype)
    assert_is_within_bounds(theta, phi, g, dy, dtype)


@pytest.mark.parametrize("queries_are_keys", [False, True])
def test_gradients(tiles, queries_are_keys):
    theta, phi = torch.randn(2, 1, 20, 3, dtype=torch.float64, requires_grad=True)
    phi = theta if queries_are_keys else phi
    g = torch.randn(1, 20, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *x: in_tiles(*x, 0.5), (theta, phi, g))


@pytest.mark.parametrize("queries_are_keys", [False, True])
def test_operands_need_not_be_contiguous(tiles, queries_are_keys):
    theta, phi = torch.randn(2, 2, 8, 30, dtype=torch.float64).transpose(2, 3)
    phi = None if queries_are_keys else phi
    g = torch.randn(2, 30, 24, dtype=torch.float64)[..., :16]
    dy = torch.randn(2, 16, 30, dtype=torch.float64).transpose(1, 2)
    assert_is_the_whole(in_tiles, theta, phi, g, dy)


def test_equal_positions_of_large_activations(tiles):
    """Of which each row's softmax has two: the sum is 2 where the logits are in millions.

    Of whole numbers, so that single precision holds these logits.
    """
    x = torch.randint(-1000, 1001, (1, 30, 16)).float().repeat(1, 2, 1)
    g, dy = torch.randn(2, 1, 60, 8)
    assert_is_within_bounds(x, None, g, dy, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("queries_are_keys", [False, True])
def test_is_finite_for_large_activations(tiles, dtype, queries_are_keys):
    """Of magnitude 1e3, logits are in millions: rounding decides, but nothing overflows."""
    theta, phi, g = 1e3 * torch.randn(3, 1, 60, 16, dtype=dtype)
    phi = None if queries_are_keys else phi
    for tensor in results(in_tiles, theta, phi, g, g, dtype):
        assert tensor.isfinite().all()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2**-20), (torch.bfloat16, 2**-12)])
def test_saturated_weights_have_no_gradient(tiles, dtype, bound):
    """Each position sees itself alone, so its logits' gradient is a difference of equal numbers.

    It is taken before these are rounded, in bfloat16 to 2^-9 of their size.
    """
    x = (1e3 * torch.randn(1, 400, 64)).to(dtype).requires_grad_()
    g, dy = torch.randn(2, 1, 400, 8).to(dtype)
    y = symmetric_softmax(x, g, 1.0)
    torch.testing.assert_close(y, g)
    (dx,) = torch.autograd.grad(y, x, dy)
    one_term = (dy * g).sum(2).abs().max() * x.abs().max()
    assert dx.abs().max() <= bound * one_term


def test_a_sample_with_nan_leaves_the_others_alone(tiles):
    theta, phi, g = torch.randn(3, 40, 8), torch.randn(3, 21, 8), torch.randn(3, 21, 4)
    theta[0, 3] = float("nan")
    _, *gradients = results(tiled_softmax, theta, phi, g, torch.ones(3, 40, 4), torch.float32)
    for gradient in gradients:
        assert gradient[1:].isfinite().all()


def test_tiles_and_the_fused_kernel_are_the_same_function():
    theta, phi, g = torch.randn(2, 50, 16), torch.randn(2, 40, 16), torch.randn(2, 40, 8)
    torch.testing.assert_close(
        tiled_softmax(theta, phi, g, 0.25), fused_softmax(theta, phi, g, 0.25)
    )


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize(("dtype", "channels"), [(torch.bfloat16, 8), (torch.float32, 4)])
def test_of_many_pairs_the_fused_kernel_takes_those_it_is_faster_at(
    monkeypatch, dtype, channels, requires_grad
):
    """Of one dtype and as many channels of keys as of values; the results are the same."""
    theta, phi = torch.randn(2, 2, 20, 8)
    g = torch.randn(2, 20, channels, requires_grad=requires_grad)
    expected = softmax(theta, phi, g, 0.5)
    assert softmax_kernel(theta, phi, g, 0.5, False) == "tiled"
    monkeypatch.setattr(pairwise, "FUSED_PAIRS", 20 * 20)
    torch.testing.assert_close(softmax(theta, phi, g, 0.5), expected)
    assert softmax_kernel(theta, phi, g, 0.5, False) == ("tiled" if channels == 4 else "fused")
    assert softmax_kernel(theta, theta, g, 0.5, True) == "symmetric"
    assert softmax_kernel(theta.to(dtype), phi.to(dtype), g.to(dtype), 0.5, False) == "tiled"
    half = (theta.half(), phi.half(), g.half())
    assert softmax_kernel(*half, 0.5, False) == softmax_kernel(*half, 0.5, True) == "fused"


@pytest.mark.parametrize("channels_first", [False, True])
def test_gradients_through_the_fused_kernel(monkeypatch, channels_first):
    monkeypatch.setattr(pairwise, "FUSED_PAIRS", 1)
    monkeypatch.setattr(pairwise, "tiled_softmax", None)
    theta, phi, g, dy = torch.randn(4, 2, 20, 8, dtype=torch.float64)
    if channels_first:
        dy = torch.randn(2, 8, 20, dtype=torch.float64).transpose(1, 2)
    assert_is_the_whole(softmax, theta, phi, g, dy)
    operands = [x[:1, :4].clone().requires_grad_() for x in (theta, phi, g)]
    assert torch.autograd.gradcheck(lambda *x: softmax(*x, 0.5), operands)
