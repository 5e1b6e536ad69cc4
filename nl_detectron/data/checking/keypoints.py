"""Keypoints, and the marks of an annotation: iscrowd and ignore."""

import math
from collections.abc import Hashable
from typing import Any

import numpy as np

from .findings import Effect, Findings, Kind
from .numbers import are_numbers, to_number, to_numbers

CROWD = Kind("annotation", "iscrowd 1: a region, not an object", Effect.LEFT_OUT)
CROWD_MISSING = Kind("annotation", "iscrowd missing: 0", Effect.CORRECTED)
CROWD_TYPE = Kind("annotation", "iscrowd as text or null", Effect.REPAIRED)
CROWD_BOOL = Kind("annotation", "iscrowd as truth value or fraction", Effect.CORRECTED)
CROWD_VALUE = Kind("annotation", "iscrowd other than 0 and 1", Effect.STOPS, "make it 0 or 1")
IGNORE = Kind(
    "annotation",
    "ignore 1, which Detectron2 refuses and pycocotools disregards",
    Effect.STOPS,
    "write iscrowd 1 for what is neither to be trained on nor to count, or take the key out",
)
IGNORE_0 = Kind("annotation", "ignore as text or null: the key is taken out", Effect.REPAIRED)

MISSING = Kind("annotation", "keypoints missing or empty: all are not labelled", Effect.CORRECTED)
TEXT = Kind("annotation", "keypoints with numbers as text", Effect.REPAIRED)
NO_NUMBERS = Kind(
    "annotation", "keypoints with NaN, infinity or what is no number", Effect.STOPS, "correct them"
)
UNLABELLED_NAN = Kind(
    "annotation", "keypoints not labelled, without a place: 0, 0", Effect.REPAIRED
)
LENGTH = Kind(
    "annotation",
    "keypoints of another number than the category has, or without visibility",
    Effect.STOPS,
    "give x, y and visibility of each",
)
UNNAMED = Kind("annotation", "keypoints that its category does not name", Effect.SUSPICIOUS)
VISIBILITY = Kind("annotation", "keypoints with visibility other than 0, 1, 2", Effect.SUSPICIOUS)
OUTSIDE = Kind("annotation", "labelled keypoint outside its image", Effect.SUSPICIOUS)
NONE_LABELLED = Kind("annotation", "keypoints of which none is labelled", Effect.FINE)
COUNT = Kind("annotation", "num_keypoints missing or wrong: counted anew", Effect.CORRECTED)


def check_marks(annotations: list[dict], findings: Findings) -> None:
    """Checks and corrects iscrowd and ignore."""
    for annotation in annotations:
        value = annotation.get("iscrowd")
        if type(value) is not int:
            number = to_number(value)
            if "iscrowd" not in annotation:
                findings.add_annotation(CROWD_MISSING, annotation)
                annotation["iscrowd"] = 0
            elif isinstance(value, bool) or value is None or number in (0, 1):
                is_other = isinstance(value, (bool, float))
                findings.add_annotation(
                    CROWD_BOOL if is_other else CROWD_TYPE, annotation, repr(value)
                )
                annotation["iscrowd"] = int(bool(value) if number is None else number)
        if annotation["iscrowd"] not in (0, 1):
            findings.add_annotation(CROWD_VALUE, annotation, repr(value))
        elif annotation["iscrowd"] == 1:
            findings.add_annotation(CROWD, annotation)
        if annotation.get("ignore", 0) != 0:
            ignore = annotation["ignore"]
            if not ignore or to_number(ignore) == 0:
                del annotation["ignore"]
                findings.add_annotation(IGNORE_0, annotation)
            else:
                findings.add_annotation(IGNORE, annotation, repr(ignore))


def check_keypoints(
    annotations: list[dict],
    categories: dict[Hashable, dict],
    sizes: np.ndarray,
    findings: Findings,
) -> np.ndarray:
    """Checks and corrects keypoints.

    Args:
        annotations: N of them.
        categories: by their ids.
        sizes: float64 (N, 2), width and height of the image of each, NaN where not known.

    Returns:
        How many keypoints are of visibility 0, 1 and 2, int64 (3,).
    """
    visibilities = np.zeros(3, np.int64)
    named = {id: len(category.get("keypoints", ())) for id, category in categories.items()}
    for i, annotation in enumerate(annotations):
        expected = named.get(_category(annotation), 0)
        values = annotation.get("keypoints")
        if not values and not expected:
            if "keypoints" in annotation and values != []:
                del annotation["keypoints"]
                findings.add_annotation(MISSING, annotation, repr(values))
            if told := annotation.get("num_keypoints"):
                findings.add_annotation(COUNT, annotation, f"{told!r}, counted 0")
                annotation["num_keypoints"] = 0
            continue
        if not values:
            values = annotation["keypoints"] = [0] * (3 * expected)
            annotation["num_keypoints"] = 0
            findings.add_annotation(MISSING, annotation)
        points = _check_values(annotation, values, expected, findings)
        if points is None:
            continue
        if not expected:
            findings.add_annotation(UNNAMED, annotation)
        _judge(annotation, points, sizes[i], findings)
        visibilities += np.bincount(points[:, 2].clip(0, 2).astype(int), minlength=3)
    return visibilities


def _check_values(
    annotation: dict, values: Any, expected: int, findings: Findings
) -> np.ndarray | None:
    """The keypoints, float64 (K, 3), if they are ones."""
    count = len(values) if isinstance(values, list) else -1
    if count % 3 or count != (3 * expected or count):
        of = f"{count} values" if count >= 0 else repr(values)
        findings.add_annotation(LENGTH, annotation, f"{of} for {expected or 'unnamed'} keypoints")
        return None
    if are_numbers(values):
        points = np.array(values, np.float64).reshape(-1, 3)
        if np.isfinite(points).all():
            return points
    plain = list(values)
    for k in range(0, len(plain), 3):  # where it is not labelled, the place does not matter
        place = to_numbers(plain[k : k + 2])
        is_place = place is not None and all(map(math.isfinite, place))
        if to_number(plain[k + 2]) == 0 and not is_place:
            plain[k], plain[k + 1] = 0, 0
    numbers = to_numbers(plain)
    if numbers is None or not all(map(math.isfinite, numbers)):
        findings.add_annotation(NO_NUMBERS, annotation)
        return None
    if plain != values:
        findings.add_annotation(UNLABELLED_NAN, annotation)
    if any(isinstance(value, str) for value in values):
        findings.add_annotation(TEXT, annotation)
    annotation["keypoints"] = numbers
    return np.array(numbers, np.float64).reshape(-1, 3)


def _judge(annotation: dict, points: np.ndarray, size: np.ndarray, findings: Findings) -> None:
    labelled = points[:, 2] > 0
    if not np.isin(points[:, 2], (0, 1, 2)).all():
        findings.add_annotation(VISIBILITY, annotation)
    outside = (points[:, :2] < -1) | (points[:, :2] > size + 1)
    if (outside.any(1) & labelled).any():
        findings.add_annotation(OUTSIDE, annotation)
    count = int(labelled.sum())
    if not count:
        findings.add_annotation(NONE_LABELLED, annotation)
    told = annotation.get("num_keypoints")
    if type(told) is not int or told != count:
        findings.add_annotation(COUNT, annotation, f"{told!r}, counted {count}")
        annotation["num_keypoints"] = count


def _category(annotation: dict) -> Hashable:
    value = annotation.get("category_id")
    return value if isinstance(value, (int, str)) else None
