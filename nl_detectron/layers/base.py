"""What every block of the non-local family is, and how one is built from options.

Shape shorthand in this module:
    N: batch size
    C: channels of the block's input and output
    S: spatial or spacetime size, one of (T), (H, W), (T, H, W)
    L: number of positions, the product of S
    M: number of key positions: L, or fewer where keys are sub-sampled
    D: inner channels
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import CNNBlockBase, get_norm
from fvcore.common.registry import Registry
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils.checkpoint import checkpoint as recomputed

from ..errors import did_you_mean
from .options import BlockOptions
from .positions import as_autocast, as_map, channels, channels_first, channels_last, positions
from .projection import convolve, convolves
from .recording import is_recorded

NON_LOCAL_BLOCK_REGISTRY = Registry("NON_LOCAL_BLOCK")
# The paper's released code draws the embeddings from a Gaussian of this standard deviation.
EMBEDDING_STD = 0.01
SIMILARITY_GAIN = 0.5  # a softer start than 1, which would have each position see itself alone


class BaseNonLocalBlock(CNNBlockBase, ABC):
    """z = x + norm(out(y)), where y is what positions draw from others; it starts as the identity.

    A kind of block says in :meth:`_build` which layers it has and in :meth:`_aggregate` what y is.
    All have the child ``out``, a 1x1 convolution to C channels, and ``norm`` after it where one is
    asked for. The convolutions' weights are used without calling their ``forward``, so hooks on
    them do not run.

    Attributes:
        USES: the options that count, by their names in :class:`BlockOptions`.
        DIMENSIONS: the numbers of axes S that the method has.
        label: what pictures call the block's attention.
        is_distribution: whether each row of :meth:`affinity` is non-negative and sums to 1.
        embeds_queries: whether rows differ by query through layers that learn, and so can collapse.
        sub_sample: whether keys are those of a map of half the size along each axis.
    """

    COMMON = ("block", "zero_init", "grad_checkpoint", "mask_padding")
    USES: tuple[str, ...] = COMMON
    DIMENSIONS: tuple[int, ...] = (1, 2, 3)

    def __init__(
        self,
        in_channels: int,
        *,
        options: BlockOptions | None = None,
        inner_channels: int | None = None,
        dimension: int = 2,
        **changes: Any,
    ):
        """
        Args:
            in_channels: C.
            options: of the block; by default the paper's.
            inner_channels: D; by default ``inner_ratio`` of C.
            dimension: 1, 2 or 3 for inputs (N, C, T), (N, C, H, W) or (N, C, T, H, W).
            changes: fields of :class:`BlockOptions` with other values than in ``options``.

        Raises:
            TypeError: if one of ``changes`` is no option, or none that this kind of block uses.
            ValueError: if an argument is out of its range, or if ``norm`` has no trainable gamma
                that could ever leave its zero start, or does not go with ``mask_padding``.
        """
        kind = type(self).__name__
        options = replace(options or BlockOptions(), **changes)
        if unused := [name for name in changes if name not in self.USES]:
            raise TypeError(f"{kind} does not use {', '.join(unused)}; it uses {self.USES}")
        super().__init__(in_channels, in_channels, 1)
        if inner_channels is None:
            inner_channels = max(int(in_channels * options.inner_ratio), 1)
        if in_channels < 1 or inner_channels < 1:
            raise ValueError(
                f"in_channels and inner_channels must be at least 1, got {in_channels} and "
                f"{inner_channels}"
            )
        if dimension not in self.DIMENSIONS:
            *others, last = map(str, self.DIMENSIONS)
            allowed = f"{', '.join(others)} or {last}" if others else last
            raise ValueError(f"dimension must be {allowed}, got {dimension!r} ({kind})")
        self.inner_channels = inner_channels
        self.dimension = dimension
        self.grad_checkpoint = options.grad_checkpoint
        self.is_distribution, self.embeds_queries, self.sub_sample = True, True, False
        self.label = ""

        width = self._build(options)
        norm = options.norm if "norm" in self.USES else ""
        self.out = self._conv(width, in_channels, bias=not norm)
        self.norm = self._make_norm(norm, in_channels)
        if options.zero_init and self.norm is not None:
            gamma = dict(self.norm.named_parameters()).get("weight")
            if gamma is None:
                raise ValueError(
                    f"norm={norm!r} with zero_init=True is a block that never leaves its "
                    f"zero start: {type(self.norm).__name__} has no trainable weight. Use one that "
                    'trains, such as "BN", "SyncBN" or "GN", or norm="" for none.'
                )
        if options.mask_padding and isinstance(self.norm, _BatchNorm):
            raise ValueError(
                f"norm={norm!r} takes its statistics over a batch, of which mask_padding="
                'True gives the block one image at a time; use norm="GN", or norm="" for none'
            )
        self.reset_parameters(init=options.init, zero_init=options.zero_init)

    def last_weight(self) -> Tensor:
        """What is zero in a block that adds nothing: gamma of ``norm`` or, without one, W_z."""
        return self.out.weight if self.norm is None else self.norm.weight

    def reset_parameters(self, *, init: str = "normal", zero_init: bool) -> None:
        """Draws all parameters anew; see :class:`BlockOptions`."""
        self._draw()
        if init == "similarity" and "init" in self.USES:
            self._start_from_similarity()
        if zero_init:
            self._start_at_zero()

    def forward(self, x: Tensor) -> Tensor:
        """
        Args:
            x: (N, C, *S), N may be 0.

        Returns:
            z, (N, C, *S), of x's memory format.

        Raises:
            ValueError: if x does not have ``dimension`` + 2 axes.
        """
        if torch.jit.is_scripting() or not self.grad_checkpoint:
            y = self._aggregate(x)
        else:  # without the norm, which would count each batch twice in its statistics
            y = recomputed(self._aggregate, x, use_reentrant=False)
        return self._sum(y, x)

    @abstractmethod
    def affinity(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """How strongly positions draw on each other.

        Args:
            x: the block's input, (N, C, *S).
            queries: flat indices i of the positions to look from, int64 (Q,); by default all L.

        Returns:
            (N, Q, M): how much of g, or of x where there is no g, at the key j is in y at i. Keys
            are ordered as in the flattened (sub-sampled) map.
        """

    @abstractmethod
    def _build(self, options: BlockOptions) -> int:
        """Makes the layers before ``out``; returns the number of y's channels."""

    @abstractmethod
    def _aggregate(self, x: Tensor) -> Tensor:
        """y, (N, L, channels), of x (N, C, *S)."""

    def _sum(self, y: Tensor, x: Tensor) -> Tensor:
        """z, (N, C, *S), of y (N, L, D)."""
        z = self._project_out(y, x)
        in_place = z.dtype == x.dtype and z.dim() == x.dim() and not z.requires_grad
        if in_place and not is_recorded() and z.shape == x.shape and z.stride() == x.stride():
            return z.add_(x)  # no other map is needed
        # Under autocast: the residual connection stays in x's precision
        return x + z.to(x.dtype)

    def _conv(self, in_channels: int, out_channels: int, *, bias: bool = True) -> _ConvNd:
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[self.dimension - 1]
        return kind(in_channels, out_channels, 1, bias=bias)

    def _make_norm(self, norm: str | Callable[[int], nn.Module], channels: int) -> Any:
        try:
            return get_norm(norm, channels)
        except KeyError:
            raise ValueError(
                f'norm={norm!r} is none of Detectron2\'s norms, such as "BN", "SyncBN" or "GN"'
            ) from None

    def _draw(self) -> None:
        for layer in self.children():
            if isinstance(layer, _ConvNd):
                nn.init.normal_(layer.weight, std=EMBEDDING_STD)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def _start_from_similarity(self) -> None:
        layers = dict(self.named_children())
        if "g" in layers:  # values of x's own size
            nn.init.normal_(layers["g"].weight, std=self.in_channels**-0.5)
        if "theta" in layers:
            std = SIMILARITY_GAIN * self.in_channels**-0.5
            nn.init.normal_(layers["theta"].weight, std=std)
            layers["phi"].load_state_dict(layers["theta"].state_dict())

    def _start_at_zero(self) -> None:
        nn.init.zeros_(self.last_weight())

    def _checked(self, x: Tensor) -> Tensor:
        """x as the layers before ``out`` take it: in autocast's dtype."""
        if x.dim() != self.dimension + 2:
            raise ValueError(
                f"expected {self.dimension + 2} axes (N, C, then {self.dimension} of space or "
                f"time), got shape {list(x.shape)}"
            )
        # Cast here once, where each linear layer would do it for itself
        return x if torch.jit.is_scripting() else as_autocast(x)

    def _for_projections(self, x: Tensor) -> Tensor:
        """The same, copied once where each linear layer would do it for itself."""
        x = self._checked(x)
        if not is_recorded() and not convolves(x) and x.shape[0] != 1:
            x = as_map(positions(x).contiguous(), x)
        return x

    def _project_out(self, y: Tensor, x: Tensor) -> Tensor:
        """norm(W_z y), (N, C, *S), of y (N, L, D)."""
        if torch.jit.is_scripting():
            z = self._apply_w_z(y, x)
        elif y.dtype == torch.float32 and torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):  # which would take y to half
                z = self._apply_w_z(y, x)
        else:
            z = self._apply_w_z(y, x)
        if self.norm is not None:
            # Detectron2's norms are for images; they see any positions as an image L high.
            if z.dtype == torch.float32:
                z = z.to(self.out.weight.dtype)
            return self.norm(channels(z).unsqueeze(-1)).reshape(x.shape)
        return z if z.dim() == x.dim() else z.reshape(x.shape)

    def _apply_w_z(self, y: Tensor, x: Tensor) -> Tensor:
        """W_z y, (N, C, L) or (N, C, *S), in y's precision and x's memory format."""
        weight, bias = self.out.weight, self.out.bias
        if weight.dtype != y.dtype:
            weight, bias = weight.to(y.dtype), None if bias is None else bias.to(y.dtype)
        if convolves(y) and channels_first(y) != channels_last(x):  # y lies in memory as x does
            return convolve(as_map(y, x), weight, bias)
        if is_recorded() or channels_last(x):
            return F.linear(y, weight.flatten(1), bias).transpose(1, 2)
        y = y.transpose(1, 2)
        weight = weight.flatten(1).expand(y.shape[0], -1, -1)
        if bias is None:
            return torch.bmm(weight, y)
        return torch.baddbmm(bias.unsqueeze(-1), weight, y)


def block_kind(name: str) -> type[BaseNonLocalBlock]:
    """The registered class of this name.

    Raises:
        ValueError: if there is none, with what it may have been meant to be.
    """
    names = [registered for registered, _ in NON_LOCAL_BLOCK_REGISTRY]
    if name not in names:
        hint = did_you_mean(str(name), names)
        raise ValueError(f"block must be one of {', '.join(names)}, got {name!r}{hint}")
    return NON_LOCAL_BLOCK_REGISTRY.get(name)


def build_block(
    in_channels: int, *, options: BlockOptions | None = None, dimension: int = 2
) -> BaseNonLocalBlock:
    """The block that ``options.block`` names.

    Args:
        in_channels: C of its input (N, C, *S) and output.
        options: of the block; by default the paper's.
        dimension: the number of axes S.

    Raises:
        ValueError: if an option is out of its range.
    """
    options = options or BlockOptions()
    return block_kind(options.block)(in_channels, options=options, dimension=dimension)
