"""A trained model made faster for prediction: the same detections, within rounding.

Shape shorthand in this module:
    N: batch size
    C, H, W: channels, height and width of a feature map
    R: regions of interest
    P: bins of a region along each axis
"""

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d, ROIAlign
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..layers import non_local_blocks

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
# Not float16, in whose range the exponentials of a keypoint head's heat maps do not fit
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# Elements of a feature map below which torchvision's RoIAlign is as fast or faster, 1 MiB; measured
SMALL_MAP = 2**18

# The layers whose outputs are scores, boxes, masks and keypoints. They stay in single precision:
# their share of the time is small, and scores of a few bits would be ties.
OUTPUT_LAYERS = (
    "objectness_logits",
    "anchor_deltas",
    "cls_score",
    "bbox_pred",
    "predictor",
    "score_lowres",
)


def optimize_for_inference(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Prepares a Detectron2 model for prediction alone, in place.

    FrozenBN and BN are folded into the convolutions before them, whose weights are then put in
    channels-last order; 3x3 convolutions can take a Winograd kernel (:class:`InferenceConv2d`);
    RoIAlign reads whole rows of channels on CPUs. The folded norms leave the state dict, so weights
    are loaded before and none saved after. Non-local blocks stay as they are.

    Args:
        model: in evaluation mode, on its device.
        dtype: of convolutions and linear layers but the last ones. With another one than float32,
            call the model within :func:`torch.autocast` of that dtype.

    Returns:
        The model.

    Raises:
        ValueError: if the model is in training mode.
    """
    if model.training:
        raise ValueError("a model in training mode cannot be optimized: call eval() before")
    # The layers of a block are matrices of its kernels, which autocast them.
    blocks = non_local_blocks(model).values()
    in_blocks = {layer for block in blocks for layer in block.modules()}
    for name, module in model.named_modules():
        if module in in_blocks:
            continue
        # The class is changed, since FPN and others keep their layers in plain lists as well,
        # where a new module would not take the place of the old one.
        if type(module) is Conv2d:
            _fold_norm(module)
            module.__class__ = InferenceConv2d
        elif type(module) is ROIAlign:
            module.__class__ = InferenceROIAlign
        if isinstance(module, nn.Conv2d):
            _convert(module, memory_format=torch.channels_last)
        if dtype == torch.float32 or not isinstance(module, LAYERS):
            continue
        if name.rpartition(".")[2] in OUTPUT_LAYERS:
            bases = (_SinglePrecision, type(module))
            module.__class__ = type(type(module).__name__, bases, {})
        else:
            _convert(module, dtype=dtype)
    return model


def _convert(layer: nn.Module, **to: Any) -> None:
    """As ``layer.to``, but for what a convolution has as its activation, which can be a block."""
    activation = layer._modules.pop("activation", None)
    layer.to(**to)
    if activation is not None:
        layer.add_module("activation", activation)


class InferenceConv2d(Conv2d):
    """Detectron2's Conv2d with NNPACK's Winograd kernel where that applies.

    That is for 3x3 convolutions of stride 1 in single precision on a CPU, in one thread: on large
    maps of many channels it takes half of the time of oneDNN's or less. PyTorch itself chooses it
    on phones only. Not with more threads: NNPACK has its own, for which those of the layers around
    it would wait.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H', W')."""
        if self._has_winograd(x):
            x = torch._nnpack_spatial_convolution(x, self.weight, self.bias, self.padding)
        else:
            x = self._conv_forward(x, self.weight, self.bias)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)

    def _has_winograd(self, x: Tensor) -> bool:
        one = (1, 1)
        return (
            (self.kernel_size, self.padding) == ((3, 3), one)
            and (self.stride, self.dilation, self.groups) == (one, one, 1)
            and x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and _gains_from_winograd(x)
            and torch.get_num_threads() == 1
            and torch._nnpack_available()  # which also starts it
        )


def _gains_from_winograd(x: Tensor) -> bool:
    """Measured: with less to compute, changing the kernels' form takes longer than it saves."""
    count, channels, height, width = x.shape
    return channels >= 128 and count * height * width >= (1024 if count == 1 else 4096)


