"""One gate before each task's evaluation: what the annotations hold is evaluated, no more."""

import contextlib
import io
import math
import operator
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from numbers import Integral, Real

from pycocotools import mask as mask_util
from pycocotools.coco import COCO

NUM_EXAMPLES = 5  # ids in a line
MOST_PIXELS = 1e6  # along a side: coordinates beyond make pycocotools' masks crash


@dataclass(frozen=True)
class Examined:
    """Annotations after the gate.

    Attributes:
        truth: the annotations to evaluate with; those given, unless one had to be completed.
        tasks: those that can be evaluated, in order.
        left_out: for each of the other tasks a line that says why.
        has_sizes: whether all annotations have an area. Where not, figures by size are NaN.
        odd: why pycocotools itself has to evaluate; empty where hotcoco's figures are its own.
    """

    truth: COCO
    tasks: list[str]
    left_out: dict[str, str]
    has_sizes: bool
    odd: str

    @property
    def notes(self) -> list[str]:
        """A line on each task and each figure that is left out."""
        lines = list(self.left_out.values())
        if self.tasks and not self.has_sizes:
            lines.append("there are annotations without an area, so that no AP is by size")
        return lines


def examine(
    truth: COCO,
    tasks: Iterable[str],
    *,
    num_keypoints: int = 17,
    num_sigmas: int = 17,
    img_ids: Collection | None = None,
) -> Examined:
    """Decides which tasks can be evaluated on annotations, and by what.

    The rule is that a figure is pycocotools' own, and that nothing is computed from what is not
    there. So a task is left out where an annotation that counts for it

    - bbox: has no box of four finite numbers;
    - segm: has no mask (missing, null, empty, fewer than three points, or an RLE of another size
      than the image's), or its image has no size;
    - keypoints: has no keypoints, or not ``num_keypoints`` finite ones, no box, or no area, by
      which a distance is judged;
    - any: has an ``iscrowd`` that is neither 0 nor 1, or an id that another one has, too.

    What COCO's format defines is filled in: ``iscrowd`` is 0 by default, an empty list of
    keypoints stands for zeros, and ``num_keypoints`` is the number of those that are labelled.
    Without an area nothing is small, medium or large, so that there are no figures by size.

    Args:
        truth: the annotations; they are not changed.
        tasks: of "bbox", "segm" and "keypoints".
        num_keypoints: of the predictions.
        num_sigmas: of ``TEST.KEYPOINT_OKS_SIGMAS``, which must be one for each.
        img_ids: of the images that count; all by default.
    """
    images = truth.imgs.keys() if img_ids is None else set(img_ids)
    annotations = truth.dataset["annotations"]
    counted = [
        annotation
        for annotation in annotations
        if annotation["image_id"] in images and annotation["category_id"] in truth.cats
    ]
    repeated = {i for i, count in Counter(a["id"] for a in annotations).items() if count > 1}
    possible, left_out = [], {}
    for task in tasks:
        if task == "keypoints" and num_keypoints != num_sigmas:
            left_out[task] = (
                f"keypoints is not evaluated: {_counts(counted, num_keypoints, num_sigmas)}"
            )
            continue
        for problem, applies in _problems(task, truth, repeated, num_keypoints):
            if found := [annotation["id"] for annotation in counted if applies(annotation)]:
                more = ", ..." if len(found) > NUM_EXAMPLES else ""
                left_out[task] = (
                    f"{task} is not evaluated: {problem} in {len(found)} of {len(counted)} "
                    f"annotations (id {', '.join(map(str, found[:NUM_EXAMPLES]))}{more})"
                )
                break
        else:
            possible.append(task)
    has_sizes = all(_is_finite(annotation.get("area")) for annotation in counted)
    return Examined(_filled(truth, num_keypoints), possible, left_out, has_sizes, odd_ids(truth))


def odd_ids(truth: COCO) -> str:
    """Why hotcoco would not give pycocotools' figures; empty where it does."""
    if 0 in truth.anns:
        return (
            "An annotation has id 0, which pycocotools takes for 'not found' wherever it is found: "
            "COCO's ids start at 1"
        )
    indices = {"images": truth.imgs, "annotations": truth.anns, "categories": truth.cats}
    for name, index in indices.items():
        for i in index:
            if not _is_whole(i) or i < 0:
                return f"One of the {name} has the id {i!r}, which is no whole number from 0"
    for name, index in (("images", truth.imgs), ("categories", truth.cats)):
        if len(index) < len(truth.dataset.get(name, ())):
            return f"Two of the {name} have the same id"
    return ""


