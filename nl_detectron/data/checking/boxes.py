"""Boxes, and the areas of what they surround."""

import math
from collections.abc import Sequence

import numpy as np

from .findings import Effect, Findings, Kind
from .numbers import as_array, to_number, to_numbers

NO_BOX = Kind(
    "annotation",
    "no bbox, and no mask to take it from",
    Effect.STOPS,
    "give it one, or leave it out",
)
FROM_MASK = Kind("annotation", "bbox missing: taken from the mask", Effect.REPAIRED)
NOT_FOUR = Kind(
    "annotation", "bbox that is not four numbers x, y, width, height", Effect.STOPS, "correct it"
)
NOT_FINITE = Kind("annotation", "bbox with NaN or infinity", Effect.STOPS, "correct it")
TEXT = Kind("annotation", "bbox with numbers as text", Effect.REPAIRED)
NO_SIZE = Kind("annotation", "bbox of no width or height", Effect.LEFT_OUT)
NEGATIVE = Kind("annotation", "bbox of negative width or height", Effect.LEFT_OUT)
ELSEWHERE = Kind("annotation", "bbox wholly outside its image", Effect.LEFT_OUT)
BEYOND = Kind("annotation", "bbox that leaves its image, and is cut off there", Effect.SUSPICIOUS)
CORNERS = Kind(
    "annotation", "bbox that looks like x1, y1, x2, y2, not x, y, width, height", Effect.SUSPICIOUS
)
RELATIVE = Kind(
    "annotation", "bbox that looks like fractions of the image, not pixels", Effect.SUSPICIOUS
)
OFF_MASK = Kind("annotation", "bbox that disagrees with its mask", Effect.SUSPICIOUS)
AREA = Kind(
    "annotation",
    "area missing or no number: taken from the mask, or from the bbox where there is none",
    Effect.CORRECTED,
)
# The similarity of keypoints is relative to the object's area, of which a bbox has too much.
NO_AREA = Kind(
    "annotation",
    "area missing beside keypoints, and no mask to take it from: keypoints are not evaluated",
    Effect.FINE,
)

TOLERANCE = 1.0  # pixels by which a box may leave its image


def check_boxes(
    annotations: list[dict], sizes: np.ndarray, masks: np.ndarray, findings: Findings
) -> np.ndarray:
    """Checks and corrects boxes.

    Args:
        annotations: N of them.
        sizes: float64 (N, 2), width and height of the image of each, NaN where not known.
        masks: float64 (N, 4), x1, y1, x2, y2 of each mask, NaN where there is none.

    Returns:
        The boxes, float64 (N, 4) as x, y, width, height, NaN where there is none.
    """
    boxes = as_array([annotation.get("bbox") for annotation in annotations], 4)
    if boxes is None:
        rows = [
            _check_box(annotation, mask, findings)
            for annotation, mask in zip(annotations, masks, strict=True)
        ]
        boxes = np.array(rows, np.float64).reshape(-1, 4)
    elif not (finite := np.isfinite(boxes).all(1)).all():
        for i in np.flatnonzero(~finite):
            findings.add_annotation(NOT_FINITE, annotations[i], boxes[i].tolist())
        boxes[~finite] = np.nan
    with np.errstate(invalid="ignore", over="ignore"):
        _judge(annotations, boxes, sizes, masks, findings)
    return boxes


def _check_box(annotation: dict, mask: np.ndarray, findings: Findings) -> Sequence[float]:
    none = [math.nan] * 4
    value = annotation.get("bbox")
    if value is None or value == []:
        if np.isnan(mask[0]):
            findings.add_annotation(NO_BOX, annotation)
            return none
        x1, y1, x2, y2 = mask.tolist()
        annotation["bbox"] = [x1, y1, x2 - x1, y2 - y1]
        findings.add_annotation(FROM_MASK, annotation)
        return annotation["bbox"]
    numbers = to_numbers(value)
    if numbers is None or len(numbers) != 4:
        findings.add_annotation(NOT_FOUR, annotation, value)
        return none
    if not all(map(math.isfinite, numbers)):
        findings.add_annotation(NOT_FINITE, annotation, value)
        return none
    if any(isinstance(number, str) for number in value):
        findings.add_annotation(TEXT, annotation, value)
        annotation["bbox"] = numbers
    return numbers


