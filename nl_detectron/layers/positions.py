"""Maps as rows of positions and back, without copies where there need be none, for all recorders.

Shape shorthand: N samples, C channels, S axes of space or time, L positions (the product of S).
"""

import math

import torch
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


@torch.jit.unused
def _recorded_channels(x: Tensor) -> Tensor:
    """:func:`channels` in steps for which no ONNX runtime infers an axis.

    Of an empty tensor it could not.
    """
    samples, depth, length = x.shape[0], x.shape[1], math.prod(x.shape[2:])
    return x.reshape(samples * depth, length).reshape(samples, depth, length)
