"""What the non-local blocks of a model relate to query points of an image (paper, fig. 3).

Only the asked rows of the affinity are computed, never the matrix of all pairs of positions.

Shape shorthand in this module:
    H, W: the block's input map
    h, w: the map of its keys: H, W or, where they are sub-sampled, half of it, rounded up
    R: detected instances, whose 14x14 grids are the maps of blocks in the mask and keypoint heads

Blocks of a box head are left out: their maps are of proposals, and which of these has become which
detection is not known.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.roi_heads import (
    BaseKeypointRCNNHead,
    BaseMaskRCNNHead,
    FastRCNNConvFCHead,
)
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import UsageError
from ..layers import BaseNonLocalBlock, non_local_blocks
from ..log import logger
from ..modeling.pyramid import NonLocalFPN
from ..structures import Attention, AttentionMap

# PyTorch numbers hooks without regard to threads.
_registration = threading.Lock()


def attend(
    model: nn.Module,
    image: np.ndarray,
    points: Sequence[tuple[float, float]] | None,
    predict: Callable[[np.ndarray], Instances],
    input_size: tuple[int, int],
) -> Attention:
    """The affinity of query points to all keys, for each non-local block of a model.

    Args:
        model: a detector of Detectron2's.
        image: uint8 (H, W, 3) BGR.
        points: (x, y) in the image's pixels; by default the centre of each detected instance's
            box.
        predict: has the model predict on the image.
        input_size: (H, W) to which that resizes it.

    Raises:
        UsageError: if the model has no non-local block, or a point is outside of the image.
    """
    check_has_blocks(model)
    check_points(points or (), image)
    with _trace(model) as trace:
        instances = predict(image)
    rois = []
    if instances.has("roi"):  # where there is a mask or keypoint head
        rois = instances.roi.tolist()
        instances.remove("roi")
    if points is None:
        points = [(x, y) for x, y in instances.pred_boxes.get_centers().tolist()]
        owners = dict(enumerate(range(len(points))))
    else:
        found = ((i, _instance_at(point, instances)) for i, point in enumerate(points))
        owners = {i: owner for i, owner in found if owner is not None}

    queries = dict(enumerate(points))
    scale = np.divide(input_size, image.shape[:2])
    maps = []
    for name, (block, x) in trace.inputs.items():
        if name not in trace.roi_blocks:
            stride = _stride(model, block) or trace.padded / np.array(x.shape[2:])
            y_edges, x_edges = (
                np.arange(size + 1) * step / factor
                for size, step, factor in zip(x.shape[2:], stride, scale, strict=True)
            )
            maps += _look(name, block, x, queries, x_edges, y_edges)
            continue
        for point, owner in owners.items():
            x0, y0, x1, y1 = instances.pred_boxes.tensor[owner].tolist()
            y_edges = np.linspace(y0, y1, x.shape[2] + 1)
            x_edges = np.linspace(x0, x1, x.shape[3] + 1)
            roi = x[rois[owner] : rois[owner] + 1]
            query = {point: queries[point]}
            maps += _look(name, block, roi, query, x_edges, y_edges, instance=owner)
    return Attention(image, instances, list(points), list(trace.inputs), maps)


def check_has_blocks(model: nn.Module) -> None:
    """Raises a UsageError if a model has no non-local block whose attention can be shown."""
    blocks = non_local_blocks(model).keys()
    if not blocks:
        raise UsageError("this model has no non-local blocks, so there is no attention to look at")
    if not blocks - _box_head_blocks(model):
        raise UsageError(
            f"the only non-local blocks of this model are in its box head ({', '.join(blocks)}), "
            "where they see proposals, of which no point of the image or detection is known"
        )


def check_points(points: Sequence[tuple[float, float]], image: np.ndarray) -> None:
    """Raises a UsageError that names the first point outside the image (H, W, 3)."""
    height, width = image.shape[:2]
    for x, y in points:
        if not (0 <= x < width and 0 <= y < height):
            raise UsageError(
                f"point {x:g},{y:g} is outside the image, whose x is from 0 to {width - 1} and y "
                f"from 0 to {height - 1}"
            )


@dataclass
class _Trace:
    """What passes through a model while it predicts on one image."""

    inputs: dict[str, tuple[BaseNonLocalBlock, Tensor]] = field(default_factory=dict)
    roi_blocks: set[str] = field(default_factory=set)  # those within a mask or keypoint head
    padded: np.ndarray | None = None  # (H, W) of the backbone's input


@contextmanager
def _trace(model: Any) -> Iterator[_Trace]:
    """What passes through in this thread: others may predict with the same model meanwhile."""
    trace = _Trace()
    thread = threading.get_ident()

    def hook(module: nn.Module, see: Callable[[nn.Module, tuple], None]) -> RemovableHandle:
        def see_own(module: nn.Module, args: tuple) -> None:
            if threading.get_ident() == thread:
                see(module, args)

        with _registration:
            return module.register_forward_pre_hook(see_own)

    def hook_block(name: str, block: BaseNonLocalBlock) -> RemovableHandle:
        def see_block(_: nn.Module, args: tuple) -> None:
            trace.inputs[name] = (block, args[0].detach())

        return hook(block, see_block)

    def see_backbone(_: nn.Module, args: tuple) -> None:
        trace.padded = np.array(args[0].shape[2:])

    def number_rois(_: nn.Module, args: tuple) -> None:
        # Passed on to the instances that the model returns, from which some may be missing.
        args[1][0].roi = torch.arange(len(args[1][0]), device=args[0].device)

    hooks = [hook(model.backbone, see_backbone)]
    left_out = _box_head_blocks(model)
    if left_out:
        logger.warning(f"No attention of {', '.join(sorted(left_out))}: a box head sees proposals")
    for prefix, module in model.named_modules():
        if isinstance(module, BaseNonLocalBlock) and prefix not in left_out:
            hooks.append(hook_block(prefix, module))
        elif isinstance(module, BaseMaskRCNNHead | BaseKeypointRCNNHead):
            hooks.append(hook(module, number_rois))
            trace.roi_blocks |= {f"{prefix}.{name}" for name in non_local_blocks(module)}
    try:
        yield trace
    finally:
        for handle in hooks:
            handle.remove()


def _look(
    name: str,
    block: BaseNonLocalBlock,
    x: Tensor,
    queries: Mapping[int, tuple[float, float]],
    x_edges: np.ndarray,
    y_edges: np.ndarray,
    *,
    instance: int | None = None,
) -> list[AttentionMap]:
    """The rows of the affinity of x (1, C, H, W), whose cells have these edges, for points."""
    cells = [
        _cell(y_edges, row) * x.shape[3] + _cell(x_edges, column)
        for column, row in queries.values()
    ]
    x = x.to(block.out.weight.dtype)  # from what the layers around the block compute in
    with torch.no_grad():
        affinity = block.affinity(x, torch.tensor(cells, dtype=torch.int64, device=x.device))[0]
    if block.sub_sample:
        # A key is the maximum over 2x2 positions, or fewer at an odd end.
        x_edges, y_edges = (np.append(e[:-1:2], e[-1]) for e in (x_edges, y_edges))
    rows = affinity.float().cpu().numpy().reshape(-1, len(y_edges) - 1, len(x_edges) - 1)
    return [
        AttentionMap(
            *(point, name, block.label, query, weights, x_edges, y_edges, instance),
            distribution=block.is_distribution,
        )
        for (point, query), weights in zip(queries.items(), rows, strict=True)
    ]


def _cell(edges: np.ndarray, position: float) -> int:
    """The index of the cell in which a position is; that of the nearest one if it is in none."""
    return int(np.clip(np.searchsorted(edges, position, side="right") - 1, 0, len(edges) - 2))


def _box_head_blocks(model: nn.Module) -> set[str]:
    return {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, FastRCNNConvFCHead)
        for name in non_local_blocks(module)
    }


def _stride(model: nn.Module, block: BaseNonLocalBlock) -> tuple[int, int] | None:
    """Pixels of the model's input a step of the block's map, (y, x); None outside a backbone.

    Not the quotient of the sizes, which is off where a convolution has rounded an odd size up.
    """
    for fpn in (module for module in model.modules() if isinstance(module, NonLocalFPN)):
        if fpn.block is block:
            stride = fpn.output_shape()[fpn.level].stride
            return stride, stride
    for resnet in (module for module in model.modules() if isinstance(module, ResNet)):
        stride = resnet.stem.stride
        for child in (child for stage in resnet.stages for child in stage):
            stride *= child.stride  # a block after a residual block has none of its own
            if any(module is block for module in child.modules()):
                return stride, stride
    return None


def _instance_at(point: tuple[float, float], instances: Instances) -> int | None:
    """The surest instance in whose box a point is."""
    x0, y0, x1, y1 = instances.pred_boxes.tensor.T
    x, y = point
    inside = (x0 <= x) & (x <= x1) & (y0 <= y) & (y <= y1)
    return int(inside.nonzero()[0]) if inside.any() else None
