"""All rules on one annotation file, in one pass that corrects what it can."""

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from ..annotations import is_plain_utf8, read_annotations, require_lists
from .boxes import check_areas, check_boxes
from .findings import EXAMPLES, Effect, Finding, Findings, Kind
from .ids import (
    NO_SUCH_IMAGE,
    check_categories,
    check_image_ids,
    check_references,
    number_annotations,
)
from .images import check_files, reach
from .keypoints import check_keypoints, check_marks
from .masks import check_masks

SMALL, LARGE = 32**2, 96**2  # COCO's, in square pixels
ENCODING = Kind("file", "not in UTF-8 without a BOM", Effect.REPAIRED)
NO_MASK = Kind("annotation", "no mask, as others have (by a mask model)", Effect.LEFT_OUT)
NO_ANNOTATIONS = Kind("file", "no annotations: it can only be tested on", Effect.FINE)


@dataclass(frozen=True)
class Objects:
    """What a model can be trained on, of annotations that are no crowd and have a box.

    Attributes:
        boxes: how many there are.
        masks: how many have a mask.
        run_lengths: how many have one that is no polygon.
        keypoints: how many have a labelled keypoint.
    """

    boxes: int
    masks: int
    run_lengths: int
    keypoints: int


@dataclass
class Checked:
    """A checked annotation file.

    Attributes:
        content: the file's, corrected.
        findings: the worst first.
        num_images, num_annotations: in the file as it was.
        objects: that a model can be trained on.
        sizes: of each class, by its name, how many annotations are small, medium and large.
        visibilities: how many keypoints are of visibility 0, 1 and 2.
        suspicion: how much an image should be looked at, by its id.
    """

    content: dict
    findings: list[Finding]
    num_images: int
    num_annotations: int
    objects: Objects
    sizes: dict[str, list[int]]
    visibilities: list[int]
    suspicion: Counter[Hashable]

    def corrected(self) -> dict:
        """The corrected content, whose info says what was corrected."""
        corrections = having(self.findings, Effect.REPAIRED, Effect.CORRECTED, Effect.LEFT_OUT)
        info = self.content["info"] | {
            "corrections": [
                {"what": f"{f.kind.of}: {f.kind.what}", "count": f.count, "of": f.examples}
                for f in corrections
                if f.kind.effect is not Effect.LEFT_OUT or f.kind is NO_SUCH_IMAGE
            ]
        }
        return self.content | {"info": info}


def having(findings: list[Finding], *effects: Effect) -> list[Finding]:
    """The findings of those effects."""
    return [finding for finding in findings if finding.kind.effect in effects]


def check_file(
    json_file: str,
    image_root: str,
    *,
    decode: bool = False,
    progress: bool = False,
    max_examples: int | None = EXAMPLES,
) -> Checked:
    """Checks an annotation file and the heads of its images; the file is not changed.

    Args:
        json_file: in COCO's format, perhaps without annotations.
        image_root: the folder that the images' names are relative to.
        decode: read the images whole.
        progress: show a progress bar.
        max_examples: of each finding; None for all.

    Returns:
        What was found, and the corrected content, which may still be wrong where a finding stops
        training.

    Raises:
        UsageError: see :func:`read_annotations`.
    """
    content = read_annotations(json_file, lists=("images", "categories"))
    findings = Findings(max_examples)
    if not is_plain_utf8(json_file):
        findings.add(ENCODING, json_file)
    if "annotations" in content:
        require_lists(content, json_file, ("annotations",))
    else:
        findings.add(NO_ANNOTATIONS, json_file)
    category_ids = check_categories(content, findings)
    images = check_image_ids(content, findings)
    num_images, num_annotations = len(content["images"]), len(content.get("annotations", ()))
    annotations = check_references(content.get("annotations", []), images, category_ids, findings)
    check_marks(annotations, findings)
    extents = reach([annotation for annotation in annotations if _is_id(annotation, "image_id")])
    check_files(content["images"], image_root, extents, findings, decode=decode, progress=progress)
    sizes = _image_sizes(annotations, content["images"])
    masks, mask_areas = check_masks(annotations, sizes, findings)
    if any("segmentation" in annotation for annotation in annotations):
        for annotation in annotations:
            if "segmentation" not in annotation:
                findings.add(NO_MASK, annotation.get("id", "without id"))
    boxes = check_boxes(annotations, sizes, masks, findings)
    areas = check_areas(annotations, boxes, mask_areas, findings)
    categories = {c["id"]: c for c in content["categories"] if _is_id(c, "id")}
    visibilities = check_keypoints(annotations, categories, sizes, findings)
    number_annotations(annotations, findings)
    if "annotations" in content:
        content["annotations"] = annotations
    return Checked(
        content,
        findings.sorted(),
        num_images,
        num_annotations,
        _count_objects(annotations, boxes, sizes),
        _count_sizes(annotations, areas, categories),
        visibilities.tolist(),
        findings.suspicion,
    )


def _is_id(entry: dict, key: str) -> bool:
    return isinstance(entry.get(key), (int, str))


def _image_sizes(annotations: list[dict], images: list[dict]) -> np.ndarray:
    """Width and height of the image of each annotation, float64 (N, 2), NaN where not known."""
    sizes = {}
    for image in images:
        size = image.get("width"), image.get("height")
        if all(type(n) is int and 0 < n < 1e9 for n in size) and _is_id(image, "id"):
            sizes[image["id"]] = size
    none = np.nan, np.nan
    rows = [
        sizes.get(annotation["image_id"], none) if _is_id(annotation, "image_id") else none
        for annotation in annotations
    ]
    return np.array(rows, np.float64).reshape(-1, 2)


def _count_objects(annotations: list[dict], boxes: np.ndarray, sizes: np.ndarray) -> Objects:
    low, high = boxes[:, :2].clip(0), np.minimum(boxes[:, :2] + boxes[:, 2:], sizes)
    usable = [
        annotation
        for annotation, has_size in zip(annotations, (high > low).all(1), strict=True)
        if has_size and annotation["iscrowd"] == 0
    ]
    masks = [annotation.get("segmentation") for annotation in usable]
    labelled = (annotation.get("num_keypoints") for annotation in usable)
    return Objects(
        len(usable),
        sum(mask is not None for mask in masks),
        sum(isinstance(mask, dict) for mask in masks),
        sum(type(count) is int and count > 0 for count in labelled),
    )


def _count_sizes(
    annotations: list[dict], areas: np.ndarray, categories: dict[Hashable, dict]
) -> dict[str, list[int]]:
    counts: dict[Hashable, list[int]] = {id: [0, 0, 0] for id in categories}
    bins = np.digitize(areas, (SMALL, LARGE))  # NaN is counted as large
    for annotation, size in zip(annotations, bins.tolist(), strict=True):
        if _is_id(annotation, "category_id") and annotation["category_id"] in counts:
            counts[annotation["category_id"]][size] += 1
    return {f"{categories[id].get('name')}": count for id, count in counts.items()}
