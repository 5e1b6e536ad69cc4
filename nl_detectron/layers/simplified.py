"""The simplified non-local block of *GCNet* (ICCVW 2019), sec. 3.2.

Shape shorthand as in :mod:`.base`: N samples, C channels, L positions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import NON_LOCAL_BLOCK_REGISTRY, BaseNonLocalBlock
from .options import BlockOptions
from .positions import channels
from .projection import project_to_one


@NON_LOCAL_BLOCK_REGISTRY.register()
class SimplifiedNonLocalBlock(BaseNonLocalBlock):
    """z_i = x_i + W_v sum_j softmax_j(w x_j) x_j: one and the same vector for all positions.

    Children: ``conv_mask``, the 1x1 convolution w, C -> 1; ``out``, W_v, C -> C. It has no norm,
    as a batch of single vectors has no statistics.
    """

    def _build(self, options: BlockOptions) -> int:
        self.label = "simplified"
        self.embeds_queries = False  # all rows are one by design
        self.conv_mask = self._conv(self.in_channels, 1)
        return self.in_channels

    def affinity(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """softmax_j(w x_j), the same for all queries: (N, Q, L), a distribution.

        Args:
            x: the block's input, (N, C, *S).
            queries: flat indices i of the positions to look from, int64 (Q,); by default all L.
        """
        weights = self._weights(self._checked(x))
        return weights.expand(-1, weights.shape[-1] if queries is None else len(queries), -1)

    def _aggregate(self, x: Tensor) -> Tensor:
        """sum_j softmax_j(w x_j) x_j, (N, 1, C)."""
        x = self._checked(x)
        weights = self._weights(x).to(x.dtype)
        return torch.bmm(channels(x), weights.transpose(1, 2)).transpose(1, 2)

    def _weights(self, x: Tensor) -> Tensor:
        """softmax_j(w x_j), (N, 1, L)."""
        return project_to_one(x, self.conv_mask.weight, self.conv_mask.bias).softmax(-1)

    def _project_out(self, y: Tensor, x: Tensor) -> Tensor:
        """W_v y, (N, C, 1...), of y (N, 1, channels)."""
        bias = None if self.out.bias is None else self.out.bias.to(y.dtype)
        z = F.linear(y, self.out.weight.flatten(1).to(y.dtype), bias).transpose(1, 2)
        for _ in range(self.dimension - 1):
            z = z.unsqueeze(-1)
        return z
