"""The block of *Asymmetric Non-local Neural Networks for Semantic Segmentation* (ICCV 2019).

Shape shorthand: N samples, C channels, L = H x W positions, D inner channels, M = 110 keys.
"""

import functools

import numpy as np
import torch
from torch import Tensor

from .base import NON_LOCAL_BLOCK_REGISTRY, BaseNonLocalBlock
from .options import BlockOptions
from .pairwise import affinity, softmax
from .positions import channels
from .projection import project
from .recording import is_recorded

BINS = (1, 3, 6, 8)  # keys are the means of 1x1, 3x3, 6x6 and 8x8 parts of the map
# Where each level's rows of parts begin, and columns, among those of all
STARTS = [sum(BINS[:level]) for level in range(len(BINS))]
# Of all pairs of a column and a row of parts, those of one level, row by row: 110 of 324
OF_ONE_LEVEL = [
    (start + column) * sum(BINS) + start + row
    for start, bins in zip(STARTS, BINS, strict=True)
    for row in range(bins)
    for column in range(bins)
]


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
        levels = zip(_means(x, 2).split(BINS), _means(x, 3).split(BINS), strict=True)
        parts = torch.cat([torch.kron(rows, columns) for rows, columns in levels])
        return torch.matmul(of_keys, parts.to(of_keys.dtype))

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
    x = torch.matmul(x, _means(x, 3).t()).transpose(2, 3)  # (N, C, all bins, H)
    x = torch.matmul(x, _means(x, 3).t())  # (N, C, all bins, all bins)
    own = torch.tensor(OF_ONE_LEVEL).to(x.device, non_blocking=True)  # no wait for what runs
    return channels(x).index_select(2, own)


def _means(x: Tensor, axis: int) -> Tensor:
    """(all bins, length), by which an axis of x is taken the means of its parts of."""
    if is_recorded():
        return _means_of(x.shape[axis]).to(x.dtype)
    # Kept, as a GPU would take longer to make them than for the rest of the block
    means = torch.from_numpy(_kept_means(x.shape[axis]))
    return means.to(x.device, x.dtype, non_blocking=True)


def _means_of(length: int) -> Tensor:
    cells = torch.arange(length)
    bins = torch.tensor([count for count in BINS for _ in range(count)]).unsqueeze(1)
    part = torch.cat([torch.arange(count) for count in BINS]).unsqueeze(1)
    first, end = part * length // bins, ((part + 1) * length + bins - 1) // bins
    inside = ((cells >= first) & (cells < end)).double()
    return inside / inside.sum(1, keepdim=True)


@functools.lru_cache(maxsize=64)
def _kept_means(length: int) -> np.ndarray:
    """No tensor, which would be of the mode of the first call: inference, or a recorder's."""
    return _means_of(length).numpy()
