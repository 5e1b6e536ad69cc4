"""The criss-cross block of *CCNet* (ICCV 2019, TPAMI 2020), sec. 3.2 and 3.3.

Shape shorthand: N samples, C channels, H x W positions, D inner channels.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .base import NON_LOCAL_BLOCK_REGISTRY, BaseNonLocalBlock
from .normalize import softmax_along
from .options import BlockOptions
from .positions import channels_last, positions
from .projection import convolve, convolves, project
from .recording import is_recorded


@NON_LOCAL_BLOCK_REGISTRY.register()
class CrissCrossBlock(BaseNonLocalBlock):
    """Attention of each position to its row and column, ``recurrence`` times with the same layers.

    y_i = sum_j softmax_j(q_i^T k_j) x_j over the H + W - 1 positions j in the row or the column of
    i, and z = x + out(y) is the next pass's x: two passes reach every position. Rows of the softmax
    sum to 1, so the authors' values g and their gate gamma are one layer with ``out``, which is
    gamma W_g here. They have D = C / 8 and no scale.

    Children: ``theta`` (q) and ``phi`` (k), 1x1 convolutions C -> D; ``out``, C -> C; ``norm``
    after it where one is asked for. Images only. Memory: (H + W) H W weights a pass.
    """

    USES: tuple[str, ...] = (
        *BaseNonLocalBlock.COMMON,
        *("inner_ratio", "use_scale", "norm", "init", "recurrence"),
    )
    DIMENSIONS: tuple[int, ...] = (2,)

    def _build(self, options: BlockOptions) -> int:
        self.label = "criss-cross"
        self.recurrence = options.recurrence
        self.scale = self.inner_channels**-0.5 if options.use_scale else 1.0
        self.theta = self._conv(self.in_channels, self.inner_channels)
        self.phi = self._conv(self.in_channels, self.inner_channels)
        return self.in_channels

    def forward(self, x: Tensor) -> Tensor:
        """As of every block; x: (N, C, H, W)."""
        for _ in range(self.recurrence):
            x = super().forward(x)
        return x

    def affinity(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """The weights of the first pass, a distribution that is zero outside of the cross.

        Args:
            x: the block's input, (N, C, H, W).
            queries: flat indices i of the positions to look from, int64 (Q,); by default all L.

        Returns:
            (N, Q, L).
        """
        x = self._for_projections(x)
        cells = torch.arange(x.shape[2] * x.shape[3], device=x.device)
        queries = cells if queries is None else queries
        logits = torch.matmul(
            project(x, self.theta.weight, self.theta.bias)[:, queries] * self.scale,
            project(x, self.phi.weight, self.phi.bias).transpose(1, 2),
        )
        rows, columns = cells // x.shape[3], cells % x.shape[3]
        off = (rows[queries, None] != rows) & (columns[queries, None] != columns)
        return logits.masked_fill(off, -math.inf).softmax(-1)

    def _aggregate(self, x: Tensor) -> Tensor:
        """y, (N, L, C)."""
        x = self._checked(x)
        rows = x.permute(0, 2, 3, 1)  # (N, H, W, C)
        if convolves(x):  # to few channels, so that the products' copies of these are small
            q = convolve(x, self.theta.weight, self.theta.bias).permute(0, 2, 3, 1) * self.scale
            k = convolve(x, self.phi.weight, self.phi.bias).permute(0, 2, 3, 1)
        else:
            rows = rows.contiguous()  # copied once, and not by each layer
            q = F.linear(rows, self.theta.weight.flatten(1), self.theta.bias) * self.scale
            k = F.linear(rows, self.phi.weight.flatten(1), self.phi.bias)
        by_row = torch.matmul(q, k.transpose(2, 3))  # (N, H, W, W)
        q, k = q.transpose(1, 2), k.transpose(1, 2)
        by_column = torch.matmul(q, k.transpose(2, 3))  # (N, W, H, H)
        cells = torch.arange(x.shape[2], device=x.device)
        itself = cells.unsqueeze(1) == cells  # in the row already
        by_column = by_column.masked_fill(itself, -math.inf).transpose(1, 2)  # (N, H, W, H)
        weights = softmax_along(torch.cat([by_row, by_column], dim=3), 3)
        y = _sums_over_crosses(weights, rows).permute(0, 3, 1, 2)
        if convolves(x) and not channels_last(x):
            y = y.contiguous()  # as the convolution after it takes it
        return positions(y)


def _sums_over_crosses(weights: Tensor, x: Tensor) -> Tensor:
    """y (N, H, W, C), of weights (N, H, W, W + H), a row's first, and x (N, H, W, C)."""
    if is_recorded():
        width = x.shape[2]
        y = torch.matmul(weights[..., :width], x)
        by_column = torch.matmul(weights[..., width:].transpose(1, 2), x.transpose(1, 2))
        return y + by_column.transpose(1, 2)
    y = _CrossSums.apply(weights, x)
    if y.requires_grad:
        # Products along columns would copy a gradient whose channels are not last, and hold both
        y.register_hook(lambda gradient: gradient if gradient is None else gradient.contiguous())
    return y


class _CrossSums(torch.autograd.Function):
    """Sums over rows, to which those over columns are added in place; so for the gradient of x.

    Both need channels last in memory: a copy of x, which is made anew in the backward pass.
    """

    @staticmethod
    def forward(weights: Tensor, x: Tensor) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        for n in range(x.shape[0]):
            by_row, by_column = _split(weights[n])
            torch.bmm(by_row, x[n], out=y[n])
            y[n].transpose(0, 1).baddbmm_(by_column, x[n].transpose(0, 1))
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        weights, x = ctx.saved_tensors
        x = x.contiguous()
        dweights, dx = torch.empty_like(weights), torch.empty_like(x)
        for n in range(x.shape[0]):
            (by_row, by_column), (dby_row, dby_column) = _split(weights[n]), _split(dweights[n])
            torch.bmm(dy[n], x[n].transpose(1, 2), out=dby_row)
            torch.bmm(dy[n].transpose(0, 1), x[n].permute(1, 2, 0), out=dby_column)
            torch.bmm(by_row.transpose(1, 2), dy[n], out=dx[n])
            dx[n].transpose(0, 1).baddbmm_(by_column.transpose(1, 2), dy[n].transpose(0, 1))
        return dweights, dx


def _split(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Those of rows, (H, W, W), and of columns, (W, H, H), of one sample's (H, W, W + H)."""
    width = weights.shape[1]
    return weights[..., :width], weights[..., width:].transpose(0, 1)
