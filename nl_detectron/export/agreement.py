"""How far a file of another precision agrees with the model, of which it cannot be the same."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.structures import Instances, pairwise_iou
from tabulate import tabulate

SURE = 0.5  # score from which a detection of the model is looked for in the file's
SAME_IOU = 0.5
FOUND = 0.9  # of all that are looked for, this share at least
MOST_IMAGES = 32
HEADERS = ("image", "model", "found", "boxes (IoU)", "scores", "file, sure")


@dataclass(frozen=True)
class Agreement:
    """Of the model's sure detections in one image, what a file has.

    Attributes:
        image: its name and size.
        expected: the model's detections of scores from :data:`SURE` on.
        found: those of them for which the file has one of the same class and an IoU from
            :data:`SAME_IOU` on.
        ious: the sum of these IoUs.
        scores: the sum of the differences of their scores.
        others: the file's detections of scores from :data:`SURE` on.
    """

    image: str
    expected: int
    found: int
    ious: float
    scores: float
    others: int


def agreements(
    model: Callable[[np.ndarray], Instances],
    file: Callable[[np.ndarray], Instances],
    images: Sequence[np.ndarray],
) -> list[Agreement]:
    """Of the first :data:`MOST_IMAGES` images, uint8 (H, W, 3)."""
    return [
        agreement(f"{number}, {image.shape[1]} x {image.shape[0]}", model(image), file(image))
        for number, image in enumerate(images[:MOST_IMAGES], start=1)
    ]


def agreement(image: str, expected: Instances, found: Instances) -> Agreement:
    others = int((found.scores >= SURE).sum())
    expected = expected[expected.scores >= SURE]
    if not len(expected) or not len(found):
        return Agreement(image, len(expected), 0, 0.0, 0.0, others)
    ious = pairwise_iou(expected.pred_boxes, found.pred_boxes)
    ious[expected.pred_classes[:, None] != found.pred_classes] = 0
    best, partners = ious.max(1)
    same = best >= SAME_IOU
    differences = (expected.scores - found.scores[partners]).abs()
    return Agreement(
        image,
        len(expected),
        int(same.sum()),
        float(best[same].sum()),
        float(differences[same].sum()),
        others,
    )


def agree(rows: Iterable[Agreement]) -> bool:
    """Whether the file has enough of what the model detects."""
    rows = list(rows)
    return sum(row.found for row in rows) >= FOUND * sum(row.expected for row in rows)


def agreement_table(rows: Sequence[Agreement]) -> str:
    """Means of the detections found, by image and over all."""
    total = Agreement(
        "all",
        sum(row.expected for row in rows),
        sum(row.found for row in rows),
        sum(row.ious for row in rows),
        sum(row.scores for row in rows),
        sum(row.others for row in rows),
    )
    cells = [
        (
            row.image,
            row.expected,
            row.found,
            f"{row.ious / row.found:.3f}" if row.found else "-",
            f"{row.scores / row.found:.3f}" if row.found else "-",
            row.others,
        )
        for row in (*rows, total)
    ]
    return tabulate(cells, HEADERS, disable_numparse=True)
