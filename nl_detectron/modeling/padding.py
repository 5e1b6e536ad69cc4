"""Non-local blocks that neither see nor change what an image was padded with, in a batch.

Detectron2's models pad the images of a batch to one size and hand their backbone the padded tensor
alone. The images' sizes are nowhere else in it, but they can be read from it: padding is zero in
all channels, which no pixel of an image is, as long as one channel of it differs from its mean
(``MODEL.PIXEL_MEAN``, by default no whole numbers, which bytes never equal).
"""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.modeling.backbone import ResNet
from torch import Tensor

from ..layers import BaseNonLocalBlock

Sizes = list[tuple[Any, Any]]  # (H, W) of each image, int; of the one image in a trace, tensors


class MaskingResNet(ResNet):
    """Detectron2's ResNet, each of whose non-local blocks works within the images alone."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """As Detectron2's; x: images (N, 3, H, W), padded with zeros at the right and bottom."""
        sizes = image_sizes(x)
        if sizes is None:
            return super().forward(x)
        features = {"stem": self.stem(x)}
        x, stride = features["stem"], self.stem.stride
        for name, stage in zip(self.stage_names, self.stages, strict=True):
            for layer in stage:
                if isinstance(layer, BaseNonLocalBlock):
                    x = within_images(layer, x, scaled(sizes, stride))
                else:
                    x, stride = layer(x), stride * layer.stride
            features[name] = x
        return {name: features[name] for name in self._out_features}


def make_masking(resnet: ResNet) -> None:
    """Has a ResNet keep its blocks within the images, in place.

    Raises:
        ValueError: if it is none whose layers are known to run one after another.
    """
    if type(resnet) not in (ResNet, MaskingResNet) or resnet.num_classes is not None:
        raise ValueError(
            "mask_padding=True needs Detectron2's own ResNet, without a classifier; got a "
            f"{type(resnet).__name__} with num_classes={resnet.num_classes}"
        )
    resnet.__class__ = MaskingResNet


def image_sizes(x: Tensor) -> Sizes | None:
    """(H, W) of each image of a padded batch (N, C, H, W); None if nothing is padding.

    In a trace, which is of one image, they are tensors, so that no size is recorded.
    """
    ends = (x[:, :, -1], x[:, :, :, -1])
    if not torch.jit.is_tracing() and all(bool(end.any(2).any(1).all()) for end in ends):
        return None
    content = x.ne(0).any(1)  # (N, H, W)
    sizes = torch.stack([_last(content.any(2)), _last(content.any(1))], dim=1)
    if torch.jit.is_tracing():
        return [(sizes[0, 0], sizes[0, 1])]
    return [(height, width) for height, width in sizes.tolist()]


def scaled(sizes: Sizes, stride: int) -> Sizes:
    """The sizes of feature maps of such images, alone: each convolution rounds up."""
    return [((h + stride - 1) // stride, (w + stride - 1) // stride) for h, w in sizes]


def within_images(block: BaseNonLocalBlock, x: Tensor, sizes: Sequence[tuple[Any, Any]]) -> Tensor:
    """What a block gives of each map alone; padded positions stay as they are.

    Args:
        block: of images, whose norm, if any, is of each sample for itself.
        x: maps (N, C, H, W).
        sizes: (H, W) of each within its padding.

    Returns:
        (N, C, H, W).
    """
    if not torch.jit.is_tracing() and all(size == tuple(x.shape[2:]) for size in sizes):
        return block(x)
    maps = []
    for index, (height, width) in enumerate(sizes):
        padded = x[index : index + 1]
        z = block(padded[:, :, :height, :width])
        upper = torch.cat([z, padded[:, :, :height, width:]], dim=3)
        maps.append(torch.cat([upper, padded[:, :, height:]], dim=2))
    return torch.cat(maps)


def _last(content: Tensor) -> Tensor:
    """How many of (N, L) there are up to the last one that is true, int64 (N,); at least 1."""
    numbers = torch.arange(1, content.shape[1] + 1, device=content.device)
    return (numbers * content).amax(1).clamp(min=1)
