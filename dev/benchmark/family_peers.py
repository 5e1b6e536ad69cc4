"""What blocks of the family are measured beside: mmcv's modules, else their equations as one would
write them down.

Shape shorthand: N samples, C channels, L positions, M keys, D inner channels.
"""

import functools
import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nl_detectron.layers.asymmetric import BINS


class _Plain(nn.Module):
    """Layers of a block of ours by their names, so that weights load, and D = C / 2."""

    def __init__(self, channels: int):
        super().__init__()
        inner = channels // 2
        self.scale = inner**-0.5
        self.theta = nn.Conv2d(channels, inner, 1)
        self.phi = nn.Conv2d(channels, inner, 1)
        self.g = nn.Conv2d(channels, inner, 1)
        self.out = nn.Conv2d(inner, channels, 1)

    def _residual(self, x: Tensor, y: Tensor) -> Tensor:
        """x + W_z y, (N, C, H, W), of y (N, L, D)."""
        return x + self.out(y.transpose(1, 2).unflatten(2, x.shape[2:]))


class Disentangled(_Plain):
    """Whitened pairwise plus unary attention, with the matrix of all pairs."""

    def __init__(self, channels: int, *, sub_sample: bool):
        super().__init__(channels)
        self.conv_mask = nn.Conv2d(channels, 1, 1)
        self.pool = nn.MaxPool2d(2, ceil_mode=True) if sub_sample else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """z, (N, C, H, W), of x (N, C, H, W)."""
        q = self.theta(x).flatten(2).transpose(1, 2)  # (N, L, D)
        k = self.pool(self.phi(x)).flatten(2)  # (N, D, M)
        g = self.pool(self.g(x)).flatten(2).transpose(1, 2)  # (N, M, D)
        q, k = q - q.mean(1, keepdim=True), k - k.mean(2, keepdim=True)
        pairwise = (q @ k * self.scale).softmax(-1)  # (N, L, M)
        unary = self.pool(self.conv_mask(x)).flatten(2).softmax(-1)  # (N, 1, M)
        return self._residual(x, pairwise @ g + unary @ g)


class Efficient(_Plain):
    """Two softmaxes, over channels and over positions, and products in the cheap order."""

    def forward(self, x: Tensor) -> Tensor:
        """z, (N, C, H, W), of x (N, C, H, W)."""
        q = self.theta(x).flatten(2).softmax(1)  # (N, D, L)
        k = self.phi(x).flatten(2).softmax(2)
        context = k @ self.g(x).flatten(2).transpose(1, 2)  # (N, D, D)
        return self._residual(x, q.transpose(1, 2) @ context)


class Asymmetric(_Plain):
    """Keys and values are pooled after their embeddings, as the authors draw it."""

    def forward(self, x: Tensor) -> Tensor:
        """z, (N, C, H, W), of x (N, C, H, W)."""
        q = self.theta(x).flatten(2).transpose(1, 2)  # (N, L, D)
        k = _pyramid(self.phi(x))  # (N, D, M)
        g = _pyramid(self.g(x)).transpose(1, 2)
        return self._residual(x, (q @ k * self.scale).softmax(-1) @ g)


class ExpectationMaximization(nn.Module):
    """K bases by three iterations, of which gradients pass through the last."""

    bases: Tensor

    def __init__(self, channels: int, *, nodes: int = 64):
        super().__init__()
        self.theta = nn.Conv2d(channels, channels // 2, 1)
        self.out = nn.Conv2d(channels // 2, channels, 1)
        self.register_buffer("bases", F.normalize(torch.randn(nodes, channels // 2), dim=1))

    def forward(self, x: Tensor) -> Tensor:
        """z, (N, C, H, W), of x (N, C, H, W)."""
        q = self.theta(x).flatten(2).transpose(1, 2)  # (N, L, D)
        bases = self.bases.expand(len(x), -1, -1)  # (N, K, D)
        with torch.no_grad():
            for _ in range(2):
                _, bases = self._iterate(q, bases)
        shares, bases = self._iterate(q, bases)
        y = (shares @ bases).relu()
        return x + self.out(y.transpose(1, 2).unflatten(2, x.shape[2:]))

    def _iterate(self, q: Tensor, bases: Tensor) -> tuple[Tensor, Tensor]:
        shares = (q @ bases.transpose(1, 2)).softmax(2)  # (N, L, K)
        means = (shares / shares.sum(1, keepdim=True)).transpose(1, 2) @ q
        return shares, F.normalize(means, dim=2)


class LatentGNN(nn.Module):
    """Positions draw on each other by way of K nodes."""

    def __init__(self, channels: int, *, nodes: int = 64):
        super().__init__()
        inner = channels // 2
        self.theta = nn.Conv2d(channels, inner, 1, bias=False)
        self.g = nn.Conv2d(channels, inner, 1, bias=False)
        self.phi = nn.Conv2d(inner, nodes, 1, bias=False)
        self.psi = nn.Conv2d(inner, nodes, 1, bias=False)
        self.transform = nn.Conv2d(inner, inner, 1, bias=False)
        self.out = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """z, (N, C, H, W), of x (N, C, H, W)."""
        v = F.normalize(self.g(x), dim=1)
        gather = F.normalize(self.phi(v).relu().flatten(2), dim=2)  # (N, K, L)
        spread = F.normalize(self.psi(F.normalize(self.theta(x), dim=1)).relu(), dim=1)
        nodes = gather @ v.flatten(2).transpose(1, 2)  # (N, K, D)
        directions = F.normalize(nodes, dim=2)
        links = (directions @ directions.transpose(1, 2)).softmax(2)
        y = (links @ nodes).transpose(1, 2) @ spread.flatten(2)  # (N, D, L)
        return x + self.out(self.transform(y.unflatten(2, x.shape[2:])).relu())


def _pyramid(x: Tensor) -> Tensor:
    """(N, D, M)."""
    return torch.cat([F.adaptive_avg_pool2d(x, bins).flatten(2) for bins in BINS], dim=2)


def non_local(channels: int, *, sub_sample: bool) -> nn.Module:
    """Raises ImportError without mmcv-lite, as those below do."""
    from mmcv.cnn.bricks.non_local import NonLocal2d

    return NonLocal2d(channels, sub_sample=sub_sample, zeros_init=False)


def context_block(channels: int, *, ratio: float) -> nn.Module:
    from mmcv.cnn.bricks.context_block import ContextBlock

    return ContextBlock(channels, ratio)


def key_content_attention(channels: int) -> nn.Module:
    """Attention by key content alone, with one head, which is the simplified block's."""
    from mmcv.cnn.bricks.generalized_attention import GeneralizedAttention

    return GeneralizedAttention(channels, num_heads=1, attention_type="0010", kv_stride=1)


def criss_cross_attention(channels: int, *, recurrence: int = 1) -> nn.Module:
    """The same layers, some times in a row."""
    import mmcv

    layers = _criss_cross_class(Path(mmcv.__file__).parent)(channels)
    return nn.Sequential(*[layers] * recurrence)


@functools.cache  # mmcv registers its classes, once
def _criss_cross_class(mmcv: Path) -> type[nn.Module]:
    """Of a package that mmcv-lite cannot import, as its other modules are compiled."""
    file = mmcv / "ops" / "cc_attention.py"
    spec = importlib.util.spec_from_file_location("cc_attention", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CrissCrossAttention
