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

from .positions import channels_first

# Elements of the (L, M) matrix that are held at once, few enough for a processor's caches; but at
# least so many rows, as products of fewer are slow. Eight times as many take as long.
TILE_ELEMENTS = 2**18
TILE_ROWS = 256
CACHE_LINE = 64  # bytes; products are faster into matrices each of whose rows begins with one


def tiled_softmax(theta: Tensor, phi: Tensor, g: Tensor, scale: float) -> Tensor:
    """softmax(scale * theta phi^T) g, some rows of the (L, M) matrix at a time.

    For the backward pass, all rows are kept if they take no more memory than the operands, and of
    sub-sampled keys as many as do; other rows are computed anew there.

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
    return _TiledSoftmax.apply(theta, phi, g, scale, kept_rows)[0]


class _TiledSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        theta: Tensor, phi: Tensor, g: Tensor, scale: float, kept_rows: int
    ) -> tuple[Tensor, Tensor]:
        y = _rows_like(theta, g.shape[2])
        kept = g.new_empty(theta.shape[0], kept_rows, _padded_keys(phi))
        scratch = _scratch(theta, phi, theta.shape[1] - kept_rows)
        for n, rows in _tiles(theta, phi, kept_rows):
            padded = kept[n, rows] if rows.stop <= kept_rows else scratch[: length(rows)]
            torch.mm(_weights(theta[n, rows], phi[n], scale, padded), g[n], out=y[n, rows])
        return y, kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        theta, phi, g, ctx.scale, _ = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(theta, phi, g, *output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return None, None, None, None, None
        theta, phi, g, y, kept = ctx.saved_tensors
        dtheta = torch.empty_like(theta)
        dphi, dg = torch.zeros_like(phi), torch.zeros_like(g)
        num_keys, kept_rows = phi.shape[1], kept.shape[1]
        scratch = _scratch(theta, phi, theta.shape[1] - kept_rows)
        gradient = _scratch(theta, phi, theta.shape[1])
        for n, rows in _tiles(theta, phi, kept_rows):
            if rows.stop <= kept_rows:
                weights = kept[n, rows, :num_keys]
            else:
                weights = _weights(theta[n, rows], phi[n], ctx.scale, scratch[: length(rows)])
            dg[n].addmm_(weights.t(), dy[n, rows])
            # What the softmax's normalisation takes from the gradient of each row's logits
            mean = (dy[n, rows].to(sum_dtype(y)) * y[n, rows]).sum(1, keepdim=True)
            dlogits = gradient[: length(rows), :num_keys]
            product_less(mean, dy[n, rows], g[n].t(), dlogits).mul_(weights).mul_(ctx.scale)
            torch.mm(dlogits, phi[n], out=dtheta[n, rows])
            dphi[n].addmm_(dlogits.t(), theta[n, rows])
        return dtheta, dphi, dg, None, None


def _rows_like(theta: Tensor, channels: int) -> Tensor:
    """Memory for (N, L, channels), in the layout of theta (N, L, D)."""
    samples, length = theta.shape[:2]
    if channels_first(theta):
        return theta.new_empty(samples, channels, length).transpose(1, 2)
    return theta.new_empty(samples, length, channels)


def write_logits(theta: Tensor, phi: Tensor, scale: float, out: Tensor) -> None:
    """scale * theta phi^T of one sample, in ``out``."""
    torch.addmm(out, theta, phi.t(), beta=0, alpha=scale, out=out)


def product_less(mean: Tensor, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """a b - mean, in ``out``.

    In bfloat16 either would be rounded by more than they may differ by. So the mean, which is in
    single precision there, is subtracted within the product, and its own rounding after it.
    """
    if mean.dtype == out.dtype:
        return torch.mm(a, b, out=out).sub_(mean)
    rounded = mean.to(out.dtype)
    return torch.addmm(-rounded, a, b, out=out).sub_((mean - rounded).to(out.dtype))


def sum_dtype(x: Tensor) -> torch.dtype:
    """In bfloat16, a sum of many terms would lose what a single product does not."""
    return torch.float32 if x.dtype == torch.bfloat16 else x.dtype


def ranges(first: int, last: int, at_most: int) -> Iterator[slice]:
    """Cuts a range into as few as can be, of about one length."""
    count = -(-(last - first) // at_most)
    for index in range(count):
        yield slice(
            first + (last - first) * index // count, first + (last - first) * (index + 1) // count
        )


def length(rows: slice) -> int:
    return rows.stop - rows.start


def _weights(theta: Tensor, phi: Tensor, scale: float, padded: Tensor) -> Tensor:
    """Softmax of the logits of some rows, in the memory ``padded``, whose last columns are zero."""
    weights = padded[:, : phi.shape[0]]
    write_logits(theta, phi, scale, weights)
    padded[:, phi.shape[0] :] = -math.inf
    torch.softmax(padded, -1, out=padded)
    return weights


def _scratch(theta: Tensor, phi: Tensor, rows: int) -> Tensor:
    """Memory for one tile of so many rows in all."""
    return theta.new_empty(min(rows, _tile_rows(theta, phi)), _padded_keys(phi))


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
            for rows in ranges(first, last, _tile_rows(theta, phi)):
                yield n, rows
