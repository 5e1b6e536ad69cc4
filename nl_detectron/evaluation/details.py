"""Figures of a run's predictions beyond averages: by class, by size, by image, and curves."""

import contextlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .coco import evaluate_examined, examine_for, hotcoco, is_fast
from .parts import finite, keys_of, part, reduced
from .truth import Examined


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
        quality: by image id, from 0 to 1; see :func:`evaluate_in_detail`. Images in which
            nothing is and nothing was found have none.
    """

    task: str
    overall: dict[str, float]
    per_class: dict[str, float]
    precision: np.ndarray
    recalls: np.ndarray
    ious: np.ndarray
    quality: dict[int, float]


def evaluate_in_detail(
    truth: COCO,
    results: Sequence[dict],
    *,
    kpt_oks_sigmas: Sequence[float] = (),
    min_score: float = 0.5,
) -> list[TaskResult]:
    """Evaluates results in COCO's format for all tasks that they allow.

    The figures are those of :class:`.coco.COCOEvaluator`, by the same gate and the same library.

    The quality of an image is the F1 score of its detections that are at least ``min_score`` sure,
    averaged over the IoU thresholds.

    Args:
        truth: the annotations.
        results: at least one.
        kpt_oks_sigmas: as in ``TEST.KEYPOINT_OKS_SIGMAS``; COCO's by default.
    """
    examined, results = examine_results(truth, results, kpt_oks_sigmas=kpt_oks_sigmas)
    return detail_of(examined, results, kpt_oks_sigmas=kpt_oks_sigmas, min_score=min_score)


def examine_results(
    truth: COCO, results: Sequence[dict], *, kpt_oks_sigmas: Sequence[float] = ()
) -> tuple[Examined, list[dict]]:
    """What :func:`evaluate_in_detail` evaluates: the tasks that truth allows, finite results."""
    kept, _ = finite(results)
    tasks = ["bbox"]
    for task, key in (("segm", "segmentation"), ("keypoints", "keypoints")):
        if any(key in result for result in kept):
            tasks.append(task)
    return examine_for(truth, kept, tasks, kpt_oks_sigmas), kept


def detail_of(
    examined: Examined,
    results: Sequence[dict],
    *,
    kpt_oks_sigmas: Sequence[float] = (),
    min_score: float = 0.5,
) -> list[TaskResult]:
    """:func:`evaluate_in_detail` of what :func:`examine_results` has given."""
    return [
        _evaluate(examined, results, task, kpt_oks_sigmas, min_score) for task in examined.tasks
    ]


def _evaluate(
    examined: Examined,
    results: Sequence[dict],
    task: str,
    sigmas: Sequence[float],
    min_score: float,
) -> TaskResult:
    truth = examined.truth
    with contextlib.redirect_stdout(io.StringIO()):  # which has the figures, too
        evaluation = evaluate_examined(examined, results, task, kpt_oks_sigmas=sigmas)
    matches = evaluation.evalImgs
    if is_fast(examined):
        matches = _matches_by_hotcoco(truth, results, task, evaluation)
    parameters = evaluation.params
    precision = evaluation.eval["precision"][..., -1]  # (T, R, K, sizes) at the most detections
    precision = np.where(precision < 0, np.nan, precision)
    ious = parameters.iouThrs
    overall = {"AP": _mean(precision[..., 0])}
    for name, iou in (("AP50", 0.5), ("AP75", 0.75)):
        overall[name] = _mean(precision[np.isclose(ious, iou), ..., 0])
    for index, label in enumerate(parameters.areaRngLbl[1:], start=1):
        overall[f"AP{label[0]}"] = _mean(precision[..., index])
    names = [category["name"] for category in truth.loadCats(sorted(truth.getCatIds()))]
    return TaskResult(
        task=task,
        overall=overall,
        per_class={name: _mean(precision[:, :, k, 0]) for k, name in enumerate(names)},
        precision=precision[..., 0],
        recalls=parameters.recThrs,
        ious=ious,
        quality=_quality(matches, evaluation.params.areaRng[0], min_score),
    )


def _matches_by_hotcoco(
    truth: COCO, results: Sequence[dict], task: str, evaluated: COCOeval
) -> list[dict | None]:
    """What is matched with what in each image, as pycocotools' ``evalImgs``."""
    params = hotcoco.Params(task)
    if task == "keypoints":
        params.kpt_oks_sigmas = evaluated.params.kpt_oks_sigmas.tolist()
    known = hotcoco.COCO(reduced(truth, task))
    results = [part(result, keys_of(task, result)) for result in results]
    evaluation = hotcoco.COCOeval(known, known.load_res(results), task)
    evaluation.params = params
    evaluation.evaluate()
    return evaluation.eval_imgs


def _quality(
    matches: Iterable[dict | None], all_sizes: Sequence[float], min_score: float
) -> dict[int, float]:
    counts: dict[int, np.ndarray] = {}  # twice the matches, and detections + truths: (2, T)
    for found in matches:
        if found is None or list(found["aRng"]) != list(all_sizes):
            continue
        sure = (np.array(found["dtScores"]) >= min_score) & ~np.array(found["dtIgnore"], bool)
        matched = (np.array(found["dtMatches"]) > 0) & sure
        num_truths = int((np.array(found["gtIgnore"]) == 0).sum())
        sums = np.stack([2 * matched.sum(1), sure.sum(1) + num_truths])
        image_id = found["image_id"]
        counts[image_id] = counts.get(image_id, 0) + sums
    # With nothing to be found at any threshold there is no quality.
    return {
        image_id: float(np.mean(both / np.maximum(total, 1)))
        for image_id, (both, total) in counts.items()
        if total.any()
    }


def _mean(values: np.ndarray) -> float:
    """The mean in percent over what is not NaN; NaN if nothing is."""
    return float(100 * np.nanmean(values)) if not np.isnan(values).all() else float("nan")