def _problems(
    task: str, truth: COCO, repeated: Collection, num_keypoints: int
) -> list[tuple[str, Callable[[dict], bool]]]:
    """What keeps a task from being evaluated, each with the test of an annotation."""
    problems: list[tuple[str, Callable[[dict], bool]]] = [
        ("an id that another annotation has, too,", lambda a: a["id"] in repeated),
        ("iscrowd is neither 0 nor 1", lambda a: a.get("iscrowd") not in (None, 0, 1)),
    ]
    no_box = ("no box of four numbers", lambda a: not _are_finite(a.get("bbox"), 4))
    if task == "bbox":
        return [*problems, no_box]
    if task == "segm":
        return [
            *problems,
            ("no height and width of the image", lambda a: _size(truth, a) is None),
            ("no mask", lambda a: not _has_mask(a.get("segmentation"), _size(truth, a))),
        ]
    count = 3 * num_keypoints
    return [
        *problems,
        ("no keypoints", lambda a: not isinstance(a.get("keypoints"), list)),
        (
            f"not {num_keypoints} keypoints of three numbers",
            lambda a: a["keypoints"] != [] and not _are_finite(a["keypoints"], count),
        ),
        no_box,
        ("no area, by which distances are judged,", lambda a: not _is_finite(a.get("area"))),
    ]


def _counts(annotations: Iterable[dict], num_keypoints: int, num_sigmas: int) -> str:
    counts = {"TEST.KEYPOINT_OKS_SIGMAS": num_sigmas, "predictions": num_keypoints}
    for annotation in annotations:
        if annotation.get("keypoints"):
            counts["annotations"] = len(annotation["keypoints"]) // 3
            break
    listed = ", ".join(f"{count} in {name}" for name, count in counts.items())
    return f"numbers of keypoints disagree: {listed}"


def _has_mask(segmentation: object, size: tuple[int, int] | None) -> bool:
    """Whether it is one that pycocotools reads as a mask of an image of this (height, width)."""
    if isinstance(segmentation, list):
        # pycocotools takes four numbers in the first place for a box.
        return bool(segmentation) and all(
            isinstance(polygon, list)
            and len(polygon) >= 6
            and all(_is_finite(v) and abs(v) <= MOST_PIXELS for v in polygon)
            for polygon in segmentation
        )
    if not isinstance(segmentation, dict) or size is None:
        return False
    counts = segmentation.get("counts")
    if isinstance(counts, list):
        return (
            tuple(segmentation.get("size", ())) == size
            and all(_is_whole(count) and count >= 0 for count in counts)
            and sum(counts) == size[0] * size[1]
        )
    if not isinstance(counts, str | bytes) or tuple(segmentation.get("size", ())) != size:
        return False
    return bool(counts) and int(mask_util.area(dict(segmentation))) <= size[0] * size[1]


def _size(truth: COCO, annotation: dict) -> tuple[int, int] | None:
    """The (height, width) of an annotation's image, if it has one."""
    image = truth.imgs[annotation["image_id"]]
    height, width = image.get("height"), image.get("width")
    return (height, width) if _is_whole(height) and _is_whole(width) else None


def _filled(truth: COCO, num_keypoints: int) -> COCO:
    """The annotations with what the format defines; the same object where nothing is missing."""
    annotations = []
    for annotation in truth.dataset["annotations"]:
        missing: dict[str, object] = {}
        if annotation.get("iscrowd") is None:
            missing["iscrowd"] = 0
        if not _is_finite(annotation.get("area")):
            missing["area"] = 0.0
        keypoints = annotation.get("keypoints")
        if keypoints == []:
            keypoints = missing["keypoints"] = [0] * 3 * num_keypoints
        if isinstance(keypoints, list) and not _is_whole(annotation.get("num_keypoints")):
            missing["num_keypoints"] = sum(_is_finite(v) and v > 0 for v in keypoints[2::3])
        annotations.append({**annotation, **missing} if missing else annotation)
    if all(map(operator.is_, annotations, truth.dataset["annotations"])):
        return truth
    filled = COCO()
    filled.dataset = {**truth.dataset, "annotations": annotations}
    with contextlib.redirect_stdout(io.StringIO()):
        filled.createIndex()
    return filled


def _is_whole(value: object) -> bool:
    return type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))


def _is_finite(value: object) -> bool:
    if type(value) in (int, float):  # soon told, of the millions of a large set
        return math.isfinite(value)  # type: ignore[arg-type]
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _are_finite(values: object, count: int) -> bool:
    return isinstance(values, list) and len(values) == count and all(map(_is_finite, values))
