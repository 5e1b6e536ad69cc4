"""The non-local block written from the paper's equations, as plainly as can be."""

import itertools
import math

import torch
from torch import Tensor

from nl_detectron import NonLocalBlock


def max_pool(x: Tensor, *, dimension: int) -> Tensor:
    """x (C, *S) max-pooled by 2 in space (the last two axes, or the one axis of a sequence)."""
    axes = range(1, x.dim()) if dimension < 3 else range(2, x.dim())
    for axis in axes:
        pairs = [x.narrow(axis, i, min(2, x.shape[axis] - i)) for i in range(0, x.shape[axis], 2)]
        x = torch.cat([pair.amax(axis, keepdim=True) for pair in pairs], dim=axis)
    return x


def non_local_block(block: NonLocalBlock, x: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 1 to 6 with two loops over positions.

    Args:
        x: (N, C, *S), float64, as the block's parameters.

    Returns:
        W_z y + x, (N, C, *S), before any norm, and f / C(x), (N, L, M).
    """

    def embed(conv, sample):
        return torch.einsum("dc,c...->d...", conv.weight.flatten(1), sample) + conv.bias.reshape(
            -1, *[1] * block.dimension
        )

    outputs, affinities = [], []
    for sample in x:
        gaussian = block.pairwise == "gaussian"
        theta = sample if gaussian else embed(block.theta, sample)
        phi = sample if gaussian else embed(block.phi, sample)
        g = embed(block.g, sample)
        if block.sub_sample:
            phi = max_pool(phi, dimension=block.dimension)
            g = max_pool(g, dimension=block.dimension)
        theta, phi, g = theta.flatten(1), phi.flatten(1), g.flatten(1)
        scale = 1 / math.sqrt(theta.shape[0]) if block.use_scale else 1.0
        num_queries, num_keys = theta.shape[1], phi.shape[1]
        f = torch.zeros(num_queries, num_keys, dtype=x.dtype)
        for i, j in itertools.product(range(num_queries), range(num_keys)):
            if block.pairwise in ("gaussian", "embedded_gaussian"):
                f[i, j] = torch.exp(scale * theta[:, i].dot(phi[:, j]))
            elif block.pairwise == "dot_product":
                f[i, j] = theta[:, i].dot(phi[:, j])
            else:
                f[i, j] = torch.relu(block.w_f.dot(torch.cat([theta[:, i], phi[:, j]])))
        if block.pairwise in ("gaussian", "embedded_gaussian"):
            f = f / f.sum(dim=1, keepdim=True)
        else:
            f = f / num_keys
        y = torch.stack(
            [sum(f[i, j] * g[:, j] for j in range(num_keys)) for i in range(num_queries)]
        )
        z = block.out.weight.flatten(1) @ y.T
        if block.out.bias is not None:
            z = z + block.out.bias.unsqueeze(-1)
        outputs.append(sample + z.reshape(sample.shape))
        affinities.append(f)
    return torch.stack(outputs), torch.stack(affinities)
