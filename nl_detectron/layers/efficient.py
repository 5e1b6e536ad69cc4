"""The block of *Efficient Attention: Attention with Linear Complexities* (WACV 2021).

Shape shorthand as in :mod:`.base`: N samples, L positions, D inner channels.
"""

import torch
from torch import Tensor

from .base import NON_LOCAL_BLOCK_REGISTRY, BaseNonLocalBlock
from .normalize import softmax_along
from .options import BlockOptions
from .positions import channels
from .projection import project_to_map


@NON_LOCAL_BLOCK_REGISTRY.register()
class EfficientAttentionBlock(BaseNonLocalBlock):
    """y_i = rho_q(q_i) sum_j rho_k(k_j)^T g_j, in time and memory linear in the positions.

    rho_q is a softmax over the channels of each query, rho_k one over the positions of each
    channel of the keys; so each position draws from D maps of attention that all share. One head;
    with it, this is the double attention of *A^2-Nets* (NeurIPS 2018), too, by its equations.

    Children: ``theta`` (q), ``phi`` (k) and ``g``, 1x1 convolutions C -> D; ``out``, D -> C;
    ``norm`` after it where one is asked for.
    """

    USES: tuple[str, ...] = (*BaseNonLocalBlock.COMMON, "inner_ratio", "norm", "init")

    def _build(self, options: BlockOptions) -> int:
        self.label = "efficient"
        for name in ("theta", "phi", "g"):
            self.add_module(name, self._conv(self.in_channels, self.inner_channels))
        return self.inner_channels

    def affinity(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """rho_q(q_i)^T rho_k(k_j), the matrix that the block never holds: a distribution over j.

        Args:
            x: the block's input, (N, C, *S).
            queries: flat indices i of the positions to look from, int64 (Q,); by default all L.

        Returns:
            (N, Q, L).
        """
        theta, phi = self._embed(self._for_projections(x))
        if queries is not None:
            theta = theta[:, :, queries]
        return torch.matmul(theta.transpose(1, 2), phi)

    def _embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """rho_q and rho_k, (N, D, L) each."""
        theta = channels(project_to_map(x, self.theta.weight, self.theta.bias))
        phi = channels(project_to_map(x, self.phi.weight, self.phi.bias))
        return softmax_along(theta, 1), softmax_along(phi, 2)

    def _aggregate(self, x: Tensor) -> Tensor:
        """y, (N, L, D)."""
        x = self._for_projections(x)
        theta, phi = self._embed(x)
        g = channels(project_to_map(x, self.g.weight, self.g.bias))
        context = torch.matmul(g, phi.transpose(1, 2))  # (N, D, D)
        return torch.matmul(context, theta).transpose(1, 2)
