"""Segmentations: polygons and run lengths.

pycocotools ends in a segmentation fault on numbers that are too large and on run lengths that do
not add up, so all of them are looked at here, in NumPy, before it is given any.
"""

from itertools import chain
from typing import Any

import numpy as np

from .findings import Effect, Findings, Kind
from .numbers import are_numbers, to_numbers

EMPTY = Kind("annotation", "empty segmentation: the key is taken out", Effect.CORRECTED)
NO_MASK = Kind(
    "annotation",
    "segmentation that is neither polygons nor run lengths",
    Effect.STOPS,
    "correct it or take the key out",
)
NESTING = Kind("annotation", "polygon in other brackets than COCO's", Effect.REPAIRED)
TEXT = Kind("annotation", "polygon with numbers as text", Effect.REPAIRED)
SHORT = Kind(
    "annotation",
    "polygon of fewer than three points or an odd number of values: taken out",
    Effect.CORRECTED,
)
FLAT = Kind("annotation", "flat polygon: taken out", Effect.CORRECTED)
NOT_FINITE = Kind(
    "annotation", "polygon with NaN or infinity", Effect.STOPS, "correct it or take it out"
)
FAR = Kind(
    "annotation",
    "polygon far outside its image, which crashes pycocotools",
    Effect.STOPS,
    "correct it or take it out",
)
RLE_SIZE = Kind(
    "annotation",
    "run lengths (RLE) of another size than the image's",
    Effect.STOPS,
    "encode the mask anew in the image's height and width",
)
RLE_COUNTS = Kind(
    "annotation",
    "run lengths (RLE) that do not add up to their size",
    Effect.STOPS,
    "encode the mask anew",
)
RLE_EMPTY = Kind("annotation", "mask without pixels (by a mask model)", Effect.LEFT_OUT)

MAX_COORDINATE = 1e5  # pixels; beyond, pycocotools' memory would do, or not


def check_masks(
    annotations: list[dict], sizes: np.ndarray, findings: Findings
) -> tuple[np.ndarray, np.ndarray]:
    """Checks and corrects segmentations.

    Args:
        annotations: N of them.
        sizes: float64 (N, 2), width and height of the image of each, NaN where not known.

    Returns:
        What surrounds each mask, float64 (N, 4) as x1, y1, x2, y2, and its area, float64 (N,), in
        pixels; NaN where there is no usable mask.
    """
    boxes, areas = np.full((len(annotations), 4), np.nan), np.full(len(annotations), np.nan)
    with_polygons = []
    for i, annotation in enumerate(annotations):
        if "segmentation" not in annotation:
            continue
        segmentation = annotation["segmentation"]
        if not segmentation:
            del annotation["segmentation"]
            findings.add_annotation(EMPTY, annotation)
        elif isinstance(segmentation, list):
            with_polygons.append(i)
        elif isinstance(segmentation, dict):
            boxes[i], areas[i] = _check_rle(annotation, sizes[i], findings)
        else:
            findings.add_annotation(NO_MASK, annotation, segmentation)
    _check_polygons(annotations, with_polygons, boxes, areas, findings)
    return boxes, areas


