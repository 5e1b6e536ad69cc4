"""The softmax in parts, which GPUs have, equals the whole of it, however it is cut."""

import pytest
import torch
from torch import Tensor

from nl_detectron.layers import NonLocalBlock, pairwise, parts
from nl_detectron.layers.pairwise import softmax_kernel
from nl_detectron.layers.parts import softmax_in_parts


# One part; two samples and the third; a sample each; seven rows each, of 20
@pytest.fixture(params=[10**6, 2 * 20 * 15, 20 * 15, 7 * 15])
def part(request, monkeypatch):
    monkeypatch.setattr(parts, "PART", request.param)


def whole(theta: Tensor, phi: Tensor, g: Tensor, scale: float) -> Tensor:
    return torch.softmax(theta @ phi.mT * scale, dim=-1) @ g


def operands(channels_first: bool, samples: int = 3) -> list[Tensor]:
    """Queries, keys and values, of 20, 15 and 15 positions, in the layout of a map's memory."""
    sizes = ((20, 8), (15, 8), (15, 4))
    if channels_first:
        made = [torch.randn(samples, width, length).double().mT for length, width in sizes]
    else:
        made = [torch.randn(samples, length, width).double() for length, width in sizes]
    return [x.requires_grad_() for x in made]


@pytest.mark.parametrize("channels_first", [False, True])
def test_equals_the_whole_softmax(part, channels_first):
    of_map = operands(channels_first)
    y, expected = softmax_in_parts(*of_map, 0.3), whole(*of_map, 0.3)
    torch.testing.assert_close(y, expected)
    assert y.stride() == (80, 1, 20) if channels_first else y.is_contiguous()
    dy = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(y, of_map, dy), torch.autograd.grad(expected, of_map, dy)
    )
    with torch.inference_mode():
        torch.testing.assert_close(softmax_in_parts(*of_map, 0.3), expected.detach())


def test_gradients(part):
    assert torch.autograd.gradcheck(lambda *x: softmax_in_parts(*x, 0.3), operands(True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_dtype_alone(part, dtype):
    theta, phi, g = (x.detach().to(dtype) for x in operands(True))
    with torch.autocast("cpu", dtype=dtype):
        y = softmax_in_parts(theta, phi, g, 0.3)
    assert y.dtype == dtype
    expected = whole(theta.double(), phi.double(), g.double(), 0.3)
    torch.testing.assert_close(y.double(), expected, rtol=0.03, atol=0.03)


def test_no_samples(part):
    y = softmax_in_parts(*operands(False, samples=0), 0.3)
    assert y.shape == (0, 20, 4)


def test_which_kernel_a_gpu_has():
    """Flash attention for as many channels as it takes, and float16 what holds its logits."""

    def kernel(dtype: torch.dtype, channels: int, scale: float = 0.1) -> str:
        theta, phi, g = torch.empty(3, 1, 20, channels, dtype=dtype, device="meta")
        return softmax_kernel(theta, phi, g, scale, symmetric=True)

    for dtype in (torch.float32, torch.float64):
        assert kernel(dtype, 128) == kernel(dtype, 512) == "parts"
    for dtype in (torch.float16, torch.bfloat16):
        assert kernel(dtype, 256) == "fused"
        assert kernel(dtype, 512) == "parts"
    assert kernel(torch.float16, 512, scale=1.0) == "fused"
    assert kernel(torch.bfloat16, 512, scale=1.0) == "parts"


@pytest.mark.parametrize("sub_sample", [False, True])
@pytest.mark.parametrize("name", ["gaussian", "embedded_gaussian"])
def test_a_block_with_them_is_the_same(part, monkeypatch, name, sub_sample):
    block = NonLocalBlock(6, pairwise=name, sub_sample=sub_sample, zero_init=False).double()
    x = torch.randn(3, 6, 4, 5, dtype=torch.float64)
    expected = block(x)
    monkeypatch.setattr(pairwise, "softmax_kernel", lambda *_: "parts")
    torch.testing.assert_close(block(x), expected)