class _SinglePrecision:
    """Before a layer's class: computes in single precision within autocast."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())  # type: ignore[misc]


class InferenceROIAlign(ROIAlign):
    """RoIAlign (Mask R-CNN, sec. 3) as weighted sums of rows of a channels-last feature map.

    The same sampling points and weights as torchvision's. Its CPU kernel goes through the channels
    one by one, in one thread; here all channels of a point are read at once, by all threads. On
    small maps, which a core's own cache holds, that gains nothing, and theirs is taken.
    """

    def forward(self, x: Tensor, rois: Tensor) -> Tensor:
        """
        Args:
            x: (N, C, H, W).
            rois: float32 (R, 5), the index of the image, x0, y0, x1 and y1 in its pixels.

        Returns:
            (R, C, P, P).
        """
        if x.device.type != "cpu":
            # Boxes would be rounded to x's dtype, which can be several pixels.
            return super().forward(x.float(), rois).to(x.dtype)
        if x.numel() < SMALL_MAP and x.dtype == torch.float32:
            return super().forward(x, rois)
        _, channels, height, width = x.shape
        rows, columns = self.output_size
        corners = rois[:, 1:] * self.spatial_scale - (0.5 if self.aligned else 0)
        starts, sizes = corners[:, :2], corners[:, 2:] - corners[:, :2]
        if not self.aligned:
            sizes = sizes.clamp(min=1)
        # Sampling points of each bin along x and y
        counts = torch.ceil(sizes / sizes.new_tensor([columns, rows])).long().clamp(min=0)
        if self.sampling_ratio > 0:
            counts = torch.full_like(counts, self.sampling_ratio)
        table = x.permute(0, 2, 3, 1).reshape(-1, channels)  # (N * H * W, C)
        pooled = x.new_zeros(len(rois), rows * columns, channels)
        for count in torch.unique(counts[(counts > 0).all(1)], dim=0).tolist():
            which = (counts == counts.new_tensor(count)).all(1).nonzero().squeeze(1)
            (x0, y0), (w, h) = starts[which].T, sizes[which].T
            x_cells, x_weights = _taps(x0, w, columns, count[0], width)
            y_cells, y_weights = _taps(y0, h, rows, count[1], height)
            y_cells = y_cells + rois[which, 0].long()[:, None, None] * height
            cells = y_cells[:, :, None, :, None] * width + x_cells[:, None, :, None, :]
            weights = y_weights[:, :, None, :, None] * x_weights[:, None, :, None, :]
            taps = 4 * count[0] * count[1]
            pooled[which] = F.embedding_bag(
                cells.reshape(-1, taps),
                table,
                per_sample_weights=weights.reshape(-1, taps).to(table.dtype),
                mode="sum",
            ).view(len(which), rows * columns, channels)
        return pooled.view(-1, rows, columns, channels).permute(0, 3, 1, 2)


def _taps(start: Tensor, size: Tensor, bins: int, count: int, length: int) -> tuple[Tensor, Tensor]:
    """Which cells of an axis each bin reads, and with which weights.

    Args:
        start, size: of the regions along the axis, in cells, (R,).
        bins: P.
        count: sampling points of each bin.
        length: cells of the axis.

    Returns:
        int64 and float32 (R, P, 2 * count): two neighbouring cells for each sampling point.
    """
    points = (torch.arange(bins * count) + 0.5) / count
    points = start[:, None] + points * (size / bins)[:, None]
    inside = (points >= -1) & (points <= length)
    points = points.clamp(0, length - 1)
    low = points.floor()
    fraction = points - low
    low = low.long()
    cells = torch.stack([low, (low + 1).clamp(max=length - 1)], dim=-1)
    weights = torch.stack([1 - fraction, fraction], dim=-1) * inside[..., None] / count
    shape = (len(start), bins, 2 * count)
    return cells.view(shape), weights.view(shape)


def _fold_norm(conv: Conv2d) -> None:
    norm = conv.norm
    if isinstance(norm, (FrozenBatchNorm2d, _BatchNorm)) and norm.running_mean is not None:
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight,
            conv.bias,
            norm.running_mean,
            norm.running_var,  # type: ignore[arg-type]  # there is one where there is a mean
            norm.eps,
            norm.weight,
            norm.bias,
        )
        conv.norm = None
