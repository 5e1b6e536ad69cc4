"""The rules on annotations, which are read a part at a time: a file has more than memory holds."""

from array import array
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np

from ..annotations import parts_of_annotations, read_annotations_in_parts, require_lists
from .boxes import check_areas, check_boxes
from .findings import Effect, Findings, Kind
from .ids import EMPTY_IMAGE, Numbering, check_references, has_id, plain_id, usable_ids
from .keypoints import check_keypoints, check_marks
from .masks import check_masks
from .numbers import are_numbers

SMALL, LARGE = 32**2, 96**2  # COCO's, in square pixels
NO_MASK = Kind("annotation", "no mask, as others have (by a mask model)", Effect.LEFT_OUT)


@dataclass
class Objects:
    """What a model can be trained on, of annotations that are no crowd and have a box.

    Attributes:
        boxes: how many there are.
        masks: how many have a mask.
        run_lengths: how many have one that is no polygon.
        keypoints: how many have a labelled keypoint.
    """

    boxes: int = 0
    masks: int = 0
    run_lengths: int = 0
    keypoints: int = 0


@dataclass
class Survey:
    """What has to be known of all annotations before the first one can be judged.

    Attributes:
        count: how many there are; None if the file has no such list.
        ids: those that evaluation can use.
        has_keypoints: whether one has any.
    """

    count: int | None = None
    ids: array = field(default_factory=lambda: array("q"))
    has_keypoints: bool = False

    def add(self, annotations: list[dict]) -> None:
        self.count = (self.count or 0) + len(annotations)
        self.ids.extend(usable_ids(annotations))
        self.has_keypoints = self.has_keypoints or any(a.get("keypoints") for a in annotations)


def survey(json_file: str) -> tuple[dict, Survey]:
    """The content of an annotation file but for its annotations, and what is to be known of them.

    Raises:
        UsageError: if it cannot be read, is no JSON or has no lists of images and categories.
    """
    content: dict = {}
    survey = Survey()
    for key, value in read_annotations_in_parts(json_file):
        if key == "annotations":
            require_lists({key: value}, json_file, (key,))
            survey.add(value)
        else:
            content[key] = value
    require_lists(content, json_file, ("images", "categories"))
    return content, survey


def reach(json_file: str, images: set[Hashable]) -> dict[Hashable, tuple[float, float]]:
    """How far the boxes of these images reach, in x and y, by the image's id."""
    extents: dict[Hashable, tuple[float, float]] = {}
    by_plain_id = {plain_id(id): id for id in images}
    for part in parts_of_annotations(json_file):
        for annotation in part:
            image, box = plain_id(annotation.get("image_id")), annotation.get("bbox")
            if not isinstance(box, list) or len(box) != 4 or not are_numbers(box):
                continue
            if image in by_plain_id:
                x, y, width, height = box
                old = extents.get(by_plain_id[image], (0, 0))
                extents[by_plain_id[image]] = max(old[0], x + width), max(old[1], y + height)
    return extents


class AnnotationRules:
    """Checks and corrects the annotations of a file.

    Args:
        json_file: the file.
        content: all of it but the annotations, corrected.
        images: by their plain ids.
        category_ids: the id of each category, by its plain id.
        survey: of the annotations.
        findings: that are added to.

    Attributes:
        objects: that a model can be trained on, of the annotations that were checked.
        sizes: of each class, by its name, how many annotations are small, medium and large.
        visibilities: how many keypoints are of visibility 0, 1 and 2.
    """

    def __init__(
        self,
        json_file: str,
        content: dict,
        images: dict[Hashable, dict],
        category_ids: dict[Hashable, int | str],
        survey: Survey,
        findings: Findings,
    ) -> None:
        self._json_file = json_file
        self._images, self._category_ids = images, category_ids
        self._categories = {c["id"]: c for c in content["categories"] if has_id(c, "id")}
        self._image_sizes = _image_sizes(content["images"])
        self._survey, self._findings = survey, findings
        self.objects = Objects()
        self.visibilities = [0, 0, 0]
        self._sizes = {id: [0, 0, 0] for id in self._categories}

    @property
    def sizes(self) -> dict[str, list[int]]:
        return {f"{self._categories[id].get('name')}": count for id, count in self._sizes.items()}

    def check(self) -> Iterator[list[dict]]:
        """The corrected annotations, a part at a time, of images that are there."""
        numbering = Numbering(np.array(self._survey.ids, np.int64), self._survey.count or 0)
        without_mask = Findings(self._findings.max_examples)
        used: set[Hashable] = set()  # images
        has_masks = False
        start = 0
        for part in parts_of_annotations(self._json_file):
            annotations = check_references(
                part, self._images, self._category_ids, self._findings, start=start
            )
            used.update(plain_id(annotation.get("image_id")) for annotation in annotations)
            self._check(annotations)
            for annotation in annotations:
                if "segmentation" in annotation:
                    has_masks = True
                else:
                    without_mask.add(NO_MASK, annotation.get("id", "without id"))
            numbering.check(annotations, self._findings, start=start)
            start += len(part)
            yield annotations
        if has_masks:
            self._findings.take(without_mask)
        for id, image in self._images.items():
            if id not in used:
                self._findings.add(EMPTY_IMAGE, image["id"])

    def _check(self, annotations: list[dict]) -> None:
        findings = self._findings
        check_marks(annotations, findings)
        none = np.nan, np.nan
        sizes = np.array(
            [
                self._image_sizes.get(a["image_id"], none) if has_id(a, "image_id") else none
                for a in annotations
            ],
            np.float64,
        ).reshape(-1, 2)
        masks, mask_areas = check_masks(annotations, sizes, findings)
        boxes = check_boxes(annotations, sizes, masks, findings)
        areas = check_areas(annotations, boxes, mask_areas, findings)
        # A file of boxes whose categories name keypoints, as COCO's do, needs none.
        categories = self._categories if self._survey.has_keypoints else {}
        visibilities = check_keypoints(annotations, categories, sizes, findings)
        self.visibilities = [
            a + b for a, b in zip(self.visibilities, visibilities.tolist(), strict=True)
        ]
        self._count_objects(annotations, boxes, sizes)
        bins = np.digitize(areas, (SMALL, LARGE))  # NaN is counted as large
        for annotation, size in zip(annotations, bins.tolist(), strict=True):
            if has_id(annotation, "category_id") and annotation["category_id"] in self._sizes:
                self._sizes[annotation["category_id"]][size] += 1

    def _count_objects(self, annotations: list[dict], boxes: np.ndarray, sizes: np.ndarray) -> None:
        low, high = boxes[:, :2].clip(0), np.minimum(boxes[:, :2] + boxes[:, 2:], sizes)
        for annotation, has_size in zip(annotations, (high > low).all(1).tolist(), strict=True):
            if has_size and annotation["iscrowd"] == 0:
                mask, labelled = annotation.get("segmentation"), annotation.get("num_keypoints")
                self.objects.boxes += 1
                self.objects.masks += mask is not None
                self.objects.run_lengths += isinstance(mask, dict)
                self.objects.keypoints += type(labelled) is int and labelled > 0


def _is_size(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 < value < 1e9


def _image_sizes(images: list[dict]) -> dict[Hashable, tuple[int, int]]:
    """Width and height of each image, by its id, where they are known."""
    sizes = {}
    for image in images:
        width, height = image.get("width"), image.get("height")
        if _is_size(width) and _is_size(height) and has_id(image, "id"):
            sizes[image["id"]] = width, height
    return sizes
