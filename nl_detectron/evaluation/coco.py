"""Detectron2's COCO evaluation with hotcoco: the figures of pycocotools, much sooner."""

import contextlib
import io
import itertools
import json
import os
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.evaluation import coco_evaluation
from detectron2.utils.file_io import PathManager
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params
from tqdm import tqdm

from ..errors import UsageError
from ..log import logger
from .parts import IMAGE_KEYS, TRUTH_KEYS, categories_of, finite, keys_of, part
from .truth import Examined, examine, odd_ids

try:
    import hotcoco
except ImportError:
    hotcoco = None  # type: ignore[assignment]

IMAGES_AT_ONCE = 100  # in Python's objects and in hotcoco's at the same time


@dataclass(frozen=True)
class Outcome:
    """What an evaluation has found, for those who look closer.

    Attributes:
        examined: the annotations.
        results: all predictions, in COCO's format, finite.
        evaluations: by task, with pycocotools' ``eval``; empty where nothing was predicted.
    """

    examined: Examined
    results: list[dict]
    evaluations: dict[str, COCOeval]


class COCOEvaluator(coco_evaluation.COCOEvaluator):
    """Detectron2's evaluator, which takes hotcoco where it is installed.

    Precision, recall and scores are then the same bit for bit as pycocotools', in a fraction of
    the time and memory, with a progress bar. Annotations for which they would not be are left to
    pycocotools. A task that the annotations do not allow, such as "segm" where a mask is missing,
    is left out of the figures and a line in the log says why: see :func:`.truth.examine`.

    Attributes:
        outcome: after an evaluation, in the process that has all predictions.
    """

    outcome: Outcome | None = None

    def __init__(self, *args: object, use_fast_impl: bool = True, **kwargs: object):
        """As Detectron2's."""
        super().__init__(*args, use_fast_impl=use_fast_impl and hotcoco is None, **kwargs)
        self._by_hotcoco = use_fast_impl and hotcoco is not None
        if not use_fast_impl:
            return
        if hotcoco is None:
            logger.info("For the same COCO figures, sooner: pip install hotcoco")
        elif odd := odd_ids(self._coco_api):
            logger.warning(f"{odd}. For figures equal to its own, pycocotools evaluates itself.")
        else:
            logger.info(f"COCO evaluation by hotcoco {hotcoco.__version__}")

    def _eval_predictions(self, predictions: list[dict], img_ids: list[int] | None = None) -> None:
        results = list(itertools.chain(*(image["instances"] for image in predictions)))
        results, spoiled = finite(results)
        if spoiled:
            logger.warning(
                f"{spoiled} of {len(results)} predictions hold numbers that are not finite; they "
                "count as predictions of what is not there"
            )
        tasks = self._tasks or self._tasks_from_predictions(results)
        self._to_category_ids(results)
        if self._output_dir:
            file = os.path.join(self._output_dir, "coco_instances_results.json")
            logger.info(f"Saving results to {file}")
            with PathManager.open(file, "w") as opened:
                opened.write(json.dumps(results))
        if not self._do_evaluation:
            logger.info("Annotations are not available for evaluation.")
            return
        examined = examine_for(
            self._coco_api, results, sorted(tasks), self._kpt_oks_sigmas, img_ids
        )
        for line in examined.notes:
            logger.warning(line)
        self.outcome = Outcome(examined, results, {})
        for task in examined.tasks:
            found = None
            if results:
                found = evaluate_examined(
                    examined,
                    results,
                    task,
                    kpt_oks_sigmas=self._kpt_oks_sigmas,
                    img_ids=img_ids,
                    max_dets_per_image=self._max_dets_per_image,
                    by_hotcoco=self._by_hotcoco,
                    by=coco_evaluation.COCOeval_opt if self._use_fast_impl else COCOeval,
                )
                self.outcome.evaluations[task] = found
            names = self._metadata.get("thing_classes")
            self._results[task] = self._derive_coco_results(found, task, class_names=names)

    def _derive_coco_results(
        self, coco_eval: COCOeval | None, iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        # Figures by class are in the order of the annotations' ids, which of a dataset that was
        # matched by name is not that of the model's classes.
        truth = self._coco_api
        names = [truth.cats[category]["name"] for category in sorted(truth.getCatIds())]
        return super()._derive_coco_results(coco_eval, iou_type, names if class_names else None)

    def _to_category_ids(self, results: list[dict]) -> None:
        """Gives results the dataset's ids of categories in the place of class indices."""
        ids = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if ids is None:
            return
        category_ids = {index: category for category, index in ids.items()}
        for result in results:
            index = result["category_id"]
            if index not in category_ids:
                raise UsageError(
                    f"a prediction is of class {index}, but the dataset has {len(ids)} classes "
                    f"only: set the model's NUM_CLASSES to {len(ids)}"
                )
            result["category_id"] = category_ids[index]


def evaluate(
    coco_gt: COCO,
    coco_results: Sequence[dict],
    iou_type: str,
    kpt_oks_sigmas: Sequence[float] = (),
    img_ids: Collection[int] | None = None,
    max_dets_per_image: Sequence[int] = (1, 10, 100),
) -> COCOeval:
    """Evaluates results in COCO's format, by hotcoco where it gives pycocotools' figures.

    Args:
        coco_gt: the annotations.
        coco_results: at least one; they are not changed.
        iou_type: "bbox", "segm" or "keypoints".
        kpt_oks_sigmas: one for each keypoint; COCO's by default.
        img_ids: of the images that count; all by default.
        max_dets_per_image: three limits; the figures are those at the last. Not for keypoints.

    Returns:
        ``stats``, 12 figures (10 for keypoints), and ``eval`` with "precision" (T, R, K, A, M),
        "recall" (T, K, A, M) and "scores", as pycocotools' ``summarize()`` leaves them; -1 by size
        where annotations have no area.

    Raises:
        UsageError: if the annotations do not allow the task: see :func:`.truth.examine`.
        ValueError: if results are for images that ``coco_gt`` has not.
    """
    results, _ = finite(coco_results)
    examined = examine_for(coco_gt, results, [iou_type], kpt_oks_sigmas, img_ids)
    for line in examined.left_out.values():
        raise UsageError(line)
    return evaluate_examined(
        examined,
        results,
        iou_type,
        kpt_oks_sigmas=kpt_oks_sigmas,
        img_ids=img_ids,
        max_dets_per_image=max_dets_per_image,
    )


def examine_for(
    truth: COCO,
    results: Sequence[dict],
    tasks: Sequence[str],
    kpt_oks_sigmas: Sequence[float] = (),
    img_ids: Collection[int] | None = None,
) -> Examined:
    """:func:`.truth.examine` for the number of keypoints in results."""
    num_sigmas = len(kpt_oks_sigmas) or len(Params("keypoints").kpt_oks_sigmas)
    predicted = next((len(r["keypoints"]) // 3 for r in results if "keypoints" in r), num_sigmas)
    return examine(truth, tasks, num_keypoints=predicted, num_sigmas=num_sigmas, img_ids=img_ids)


def evaluate_examined(
    examined: Examined,
    results: Sequence[dict],
    task: str,
    *,
    kpt_oks_sigmas: Sequence[float] = (),
    img_ids: Collection[int] | None = None,
    max_dets_per_image: Sequence[int] = (1, 10, 100),
    by_hotcoco: bool = True,
    by: type[COCOeval] = COCOeval,
) -> COCOeval:
    """:func:`evaluate` of one of the tasks that passed the gate, and of finite results.

    Args:
        by_hotcoco: take it where it is installed and gives the same figures.
        by: pycocotools' class, or one in its place, for where it does not.
    """
    unknown = {result["image_id"] for result in results} - examined.truth.imgs.keys()
    if unknown:
        raise ValueError(
            f"results for images that the annotations have not: {sorted(unknown)[:10]}"
        )
    # pycocotools has the last word: it sums up, and Detectron2's part of it for other limits.
    cls = by if max_dets_per_image[2] == 100 else coco_evaluation.COCOevalMaxDets
    fast = by_hotcoco and is_fast(examined)
    if fast:
        evaluation = (COCOeval if cls is by else cls)(iouType=task)
    else:
        # Copies, as pycocotools adds to the items of both.
        annotations = [{**annotation} for annotation in examined.truth.dataset["annotations"]]
        selected = [part(result, keys_of(task, result)) for result in results]
        truth = COCO()
        truth.dataset = {**examined.truth.dataset, "annotations": annotations}
        with contextlib.redirect_stdout(io.StringIO()):
            truth.createIndex()
            evaluation = cls(truth, truth.loadRes(selected), task)
        if img_ids is not None:
            evaluation.params.imgIds = list(img_ids)
    if task != "keypoints":
        evaluation.params.maxDets = sorted(max_dets_per_image)
    elif len(kpt_oks_sigmas):
        evaluation.params.kpt_oks_sigmas = np.array(kpt_oks_sigmas)
    if fast:
        evaluation.eval = _by_hotcoco(examined.truth, results, task, img_ids, evaluation.params)
    else:
        evaluation.evaluate()
        evaluation.accumulate()
    if not examined.has_sizes:
        for name in ("precision", "recall", "scores"):
            evaluation.eval[name][..., 1:, :] = -1  # (..., sizes, limits), the first being all
    evaluation.summarize()
    return evaluation


def is_fast(examined: Examined) -> bool:
    """Whether hotcoco is here, and evaluates these annotations as pycocotools does."""
    return hotcoco is not None and not examined.odd


def _by_hotcoco(
    truth: COCO, results: Sequence[dict], task: str, img_ids: Collection[int] | None, params: Params
) -> dict:
    """What pycocotools' ``accumulate()`` leaves in ``eval``."""
    options = hotcoco.Params(task)
    options.max_dets = params.maxDets
    if task == "keypoints":
        options.kpt_oks_sigmas = params.kpt_oks_sigmas.tolist()
    by_image = defaultdict(list)
    for result in results:
        by_image[result["image_id"]].append(result)
    # In order of the ids, which decides between equal scores.
    images = [truth.imgs[i] for i in sorted(truth.imgs if img_ids is None else set(img_ids))]
    stream = hotcoco.StreamingEval(categories_of(truth), task, params=options)
    with tqdm(total=len(images), desc=f"evaluating {task}", unit="image") as progress:
        for start in range(0, len(images), IMAGES_AT_ONCE):
            chunk = images[start : start + IMAGES_AT_ONCE]
            truths = [a for image in chunk for a in truth.imgToAnns.get(image["id"], ())]
            found = [r for image in chunk for r in by_image.get(image["id"], ())]
            # Nothing but what the task reads: the rest may be odd.
            stream.update(
                [part(image, IMAGE_KEYS[task]) for image in chunk],
                [part(a, TRUTH_KEYS[task]) for a in truths if a["category_id"] in truth.cats],
                [part(r, keys_of(task, r)) for r in found if r["category_id"] in truth.cats],
            )
            progress.update(len(chunk))
    evaluation = stream.finalize()
    evaluation.accumulate()
    return evaluation.eval or {}
