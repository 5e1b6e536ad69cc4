"""The block of *Expectation-Maximization Attention Networks* (ICCV 2019), sec. 3.2 to 3.4.

Shape shorthand: N samples, C channels, L positions, D inner channels, K bases.
"""

import torch
from detectron2.utils import comm
from torch import Tensor, distributed, nn
from torch.utils.checkpoint import checkpoint as recomputed

from .base import NON_LOCAL_BLOCK_REGISTRY, BaseNonLocalBlock
from .normalize import distribution, softmax_along, unit
from .options import BlockOptions
from .projection import project


@NON_LOCAL_BLOCK_REGISTRY.register()
class EMABlock(BaseNonLocalBlock):
    """y_i = ReLU(sum_k s_ik mu_k): each position q_i is built anew from K bases of its own map.

    The bases are found by ``iterations`` of expectation, s_ik = softmax_k(q_i^T mu_k), and
    maximization, mu_k = sum_i s_ik q_i, scaled to length 1. They start from the buffer ``bases``,
    which is drawn alike in all processes and follows those found, averaged over all samples of all
    processes, by ``momentum`` in each forward pass of training; a batch without samples, or with
    numbers that are not finite, leaves it as it is. In evaluation, and once frozen, it stays.

    Gradients pass through the last iteration, from bases that are taken as given. In the authors'
    code they pass through none, so that the layer before the bases never learns; and a ReLU follows
    the sum with x. Otherwise it is theirs, with D = C and "SyncBN".

    Children: ``theta`` (q), a 1x1 convolution C -> D; ``out``, D -> C; ``norm`` after it where one
    is asked for. Buffers: ``bases`` (K, D). Memory: L K.
    """

    USES: tuple[str, ...] = (
        *BaseNonLocalBlock.COMMON,
        *("inner_ratio", "norm", "nodes", "iterations", "momentum"),
    )
    bases: Tensor

    def _build(self, options: BlockOptions) -> int:
        if options.mask_padding:
            raise ValueError(
                "mask_padding=True gives the block one image at a time, and the bases of an "
                "EMABlock follow the mean of a batch; use mask_padding=False or another block"
            )
        self.label = "expectation-maximization"
        self.iterations, self.momentum = options.iterations, options.momentum
        self.theta = self._conv(self.in_channels, self.inner_channels)
        self.register_buffer("bases", torch.empty(options.nodes, self.inner_channels))
        return self.inner_channels

    def _draw(self) -> None:
        super()._draw()
        # Near zero, all positions would share all bases alike, which then are one
        nn.init.normal_(self.theta.weight, std=(2 / self.in_channels) ** 0.5)
        # The same in all processes, whose random numbers differ: DDP hands parameters around alone
        alike = torch.Generator(device="cpu").manual_seed(0)
        bases = torch.randn(self.bases.shape, generator=alike, device="cpu")
        self.bases.copy_(unit(bases, 1))

    def freeze(self) -> "EMABlock":
        """As of every block of Detectron2's; the bases stay, too."""
        self.momentum = 1.0
        return super().freeze()

    def forward(self, x: Tensor) -> Tensor:
        """As of every block; in training, the bases move."""
        if not self.training or self.momentum == 1:
            return super().forward(x)
        bases = self.bases.clone()  # for the backward pass and what it may compute again
        if self.grad_checkpoint:
            y, found = recomputed(self._attend, x, bases, use_reentrant=False)
        else:
            y, found = self._attend(x, bases)
        self._move(found)
        return self._sum(y, x)

    def affinity(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """What y draws before its ReLU, scaled to sum to 1: sum_k s_ik s_jk / ||sum_l s_lk q_l||.

        Args:
            x: the block's input, (N, C, *S).
            queries: flat indices i of the positions to look from, int64 (Q,); by default all L.

        Returns:
            (N, Q, L), a distribution over q_j.
        """
        theta = self._embed(x)
        shares, sums = self._find(theta, self.bases)
        lengths = sums.norm(dim=2).clamp(min=1e-6)  # (N, K)
        of_keys = shares / lengths.unsqueeze(1)
        if queries is not None:
            shares = shares[:, queries]
        return distribution(torch.matmul(shares, of_keys.transpose(1, 2)))

    def _aggregate(self, x: Tensor) -> Tensor:
        """y, (N, L, D)."""
        return self._attend(x, self.bases)[0]

    def _attend(self, x: Tensor, bases: Tensor) -> tuple[Tensor, Tensor]:
        """y, (N, L, D), and the bases found, (N, K, D), from those given, (K, D)."""
        shares, sums = self._find(self._embed(x), bases)
        found = unit(sums, 2)
        y = torch.matmul(found.transpose(1, 2), shares.transpose(1, 2)).relu()
        return y.transpose(1, 2), found

    def _embed(self, x: Tensor) -> Tensor:
        """q, (N, L, D)."""
        return project(self._for_projections(x), self.theta.weight, self.theta.bias)

    def _find(self, theta: Tensor, bases: Tensor) -> tuple[Tensor, Tensor]:
        """Of the last iteration, s (N, L, K) and the sums of q by it, (N, K, D)."""
        bases, given = bases.to(theta.dtype), theta.detach()
        for _ in range(self.iterations - 1):
            bases = unit(_iterate(given, bases)[1], 2)
        return _iterate(theta, bases)

    @torch.no_grad()
    def _move(self, found: Tensor) -> None:
        """Moves the buffer towards the mean of the bases found, (N, K, D)."""
        samples = self.bases.new_full((1,), found.shape[0])
        total = torch.cat([found.to(self.bases.dtype).sum(0).flatten(), samples])
        if comm.get_world_size() > 1:
            distributed.all_reduce(total)
        mean = (total[:-1] / total[-1].clamp(min=1)).reshape(self.bases.shape)
        usable = (total[-1] > 0) & mean.isfinite().all()
        moved = self.bases.lerp(mean, 1 - self.momentum)
        self.bases.copy_(torch.where(usable, moved, self.bases))


def _iterate(theta: Tensor, bases: Tensor) -> tuple[Tensor, Tensor]:
    """s (N, L, K), and sum_i s_ik q_i, (N, K, D), of which only the direction counts."""
    shares = softmax_along(torch.matmul(theta, bases.transpose(-2, -1)), 2)
    if theta.dtype == torch.float16:  # whose range sums over positions would leave
        theta = theta / theta.shape[1]
    return shares, torch.matmul(shares.transpose(1, 2), theta)
