"""The global context block of *GCNet* (ICCVW 2019), sec. 3.4."""

from torch import Tensor, nn

from .base import NON_LOCAL_BLOCK_REGISTRY
from .options import BlockOptions
from .simplified import SimplifiedNonLocalBlock


@NON_LOCAL_BLOCK_REGISTRY.register()
class GlobalContextBlock(SimplifiedNonLocalBlock):
    """z_i = x_i + W_v2 ReLU(LN(W_v1 sum_j softmax_j(w x_j) x_j)): one vector for all positions.

    Children: ``conv_mask``, the 1x1 convolution w, C -> 1; ``transform``, W_v1, C -> D;
    ``transform_norm``, the layer norm over D; ``out``, W_v2, D -> C. The authors' bottleneck ratio
    is ``inner_ratio``: 1/16 or, better, 1/4.
    """

    USES: tuple[str, ...] = (*SimplifiedNonLocalBlock.USES, "inner_ratio")

    def _build(self, options: BlockOptions) -> int:
        super()._build(options)
        self.label = "global_context"
        self.transform = self._conv(self.in_channels, self.inner_channels)
        self.transform_norm = nn.LayerNorm(self.inner_channels)
        return self.inner_channels

    def _draw(self) -> None:
        super()._draw()
        # The norm takes its size away, but for the norm's epsilon
        nn.init.normal_(self.transform.weight, std=self.in_channels**-0.5)

    def _aggregate(self, x: Tensor) -> Tensor:
        """ReLU(LN(W_v1 c)), (N, 1, D), of the context c."""
        context = super()._aggregate(x)
        transform = self.transform
        y = nn.functional.linear(context, transform.weight.flatten(1), transform.bias)
        return self.transform_norm(y).relu()
