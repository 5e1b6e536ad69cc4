"""The family's equations in float64, one position after another, from a block's own parameters."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def weights_of(conv: nn.Module) -> tuple[Tensor, Tensor | float]:
    bias = 0.0 if conv.bias is None else conv.bias.double()
    return conv.weight.double().flatten(1), bias


def each(x: Tensor, conv: nn.Module) -> Tensor:
    """A 1x1 convolution of rows (L, C)."""
    weight, bias = weights_of(conv)
    return torch.stack([weight @ row for row in x]) + bias


def softmax(logits: list[Tensor]) -> Tensor:
    shifted = torch.stack(logits) - max(float(logit) for logit in logits)
    return shifted.exp() / shifted.exp().sum()


def context(block: nn.Module, x: Tensor) -> Tensor:
    mask = softmax([logit.squeeze() for logit in each(x, block.conv_mask)])
    return sum(weight * row for weight, row in zip(mask, x, strict=True))


def simplified(block: nn.Module, x: Tensor, size: tuple[int, ...]) -> Tensor:
    weight, bias = weights_of(block.out)
    return x + (weight @ context(block, x) + bias)


def global_context(block: nn.Module, x: Tensor, size: tuple[int, ...]) -> Tensor:
    weight, bias = weights_of(block.transform)
    y, norm = weight @ context(block, x) + bias, block.transform_norm
    y = (y - y.mean()) / ((y - y.mean()).square().mean() + norm.eps).sqrt()
    y = (y * norm.weight.double() + norm.bias.double()).clamp(min=0)
    weight, bias = weights_of(block.out)
    return x + (weight @ y + bias)


def pooled(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Rows (L, D) of a map, max-pooled by 2 in space."""
    window = [1, 2, 2][-len(size) :] if len(size) == 3 else [2] * len(size)
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(size) - 1]
    maps = x.T.reshape(1, -1, *size)
    return pool(maps, window, window, ceil_mode=True).flatten(2)[0].T


def disentangled(block: nn.Module, x: Tensor, size: tuple[int, ...]) -> Tensor:
    q, k, g, m = (each(x, conv) for conv in (block.theta, block.phi, block.g, block.conv_mask))
    if block.sub_sample:
        k, g, m = (pooled(rows, size) for rows in (k, g, m))
    q, k = q - q.mean(0), k - k.mean(0)
    unary = softmax([logit.squeeze() for logit in m])
    gamma = 1.0 if block.gamma is None else block.gamma.double()
    y = []
    for query in q:
        pairwise = softmax([block.scale * (query * key).sum() for key in k])
        y.append(sum((gamma * a + b) * v for a, b, v in zip(pairwise, unary, g, strict=True)))
    return x + each(torch.stack(y), block.out)


def criss_cross(block: nn.Module, x: Tensor, size: tuple[int, ...]) -> Tensor:
    height, width = size
    for _ in range(block.recurrence):
        q, k, y = each(x, block.theta), each(x, block.phi), []
        for i in range(height):
            for j in range(width):
                cross = {i * width + c for c in range(width)} | {
                    r * width + j for r in range(height)
                }
                keys = sorted(cross)
                attention = softmax([block.scale * (q[i * width + j] * k[c]).sum() for c in keys])
                y.append(sum(a * x[c] for a, c in zip(attention, keys, strict=True)))
        x = x + each(torch.stack(y), block.out)
    return x


def efficient(block: nn.Module, x: Tensor, size: tuple[int, ...]) -> Tensor:
    q, k, g = (each(x, conv) for conv in (block.theta, block.phi, block.g))
    matrix = torch.zeros(len(x), len(x), dtype=torch.float64)
    keys = [softmax(list(k[:, d])) for d in range(k.shape[1])]
    for i, query in enumerate(q):
        shares = softmax(list(query))
        matrix[i] = sum(share * key for share, key in zip(shares, keys, strict=True))
    assert math.isclose(float(matrix.sum()), len(x))
    return x + each(matrix @ g, block.out)


def asymmetric(block: nn.Module, x: Tensor, size: tuple[int, ...]) -> Tensor:
    maps = x.T.reshape(1, -1, *size)
    sampled = torch.cat([F.adaptive_avg_pool2d(maps, n).flatten(2) for n in (1, 3, 6, 8)], dim=2)
    assert sampled.shape[2] == 110
    q, k, g = (
        each(rows, c)
        for rows, c in ((x, block.theta), *((sampled[0].T, c) for c in (block.phi, block.g)))
    )
    y = []
    for query in q:
        attention = softmax([block.scale * (query * key).sum() for key in k])
        y.append(sum(a * v for a, v in zip(attention, g, strict=True)))
    return x + each(torch.stack(y), block.out)


def unit(x: Tensor) -> Tensor:
    length = float(x.square().sum().sqrt())
    return x / length if length else x


def expectation_maximization(block: nn.Module, x: Tensor, size: tuple[int, ...]) -> Tensor:
    q, bases = each(x, block.theta), list(block.bases.double())
    for _ in range(block.iterations):
        shares = torch.stack([softmax([(query * base).sum() for base in bases]) for query in q])
        bases = [unit(sum(s * query for s, query in zip(row, q, strict=True))) for row in shares.T]
    y = [sum(s * base for s, base in zip(row, bases, strict=True)) for row in shares]
    return x + each(torch.stack(y).clamp(min=0), block.out)


def latent_gnn(block: nn.Module, x: Tensor, size: tuple[int, ...]) -> Tensor:
    v = torch.stack([unit(row) for row in each(x, block.g)])
    u = torch.stack([unit(row) for row in each(x, block.theta)])
    gather = [unit(column) for column in each(v, block.phi).clamp(min=0).T]
    spread = [unit(row) for row in each(u, block.psi).clamp(min=0)]
    nodes = [sum(w * row for w, row in zip(column, v, strict=True)) for column in gather]
    mixed = []
    for node in nodes:
        attention = softmax([(unit(node) * unit(other)).sum() for other in nodes])
        mixed.append(sum(a * other for a, other in zip(attention, nodes, strict=True)))
    y = torch.stack([sum(w * node for w, node in zip(row, mixed, strict=True)) for row in spread])
    return x + each(each(y, block.transform).clamp(min=0), block.out)


REFERENCES = {
    "AsymmetricNonLocalBlock": asymmetric,
    "SimplifiedNonLocalBlock": simplified,
    "GlobalContextBlock": global_context,
    "DisentangledNonLocalBlock": disentangled,
    "CrissCrossBlock": criss_cross,
    "EfficientAttentionBlock": efficient,
    "EMABlock": expectation_maximization,
    "LatentGNNBlock": latent_gnn,
}


def reference(block: nn.Module, x: Tensor) -> Tensor:
    """z (N, C, *S) of x (N, C, *S), in float64."""
    size = tuple(x.shape[2:])
    with torch.no_grad():
        samples = [
            REFERENCES[type(block).__name__](block, sample.double().flatten(1).T, size)
            for sample in x
        ]
    return torch.stack([sample.T.reshape(-1, *size) for sample in samples])
