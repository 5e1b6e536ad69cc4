"""What of a dataset a model can be trained on, and what it is trained on."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode

from ..errors import UsageError
from ..log import logger
from .prepare import Prepared, prepare

CROWD = "of a crowd"
NO_SIZE = "with a box of no size in the image"
NO_MASK = "without a mask"
ELSEWHERE = "of images that are not there or are left out"


def check_usable(prepared: Sequence[Prepared], *, mask_format: str | None, keypoints: bool) -> None:
    """Checks that the files of a training have what a model is trained on.

    Args:
        prepared: what is known of each file.
        mask_format: Detectron2's INPUT.MASK_FORMAT for a model with masks, else None.
        keypoints: the model has keypoints.

    Raises:
        UsageError: naming the files and what they lack.
    """
    for file in prepared:
        if not file.num_images:
            raise UsageError(f"{file.original} has no images: there is nothing to train on")
        if mask_format == "polygon" and file.objects.run_lengths:
            raise UsageError(
                f"{file.original} has masks as run lengths (RLE), of {file.objects.run_lengths:,} "
                "annotations, which INPUT.MASK_FORMAT polygon cannot read; use INPUT.MASK_FORMAT "
                "bitmask (in a LazyConfig, instance_mask_format)"
            )
    if not prepared:
        return
    total = sum(file.num_annotations for file in prepared)
    none = f"{', '.join(file.original for file in prepared)}: none of {total:,} annotations"
    if not any(file.objects.boxes for file in prepared):
        raise UsageError(f"{none} can be trained on, which takes a box of some size and iscrowd 0")
    if mask_format and not any(file.objects.masks for file in prepared):
        raise UsageError(
            f"{none} has a mask to train one with; use MODEL.MASK_ON False (in a LazyConfig, a "
            "model without a mask head)"
        )
    if keypoints and not any(file.objects.keypoints for file in prepared):
        raise UsageError(
            f"{none} has a labelled keypoint to train one with; use MODEL.KEYPOINT_ON False"
        )


def annotations_in_files(names: Iterable[str]) -> int | None:
    """How many annotations the files of these datasets have; None unless all are of COCO's format.

    Raises:
        UsageError: if a file cannot be read.
    """
    total = 0
    for name in names:
        metadata = MetadataCatalog.get(name)
        if metadata.get("evaluator_type") != "coco" or not metadata.get("json_file"):
            return None
        total += prepare(metadata.json_file, metadata.get("image_root", "")).num_annotations
    return total


def usable_for_training(
    dicts: list[dict],
    *,
    masks: bool,
    keypoints: bool,
    filter_empty: bool = True,
    total: int | None = None,
) -> list[dict]:
    """Leaves out what a model cannot be trained on, and logs how much of what kind that is.

    Crowds, boxes without size and, for a model with masks, objects without one are left out.
    An object without keypoints stays: they are not labelled then.

    Args:
        dicts: in Detectron2's dataset format; anything else is returned as it is.
        masks, keypoints: whether the model has them.
        filter_empty: leave out images, too, of whose annotations none is left.
        total: how many annotations the files have, to count those that Detectron2 has left out.

    Returns:
        Records of the same kind. Those given are not changed.

    Raises:
        UsageError: if nothing is left.
    """
    if not isinstance(dicts, list) or not dicts or "annotations" not in dicts[0]:
        return dicts
    num_keypoints = _num_keypoints(dicts) if keypoints else 0
    left_out: Counter[str] = Counter()
    usable, trained, no_keypoints = [], 0, 0
    has_size = _have_size(dicts)
    start = 0
    for record in dicts:
        kept = []
        annotations = record["annotations"]
        for annotation, is_box in zip(annotations, has_size[start:], strict=False):
            reason = _reason(annotation, is_box, masks)
            if reason:
                left_out[reason] += 1
                continue
            if num_keypoints and not annotation.get("keypoints"):
                annotation = annotation | {"keypoints": [0.0] * (3 * num_keypoints)}
                no_keypoints += 1
            kept.append(annotation)
        start += len(annotations)
        trained += len(kept)
        if kept or not annotations or not filter_empty:
            usable.append(record | {"annotations": kept})
    total = start if total is None else total
    if total > start:
        left_out[ELSEWHERE] = total - start
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())
    if not trained:
        raise UsageError(
            f"there is nothing to train on: {reasons or 'the datasets have no annotations'}"
        )
    line = f"Training on {trained:,} of {total:,} annotations, in {len(usable):,} images"
    line += f"; left out: {reasons}" if reasons else ""
    line += f"; {no_keypoints:,} have no keypoints" if no_keypoints else ""
    (logger.warning if trained < total else logger.info)(line)
    return usable


def _reason(annotation: dict, has_size: bool, masks: bool) -> str | None:
    """Why an annotation cannot be trained on."""
    if annotation.get("iscrowd", 0) != 0:
        return CROWD
    if not has_size:
        return NO_SIZE
    return NO_MASK if masks and not _has_mask(annotation.get("segmentation")) else None


def _has_mask(segmentation: Any) -> bool:
    if isinstance(segmentation, dict):
        return int(mask_util.area(segmentation)) > 0
    return segmentation is not None and len(segmentation) > 0


def _num_keypoints(dicts: list[dict]) -> int:
    lengths = (len(a.get("keypoints", ())) for record in dicts for a in record["annotations"])
    return max(lengths, default=0) // 3


def _have_size(dicts: list[dict]) -> np.ndarray:
    """Whether each annotation's box has a part of some size in its image, bool (N,).

    Those with another kind of box than Detectron2's two usual ones, or none, are taken to have.
    """
    rows = [
        (*annotation["bbox"], annotation["bbox_mode"] == BoxMode.XYWH_ABS, width, height)
        if annotation.get("bbox_mode") in (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
        else (0, 0, 1, 1, False, 1, 1)
        for record in dicts
        for width, height in [(record.get("width", np.inf), record.get("height", np.inf))]
        for annotation in record["annotations"]
    ]
    table = np.array(rows, np.float64).reshape(-1, 7)
    low, high, is_size = table[:, :2], table[:, 2:4], table[:, 4:5]
    high = high + is_size * low
    return np.asarray((np.minimum(high, table[:, 5:]) > low.clip(min=0)).all(1))
