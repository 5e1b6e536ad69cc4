"""The 1x1 convolutions of a block, by what computes them best.

Shape shorthand: N samples, C channels, S axes of space or time, L positions (the product of S).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .positions import as_map, channels, positions
from .recording import is_recorded
from .tiled import ranges

LARGE = 8192  # positions, from which a convolution's gradients are taken in parts on CPUs
PART = 1050  # positions of a part; of smaller ones oneDNN is slower


def project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1x1 convolution's result, (N, L, channels), of x (N, C, *S)."""
    if convolves(x):
        return positions(convolve(x, weight, bias))
    return F.linear(positions(x), weight.flatten(1), bias)


def project_to_map(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same as (N, channels, *S)."""
    if convolves(x):
        return convolve(x, weight, bias)
    return as_map(project(x, weight, bias), x)


def convolves(x: Tensor) -> bool:
    """Whether 1x1 convolutions of x are computed as such, and not as the linear layers they are.

    On CPUs, in single precision: PyTorch's convolutions are oneDNN's and its products MKL's, which
    uses half of AVX-512 on AMD's processors. There a convolution takes half of the time, elsewhere
    about the same. On GPUs always, where ``torch.backends.cudnn.allow_tf32`` holds for it as for
    any other layer of a detector. What is recorded has one form for all runtimes.
    """
    if torch.jit.is_scripting() or is_recorded():
        return False
    return x.device.type != "cpu" or x.dtype == torch.float32


@torch.jit.unused
def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1x1 convolution of x (N, C, *S), of whatever axes S, in x's memory format."""
    if weight.dim() != x.dim():
        weight = weight.reshape(*weight.shape[:2], *[1] * (x.dim() - 2))
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad) and _is_copied(x):
        return _InParts.apply(x, weight, bias)
    return _convolution(x, weight, bias)


def project_to_one(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """That of a convolution to a single channel, (N, 1, L), for which x is never copied."""
    weight = weight.flatten(1).to(x.dtype).expand(x.shape[0], -1, -1)
    logits = torch.bmm(weight, channels(x))
    return logits if bias is None else logits + bias.to(x.dtype)


def _is_copied(x: Tensor) -> bool:
    """Whether oneDNN would make a copy of x that is large."""
    several = x.device.type == "cpu" and torch.get_num_threads() > 1
    return several and x.is_contiguous() and math.prod(x.shape[2:]) >= LARGE


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return (F.conv1d, F.conv2d, F.conv3d)[x.dim() - 3](x, weight, bias)


class _InParts(torch.autograd.Function):
    """A convolution whose gradients are taken some positions at a time.

    With several threads oneDNN copies the input and the output's gradient into a layout of its own;
    so it holds copies of a part only; on a res3 of 100x168 in 0.95 of the time, on smaller maps in
    up to 1.1 of it.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _convolution(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        dx = torch.empty_like(x) if of_x else None
        dweight = torch.zeros_like(weight) if of_weight else None
        # As images of one column
        x, dy = x.flatten(2).unsqueeze(3), dy.flatten(2).unsqueeze(3)
        kernel = weight.reshape(*weight.shape[:2], 1, 1)
        for part in ranges(0, x.shape[2], PART):
            part_dx, part_dweight, _ = torch.ops.aten.convolution_backward(
                *(dy[:, :, part], x[:, :, part], kernel, None),
                *([1, 1], [0, 0], [1, 1], False, [0, 0], 1),  # stride, padding, dilation, ...
                (of_x, of_weight, False),
            )
            if dx is not None:
                dx.flatten(2)[:, :, part] = part_dx.squeeze(3)
            if dweight is not None:
                dweight += part_dweight.reshape(weight.shape)
        return dx, dweight, dy.sum((0, 2, 3)) if of_bias else None
