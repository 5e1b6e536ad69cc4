"""The non-local block of *Non-local Neural Networks* (CVPR 2018), sec. 3.

Shape shorthand as in :mod:`.base`: N samples, C channels, L query and M key positions, D inner
channels.
"""

import torch
from torch import Tensor, nn

from .base import EMBEDDING_STD, NON_LOCAL_BLOCK_REGISTRY, BaseNonLocalBlock
from .options import BlockOptions
from .pairwise import DISTRIBUTIONS, affinity, non_local
from .pooling import halve
from .positions import positions
from .projection import project, project_to_map
from .recording import is_exported


@NON_LOCAL_BLOCK_REGISTRY.register()
class NonLocalBlock(BaseNonLocalBlock):
    """A non-local block, z_i = W_z y_i + x_i (eq. 6), that starts as the identity.

    Children: ``theta``, ``phi`` and ``g``, the 1x1 convolutions C -> D of sec. 3.2 (the Gaussian
    form has only ``g``); ``out``, the 1x1 convolution W_z, D -> C; ``norm`` after it where one is
    asked for. The concatenation form has the vector ``w_f`` (2D,) besides. What sub-samples adds no
    parameter, so checkpoints fit with and without it. The convolutions' weights are used without
    calling their ``forward``, so hooks on them do not run.
    """

    USES: tuple[str, ...] = (
        *BaseNonLocalBlock.COMMON,
        *("pairwise", "inner_ratio", "sub_sample", "use_scale", "norm", "init"),
    )

    def _build(self, options: BlockOptions) -> int:
        channels, inner = self.in_channels, self.inner_channels
        self.pairwise = self.label = options.pairwise
        self.is_distribution = options.pairwise in DISTRIBUTIONS  # f over its keys sums to 1
        # The keys are the queries
        self.symmetric = options.pairwise == "gaussian" and not options.sub_sample
        self.sub_sample = options.sub_sample
        self.use_scale = options.use_scale
        self.embeds_queries = options.pairwise != "gaussian"
        self.theta = self._conv(channels, inner) if self.embeds_queries else None
        self.phi = self._conv(channels, inner) if self.embeds_queries else None
        self.g = self._conv(channels, inner)
        concatenates = options.pairwise == "concatenation"
        self.w_f = nn.Parameter(torch.empty(2 * inner)) if concatenates else None
        logit_channels = inner if self.embeds_queries else channels
        self.scale = logit_channels**-0.5 if options.use_scale else 1.0
        return inner

    def _draw(self) -> None:
        super()._draw()
        if self.w_f is not None:
            nn.init.normal_(self.w_f, std=EMBEDDING_STD)

    def _start_from_similarity(self) -> None:
        super()._start_from_similarity()
        if self.w_f is not None and self.theta is not None and self.phi is not None:
            # Weights that are not negative, times features after a ReLU: with signs at random,
            # one draw in two would start with an f that is zero everywhere, and stay there.
            nn.init.normal_(self.w_f, std=self.w_f.numel() ** -0.5)
            with torch.no_grad():
                self.w_f.abs_()
                self.theta.weight.abs_()
            self.phi.load_state_dict(self.theta.state_dict())

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

        In memory, channels or positions are last, by what projects: see :func:`.project`.
        """
        x = self._for_projections(x)
        # Each from a view of its own, whose gradients are then added up in place
        if self.theta is None or self.phi is None:
            theta = positions(x)
            phi = positions(self._halved(x)) if self.sub_sample else theta
        else:
            theta = project(x, self.theta.weight, self.theta.bias)
            phi = self._keys(x, self.phi.weight, self.phi.bias)
        g = self._keys(x, self.g.weight, self.g.bias)
        if self.w_f is not None:
            w_theta, w_phi = self.w_f.unsqueeze(-1).chunk(2)  # (D, 1) each
            theta, phi = _product(theta, w_theta), _product(phi, w_phi)
        return theta, phi, g

    def _keys(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """A 1x1 convolution's result at the keys, (N, M, channels), of x (N, C, *S)."""
        if not self.sub_sample:
            return project(x, weight, bias)
        return positions(self._halved(project_to_map(x, weight, bias)))

    def _halved(self, x: Tensor) -> Tensor:
        """Sub-sampled x (N, channels, *S)."""
        return halve(x, 3 if self.dimension == 3 else 2)  # not along time

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


def _product(x: Tensor, w: Tensor) -> Tensor:
    """x w in w's precision: autocast would round these sums, by whose sign a ReLU decides."""
    if torch.jit.is_scripting():
        return torch.matmul(x, w)
    with torch.autocast(x.device.type, enabled=False):
        if is_exported():  # torch.export would bind the other form to samples: no N = 0
            return (x.to(w.dtype) * w.squeeze(-1)).sum(-1, keepdim=True)
        return torch.matmul(x.to(w.dtype), w)
