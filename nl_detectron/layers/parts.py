"""Softmax attention on GPUs: a few large products of PyTorch's, in parts where maps are large.

A GPU is faster the fewer steps it is given, as starting one takes as long as a small product; so
the matrix of all pairs is held, but only of a part of all queries at once. Shape shorthand as in
:mod:`.pairwise`: N samples, L queries, M keys, D and E channels.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recomputed

from .normalize import softmax_along
from .positions import channels_first

PART = 2**25  # pairs of a query and a key that are held at once: 134 MB in single precision


def softmax_in_parts(theta: Tensor, phi: Tensor, g: Tensor, scale: float) -> Tensor:
    """softmax(scale * theta phi^T) g.

    Where there is more than one part, each one's weights are computed anew in the backward pass.

    Args:
        theta: queries (N, L, D).
        phi: keys (N, M, D).
        g: values (N, M, E).
        scale: factor on the logits.

    Returns:
        y, (N, L, E), laid out in memory as theta is. All four are of one dtype, and so are the
        logits before the softmax.
    """
    pairs = theta.shape[1] * phi.shape[1]  # of a sample
    if theta.shape[0] * pairs <= PART:
        return _attend(theta, phi, g, scale)
    attend: Callable[..., Tensor] = _attend
    if torch.is_grad_enabled():
        attend = partial(recomputed, _attend, use_reentrant=False, preserve_rng_state=False)
    samples = max(1, PART // pairs)
    rows = max(1, PART // phi.shape[1])
    # Gradients of what is split are put together at once; those of slices would be added up
    y = [
        _joined([attend(queries, *others, scale) for queries in part.split(rows, 1)], 1)
        for part, *others in zip(*(x.split(samples) for x in (theta, phi, g)), strict=True)
    ]
    return _joined(y, 0)


def _attend(theta: Tensor, phi: Tensor, g: Tensor, scale: float) -> Tensor:
    weights = torch.baddbmm(theta.new_empty(1, 1, 1), theta, phi.mT, beta=0, alpha=scale)
    if not torch.is_grad_enabled():
        torch.softmax(weights, -1, out=weights)
        if channels_first(theta):
            return torch.bmm(g.mT, weights.mT).mT
        return torch.bmm(weights, g)
    weights = softmax_along(weights, -1)
    y = torch.bmm(weights, g)
    # Copied, as by the other product the gradient of the weights would have to be, which is larger
    return y.mT.contiguous().mT if channels_first(theta) else y


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    """In the layout of the first."""
    if len(parts) == 1:
        return parts[0]
    if channels_first(parts[0]):
        return torch.cat([part.mT for part in parts], -1 if dim else 0).mT
    return torch.cat(parts, dim)
