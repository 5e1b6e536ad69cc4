"""What is measured of a trained model: answers that are told rightly, and COCO's AP."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_util

from nl_detectron.visualization import read_metrics

TOLERANCE = 0.1  # of the height of a figure's box
ANSWERS = ("left_ankle", "right_ankle")  # whose places the arms tell


@dataclass(frozen=True, eq=False)
class Measure:
    """What counts in a task.

    Attributes:
        columns: of tables, as "title, unit": key of the results.
        answer: the column for which chance is 50 %.
        curve: what the curve shows, a title.
        read: the results of ``columns``, and a "curve" of tuples (iteration, what ``curve`` says,
            ...), from the annotations and the detections, both as in their JSON files, and from
            ``metrics.json``.
    """

    columns: Mapping[str, str]
    answer: str
    curve: str
    read: Callable[[dict, list[dict], Path], dict]


def is_target(class_name: str) -> bool:
    """Whether a class of far_cue is one of targets, not of keys."""
    return class_name.startswith("target")


def target_accuracy(truth: dict, detections: Iterable[dict]) -> tuple[float, float]:
    """Whether a target's answer is told rightly, where the target is found at all.

    A target is found by the detection with the highest score among those of the target classes
    that overlap it by an IoU of at least 0.5. The answer, a or b, in that one's class counts.

    Args:
        truth: the annotations, in COCO's format.
        detections: COCO's results, as in Detectron2's ``coco_instances_results.json``.

    Returns:
        The fraction of found targets that are told rightly (NaN without any), and the fraction of
        targets that are found.
    """
    names = {category["id"]: category["name"] for category in truth["categories"]}
    answers = {i: name[-1] for i, name in names.items() if is_target(name)}
    targets = [a for a in truth["annotations"] if a["category_id"] in answers]
    found = find(targets, [d for d in detections if d["category_id"] in answers])
    told = [
        answers[best["category_id"]] == answers[target["category_id"]] for target, best in found
    ]
    return _mean(told), len(told) / max(len(targets), 1)


def joints_placed(truth: dict, detections: Iterable[dict]) -> tuple[float, float, float]:
    """How many joints are placed within :data:`TOLERANCE`, where the figure is found at all.

    Args:
        truth: the annotations, in COCO's format.
        detections: COCO's results with keypoints.

    Returns:
        The fractions of hidden :data:`ANSWERS` and of all visible joints that are placed, of the
        figures that are found (NaN without any), and the fraction of figures that are found.
    """
    names = truth["categories"][0]["keypoints"]
    asked = np.isin(names, ANSWERS)
    hidden, visible = [], []
    found = find(truth["annotations"], detections)
    for figure, best in found:
        x, y, visibility = np.reshape(figure["keypoints"], (-1, 3)).T
        px, py, _ = np.reshape(best["keypoints"], (-1, 3)).T
        placed = np.hypot(px - x, py - y) <= TOLERANCE * figure["bbox"][3]
        hidden.extend(placed[(visibility == 1) & asked])
        visible.extend(placed[visibility == 2])
    return _mean(hidden), _mean(visible), len(found) / max(len(truth["annotations"]), 1)


def find(objects: Sequence[dict], detections: Iterable[dict]) -> list[tuple[dict, dict]]:
    """The objects that are found, each with the best detection of an IoU of 0.5 or more."""
    by_image = defaultdict(list)
    for detection in detections:
        by_image[detection["image_id"]].append(detection)
    pairs = []
    for annotation in objects:
        candidates = by_image[annotation["image_id"]]
        boxes = np.array([d["bbox"] for d in candidates], np.float64).reshape(-1, 4)
        ious = np.ravel(mask_util.iou(boxes, np.array([annotation["bbox"]], np.float64), [0]))
        hits = [d for d, iou in zip(candidates, ious, strict=True) if iou >= 0.5]
        if hits:
            pairs.append((annotation, max(hits, key=lambda d: d["score"])))
    return pairs


def read_curve(metrics_file: Path, class_names: Sequence[str]) -> list[tuple[int, float, float]]:
    """Iteration, target AP and key AP (means over classes, in percent) of each evaluation.

    Where a model predicts nothing, COCO's AP is NaN; here it is 0.
    """
    targets = [name for name in class_names if is_target(name)]
    keys = [name for name in class_names if not is_target(name)]

    def mean(record: Mapping, names: Sequence[str]) -> float:
        return float(np.nan_to_num([record[f"bbox/AP-{name}"] for name in names]).mean())

    evaluated = [r for r in read_metrics(metrics_file) if f"bbox/AP-{keys[0]}" in r]
    return [(int(r["iteration"]), mean(r, targets), mean(r, keys)) for r in evaluated]


def _mean(told: Sequence[bool]) -> float:
    """The fraction that is true; NaN of none."""
    return float(np.mean(told)) if told else float("nan")


def _read_targets(truth: dict, detections: list[dict], metrics_file: Path) -> dict:
    accuracy, found = target_accuracy(truth, detections)
    curve = read_curve(metrics_file, [c["name"] for c in truth["categories"]])
    return {
        "target_accuracy": 100 * accuracy,
        "targets_found": 100 * found,
        "target_AP": curve[-1][1],
        "key_AP": curve[-1][2],
        "curve": curve,
    }


def _read_joints(truth: dict, detections: list[dict], metrics_file: Path) -> dict:
    hidden, visible, found = joints_placed(truth, detections)
    evaluated = [r for r in read_metrics(metrics_file) if "keypoints/AP" in r]
    curve = [(r["iteration"], float(np.nan_to_num(r["keypoints/AP"]))) for r in evaluated]
    return {
        "hidden_placed": 100 * hidden,
        "visible_placed": 100 * visible,
        "figures_found": 100 * found,
        "keypoint_AP": curve[-1][1],
        "curve": curve,
    }


TARGETS = Measure(
    {
        "target accuracy, %": "target_accuracy",
        "targets found, %": "targets_found",
        "target AP": "target_AP",
        "key AP": "key_AP",
        "seconds": "seconds",
    },
    "target accuracy, %",
    "target AP",
    _read_targets,
)
JOINTS = Measure(
    {
        "hidden ankles placed, %": "hidden_placed",
        "visible joints placed, %": "visible_placed",
        "figures found, %": "figures_found",
        "keypoint AP": "keypoint_AP",
        "seconds": "seconds",
    },
    "hidden ankles placed, %",
    "keypoint AP",
    _read_joints,
)
