"""The disentangled block of *Disentangled Non-Local Neural Networks* (ECCV 2020).

Shape shorthand as in :mod:`.base`: N samples, L query and M key positions, D inner channels.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from .base import NON_LOCAL_BLOCK_REGISTRY, BaseNonLocalBlock
from .non_local import NonLocalBlock
from .normalize import softmax_along
from .options import BlockOptions
from .pairwise import affinity, softmax
from .positions import as_map, channels
from .projection import project_to_one


@NON_LOCAL_BLOCK_REGISTRY.register()
class DisentangledNonLocalBlock(NonLocalBlock):
    """A whitened pairwise term and a unary one, each with a softmax of its own:

    y_i = sum_j (softmax_j((q_i - mu_q)^T (k_j - mu_k)) + softmax_j(m_j)) g_j.

    Children: ``theta`` (q), ``phi`` (k), ``g``, ``out`` and ``norm`` as of a
    :class:`NonLocalBlock`; ``conv_mask``, the 1x1 convolution C -> 1 that gives m, sub-sampled as
    the keys are. With ``pairwise_gate`` there is the scalar ``gamma`` (1,) besides, which
    multiplies the pairwise term and starts at zero in place of the last layer: the authors' own
    block, which adds its unary term from the start and so is no identity.
    """

    USES: tuple[str, ...] = (
        *BaseNonLocalBlock.COMMON,
        *("inner_ratio", "sub_sample", "use_scale", "norm", "init"),
        *("temperature", "pairwise_gate"),
    )

    def _build(self, options: BlockOptions) -> int:
        width = super()._build(replace(options, pairwise="embedded_gaussian"))
        self.label = "disentangled"
        self.scale /= options.temperature
        self.conv_mask = self._conv(self.in_channels, 1)
        self.gamma = nn.Parameter(torch.ones(1)) if options.pairwise_gate else None
        self.is_distribution = not options.pairwise_gate
        return width

    def _start_at_zero(self) -> None:
        if self.gamma is None:
            super()._start_at_zero()
        else:
            nn.init.zeros_(self.gamma)

    def affinity(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """The mean of the two terms' weights, a distribution; with a gate their weighted sum.

        Args:
            x: the block's input, (N, C, *S).
            queries: flat indices i of the positions to look from, int64 (Q,); by default all L.

        Returns:
            (N, Q, M): half of what y draws from each key or, with a gate, all.
        """
        theta, phi, _ = self._embed(x)
        if queries is not None:
            theta = theta[:, queries]
        pairwise = affinity("embedded_gaussian", theta, phi, self.scale)
        unary = self._unary(x)
        return (pairwise + unary) / 2 if self.gamma is None else self.gamma * pairwise + unary

    def _embed(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As of a :class:`NonLocalBlock`, with queries whitened.

        Keys need not be: their mean adds the same to all logits of a query, which the softmax
        takes away.
        """
        theta, phi, g = super()._embed(x)
        return theta - theta.mean(1, keepdim=True), phi, g

    def _unary(self, x: Tensor) -> Tensor:
        """softmax_j(m_j), (N, 1, M)."""
        mask = self.conv_mask
        logits = project_to_one(self._checked(x), mask.weight, mask.bias)
        if self.sub_sample:
            logits = channels(self._halved(as_map(logits.transpose(1, 2), x)))
        return softmax_along(logits, -1)

    def _aggregate(self, x: Tensor) -> Tensor:
        """y, (N, L, D).

        The pairwise weights of a query sum to 1, so what the unary term adds to all queries is
        added to the values, of which there are fewer.
        """
        theta, phi, g = self._embed(x)
        unary = torch.bmm(self._unary(x), g)  # (N, 1, D)
        if self.gamma is not None:
            g = self.gamma.to(g.dtype) * g
        return softmax(theta, phi, g + unary, self.scale)
