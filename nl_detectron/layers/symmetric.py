"""The Gaussian's softmax where queries are keys: every second logit is had by symmetry.

Exact and in linear memory; written as :mod:`.tiled` is. Shape shorthand: N samples, L positions,
D and E channels.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .tiled import length, product_less, ranges, sum_dtype, write_logits

SIDE = 768  # rows and columns of a tile


def symmetric_softmax(x: Tensor, g: Tensor, scale: float) -> Tensor:
    """softmax(scale * x x^T) g, a square tile of the (L, L) matrix at a time.

    Args:
        x: queries and keys (N, L, D).
        g: values (N, L, E).
        scale: factor on the logits.

    Returns:
        y, (N, L, E). All three are of one dtype.
    """
    return _SymmetricSoftmax.apply(x, g, scale)[0]


class _SymmetricSoftmax(torch.autograd.Function):
    """A tile of logits (I, J) is one of (J, I), too, and computed once.

    With d the gradient of the logits, that of x is (d + d^T) x: a symmetric matrix, of which, too,
    every second tile is computed.
    """

    @staticmethod
    def forward(x: Tensor, g: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        y = _zeros(*x.shape[:2], g.shape[2], like=g)
        # Of the logits of each row that were seen so far: the largest, and the sum of
        # exp(logit - largest)
        largest = x.new_full((*x.shape[:2], 1), -math.inf)
        total = _zeros(*x.shape[:2], 1, like=x)
        squares = _squares(x)
        for n, i, j in _pairs(x):
            logits, weights = _cut(squares, i, j)
            write_logits(x[n, i], x[n, j], scale, logits)
            _accumulate(logits, g[n, j], largest[n, i], total[n, i], y[n, i], weights)
            if i != j:
                _accumulate(logits.t(), g[n, i], largest[n, j], total[n, j], y[n, j], weights.t())
        y /= total
        return y.to(g.dtype), largest, total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, g, ctx.scale = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, g, *output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return None, None, None
        x, g, y, largest, total = ctx.saved_tensors
        # Divided here, as the logarithm of a sum would be lost beside a large logit.
        dy = dy / total
        # What the softmax's normalisation takes from the gradient of each row's logits
        mean = (dy * y).sum(2, keepdim=True)
        dy = dy.to(g.dtype)
        dx, dg = _zeros(*x.shape, like=x), _zeros(*g.shape, like=g)
        squares = _squares(x)
        for n, i, j in _pairs(x):
            logits, product = _cut(squares, i, j)
            # The product of the forward pass, bit for bit: no logit exceeds the largest one
            write_logits(x[n, i], x[n, j], ctx.scale, logits)
            weights = (logits - largest[n, i]).exp_()  # of queries i, keys j
            _add_product(dg[n, j], weights.t(), dy[n, i])
            dlogits = weights.mul_(product_less(mean[n, i], dy[n, i], g[n, j].t(), product))
            if i != j:
                # those of queries j and keys i, transposed
                weights = logits.sub_(largest[n, j].t()).exp_()
                _add_product(dg[n, i], weights, dy[n, j])
                product_less(mean[n, j].t(), g[n, i], dy[n, j].t(), product)
                dlogits.addcmul_(weights, product)
            dlogits *= ctx.scale
            _add_product(dx[n, i], dlogits, x[n, j])
            _add_product(dx[n, j], dlogits.t(), x[n, i])
        return dx.to(x.dtype), dg.to(g.dtype), None


def _accumulate(
    logits: Tensor, g: Tensor, largest: Tensor, total: Tensor, y: Tensor, weights: Tensor
) -> None:
    """Adds some keys to the sums of some rows, which are relative to the largest logit so far."""
    new = torch.maximum(largest, logits.amax(1, keepdim=True))
    fade = largest.sub_(new).exp_()
    torch.sub(logits, new, out=weights).exp_()
    total.mul_(fade).add_(weights.sum(1, keepdim=True, dtype=total.dtype))
    _add_product(y.mul_(fade), weights, g)
    largest.copy_(new)


def _zeros(*shape: int, like: Tensor) -> Tensor:
    """To sum up products of many tiles in."""
    return like.new_zeros(shape, dtype=sum_dtype(like))


def _add_product(sums: Tensor, a: Tensor, b: Tensor) -> None:
    """sums += a b."""
    if sums.dtype == a.dtype:
        sums.addmm_(a, b)
    else:
        sums.add_(torch.mm(a, b, out=a.new_empty(sums.shape)))


def _squares(x: Tensor) -> Tensor:
    """Memory for two tiles."""
    return x.new_empty(2, min(SIDE, x.shape[1]), SIDE)


def _cut(squares: Tensor, i: slice, j: slice) -> Tensor:
    """Two (I, J) matrices in that memory."""
    return squares[:, : length(i), : length(j)]


def _pairs(x: Tensor) -> Iterator[tuple[int, slice, slice]]:
    """Samples and, of each, pairs of ranges of positions, a pair in one order only."""
    for n in range(x.shape[0]):
        cuts = list(ranges(0, x.shape[1], SIDE))
        for index, i in enumerate(cuts):
            for j in cuts[: index + 1]:
                yield n, i, j
