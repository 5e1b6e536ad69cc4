"""The non-local block of *Non-local Neural Networks* (CVPR 2018), sec. 3.

Shape shorthand in this module:
    N: batch size
    C: channels of the block's input and output
    S: spatial or spacetime size, one of (T), (H, W), (T, H, W)
    L: number of positions, the product of S
    M: number of key positions: L, or fewer where keys are sub-sampled
    D: inner channels
"""

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import get_norm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint as recomputed

from .base import NON_LOCAL_BLOCK_REGISTRY, BaseNonLocalBlock
from .options import BlockOptions
from .pairwise import DISTRIBUTIONS, affinity, non_local
from .pooling import halve
from .recording import is_exported, is_recorded

# The paper's released code draws the embeddings from a Gaussian of this standard deviation.
EMBEDDING_STD = 0.01
SIMILARITY_GAIN = 0.5  # a softer start than 1, which would have each position see itself alone


@NON_LOCAL_BLOCK_REGISTRY.register()
class NonLocalBlock(BaseNonLocalBlock):
    """A non-local block, z_i = W_z y_i + x_i (eq. 6), that starts as the identity.

    Children: ``theta``, ``phi`` and ``g``, the 1x1 convolutions C -> D of sec. 3.2 (the Gaussian
    form has only ``g``); ``out``, the 1x1 convolution W_z, D -> C; ``norm`` after it where one is
    asked for. The concatenation form has the vector ``w_f`` (2D,) besides. What sub-samples adds no
    parameter, so checkpoints fit with and without it. The convolutions' weights are used without
    calling their ``forward``, so hooks on them do not run.
    """

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
            TypeError: if one of ``changes`` is no option.
            ValueError: if an argument is out of its range, or if ``norm`` has no trainable gamma
                that could ever leave its zero start, or does not go with ``mask_padding``.
        """
        options = replace(options or BlockOptions(), **changes)
        super().__init__(in_channels, in_channels, 1)
        if inner_channels is None:
            inner_channels = max(int(in_channels * options.inner_ratio), 1)
        if in_channels < 1 or inner_channels < 1:
            raise ValueError(
                f"in_channels and inner_channels must be at least 1, got {in_channels} and "
                f"{inner_channels}"
            )
        if dimension not in (1, 2, 3):
            raise ValueError(f"dimension must be 1, 2 or 3, got {dimension!r}")
        self.inner_channels = inner_channels
        self.pairwise = options.pairwise
        self.is_distribution = options.pairwise in DISTRIBUTIONS  # f over its keys sums to 1
        # The keys are the queries
        self.symmetric = options.pairwise == "gaussian" and not options.sub_sample
        self.dimension = dimension
        self.sub_sample = options.sub_sample
        self.use_scale = options.use_scale
        self.grad_checkpoint = options.grad_checkpoint

        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimension - 1]
        embedded = options.pairwise != "gaussian"
        self.theta = conv(in_channels, inner_channels, 1) if embedded else None
        self.phi = conv(in_channels, inner_channels, 1) if embedded else None
        self.g = conv(in_channels, inner_channels, 1)
        self.out = conv(inner_channels, in_channels, 1, bias=not options.norm)
        try:
            self.norm = get_norm(options.norm, in_channels)
        except KeyError:
            raise ValueError(
                f"norm={options.norm!r} is none of Detectron2's norms, such as "
                '"BN", "SyncBN" or "GN"'
            ) from None
        concatenates = options.pairwise == "concatenation"
        self.w_f = nn.Parameter(torch.empty(2 * inner_channels)) if concatenates else None
        logit_channels = inner_channels if embedded else in_channels
        self.scale = logit_channels**-0.5 if options.use_scale else 1.0

        if options.zero_init and self.norm is not None:
            gamma = dict(self.norm.named_parameters()).get("weight")
            if gamma is None:
                raise ValueError(
                    f"norm={options.norm!r} with zero_init=True is a block that never leaves its "
                    f"zero start: {type(self.norm).__name__} has no trainable weight. Use one that "
                    'trains, such as "BN", "SyncBN" or "GN", or norm="" for none.'
                )
        if options.mask_padding and isinstance(self.norm, _BatchNorm):
            raise ValueError(
                f"norm={options.norm!r} takes its statistics over a batch, of which mask_padding="
                'True gives the block one image at a time; use norm="GN", or norm="" for none'
            )
        self.reset_parameters(init=options.init, zero_init=options.zero_init)

    def reset_parameters(self, *, init: str = "normal", zero_init: bool) -> None:
        """Draws all parameters anew; see :class:`BlockOptions`."""
        for layer in (self.theta, self.phi, self.g, self.out):
            if layer is not None:
                nn.init.normal_(layer.weight, std=EMBEDDING_STD)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        if self.w_f is not None:
            nn.init.normal_(self.w_f, std=EMBEDDING_STD)
        if init == "similarity":
            self._start_from_similarity()
        if zero_init:
            nn.init.zeros_(self.out.weight if self.norm is None else self.norm.weight)

    def _start_from_similarity(self) -> None:
        nn.init.normal_(self.g.weight, std=self.in_channels**-0.5)  # values of x's own size
        if self.theta is None or self.phi is None:
            return
        nn.init.normal_(self.theta.weight, std=SIMILARITY_GAIN * self.in_channels**-0.5)
        if self.w_f is not None:
            # Weights that are not negative, times features after a ReLU: with signs at random,
            # one draw in two would start with an f that is zero everywhere, and stay there.
            nn.init.normal_(self.w_f, std=self.w_f.numel() ** -0.5)
            with torch.no_grad():
                self.w_f.abs_()
                self.theta.weight.abs_()
        self.phi.load_state_dict(self.theta.state_dict())

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
        z = self._project_out(y, x)
        if z.dtype == x.dtype and not z.requires_grad and not is_recorded():
            return z.add_(x)  # no other map is needed
        # Under autocast: the residual connection stays in x's precision
        return x + z.to(x.dtype)

    def affinity(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """How strongly positions draw on each other: f(x_i, x_j) / C(x) of eq. 1.

        Args:
            x: the block's input, (N, C, *S).
            queries: flat indices i of the positions to look from, int64 (Q,); by default all L.

        Returns:
            (N, Q, M). Keys j are ordered as in the flattened (sub-sampled) map. Rows of the two
            exponential forms sum to 1; those of the other forms are signed or unbounded.
        """
        theta, phi, _ = self._embed(x)
        if queries is not None:
            theta = theta[:, queries]
        return affinity(self.pairwise, theta, phi, self.scale)

    def _embed(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """theta (N, L, D), phi (N, M, D) and g (N, M, D) of x (N, C, *S), as non_local takes them.

        By linear layers, whose results lie positions first, as the kernels and the pooling want
        them; on CPU the convolutions that they are take 0.9 to 1.3 of their time.
        """
        if x.dim() != self.dimension + 2:
            raise ValueError(
                f"expected {self.dimension + 2} axes (N, C, then {self.dimension} of space or "
                f"time), got shape {list(x.shape)}"
            )
        # Cast and copied here once, where each linear layer would do it for itself
        if not torch.jit.is_scripting():
            x = _as_autocast(x)
        if x.shape[0] != 1 and not is_recorded():
            x = _map(_positions(x).contiguous(), x)
        # Each from a view of its own, whose gradients are then added up in place
        if self.theta is None or self.phi is None:
            theta = phi = _positions(x)
        else:
            theta = F.linear(_positions(x), self.theta.weight.flatten(1), self.theta.bias)
            phi = F.linear(_positions(x), self.phi.weight.flatten(1), self.phi.bias)
        g = F.linear(_positions(x), self.g.weight.flatten(1), self.g.bias)
        if self.sub_sample:
            first_axis = 3 if self.dimension == 3 else 2  # not along time
            phi = _positions(halve(_map(phi, x), first_axis))
            g = _positions(halve(_map(g, x), first_axis))
        if self.w_f is not None:
            w_theta, w_phi = self.w_f.unsqueeze(-1).chunk(2)  # (D, 1) each
            theta, phi = _product(theta, w_theta), _product(phi, w_phi)
        return theta, phi, g

    def _aggregate(self, x: Tensor) -> Tensor:
        """y, (N, L, D), of x (N, C, *S); the embeddings are released on return.

        Where f is no distribution, y can leave float16's range, and is in single precision.
        """
        theta, phi, g = self._embed(x)
        if g.dtype == torch.float16 and not self.is_distribution:
            theta, phi, g = theta.float(), phi.float(), g.float()
            if not torch.jit.is_scripting():
                with torch.autocast(x.device.type, enabled=False):
                    return non_local(self.pairwise, theta, phi, g, self.scale)
        return non_local(self.pairwise, theta, phi, g, self.scale, self.symmetric)

    def _project_out(self, y: Tensor, x: Tensor) -> Tensor:
        """norm(W_z y), (N, C, *S), of y (N, L, D)."""
        if y.dtype == torch.float32 and not torch.jit.is_scripting():
            with torch.autocast(x.device.type, enabled=False):  # which would take y to half
                z = self._apply_w_z(y, x)
        else:
            z = self._apply_w_z(y, x)
        if self.norm is not None:
            # Detectron2's norms are for images; they see any positions as an image L high.
            if z.dtype == torch.float32:
                z = z.to(self.out.weight.dtype)
            z = self.norm(z.unsqueeze(-1))
        return z.reshape(x.shape)

    def _apply_w_z(self, y: Tensor, x: Tensor) -> Tensor:
        """W_z y, (N, C, L), in y's precision and x's memory format."""
        weight, bias = self.out.weight.to(y.dtype), self.out.bias
        bias = None if bias is None else bias.to(y.dtype)
        if is_recorded() or x.stride(1) == 1:  # channels last
            return F.linear(y, weight.flatten(1), bias).transpose(1, 2)
        y = y.transpose(1, 2)
        weight = weight.flatten(1).expand(y.shape[0], -1, -1)
        if bias is None:
            return torch.bmm(weight, y)
        return torch.baddbmm(bias.unsqueeze(-1), weight, y)


@torch.jit.unused
def _as_autocast(x: Tensor) -> Tensor:
    """x in autocast's dtype where that is on, which leaves double precision alone."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return x
    return x.to(torch.get_autocast_dtype(device))


