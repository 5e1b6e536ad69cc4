"""A non-local block on all levels of an FPN at once (Libra R-CNN, sec. 3.2, arXiv 1904.02701).

All levels are resized to one, by max-pooling or to the nearest neighbour, and averaged; the block
refines their mean, and what comes of it is resized back and added to each level. In that paper it
is the refined mean, by which no level stays what it was; here it is what the block adds to the
mean, which is nothing at the start, unless ``add_mean`` asks for theirs.

Shape shorthand in this module:
    N: batch size
    C: channels of the pyramid
    H, W: height and width of a level
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.modeling.backbone import FPN
from torch import Tensor, nn

from ..layers import BaseNonLocalBlock, BlockOptions, build_block
from ..layers.names import block_name
from .insertion import check_unwrapped
from .joining import join


class NonLocalFPN(FPN):
    """Detectron2's FPN with a block on its levels; :func:`insert_in_pyramid` makes one of an FPN.

    The block on p4 is the child ``nl4``. Not for ``torch.jit.script``.
    """

    level: str
    add_mean: bool

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """As Detectron2's; x: images (N, 3, H, W)."""
        features = super().forward(x)
        size = features[self.level].shape[2:]
        resized = (self._resize(m, size, name, self.level) for name, m in features.items())
        mean = sum(resized) / len(features)
        refined = self.block(mean)
        change = refined if self.add_mean else refined - mean
        return {
            name: m + self._resize(change, m.shape[2:], self.level, name)
            for name, m in features.items()
        }

    @property
    def block(self) -> BaseNonLocalBlock:
        return getattr(self, block_name(int(self.level[1:])))

    def _resize(self, x: Tensor, size: Sequence[Any], start: str, end: str) -> Tensor:
        """A map (N, C, H, W) of one level's size to another's."""
        halvings = int(end[1:]) - int(start[1:])
        if halvings == 0:
            return x
        if halvings < 0:
            return F.interpolate(x, size=size, mode="nearest")
        if self._out_feature_strides[end] <= self.size_divisibility:  # the FPN's sizes are even
            return F.max_pool2d(x, 2**halvings)
        for axis in (2, 3):  # of a top block, which rounds up
            x = adaptive_max_pool(x, size[axis - 2], axis, 2**halvings)
        return x


def insert_in_pyramid(
    model: nn.Module,
    level: str = "p4",
    *,
    add_mean: bool = False,
    options: BlockOptions | None = None,
    **changes: Any,
) -> BaseNonLocalBlock:
    """Puts a non-local block on the levels of an FPN, in place; no parameter is renamed.

    Insert it before the optimizer is built, which would not know of it otherwise.

    Args:
        model: a Detectron2 FPN, or any model that has exactly one inside.
        level: to which all levels are resized for the block.
        add_mean: add the refined mean itself to each level, as Libra R-CNN does, so that the model
            starts as another one; by default only what the block adds to the mean.
        options: of the block; by default the paper's. Libra R-CNN's are ``inner_ratio=1``,
            ``sub_sample=False`` and ``use_scale=False``.
        changes: fields of :class:`BlockOptions` with other values than in ``options``.

    Returns:
        The new block.

    Raises:
        TypeError: if one of ``changes`` is no option.
        ValueError: if ``model`` does not have exactly one FPN of Detectron2's without a block, is
            or holds a wrapper for several processes or devices, if there is no such level, or if
            an option is out of its range or ``mask_padding``. The model is then unchanged.
    """
    options = replace(options or BlockOptions(), **changes)
    check_unwrapped(model)
    fpns = [module for module in model.modules() if isinstance(module, FPN)]
    if len(fpns) != 1:
        raise ValueError(
            f"expected a model with one Detectron2 FPN, {type(model).__name__} has {len(fpns)}"
        )
    fpn = fpns[0]
    if type(fpn) is not FPN:
        raise ValueError(
            f"expected Detectron2's own FPN, without a non-local block; got a {type(fpn).__name__}"
        )
    check_pyramid(level, list(fpn.output_shape()), options)
    block = build_block(fpn.output_shape()[level].channels, options=options)
    name = block_name(int(level[1:]))
    join(block, fpn, name)
    fpn.__class__ = NonLocalFPN
    fpn.level, fpn.add_mean = level, add_mean
    fpn.add_module(name, block)
    return block


def non_local_fpn(
    *,
    non_local_level: str = "p4",
    non_local_add_mean: bool = False,
    non_local_options: BlockOptions | None = None,
    **fpn: Any,
) -> FPN:
    """Detectron2's ``FPN`` with a non-local block on its levels: the same for LazyConfigs.

    Args:
        non_local_level, non_local_add_mean, non_local_options: ``level``, ``add_mean`` and
            ``options`` of :func:`insert_in_pyramid`.
        fpn: the arguments of :class:`detectron2.modeling.backbone.FPN`.

    Raises:
        ValueError: as :func:`insert_in_pyramid`.
    """
    backbone = FPN(**fpn)
    insert_in_pyramid(
        backbone, non_local_level, add_mean=non_local_add_mean, options=non_local_options
    )
    return backbone


def check_pyramid(level: str, levels: Sequence[str], options: BlockOptions) -> None:
    """Checks the level of a block, and that a block of these options can be on a pyramid.

    Raises:
        ValueError: naming the value and the allowed ones.
    """
    if level not in levels:
        raise ValueError(f"level must be one of {', '.join(levels)}, got {level!r}")
    if options.mask_padding:
        raise ValueError(
            "mask_padding=True is for blocks in a ResNet: resizing a pyramid's levels mixes images "
            "with their padding before the block could tell them apart; use False"
        )


def adaptive_max_pool(x: Tensor, size: Any, axis: int, factor: int) -> Tensor:
    """``F.adaptive_max_pool2d`` along one axis, in operators that record no size.

    Args:
        x: (N, C, H, W).
        size: of the axis in the output, at least a ``factor``-th of that in x.
        axis: 2 or 3.

    Returns:
        x with that axis of the new size.
    """
    length = x.shape[axis]
    cells = torch.arange(size, device=x.device)
    starts = cells * length // size
    last = ((cells + 1) * length + size - 1) // size - 1
    pooled = x.index_select(axis, starts)
    for tap in range(1, factor + 1):
        pooled = torch.maximum(pooled, x.index_select(axis, torch.minimum(starts + tap, last)))
    return pooled
