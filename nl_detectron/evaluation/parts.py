"""What a task reads of results, annotations and images, and of what form it must be."""

import math
from collections.abc import Sequence

from pycocotools.coco import COCO

FAR_AWAY = -1e6  # pixels, where no keypoint is

# What a task reads of a result. A mask's area, which tells small from large, is its own, not its
# box's; a person's is the box's.
KEYS = {
    "bbox": ("bbox",),
    "segm": ("segmentation",),
    "keypoints": ("keypoints", "bbox"),
}
# and of an annotation and of an image
_COMMON = ("id", "image_id", "category_id", "area", "iscrowd")
TRUTH_KEYS = {
    "bbox": (*_COMMON, "bbox"),
    "segm": (*_COMMON, "segmentation"),
    "keypoints": (*_COMMON, "bbox", "keypoints", "num_keypoints"),
}
IMAGE_KEYS = {"bbox": ("id",), "segm": ("id", "height", "width"), "keypoints": ("id",)}


def finite(results: Sequence[dict]) -> tuple[list[dict], int]:
    """Results without numbers that are not finite, and how many had some.

    In pycocotools NaN would be nearer to everything than any threshold: 100 AP. A keypoint, a box
    or a score that is none is put where it fits nothing, so that the result counts as a false one.
    """
    kept, spoiled = [], 0
    for result in results:
        changes: dict[str, object] = {}
        if not math.isfinite(result["score"]):
            changes["score"] = 0.0
        if not all(map(math.isfinite, result.get("bbox", ()))):
            changes["bbox"] = [FAR_AWAY, FAR_AWAY, 0.0, 0.0]
        if not all(map(math.isfinite, result.get("keypoints", ()))):
            points = result["keypoints"]
            changes["keypoints"] = [v if math.isfinite(v) else FAR_AWAY for v in points]
        spoiled += bool(changes)
        kept.append({**result, **changes} if changes else result)
    return kept, spoiled


def keys_of(iou_type: str, result: dict) -> list[str]:
    """The keys of a result that its evaluation reads."""
    keys = ("image_id", "category_id", "score", *KEYS[iou_type])
    return [key for key in keys if key in result]


def reduced(truth: COCO, task: str) -> dict:
    """The annotations' content without what the task does not read, which may be odd."""
    return {
        "images": [part(image, IMAGE_KEYS[task]) for image in truth.imgs.values()],
        "annotations": [
            part(annotation, TRUTH_KEYS[task])
            for image in truth.imgs
            for annotation in truth.imgToAnns.get(image, ())
            if annotation["category_id"] in truth.cats
        ],
        "categories": categories_of(truth),
    }


def categories_of(truth: COCO) -> list[dict]:
    return [{"id": i, "name": str(category.get("name"))} for i, category in truth.cats.items()]


def part(item: dict, keys: Sequence[str]) -> dict:
    return {key: item[key] for key in keys}
