"""Whether an exported file gives what the model gives, on images of several sizes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from detectron2.structures import Instances
from tabulate import tabulate

from ..data import draw_people, draw_shapes

# (H, W) relative to an image's own: other forms than the example's, odd sizes among them
FORMS = ((0.75, 1.0), (1.0, 0.61), (0.87, 0.93))
BOX_PIXELS, SCORE, MASK_IOU, KEYPOINT_PIXELS = 0.01, 1e-4, 0.99, 0.01  # what may differ
HEADERS = ("image", "model", "file", "boxes (px)", "scores", "masks (IoU)", "keypoints (px)", "")


@dataclass(frozen=True)
class Difference:
    """By how much a file's detections in one image differ from the model's.

    Attributes:
        image: its name and size.
        counts: of the model's detections, and of the file's.
        boxes, keypoints: largest distance of coordinates, in the image's pixels.
        scores: largest difference.
        masks: smallest intersection over union.

    The latter four are None where counts or classes differ, or there is nothing to compare.
    """

    image: str
    counts: tuple[int, int]
    same_classes: bool
    boxes: float | None = None
    scores: float | None = None
    masks: float | None = None
    keypoints: float | None = None

    @property
    def passes(self) -> bool:
        return (
            self.same_classes
            and (self.boxes or 0) <= BOX_PIXELS
            and (self.scores or 0) <= SCORE
            and (1 if self.masks is None else self.masks) > MASK_IOU
            and (self.keypoints or 0) <= KEYPOINT_PIXELS
        )


def check_images(images: Sequence[np.ndarray]) -> list[tuple[str, np.ndarray]]:
    """Named images of all :data:`FORMS` of each image, uint8 (H, W, 3), and a blank one."""
    named = []
    for index, image in enumerate(images, start=1):
        for height, width in FORMS:
            size = (max(round(image.shape[1] * width), 1), max(round(image.shape[0] * height), 1))
            named.append((f"{index}, {size[0]} x {size[1]}", cv2.resize(image, size)))
    blank = np.zeros_like(images[0][: max(images[0].shape[0] * 2 // 3, 1)])
    return [*named, (f"blank, {blank.shape[1]} x {blank.shape[0]}", blank)]


def generated_images(*, people: bool, count: int = 2) -> list[np.ndarray]:
    """Pictures of people or of shapes, uint8 (H, W, 3), as the generated sets have them."""
    draw = draw_people if people else draw_shapes
    return [draw(np.random.default_rng(seed), (160, 160)).image for seed in range(count)]


def compare(
    model: Callable[[np.ndarray], Instances],
    file: Callable[[np.ndarray], Instances],
    images: Iterable[tuple[str, np.ndarray]],
) -> list[Difference]:
    """The differences between two predictors, image by image."""
    return [difference(name, model(image), file(image)) for name, image in images]


def difference(name: str, expected: Instances, found: Instances) -> Difference:
    counts = (len(expected), len(found))
    if counts[0] != counts[1]:
        return Difference(name, counts, same_classes=False)
    if not counts[0]:
        return Difference(name, counts, same_classes=True)
    found = found[_partners(expected, found)]
    if not torch.equal(expected.pred_classes, found.pred_classes):
        return Difference(name, counts, same_classes=False)
    masks = keypoints = None
    if expected.has("pred_masks"):
        both = (expected.pred_masks & found.pred_masks).flatten(1).sum(1)
        either = (expected.pred_masks | found.pred_masks).flatten(1).sum(1)
        # Where both are empty they are the same
        masks = torch.where(either > 0, both / either.clamp(min=1), 1.0).min().item()
    if expected.has("pred_keypoints"):
        keypoints = _largest(expected.pred_keypoints[..., :2], found.pred_keypoints[..., :2])
    return Difference(
        name,
        counts,
        same_classes=True,
        boxes=_largest(expected.pred_boxes.tensor, found.pred_boxes.tensor),
        scores=_largest(expected.scores, found.scores),
        masks=masks,
        keypoints=keypoints,
    )


def _partners(expected: Instances, found: Instances) -> torch.Tensor:
    """For each instance expected, the one found that is meant: equal scores have no order."""
    distance = torch.cdist(expected.pred_boxes.tensor, found.pred_boxes.tensor, p=torch.inf)
    others = expected.pred_classes[:, None] != found.pred_classes
    others |= (expected.scores[:, None] - found.scores).abs() > SCORE
    distance = distance + others * 1e6
    partners = []
    for row in distance:
        partners.append(int(row.argmin()))
        distance[:, partners[-1]] = torch.inf
    return torch.tensor(partners)


def table(differences: Iterable[Difference]) -> str:
    """A line for each image."""
    rows = [
        (
            row.image,
            *row.counts,
            *("-" if value is None else f"{value:.2g}" for value in (row.boxes, row.scores)),
            "-" if row.masks is None else f"{row.masks:.4f}",
            "-" if row.keypoints is None else f"{row.keypoints:.2g}",
            "ok" if row.passes else "DIFFERS",
        )
        for row in differences
    ]
    return tabulate(rows, HEADERS, disable_numparse=True)


def _largest(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()