def _product(x: Tensor, w: Tensor) -> Tensor:
    """x w in w's precision: autocast would round these sums, by whose sign a ReLU decides."""
    if torch.jit.is_scripting():
        return torch.matmul(x, w)
    with torch.autocast(x.device.type, enabled=False):
        if is_exported():  # torch.export would bind the other form to samples: no N = 0
            return (x.to(w.dtype) * w.squeeze(-1)).sum(-1, keepdim=True)
        return torch.matmul(x.to(w.dtype), w)


def _map(rows: Tensor, like: Tensor) -> Tensor:
    """(N, channels, *S), channels last in memory, of rows (N, positions, channels)."""
    if is_recorded():
        return _recorded_map(rows, like)
    return rows.unflatten(1, like.shape[2:]).movedim(-1, 1)


def _positions(x: Tensor) -> Tensor:
    """(N, positions, channels) of x (N, channels, *S), a view where it can be."""
    if is_recorded():
        return _recorded_positions(x)
    return x.flatten(2).transpose(1, 2)


@torch.jit.unused
def _recorded_map(rows: Tensor, like: Tensor) -> Tensor:
    """:func:`_map` with each size given: of unflatten, exporters write some down as numbers."""
    return rows.transpose(1, 2).reshape(rows.shape[0], rows.shape[2], *like.shape[2:])


@torch.jit.unused
def _recorded_positions(x: Tensor) -> Tensor:
    """:func:`_positions` in steps for which no ONNX runtime infers an axis.

    Of an empty tensor it could not.
    """
    samples, channels, positions = x.shape[0], x.shape[1], math.prod(x.shape[2:])
    x = x.reshape(samples * channels, positions)
    return x.reshape(samples, channels, positions).transpose(1, 2)
