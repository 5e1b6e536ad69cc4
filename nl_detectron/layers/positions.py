"""Maps as rows of positions and back, without copies where there need be none, for all recorders.

Shape shorthand: N samples, C channels, S axes of space or time, L positions (the product of S).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .recording import is_recorded


@torch.jit.unused
def as_autocast(x: Tensor) -> Tensor:
    """x in autocast's dtype where that is on, which leaves double precision alone."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return x
    return x.to(torch.get_autocast_dtype(device))


def as_map(rows: Tensor, like: Tensor) -> Tensor:
    """(N, channels, *S) of rows (N, L, channels), a view of them."""
    if torch.jit.is_scripting():
        return rows.transpose(1, 2).unflatten(2, like.shape[2:])
    # With each size given: of unflatten, exporters write some down as numbers
    return rows.transpose(1, 2).reshape(rows.shape[0], rows.shape[2], *like.shape[2:])


def positions(x: Tensor) -> Tensor:
    """(N, L, C) of x (N, C, *S), a view where it can be."""
    return channels(x).transpose(1, 2)


def channels_first(rows: Tensor) -> bool:
    """Whether channels come before positions in the memory of rows (N, L, channels)."""
    return rows.stride(1) == 1


def channels_last(x: Tensor) -> bool:
    """Whether positions come before channels in the memory of a map (N, C, *S)."""
    return x.stride(1) == 1


def channels(x: Tensor) -> Tensor:
    """(N, C, L) of x (N, C, *S), a view where it can be."""
    if is_recorded():
        return _recorded_channels(x)
    return x.flatten(2)


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
    axes = x.dim() - 2
    if weight.dim() != x.dim():
        weight = weight.reshape(*weight.shape[:2], *[1] * axes)
    return (F.conv1d, F.conv2d, F.conv3d)[axes - 1](x, weight, bias)


def project_to_one(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """That of a convolution to a single channel, (N, 1, L), for which x is never copied."""
    weight = weight.flatten(1).to(x.dtype).expand(x.shape[0], -1, -1)
    logits = torch.bmm(weight, channels(x))
    return logits if bias is None else logits + bias.to(x.dtype)


@torch.jit.unused
def _recorded_channels(x: Tensor) -> Tensor:
    """:func:`channels` in steps for which no ONNX runtime infers an axis.

    Of an empty tensor it could not.
    """
    samples, depth, length = x.shape[0], x.shape[1], math.prod(x.shape[2:])
    return x.reshape(samples * depth, length).reshape(samples, depth, length)
