"""Non-maximum suppression class by class, as a graph has it.

Torchvision's goes through the classes one by one where there are many boxes, but not for recorders.
For them it moves each class to a place of its own, in single precision. With 80 classes and images
of 1333 pixels a coordinate is rounded to 0.008 pixels there, by which boxes whose overlap is near
the threshold stay or go.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import boxes as box_ops

from .stand_ins import replaced

LOWEST = torch.finfo(torch.float32).min  # the score of a box in classes that are not its own


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """As :func:`torchvision.ops.batched_nms`, to be recorded.

    Args:
        boxes: float32 (N, 4), x0, y0, x1, y1.
        scores: float32 (N,), probabilities or logits.
        idxs: int64 (N,), classes from 0 on.
        iou_threshold: boxes with a larger overlap with a better one of their class go.

    Returns:
        int64 (M,), indices of those that stay, by falling score.
    """
    if not torch.onnx.is_in_onnx_export():
        return box_ops._batched_nms_vanilla(boxes, scores, idxs, iou_threshold)
    count = torch.cat([idxs, idxs.new_zeros(1)]).max() + 1
    classes = torch.arange(count)  # type: ignore[call-overload]  # recorded, as it is a tensor
    own = classes[:, None] == idxs  # (classes, N)
    by_class = torch.where(own, scores, torch.full_like(scores, LOWEST))
    kept = _NonMaxSuppression.apply(boxes, by_class, iou_threshold)
    return kept[scores[kept].sort(descending=True)[1]]


class _NonMaxSuppression(torch.autograd.Function):
    """ONNX's operator, which takes a score for each class."""

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, by_class: Tensor, threshold: float) -> Tensor:
        scores, classes = by_class.max(0)
        return box_ops._batched_nms_vanilla(boxes, scores, classes, threshold)

    @staticmethod
    def symbolic(g: Any, boxes: Any, by_class: Any, threshold: float) -> Any:
        def constant(value: object, dtype: torch.dtype) -> Any:
            return g.op("Constant", value_t=torch.tensor(value, dtype=dtype))

        first = constant([0], torch.int64)
        rows = g.op(
            "NonMaxSuppression",
            g.op("Unsqueeze", boxes, first),
            g.op("Unsqueeze", by_class, first),
            constant([torch.iinfo(torch.int32).max], torch.int64),  # boxes of a class
            constant([threshold], torch.float32),
            constant([LOWEST], torch.float32),  # which scores must exceed
        )
        # Each row is an image, a class and a box
        return g.op("Gather", rows, constant(2, torch.int64), axis_i=1)


def recordable_nms() -> AbstractContextManager[None]:
    """Within it Detectron2's models use :func:`batched_nms`."""
    return replaced(box_ops, "batched_nms", batched_nms)
