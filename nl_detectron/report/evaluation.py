"""Figures of a run's predictions beyond averages: by class, by size, by image, and curves."""

import contextlib
import copy
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


@dataclass(frozen=True)
class TaskResult:
    """How well one kind of prediction fits the ground truth. Figures are in percent, NaN for none.

    Attributes:
        task: "bbox", "segm" or "keypoints".
        overall: by "AP", "AP50", "AP75" and, by size, "APs" (not for keypoints), "APm", "APl".
        per_class: AP by class name.
        precision: at each recall in ``recalls``, by IoU threshold and class, from 0 to 1, NaN for
            classes that do not occur: (T, R, K).
        recalls: (R,).
        ious: the thresholds, (T,); for keypoints of the object keypoint similarity.
        quality: by image id, from 0 to 1; see :func:`evaluate`. Images in which nothing is and
            nothing was found have none.
    """

    task: str
    overall: dict[str, float]
    per_class: dict[str, float]
    precision: np.ndarray
    recalls: np.ndarray
    ious: np.ndarray
    quality: dict[int, float]


def evaluate(
    truth: COCO,
    results: Sequence[dict],
    *,
    kpt_oks_sigmas: Sequence[float] = (),
    min_score: float = 0.5,
) -> list[TaskResult]:
    """Evaluates results in COCO's format with pycocotools, for all tasks that they allow.

    The quality of an image is the F1 score of its detections that are at least ``min_score`` sure,
    averaged over the IoU thresholds.

    Args:
        truth: the annotations.
        results: at least one.
        kpt_oks_sigmas: as in ``TEST.KEYPOINT_OKS_SIGMAS``; COCO's by default.
    """
    annotations = truth.dataset["annotations"]
    tasks = ["bbox"]
    for task, key in (("segm", "segmentation"), ("keypoints", "keypoints")):
        if key in results[0] and any(key in annotation for annotation in annotations):
            tasks.append(task)
    return [_evaluate(truth, results, task, kpt_oks_sigmas, min_score) for task in tasks]


def _evaluate(
    truth: COCO, results: Sequence[dict], task: str, sigmas: Sequence[float], min_score: float
) -> TaskResult:
    results = copy.deepcopy(list(results))
    if task == "segm":
        for result in results:
            result.pop("bbox", None)  # pycocotools would take areas from it
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(results), task)
        if task == "keypoints" and len(sigmas):
            evaluation.params.kpt_oks_sigmas = np.array(sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
    parameters = evaluation.params
    precision = evaluation.eval["precision"][..., -1]  # (T, R, K, sizes) at the most detections
    precision = np.where(precision < 0, np.nan, precision)
    ious = parameters.iouThrs
    overall = {"AP": _mean(precision[..., 0])}
    for name, iou in (("AP50", 0.5), ("AP75", 0.75)):
        overall[name] = _mean(precision[np.isclose(ious, iou), ..., 0])
    for index, label in enumerate(parameters.areaRngLbl[1:], start=1):
        overall[f"AP{label[0]}"] = _mean(precision[..., index])
    names = [category["name"] for category in truth.loadCats(parameters.catIds)]
    return TaskResult(
        task=task,
        overall=overall,
        per_class={name: _mean(precision[:, :, k, 0]) for k, name in enumerate(names)},
        precision=precision[..., 0],
        recalls=parameters.recThrs,
        ious=ious,
        quality=_quality(evaluation, min_score),
    )


def _quality(evaluation: COCOeval, min_score: float) -> dict[int, float]:
    counts: dict[int, np.ndarray] = {}  # twice the matches, and detections + truths: (2, T)
    for found in evaluation.evalImgs:
        if found is None or found["aRng"] != evaluation.params.areaRng[0]:
            continue
        sure = (np.array(found["dtScores"]) >= min_score) & ~found["dtIgnore"].astype(bool)
        matches = (found["dtMatches"] > 0) & sure
        num_truths = int((np.array(found["gtIgnore"]) == 0).sum())
        sums = np.stack([2 * matches.sum(1), sure.sum(1) + num_truths])
        image_id = found["image_id"]
        counts[image_id] = counts.get(image_id, 0) + sums
    # With nothing to be found at any threshold there is no quality.
    return {
        image_id: float(np.mean(matched / np.maximum(total, 1)))
        for image_id, (matched, total) in counts.items()
        if total.any()
    }


def _mean(values: np.ndarray) -> float:
    """The mean in percent over what is not NaN; NaN if nothing is."""
    return float(100 * np.nanmean(values)) if not np.isnan(values).all() else float("nan")
