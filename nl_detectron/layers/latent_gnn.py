"""The block of *LatentGNN: Learning Efficient Non-local Relations* (ICML 2019).

Shape shorthand: N samples, C channels, L positions, D inner channels, K latent nodes.
"""

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from .base import NON_LOCAL_BLOCK_REGISTRY, BaseNonLocalBlock
from .normalize import distribution, softmax_along, unit
from .options import BlockOptions
from .positions import as_map, channels, positions
from .projection import project_to_map


@NON_LOCAL_BLOCK_REGISTRY.register()
class LatentGNNBlock(BaseNonLocalBlock):
    """y = ReLU(W Psi A Phi^T v): positions draw on each other by way of K latent nodes.

    v_i is g x_i at unit length. Phi (L, K) gathers nodes from positions, ReLU(phi v_i), each column
    at unit length; A (K, K) is softmax_l(n_k^T n_l) of the nodes n at unit length; Psi (L, K)
    spreads them, ReLU(psi (theta x_i at unit length)), each row at unit length.

    That is the asymmetric form with one kernel and its graph convolution W, which the authors'
    detectors have, with D = C / 8 and 100 nodes on res4. Their gate gamma is one layer with
    ``out`` and its norm, which are zero at the start.

    Children: ``theta`` and ``g``, 1x1 convolutions C -> D; ``phi`` and ``psi``, D -> K;
    ``transform`` (W), D -> D, all without biases; ``out``, D -> C. Where a norm is asked for, there
    is one after each: ``theta_norm`` and so on, and ``norm`` after ``out``. Memory: L K.
    """

    USES: tuple[str, ...] = (*BaseNonLocalBlock.COMMON, "inner_ratio", "norm", "nodes")

    def _build(self, options: BlockOptions) -> int:
        self.label = "latent"
        width, nodes = self.inner_channels, options.nodes
        for name, given, made in (
            ("theta", self.in_channels, width),
            ("g", self.in_channels, width),
            ("phi", width, nodes),
            ("psi", width, nodes),
            ("transform", width, width),
        ):
            self.add_module(name, self._conv(given, made, bias=False))
            self.add_module(f"{name}_norm", self._make_norm(options.norm, made))
        if options.grad_checkpoint and isinstance(self.transform_norm, _BatchNorm):
            raise ValueError(
                f"norm={options.norm!r} takes statistics within the block, which grad_checkpoint="
                'True would count twice; use norm="GN", or norm="" for none'
            )
        return width

    def affinity(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Psi A Phi^T, the matrix that the block never holds, rows scaled to sum to 1.

        Args:
            x: the block's input, (N, C, *S).
            queries: flat indices i of the positions to look from, int64 (Q,); by default all L.

        Returns:
            (N, Q, L), a distribution over v_j; even where a position draws on no node.
        """
        _, gather, spread, _, links = self._graph(x)
        if queries is not None:
            spread = spread[:, :, queries]
        return distribution(torch.matmul(spread.transpose(1, 2), torch.matmul(links, gather)))

    def _aggregate(self, x: Tensor) -> Tensor:
        """y, (N, L, D)."""
        _, _, spread, nodes, links = self._graph(x)
        y = torch.matmul(torch.matmul(links, nodes).transpose(1, 2), spread)  # (N, D, L)
        return positions(self._layer("transform", as_map(y.transpose(1, 2), x)).relu())

    def _graph(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """v, (N, D, L); Phi and Psi, (N, K, L); the nodes, (N, K, D); A, (N, K, K)."""
        x = self._for_projections(x)
        v = unit(self._layer("g", x), 1)
        gather = unit(channels(self._layer("phi", v).relu()), 2)
        spread = unit(self._layer("psi", unit(self._layer("theta", x), 1)).relu(), 1)
        nodes = torch.matmul(gather, positions(v))
        directions = unit(nodes, 2)
        links = softmax_along(torch.matmul(directions, directions.transpose(1, 2)), 2)
        return channels(v), gather, channels(spread), nodes, links

    def _layer(self, name: str, x: Tensor) -> Tensor:
        """(N, made, *S) of x (N, given, *S), by the child of this name and its norm."""
        conv, norm = getattr(self, name), getattr(self, f"{name}_norm")
        made = project_to_map(x, conv.weight, conv.bias)
        if norm is None:
            return made
        image = norm(channels(made).unsqueeze(-1))  # Detectron2's norms are for images
        return image.reshape(made.shape)
