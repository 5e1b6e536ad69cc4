"""Max pooling by 2, as maxima of pairs along one axis after another.

On a CPU, PyTorch's ``max_pool`` takes about twice as long, and for the backward pass it holds its
input and an index of 8 bytes for each value that it keeps. The values are the same. Of several
largest ones in a window, one has all of the gradient, as there, though not always the same one;
recorded for other sizes, they share it.
"""

from typing import Any

import torch
from torch import Tensor

from .pairwise import sizes_are_symbolic


def halve(x: Tensor, first_axis: int) -> Tensor:
    """x, max-pooled by 2 along ``first_axis`` and all axes after it; odd sizes round up."""
    for axis in range(first_axis, x.dim()):
        if torch.jit.is_scripting():
            x = _maxima(x, axis)
        elif sizes_are_symbolic():
            x = _larger_of_any_pairs(x, axis)
        else:
            x = _larger_of_pairs(x, axis)
    return x


def _larger_of_any_pairs(x: Tensor, axis: int) -> Tensor:
    """The larger of each pair, in a form that is exported for odd and even sizes of 3 and more."""
    size = x.shape[axis]
    first = torch.arange(0, size, 2, device=x.device)
    second = (first + 1).clamp(max=size - 1)  # a last position without one pairs with itself
    return torch.maximum(x.index_select(axis, first), x.index_select(axis, second))


@torch.jit.unused
def _larger_of_pairs(x: Tensor, axis: int) -> Tensor:
    return _LargerOfPairs.apply(x, axis)[0] if x.requires_grad else _maxima(x, axis)


class _LargerOfPairs(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        first, second = _pairs(x, axis)
        return _maxima(x, axis), second > first.narrow(axis, 0, second.shape[axis])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.axis = inputs
        ctx.shape = x.shape
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, None]:
        if dy is None:
            return None, None
        (second_is_larger,) = ctx.saved_tensors
        dx = dy.new_empty(ctx.shape)
        first, second = _pairs(dx, ctx.axis)
        paired, single = second.shape[ctx.axis], first.shape[ctx.axis] - second.shape[ctx.axis]
        dpairs = dy.narrow(ctx.axis, 0, paired)
        dsecond = second_is_larger.to(dy.dtype).mul_(dpairs)
        second.copy_(dsecond)
        first.narrow(ctx.axis, 0, paired).copy_(dpairs - dsecond)
        first.narrow(ctx.axis, paired, single).copy_(dy.narrow(ctx.axis, paired, single))
        return dx, None


def _pairs(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Views of x: the first of each pair along an axis, and the second of each that has one."""
    size = x.shape[axis]
    return torch.ops.aten.slice(x, axis, 0, size, 2), torch.ops.aten.slice(x, axis, 1, size, 2)


def _maxima(x: Tensor, axis: int) -> Tensor:
    first, second = _pairs(x, axis)
    paired = second.shape[axis]
    larger = torch.maximum(first.narrow(axis, 0, paired), second)
    if first.shape[axis] == paired:
        return larger
    return torch.cat([larger, first.narrow(axis, paired, 1)], axis)