def _judge(
    annotations: list[dict],
    boxes: np.ndarray,
    sizes: np.ndarray,
    masks: np.ndarray,
    findings: Findings,
) -> None:
    """Finds what can be used but may be wrong."""
    low, size = boxes[:, :2], boxes[:, 2:]
    high = low + size
    negative = (size < 0).any(1)
    no_size = ~negative & (size == 0).any(1)
    elsewhere = ~negative & ~no_size & ((high <= 0) | (low >= sizes)).any(1)
    fits = ((low >= -TOLERANCE) & (high <= sizes + TOLERANCE)).all(1)
    fits_as_corners = ((low >= -TOLERANCE) & (size <= sizes + TOLERANCE) & (size > low)).all(1)
    as_box, as_corners = _overlap(boxes[:, :2], high, masks), _overlap(low, size, masks)
    has_mask = ~np.isnan(masks[:, 0]) & ~np.isnan(boxes[:, 0])
    corners = np.where(
        has_mask,
        fits_as_corners & (as_corners > 0.9) & (as_box < 0.9),
        fits_as_corners & ~fits & ~np.isnan(sizes[:, 0]),
    )
    relative = (boxes[:, :4] <= 1).all(1) & (low >= 0).all(1) & (size > 0).all(1)
    relative &= (sizes > 4).all(1)
    known = ~np.isnan(boxes[:, 0]) & ~np.isnan(sizes[:, 0])
    off_mask = has_mask & (as_box < 0.5) & ~corners
    for kind, which in (
        (NEGATIVE, negative),
        (NO_SIZE, no_size),
        (ELSEWHERE, elsewhere),
        (CORNERS, corners),
        (RELATIVE, relative),
        (BEYOND, known & ~(negative | no_size | elsewhere | fits | corners)),
        (OFF_MASK, off_mask),
    ):
        for i in np.flatnonzero(which):
            findings.add_annotation(kind, annotations[i], annotations[i]["bbox"])


def _overlap(low: np.ndarray, high: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The IoU, float64 (N,), of boxes given by their corners, float64 (N, 2), with the masks'."""
    common = np.minimum(high, masks[:, 2:]) - np.maximum(low, masks[:, :2])
    intersection = common.clip(min=0).prod(1)
    areas = (high - low).prod(1) + (masks[:, 2:] - masks[:, :2]).prod(1)
    return intersection / np.maximum(areas - intersection, 1e-9)


def check_areas(
    annotations: list[dict], boxes: np.ndarray, mask_areas: np.ndarray, findings: Findings
) -> np.ndarray:
    """Fills in areas that are missing, but for those of objects with keypoints and no mask.

    Args:
        annotations: N of them.
        boxes: float64 (N, 4) as x, y, width, height.
        mask_areas: float64 (N,), NaN where there is no mask.

    Returns:
        The areas in square pixels, float64 (N,), NaN where nothing gives one.
    """
    areas = np.full(len(annotations), np.nan)
    for i, annotation in enumerate(annotations):
        value = annotation.get("area")
        number = to_number(value)
        if type(value) is not str and number is not None and 0 <= number < 1e18:
            areas[i] = number
            continue
        if number is None or not 0 <= number < 1e18:
            if annotation.get("keypoints") and not mask_areas[i] > 0:
                areas[i] = abs(boxes[i, 2] * boxes[i, 3])
                findings.add_annotation(NO_AREA, annotation, None if value is None else repr(value))
                continue
            number = mask_areas[i] if mask_areas[i] > 0 else abs(boxes[i, 2] * boxes[i, 3])
        number = float(number)
        if math.isfinite(number):
            areas[i] = annotation["area"] = number
            findings.add_annotation(AREA, annotation, None if value is None else repr(value))
    return areas
