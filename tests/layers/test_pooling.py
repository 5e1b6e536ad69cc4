"""Sub-sampling is max pooling, in values and gradients, however it is recorded."""

import pytest
import torch
import torch.nn.functional as F

from nl_detectron.layers.pooling import halve

from .reference import max_pool

POOL = (F.max_pool1d, F.max_pool2d, F.max_pool3d)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(8,), (7,), (1,), (8, 6), (7, 5), (1, 4), (4, 3, 6)])
def test_has_the_values_and_gradients_of_max_pooling(size, dtype):
    # Distinct values: ties are another test's
    x = torch.randperm(2 * torch.Size(size).numel()).view(1, 2, *size).to(dtype)
    assert len(x.unique()) == x.numel()
    x.requires_grad_()
    expected = POOL[len(size) - 1](x, 2, 2, ceil_mode=True)
    assert torch.equal(halve(x, 2), expected)
    assert torch.equal(halve(x.detach(), 2), expected)
    dy = torch.randn_like(expected)
    (dx,) = torch.autograd.grad(halve(x, 2), x, dy)
    assert torch.equal(dx, torch.autograd.grad(expected, x, dy)[0])


@pytest.mark.parametrize("requires_grad", [False, True])
def test_leaves_the_axes_before(requires_grad):
    x = torch.randn(1, 6, 5, 4, 7, requires_grad=requires_grad)
    pooled = halve(x, 3)
    assert pooled.shape == (1, 6, 5, 2, 4)
    assert torch.equal(pooled[0], max_pool(x[0].detach(), dimension=3))


def test_ties_give_the_gradient_to_one_of_the_largest():
    """As after a ReLU, where whole windows are zero."""
    x = torch.tensor([[[[0.0, 0, 0, 0], [0, 0, 0, 9], [1, 1, 0, 0]]]], requires_grad=True)
    pooled = halve(x, 2)
    (dx,) = torch.autograd.grad(pooled, x, torch.tensor([[[[1.0, 2], [3, 4]]]]))
    windows = dx[0, 0, :2].unfold(1, 2, 2).sum((0, 2)), dx[0, 0, 2].unfold(0, 2, 2).sum(1)
    assert [window.tolist() for window in windows] == [[1, 2], [3, 4]]
    assert dx.count_nonzero() == 4
    assert dx[0, 0, 1, 3] == 2


def test_an_unpaired_position_has_its_gradient_whole():
    x = torch.tensor([[[1.0, 2.0, 5.0]]], requires_grad=True)
    halve(x, 2).sum().backward()
    assert x.grad.flatten().tolist() == [0.0, 1.0, 1.0]
    assert torch.equal(max_pool(x.detach()[0], dimension=1), torch.tensor([[2.0, 5.0]]))
    # In inference
    assert torch.equal(halve(x.detach(), 2)[0], torch.tensor([[2.0, 5.0]]))


@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients(channels_last):
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: halve(x, 2), x)
    assert torch.autograd.gradgradcheck(lambda x: halve(x, 2), x)


def test_of_nothing():
    size = (0, 3, 5, 4)
    x = torch.randn(size, requires_grad=True)
    pooled = halve(x, 2)
    assert pooled.shape == (*size[:2], 3, 2)
    pooled.sum().backward()
    assert x.grad.shape == size


def test_nan_is_not_lost():
    x = torch.randn(1, 1, 4, 4, requires_grad=True)
    with torch.no_grad():
        x[0, 0, 1, 2] = float("nan")
    assert halve(x, 2).isnan().tolist() == [[[[False, True], [False, False]]]]
    assert halve(x.detach(), 2).isnan().sum() == 1
