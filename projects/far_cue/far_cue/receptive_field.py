"""How far a detector can see, measured on the built model rather than derived by hand."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Boxes
from torch import Tensor

POOLERS = ("box_pooler", "mask_pooler", "keypoint_pooler")


@torch.no_grad()
def reach(model: GeneralizedRCNN, size: Sequence[int], box: Sequence[float]) -> int:
    """How far from a box a pixel can be and still change what the model says of it.

    A column of the image is set to NaN, which no layer can undo: where the features that the RoI
    heads pool for the box (for classes, boxes, masks and keypoints), or the RPN's outputs at
    positions in the box, stay finite, they do not depend on that column, whatever the weights are.
    So this is exact, and holds for any module. A model with a non-local block reaches everything.

    It is about a model in use. In training, batch normalisation shares its statistics among all
    positions of a batch, by which no single image can be told.

    Args:
        model: with RoI heads of Detectron2's StandardROIHeads; put into evaluation mode.
        size: height and width of the image in pixels.
        box: (x0, y0, x1, y1) in pixels.

    Returns:
        Pixels from the box's left or right border to the farthest column that matters, at least 0.
        If that column is the image's first or last, the true figure may be larger.
    """
    model.eval()
    width = size[1]
    left = _first(range(round(box[0])), lambda x: _depends(model, size, box, x))
    right = _first(range(width - 1, round(box[2]) - 1, -1), lambda x: _depends(model, size, box, x))
    distances = [box[0] - left if left is not None else 0]
    distances.append(right + 1 - box[2] if right is not None else 0)
    return max(0, round(max(distances)))


@torch.no_grad()
def keypoint_reach(
    model: GeneralizedRCNN, size: Sequence[int], box: Sequence[float], point: Sequence[float]
) -> int:
    """How far from a point a pixel can be and still change how likely keypoints are at the point.

    As :func:`reach`, with rows and columns. Where the box lies is not asked here.

    Args:
        model: with a keypoint head of Detectron2's; put into evaluation mode.
        size: height and width of the image in pixels.
        box: (x0, y0, x1, y1) in pixels, for which keypoints are predicted.
        point: (x, y) in pixels, in the box.

    Returns:
        Pixels from the point to the farthest row or column that matters, at least 0.
    """
    model.eval()
    heads = model.roi_heads
    boxes = [Boxes(torch.tensor([box], dtype=torch.float32, device=model.device))]

    def depends(axis: int, index: int) -> bool:
        image = torch.zeros(1, 3, *size, device=model.device)
        image.select(axis, index).fill_(torch.nan)
        features = model.backbone(image)
        pooled = heads.keypoint_pooler([features[f] for f in heads.keypoint_in_features], boxes)
        logits = heads.keypoint_head.layers(pooled)  # (1, keypoints, S, S)
        column, row = (
            int((p - low) / (high - low) * logits.shape[-1])
            for p, low, high in zip(point, box[:2], box[2:], strict=True)
        )
        return _has_nan(logits[..., row, column])

    distances = [0.0]
    for axis, p in ((2, point[1]), (3, point[0])):
        for far in (range(int(p)), range(size[axis - 2] - 1, int(p), -1)):
            index = _first(far, partial(depends, axis))
            if index is not None:
                distances.append(abs(index + 0.5 - p) + 0.5)
    return round(max(distances))


def _first(indices: Sequence[int], depends: Callable[[int], bool]) -> int | None:
    """The first row or column, counted from the far end, that matters; nearer ones then do, too."""
    low, high = 0, len(indices)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if depends(indices[middle]) else (middle + 1, high)
    return indices[low] if low < len(indices) else None


def _depends(
    model: GeneralizedRCNN, size: Sequence[int], box: Sequence[float], column: int
) -> bool:
    """Whether the column of the image matters for the box."""
    image = torch.zeros(1, 3, *size, device=model.device)
    image[..., column] = torch.nan
    features = model.backbone(image)
    rpn, heads = model.proposal_generator, model.roi_heads
    outputs = []
    maps = [features[name] for name in rpn.in_features]
    for logits, deltas, map_ in zip(*rpn.rpn_head(maps), maps, strict=True):
        rows, columns = (
            slice(int(low * n / side), max(int(-(-high * n // side)), 1))
            for low, high, n, side in zip(
                box[1::-1], box[3:1:-1], map_.shape[2:], size, strict=True
            )
        )
        outputs += [logits[..., rows, columns], deltas[..., rows, columns]]
    boxes = [Boxes(torch.tensor([box], dtype=torch.float32, device=model.device))]
    for name in POOLERS:
        if pooler := getattr(heads, name, None):
            used = getattr(heads, name.replace("pooler", "in_features"))
            outputs.append(pooler([features[feature] for feature in used], boxes))
    return any(_has_nan(output) for output in outputs)


def _has_nan(x: Tensor) -> bool:
    return bool(x.isnan().any())
