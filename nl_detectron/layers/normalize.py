"""Vectors of unit length and rows that sum to 1, in half precision by way of single."""

import torch
from torch import Tensor


def unit(x: Tensor, dim: int, *, p: float = 2.0) -> Tensor:
    """x with p-norm 1 along ``dim``, in x's dtype; zeros stay zeros.

    In place of an epsilon, by which a gradient at zeros would be divided: features after a ReLU are
    zero at whole positions.
    """
    single = x if x.dtype == torch.float64 else x.float()
    length = torch.linalg.vector_norm(single, p, dim, keepdim=True)
    return (single / length.masked_fill(length == 0, 1.0)).to(x.dtype)


def distribution(rows: Tensor) -> Tensor:
    """Rows of no negative numbers, (..., M), scaled to sum to 1; of zeros alone, even ones."""
    rows = rows if rows.dtype == torch.float64 else rows.float()
    rows = rows + torch.finfo(rows.dtype).tiny
    return rows / rows.sum(-1, keepdim=True)
