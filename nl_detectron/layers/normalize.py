"""Vectors of unit length and rows that sum to 1, in half precision by way of single."""

import torch
from torch import Tensor

from .recording import is_recorded


def unit(x: Tensor, dim: int) -> Tensor:
    """x of length 1 along ``dim``, in x's dtype; zeros stay zeros.

    In place of an epsilon, by which a gradient at zeros would be divided: features after a ReLU are
    zero at whole positions.
    """
    half = x.dtype in (torch.float16, torch.bfloat16)
    dtype = torch.float32 if half else x.dtype
    length = torch.linalg.vector_norm(x, 2, dim, keepdim=True, dtype=dtype)
    if torch.is_grad_enabled() or is_recorded():
        length = length.masked_fill(length == 0, 1.0)
    else:  # in one step
        length = length.clamp_min(torch.finfo(dtype).tiny)
    y = x / length
    return y.to(x.dtype) if half else y


def softmax_along(x: Tensor, dim: int) -> Tensor:
    """In x's dtype, which autocast would take to single precision."""
    return torch.softmax(x, dim, dtype=x.dtype)


def distribution(rows: Tensor) -> Tensor:
    """Rows of no negative numbers, (..., M), scaled to sum to 1; of zeros alone, even ones."""
    rows = rows if rows.dtype == torch.float64 else rows.float()
    rows = rows + torch.finfo(rows.dtype).tiny
    return rows / rows.sum(-1, keepdim=True)
