"""The non-local block of *Non-local Neural Networks* (CVPR 2018), sec. 3.

Shape shorthand in this module:
    N: batch size
    C: channels of the block's input and output
    S: spatial or spacetime size, one of (T), (H, W), (T, H, W)
    L: number of positions, the product of S
    M: number of key positions: L, or fewer where keys are sub-sampled
    D: inner channels
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from detectron2.layers import CNNBlockBase, get_norm
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from .pairwise import PAIRWISE_FUNCTIONS, affinity, non_local

# The paper's released code draws the embeddings from a Gaussian of this standard deviation.
EMBEDDING_STD = 0.01


class NonLocalBlock(CNNBlockBase):
    """A non-local block, z_i = W_z y_i + x_i (eq. 6), that starts as the identity.

    Children: ``theta``, ``phi`` and ``g``, the 1x1 convolutions C -> D of sec. 3.2 (the Gaussian
    form has only ``g``); ``out``, the 1x1 convolution W_z, D -> C; ``norm`` after it where one is
    asked for. The concatenation form has the vector ``w_f`` (2D,) besides. What sub-samples adds no
    parameter, so checkpoints fit with and without it. The convolutions' weights are used, but
    their ``forward`` is not called, nor are hooks on them.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        inner_channels: int | None = None,
        pairwise: str = "embedded_gaussian",
        dimension: int = 2,
        sub_sample: bool = True,
        use_scale: bool = True,
        norm: str | Callable[[int], nn.Module] = "",
        zero_init: bool = True,
        checkpoint: bool = False,
    ):
        """
        Args:
            in_channels: C.
            inner_channels: D; by default half of C, at least 1 (sec. 3.3, "bottleneck").
            pairwise: f, one of :data:`PAIRWISE_FUNCTIONS`.
            dimension: 1, 2 or 3 for inputs (N, C, T), (N, C, H, W) or (N, C, T, H, W).
            sub_sample: max-pool phi and g by 2 along each axis of space, never along time
                (sec. 3.3); a sequence is pooled along its one axis. Odd sizes round up.
            use_scale: multiply the logits of the two exponential forms by the inverse square root
                of their number of channels, as the paper's released code does.
            norm: normalisation after W_z, as for :func:`detectron2.layers.get_norm`.
            zero_init: start as the identity: gamma of ``norm`` zero or, without a norm, W_z zero.
            checkpoint: in training, hold nothing between x and y for the backward pass, which
                computes it again: less memory, the same gradients.

        Raises:
            ValueError: if an argument is out of its range, or if ``norm`` has no trainable gamma
                that could ever leave its zero start.
        """
        super().__init__(in_channels, in_channels, 1)
        if inner_channels is None:
            inner_channels = max(in_channels // 2, 1)
        if in_channels < 1 or inner_channels < 1:
            raise ValueError(
                f"in_channels and inner_channels must be at least 1, got {in_channels} and "
                f"{inner_channels}"
            )
        if pairwise not in PAIRWISE_FUNCTIONS:
            raise ValueError(f"pairwise must be one of {PAIRWISE_FUNCTIONS}, got {pairwise!r}")
        if dimension not in (1, 2, 3):
            raise ValueError(f"dimension must be 1, 2 or 3, got {dimension!r}")
        self.inner_channels = inner_channels
        self.pairwise = pairwise
        self.dimension = dimension
        self.sub_sample = sub_sample
        self.use_scale = use_scale
        self.checkpoint = checkpoint

        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimension - 1]
        embedded = pairwise != "gaussian"
        self.theta = conv(in_channels, inner_channels, 1) if embedded else None
        self.phi = conv(in_channels, inner_channels, 1) if embedded else None
        self.g = conv(in_channels, inner_channels, 1)
        self.out = conv(inner_channels, in_channels, 1, bias=not norm)
        try:
            self.norm = get_norm(norm, in_channels)
        except KeyError:
            raise ValueError(
                f'norm={norm!r} is none of Detectron2\'s norms, such as "BN", "SyncBN" or "GN"'
            ) from None
        concatenates = pairwise == "concatenation"
        self.w_f = nn.Parameter(torch.empty(2 * inner_channels)) if concatenates else None
        logit_channels = inner_channels if embedded else in_channels
        self.scale = logit_channels**-0.5 if use_scale else 1.0

        if zero_init and self.norm is not None:
            gamma = dict(self.norm.named_parameters()).get("weight")
            if gamma is None:
                raise ValueError(
                    f"norm={norm!r} with zero_init=True is a block that never leaves its zero "
                    f"start: {type(self.norm).__name__} has no trainable weight. Use a norm that "
                    'trains, such as "BN", "SyncBN" or "GN", or norm="" for none.'
                )
        self.reset_parameters(zero_init=zero_init)

    def reset_parameters(self, *, zero_init: bool) -> None:
        """Draws all parameters anew; see ``zero_init`` of the constructor."""
        for layer in (self.theta, self.phi, self.g, self.out):
            if layer is not None:
                nn.init.normal_(layer.weight, std=EMBEDDING_STD)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        if self.w_f is not None:
            nn.init.normal_(self.w_f, std=EMBEDDING_STD)
        if zero_init:
            nn.init.zeros_(self.out.weight if self.norm is None else self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """
        Args:
            x: (N, C, *S), N may be 0.

        Returns:
            z, (N, C, *S), of x's memory format.

        Raises:
            ValueError: if x does not have ``dimension`` + 2 axes.
        """
        if torch.jit.is_scripting() or not self.checkpoint:
            y = self._non_local(x)
        else:  # without the norm, which would count each batch twice in its statistics
            y = recomputed(self._non_local, x, use_reentrant=False)
        return x + self._project_out(y, x)

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

    def _non_local(self, x: Tensor) -> Tensor:
        """y, (N, L, D), of x (N, C, *S)."""
        theta, phi, g = self._embed(x)
        return non_local(self.pairwise, theta, phi, g, self.scale)

    def _embed(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """theta (N, L, D), phi (N, M, D) and g (N, M, D) of x (N, C, *S), as non_local takes them.

        The convolutions are 1x1, so their weights are applied as matrices, and in one product:
        that writes the positions-first layout which the kernels need without a copy.
        """
        if x.dim() != self.dimension + 2:
            raise ValueError(
                f"expected {self.dimension + 2} axes (N, C, then {self.dimension} of space or "
                f"time), got shape {list(x.shape)}"
            )
        tokens = x.flatten(2).transpose(1, 2)  # (N, L, C)
        if self.theta is not None and self.phi is not None:
            weight = torch.cat([self.theta.weight, self.phi.weight, self.g.weight]).flatten(1)
            theta_bias, phi_bias, g_bias = self.theta.bias, self.phi.bias, self.g.bias
            # For scripting, where a convolution's bias is optional by type.
            assert theta_bias is not None and phi_bias is not None and g_bias is not None
            bias = torch.cat([theta_bias, phi_bias, g_bias])
            embedded = F.linear(tokens, weight, bias)  # (N, L, 3D)
            theta = embedded[..., : self.inner_channels]
            keys = embedded[..., self.inner_channels :]  # phi and g
        else:
            theta = tokens.contiguous()
            g = F.linear(theta, self.g.weight.flatten(1), self.g.bias)
            keys = torch.cat([theta.to(g.dtype), g], dim=-1)
        if self.sub_sample:
            keys = self._max_pool(keys, x)
        phi = keys[..., : -self.inner_channels]
        g = keys[..., -self.inner_channels :]
        if self.w_f is not None:
            w_theta, w_phi = self.w_f.unsqueeze(-1).chunk(2)  # (D, 1) each
            theta, phi = torch.matmul(theta, w_theta), torch.matmul(phi, w_phi)
        return theta, phi, g

    def _max_pool(self, keys: Tensor, x: Tensor) -> Tensor:
        """Halves (N, L, channels) to (N, M, channels) along the axes of space in x (N, C, *S)."""
        frames, width = 1, 1
        height = x.shape[2]
        if self.dimension == 2:
            width = x.shape[3]
        elif self.dimension == 3:
            frames, height, width = x.shape[2], x.shape[3], x.shape[4]
        keys = keys.reshape(x.shape[0] * frames, height, width, keys.shape[-1])
        keys = torch.maximum(keys[:, ::2], _shifted(keys, 1))
        keys = torch.maximum(keys[:, :, ::2], _shifted(keys, 2))
        return keys.reshape(x.shape[0], frames * keys.shape[1] * keys.shape[2], keys.shape[3])

    def _project_out(self, y: Tensor, x: Tensor) -> Tensor:
        """norm(W_z y), (N, C, *S), of y (N, L, D)."""
        weight, bias = self.out.weight.flatten(1), self.out.bias
        if x.stride(1) == 1:  # channels last
            z = F.linear(y, weight, bias).transpose(1, 2)  # (N, C, L)
        else:
            z = torch.bmm(weight.expand(y.shape[0], -1, -1), y.transpose(1, 2))
            if bias is not None:
                z = z + bias.unsqueeze(-1)
        if self.norm is not None:
            # Detectron2's norms are for images; they see any positions as an image L high.
            z = self.norm(z.unsqueeze(-1))
        return z.reshape(x.shape)


def _shifted(x: Tensor, axis: int) -> Tensor:
    """The second of each pair along an axis of x; a last position without one pairs with itself.

    torch.maximum of x[::2] and this equals max_pool with ceil_mode=True; unlike that it can be
    exported for odd and even sizes (of 3 and more) at once, and stores no int64 indices for the
    backward pass.
    """
    size = x.shape[axis]
    return x.index_select(axis, torch.arange(1, size + 1, 2, device=x.device).clamp(max=size - 1))
