"""The sub-sampling trick's pooling (sec. 3.3)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def halve(x: Tensor, first_axis: int) -> Tensor:
    """x (N, C, *S), max-pooled by 2 along ``first_axis`` and all axes after it; odd sizes round up.

    A CPU is faster where the channels of x are last in memory; but not by what it takes to copy x.
    """
    if torch.compiler.is_compiling():  # torch.export and torch.compile
        return _maxima_of_pairs(x, first_axis)
    window = [1 if axis < first_axis else 2 for axis in range(2, x.dim())]
    if x.dim() == 3:
        return F.max_pool1d(x, window, window, ceil_mode=True)
    if x.dim() == 4:
        return F.max_pool2d(x, window, window, ceil_mode=True)
    return F.max_pool3d(x, window, window, ceil_mode=True)


def _maxima_of_pairs(x: Tensor, first_axis: int) -> Tensor:
    """The same for odd and even sizes alike, to which ``max_pool`` would bind what is recorded.

    Of several largest values in a window, all share the gradient, which one has of ``max_pool``.
    """
    for axis in range(first_axis, x.dim()):
        first = torch.arange(0, x.shape[axis], 2, device=x.device)
        second = (first + 1).clamp(max=x.shape[axis] - 1)  # a last one alone pairs with itself
        x = torch.maximum(x.index_select(axis, first), x.index_select(axis, second))
    return x