def _check_polygons(
    annotations: list[dict],
    indices: list[int],
    boxes: np.ndarray,
    areas: np.ndarray,
    findings: Findings,
) -> None:
    """Checks those annotations, and fills in their rows of boxes and areas."""
    polygons: list[list] = []
    owners: list[int] = []
    segmentations = [annotations[i]["segmentation"] for i in indices]
    is_plain = all(type(p) is list for p in chain.from_iterable(segmentations)) and are_numbers(
        list(chain.from_iterable(chain.from_iterable(segmentations)))
    )
    for i in indices:
        is_points = len(annotations[i]["segmentation"][0]) == 2 if is_plain else False
        if (is_points or not is_plain) and not _make_plain(annotations[i], findings):
            continue
        segmentation = annotations[i]["segmentation"]
        usable = [p for p in segmentation if len(p) >= 6 and len(p) % 2 == 0]
        for _ in range(len(segmentation) - len(usable)):
            findings.add_annotation(SHORT, annotations[i])
        if len(usable) < len(segmentation):
            _replace(annotations[i], usable)
        polygons += usable
        owners += [i] * len(usable)
    if not polygons:
        return
    points = np.fromiter(chain.from_iterable(polygons), np.float64).reshape(-1, 2)
    lengths = np.array([len(p) // 2 for p in polygons])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    low, high = np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)
    finite = np.isfinite(np.hstack([low, high])).all(1)
    near = finite & (np.maximum(-low, high) <= MAX_COORDINATE).all(1)
    with np.errstate(invalid="ignore", over="ignore"):
        signed = _signed_areas(points, starts, lengths)
    flat = near & (np.abs(signed) < 1e-6)
    for p in np.flatnonzero(flat):
        flat[p] = _is_flat(points[starts[p] : starts[p] + lengths[p]])
    owner = np.array(owners)
    bad = np.unique(owner[~near])  # a mask with one such polygon is none
    for p in np.flatnonzero(~near):
        findings.add_annotation(FAR if finite[p] else NOT_FINITE, annotations[owner[p]])
    for i in np.unique(owner[flat]):
        keep = ~flat[owner == i]
        segmentation = annotations[i]["segmentation"]
        _replace(annotations[i], [p for p, k in zip(segmentation, keep, strict=True) if k])
        for _ in range(int((~keep).sum())):
            findings.add_annotation(FLAT, annotations[i])
    good = near & ~flat & ~np.isin(owner, bad)
    who = owner[good]
    boxes[who] = np.tile([np.inf, np.inf, -np.inf, -np.inf], (len(who), 1))
    areas[who] = 0
    for column, values, at in (
        (0, low[:, 0], np.minimum.at),
        (1, low[:, 1], np.minimum.at),
        (2, high[:, 0], np.maximum.at),
        (3, high[:, 1], np.maximum.at),
    ):
        at(boxes[:, column], who, values[good])
    np.add.at(areas, who, np.abs(signed[good]))


def _signed_areas(points: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """By the shoelace formula, relative to each polygon's first point for the sake of rounding."""
    points = points - np.repeat(points[starts], lengths, axis=0)
    following = np.arange(1, len(points) + 1)
    following[starts + lengths - 1] = starts
    x, y = points.T
    return np.add.reduceat(x * y[following] - x[following] * y, starts) / 2


def _is_flat(points: np.ndarray) -> bool:
    """Whether all points, float64 (N, 2), are on one line: a figure of eight has no area, too."""
    points = points - points[0]
    far = points[np.abs(points).sum(1).argmax()]
    return bool((np.abs(points @ [far[1], -far[0]]) <= 1e-9 * max(far @ far, 1e-12)).all())


def _make_plain(annotation: dict, findings: Findings) -> bool:
    """Makes a segmentation a list of lists of numbers; returns whether it is one."""
    parts = annotation["segmentation"]
    nested = parts
    if not any(isinstance(part, (list, dict)) for part in parts):  # one polygon
        nested = [parts]
    elif all(_is_point(part) for part in parts) and len(parts) >= 3:  # the points of one
        nested = [list(chain.from_iterable(parts))]
    else:
        nested = [
            list(chain.from_iterable(part))
            if isinstance(part, list) and part and all(_is_point(point) for point in part)
            else part
            for part in parts
        ]
    numbers = [to_numbers(part) for part in nested]
    if None in numbers:
        findings.add_annotation(NO_MASK, annotation, parts)
        return False
    if nested != parts:
        findings.add_annotation(NESTING, annotation)
    if any(isinstance(value, str) for part in nested for value in part):
        findings.add_annotation(TEXT, annotation)
    annotation["segmentation"] = numbers
    return True


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and to_numbers(value) is not None


def _replace(annotation: dict, polygons: list[list]) -> None:
    annotation["segmentation"] = polygons
    if not polygons:
        del annotation["segmentation"]


def _check_rle(
    annotation: dict, size: np.ndarray, findings: Findings
) -> tuple[np.ndarray | float, float]:
    """The box, float64 (4,) or NaN, and area of a mask of run lengths."""
    rle = annotation["segmentation"]
    none = np.nan, np.nan
    height_width = rle.get("size")
    if not isinstance(height_width, list) or "counts" not in rle:
        findings.add_annotation(NO_MASK, annotation, rle)
        return none
    # Where the image's own size is not known, the run stops because of that.
    if [type(n) for n in height_width] != [int, int] or height_width != size[::-1].tolist():
        shown = f"{height_width}, the image's {size[::-1].tolist()}"
        findings.add_annotation(RLE_SIZE, annotation, shown)
        return none
    runs = run_lengths(rle["counts"])
    height, width = height_width
    if runs is None or (runs < 0).any() or runs.sum() != height * width:
        findings.add_annotation(RLE_COUNTS, annotation)
        return none
    # Runs of pixels in the order of columns; every other one is of the mask.
    ends = np.cumsum(runs)
    first, last = (ends - runs)[1::2], ends[1::2] - 1
    is_some = last >= first
    first, last = first[is_some], last[is_some]
    if not len(first):
        findings.add_annotation(RLE_EMPTY, annotation)
        return none
    across = first // height != last // height  # a run that goes on in the next column
    top = 0 if across.any() else (first % height).min()
    bottom = height if across.any() else (last % height).max() + 1
    box = np.array([first[0] // height, top, last[-1] // height + 1, bottom], np.float64)
    return box, float((last - first + 1).sum())


def run_lengths(counts: Any) -> np.ndarray | None:
    """The run lengths, int64 (N,), of RLE counts, compressed (text) or not; None if malformed."""
    if isinstance(counts, list):
        if not counts or not all(type(n) is int and 0 <= n < 2**40 for n in counts):
            return None
        return np.array(counts, np.int64)
    if not isinstance(counts, str) or not counts or not counts.isascii():
        return None
    # Groups of characters, each of 5 bits, the lowest first, and a bit that says that more follow;
    # from the fourth number on they are differences from the number before the last.
    codes = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((codes & 32) == 0)
    if codes.min() < 0 or codes.max() > 63 or not len(ends) or ends[-1] != len(codes) - 1:
        return None
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:
        return None
    position = np.arange(len(codes)) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & 31) << 5 * position, starts)
    values -= np.where(codes[ends] & 16, 1 << 5 * lengths, 0)
    values[1::2], values[2::2] = np.cumsum(values[1::2]), np.cumsum(values[2::2])
    return values
