"""Softmax attention in tiles: exact, in linear memory, of plain matrix products.

Products are written into tensors that are there already, so that little is allocated within the
loops and autocast, where it is active, leaves dtypes alone. Shape shorthand as in
:mod:`.pairwise`: N samples, L queries, M keys, D and E channels.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Elements of the (L, M) matrix that are held at once, few enough for a processor's caches; but at
# least so many rows, as products of fewer are slow.
TILE_ELEMENTS = 2**21
TILE_ROWS = 512
SQUARE_SIDE = 768  # rows and columns, where the matrix is symmetric
CACHE_LINE = 64  # bytes; products are faster into matrices each of whose rows begins with one


@torch.jit.unused  # scripted modules do without
def tiled_softmax(theta: Tensor, phi: Tensor, g: Tensor, scale: float) -> Tensor:
    """softmax(scale * theta phi^T) g, some rows of the (L, M) matrix at a time.

    For the backward pass, all rows are kept if they take no more memory than the operands, and of
    sub-sampled keys as many as do; other rows are computed anew there. Where queries and keys are
    one tensor, of which not all rows are kept, every second logit is had by symmetry instead.

    Args:
        theta: queries (N, L, D).
        phi: keys (N, M, D).
        g: values (N, M, E), E other than D if need be.
        scale: factor on the logits.

    Returns:
        y, (N, L, E). All four are of one dtype, and so are the logits before the softmax.
    """
    num_queries, num_keys, kept_rows = theta.shape[1], phi.shape[1], 0
    if torch.is_grad_enabled() and (theta.requires_grad or phi.requires_grad or g.requires_grad):
        operands = num_queries * theta.shape[2] + num_keys * (phi.shape[2] + g.shape[2])
        if num_keys < num_queries or num_queries * num_keys <= operands:
            kept_rows = min(num_queries, operands // num_keys)
    if theta is phi and kept_rows < num_queries:
        return _SymmetricSoftmax.apply(theta, g, scale)[0]
    return _TiledSoftmax.apply(theta, phi, g, scale, kept_rows)[0]


class _TiledSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        theta: Tensor, phi: Tensor, g: Tensor, scale: float, kept_rows: int
    ) -> tuple[Tensor, Tensor]:
        y = _result(theta, g)
        kept = g.new_empty(theta.shape[0], kept_rows, _padded_keys(phi))
        scratch = _scratch(theta, phi)
        for n, rows in _tiles(theta, phi, kept_rows):
            padded = kept[n, rows] if rows.stop <= kept_rows else scratch[: _length(rows)]
            weights = _weights(theta[n, rows], phi[n], scale, padded)
            torch.mm(weights, g[n], out=y[n, rows])
        return y, kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        theta, phi, g, ctx.scale, _ = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(theta, phi, g, output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return None, None, None, None, None
        theta, phi, g, kept = ctx.saved_tensors
        # Of plain layout, whatever that of the operands: products run faster into it.
        dtheta = theta.new_empty(theta.shape)
        dphi, dg = phi.new_zeros(phi.shape), torch.zeros_like(g)
        scratch, gradient = _scratch(theta, phi), _scratch(theta, phi)
        num_keys = phi.shape[1]
        for n, rows in _tiles(theta, phi, kept.shape[1]):
            if rows.stop <= kept.shape[1]:
                padded = kept[n, rows]
                weights = padded[:, :num_keys]
            else:
                padded = scratch[: _length(rows)]
                weights = _weights(theta[n, rows], phi[n], ctx.scale, padded)
            dg[n].addmm_(weights.t(), dy[n, rows])
            padded_gradient = gradient[: _length(rows)]
            dlogits = padded_gradient[:, :num_keys]
            torch.mm(dy[n, rows], g[n].t(), out=dlogits)
            padded_gradient[:, num_keys:] = 0
            torch._softmax_backward_data(
                padded_gradient, padded, -1, g.dtype, grad_input=padded_gradient
            )
            dlogits *= ctx.scale
            torch.mm(dlogits, phi[n], out=dtheta[n, rows])
            dphi[n].addmm_(dlogits.t(), theta[n, rows])
        return dtheta, dphi, dg, None, None


class _SymmetricSoftmax(torch.autograd.Function):
    """Queries are keys: a tile of logits (I, J) is one of (J, I), too, and computed once.

    With d the gradient of the logits, that of x is (d + d^T) x: a symmetric matrix, of which, too,
    every second tile is computed.
    """

    @staticmethod
    def forward(x: Tensor, g: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        y = _sums(_result(x, g))
        # Of the logits of each row that were seen so far: the largest, and the sum of
        # exp(logit - largest)
        largest = x.new_full((*x.shape[:2], 1), -math.inf)
        total = _sums(largest)
        squares = _squares(x)
        for n, i, j in _pairs(x):
            logits, weights = _cut(squares, i, j)
            _logits(x[n, i], x[n, j], scale, logits)
            _accumulate(logits, g[n, j], largest[n, i], total[n, i], y[n, i], weights)
            if i != j:
                _accumulate(logits.t(), g[n, i], largest[n, j], total[n, j], y[n, j], weights.t())
        y /= total
        if y.dtype != g.dtype:
            y = _result(x, g).copy_(y)
        return y, largest, total

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
        dx, dg = x.new_zeros(x.shape, dtype=_sum_dtype(x)), _sums(g)
        squares = _squares(x)
        for n, i, j in _pairs(x):
            logits, product = _cut(squares, i, j)
            # The product of the forward pass, bit for bit: no logit exceeds the largest one
            _logits(x[n, i], x[n, j], ctx.scale, logits)
            weights = (logits - largest[n, i]).exp_()  # of queries i, keys j
            _add_product(dg[n, j], weights.t(), dy[n, i])
            dlogits = weights.mul_(_product_less(mean[n, i], dy[n, i], g[n, j].t(), product))
            if i != j:
                # those of queries j and keys i, transposed
                weights = logits.sub_(largest[n, j].t()).exp_()
                _add_product(dg[n, i], weights, dy[n, j])
                _product_less(mean[n, j].t(), g[n, i], dy[n, j].t(), product)
                dlogits.addcmul_(weights, product)
            dlogits *= ctx.scale
            _add_product(dx[n, i], dlogits, x[n, j])
            _add_product(dx[n, j], dlogits.t(), x[n, i])
        return dx.to(x.dtype), dg.to(g.dtype), None


def _result(theta: Tensor, g: Tensor) -> Tensor:
    """Memory for y (N, L, E), in theta's layout."""
    if theta.stride(-1) == 1:
        return g.new_empty(*theta.shape[:2], g.shape[2])
    return g.new_empty(theta.shape[0], g.shape[2], theta.shape[1]).transpose(1, 2)


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


