"""The block of *Asymmetric Non-local Neural Networks for Semantic Segmentation* (ICCV 2019).

Shape shorthand: N samples, C channels, L = H x W positions, D inner channels, M = 110 keys.
"""

import torch
from torch import Tensor

from .base import NON_LOCAL_BLOCK_REGISTRY, BaseNonLocalBlock
from .options import BlockOptions
from .pairwise import affinity, softmax
from .positions import project

BINS = (1, 3, 6, 8)  # keys are the means of 1x1, 3x3, 6x6 and 8x8 parts of the map


@NON_LOCAL_BLOCK_REGISTRY.register()
class AsymmetricNonLocalBlock(BaseNonLocalBlock):
    """y_i = sum_m softmax_m(q_i^T k_m) g_m over a pyramid of 110 means of the map, in linear time.

    Parts are those of PyTorch's adaptive pooling, which overlap on small maps. Means are taken
    before the embeddings, which as linear layers give the same of fewer positions; so it is the
    paper's equation, without the norm and ReLU that the authors' code has after theta and phi.

    Children: ``theta`` (q), ``phi`` (k) and ``g``, 1x1 convolutions C -> D; ``out``, D -> C;
    ``norm`` after it where one is asked for. Images only.
    """

    USES: tuple[str, ...] = (
        *BaseNonLocalBlock.COMMON,
        *("inner_ratio", "use_scale", "norm", "init"),
    )
    DIMENSIONS: tuple[int, ...] = (2,)

    def _build(self, options: BlockOptions) -> int:
        self.label = "asymmetric"
        self.scale = self.inner_channels**-0.5 if options.use_scale else 1.0
        self.theta = self._conv(self.in_channels, self.inner_channels)
        self.phi = self._conv(self.in_channels, self.inner_channels)
        self.g = self._conv(self.in_channels, self.inner_channels)
        return self.inner_channels

    def affinity(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """The weights of the positions themselves, each key's shared among its part of the map.

        Args:
            x: the block's input, (N, C, H, W).
            queries: flat indices i of the positions to look from, int64 (Q,); by default all L.

        Returns:
            (N, Q, L), a distribution.
        """
        x = self._for_projections(x)
        theta = project(x, self.theta.weight, self.theta.bias)
        if queries is not None:
            theta = theta[:, queries]
        phi = project(pyramid(x), self.phi.weight, self.phi.bias)
        of_keys = affinity("embedded_gaussian", theta, phi, self.scale)
        parts = [torch.kron(*(_means(x, axis, bins) for axis in (2, 3))) for bins in BINS]
        return torch.matmul(of_keys, torch.cat(parts).to(of_keys.dtype))

    def _aggregate(self, x: Tensor) -> Tensor:
        """y, (N, L, D)."""
        x = self._for_projections(x)
        theta = project(x, self.theta.weight, self.theta.bias)
        keys = pyramid(x)
        phi = project(keys, self.phi.weight, self.phi.bias)
        g = project(keys, self.g.weight, self.g.bias)
        return softmax(theta, phi, g, self.scale)


def pyramid(x: Tensor) -> Tensor:
    """(N, C, M): the means of x (N, C, H, W) over the parts of each of :data:`BINS`.

    By products, as recorders bind adaptive pooling to sizes.
    """
    columns = torch.cat([_means(x, 3, bins) for bins in BINS])
    x = torch.matmul(x, columns.t())  # (N, C, H, all bins)
    levels = []
    for level, bins in zip(x.split(BINS, dim=3), BINS, strict=True):
        means = torch.matmul(level.transpose(2, 3), _means(x, 2, bins).t())
        levels.append(means.transpose(2, 3).reshape(x.shape[0], x.shape[1], bins * bins))
    return torch.cat(levels, dim=2)


def _means(x: Tensor, axis: int, bins: int) -> Tensor:
    """(bins, length), by which an axis of x is taken the means of its parts of."""
    length = x.shape[axis]
    cells = torch.arange(length, device=x.device)
    part = torch.arange(bins, device=x.device).unsqueeze(1)
    first, end = part * length // bins, ((part + 1) * length + bins - 1) // bins
    inside = ((cells >= first) & (cells < end)).to(x.dtype)
    return inside / inside.sum(1, keepdim=True)
