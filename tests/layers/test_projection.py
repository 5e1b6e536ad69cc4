"""A 1x1 convolution is the same however it is computed, and its gradients in parts, too."""

import pytest
import torch
from torch import nn

from dev.benchmark.measure import peak_memory
from nl_detectron.layers import projection
from nl_detectron.layers.projection import convolve, project, project_to_map

SIZES = {1: (37,), 2: (5, 7), 3: (3, 4, 3)}


def results(x: torch.Tensor, conv: nn.Module) -> list[torch.Tensor]:
    """The output of a convolution's weights, and the gradients of what learns."""
    y = convolve(x, conv.weight, conv.bias)
    learning = [t for t in (x, *conv.parameters()) if t.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, learning, y.detach().cos())]


@pytest.mark.parametrize("part", [1, 10, 1000])
@pytest.mark.parametrize("frozen", ["nothing", "input", "weight"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("samples", [0, 2])
@pytest.mark.parametrize("dimension", SIZES)
def test_gradients_in_parts(monkeypatch, dimension, samples, bias, frozen, part):
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimension - 1](4, 6, 1, bias=bias).double()
    conv.weight.requires_grad_(frozen != "weight")
    x = torch.randn(samples, 4, *SIZES[dimension], dtype=torch.float64)
    x.requires_grad_(frozen != "input")
    expected = results(x, conv)
    monkeypatch.setattr(projection, "LARGE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(projection, "PART", part)
    torch.testing.assert_close(results(x, conv), expected)
    if samples and frozen == "nothing" and bias:
        assert torch.autograd.gradcheck(convolve, (x, conv.weight, conv.bias))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_of_a_large_map_in_parts(monkeypatch, memory_format):
    conv = nn.Conv2d(64, 48, 1)
    x = torch.randn(1, 64, 110, 91).to(memory_format=memory_format).requires_grad_()
    actual = results(x, conv)
    held = peak_memory(lambda: results(x, conv))
    monkeypatch.setattr(projection, "LARGE", 10**9)
    torch.testing.assert_close(actual, results(x, conv), rtol=1e-4, atol=1e-4)
    assert held <= peak_memory(lambda: results(x, conv)) + x.nbytes / 4  # a part, if none is copied


def test_rows_and_maps_are_the_same(monkeypatch):
    conv, x = nn.Conv2d(4, 6, 1), torch.randn(2, 4, 5, 7)
    expected = conv(x)
    for convolves in (True, False):
        monkeypatch.setattr(projection, "convolves", lambda _, answer=convolves: answer)
        made = project_to_map(x, conv.weight, conv.bias)
        rows = project(x, conv.weight, conv.bias)
        torch.testing.assert_close(made, expected)
        torch.testing.assert_close(rows, expected.flatten(2).mT)