def _sums(like: Tensor) -> Tensor:
    """Zeros to sum up products of many tiles in."""
    dtype = _sum_dtype(like)
    if dtype != like.dtype:
        return like.new_zeros(like.shape, dtype=dtype)  # of plain layout: faster to add to
    return torch.zeros_like(like)


def _sum_dtype(x: Tensor) -> torch.dtype:
    """In bfloat16, a sum over tiles would lose what a single product does not."""
    return torch.float32 if x.dtype == torch.bfloat16 else x.dtype


def _add_product(sums: Tensor, a: Tensor, b: Tensor) -> None:
    """sums += a b."""
    if sums.dtype == a.dtype:
        sums.addmm_(a, b)
    else:
        sums.add_(torch.mm(a, b, out=a.new_empty(sums.shape)))


def _product_less(mean: Tensor, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """a b - mean, in ``out``.

    In bfloat16 either would be rounded by more than they may differ by. So the mean, which is in
    single precision there, is subtracted within the product, and its own rounding after it.
    """
    if mean.dtype == out.dtype:
        return torch.mm(a, b, out=out).sub_(mean)
    rounded = mean.to(out.dtype)
    return torch.addmm(-rounded, a, b, out=out).sub_((mean - rounded).to(out.dtype))


def _weights(theta: Tensor, phi: Tensor, scale: float, padded: Tensor) -> Tensor:
    """Softmax of the logits of some rows, in the memory ``padded``, whose last columns are zero."""
    weights = padded[:, : phi.shape[0]]
    _logits(theta, phi, scale, weights)
    padded[:, phi.shape[0] :] = -math.inf
    torch.softmax(padded, -1, out=padded)
    return weights


def _squares(x: Tensor) -> Tensor:
    """Memory for two tiles of pairs."""
    return x.new_empty(2, min(SQUARE_SIDE, x.shape[1]), SQUARE_SIDE)


def _cut(squares: Tensor, i: slice, j: slice) -> Tensor:
    """Two (I, J) matrices in that memory."""
    return squares[:, : _length(i), : _length(j)]


def _scratch(theta: Tensor, phi: Tensor) -> Tensor:
    """Memory for one tile of rows."""
    return theta.new_empty(_tile_rows(theta, phi), _padded_keys(phi))


def _padded_keys(phi: Tensor) -> int:
    """M, rounded up to whole cache lines."""
    line = CACHE_LINE // phi.element_size()
    return -(-phi.shape[1] // line) * line


def _tile_rows(theta: Tensor, phi: Tensor) -> int:
    return min(theta.shape[1], max(TILE_ROWS, TILE_ELEMENTS // phi.shape[1]))


def _tiles(theta: Tensor, phi: Tensor, kept_rows: int) -> Iterator[tuple[int, slice]]:
    """Samples and, of each, ranges of queries, each of kept rows only or of others only."""
    for n in range(theta.shape[0]):
        for first, last in ((0, kept_rows), (kept_rows, theta.shape[1])):
            for rows in _ranges(first, last, _tile_rows(theta, phi)):
                yield n, rows


def _pairs(x: Tensor) -> Iterator[tuple[int, slice, slice]]:
    """Samples and, of each, pairs of ranges of positions, a pair in one order only."""
    for n in range(x.shape[0]):
        ranges = list(_ranges(0, x.shape[1], SQUARE_SIDE))
        for index, i in enumerate(ranges):
            for j in ranges[: index + 1]:
                yield n, i, j


def _ranges(first: int, last: int, at_most: int) -> Iterator[slice]:
    """Cuts a range into as few as can be, of about one length."""
    count = -(-(last - first) // at_most)
    for index in range(count):
        yield slice(
            first + (last - first) * index // count, first + (last - first) * (index + 1) // count
        )


def _length(rows: slice) -> int:
    return rows.stop - rows.start


def _logits(theta: Tensor, phi: Tensor, scale: float, out: Tensor) -> None:
    torch.addmm(out, theta, phi.t(), beta=0, alpha=scale, out=out)
