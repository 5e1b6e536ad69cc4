"""Detectron2's COCO evaluation with hotcoco: the figures of pycocotools, much sooner."""

import itertools
import json
import os
from collections import defaultdict
from collections.abc import Collection, Sequence

import numpy as np
from detectron2.evaluation import coco_evaluation
from detectron2.utils.file_io import PathManager
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

from ..errors import UsageError
from ..log import logger

try:
    import hotcoco
except ImportError:
    hotcoco = None  # type: ignore[assignment]

IMAGES_AT_ONCE = 100  # in Python's objects and in hotcoco's at the same time

# What a task reads of a result. A mask's area, which tells small from large, is its own, not its
# box's; a person's is the box's.
KEYS = {
    "bbox": ("bbox",),
    "segm": ("segmentation",),
    "keypoints": ("keypoints", "bbox"),
}


class COCOEvaluator(coco_evaluation.COCOEvaluator):
    """Detectron2's evaluator, which takes hotcoco where it is installed.

    Precision, recall and scores are then the same bit for bit as pycocotools', in a fraction of
    the time and memory, with a progress bar. Everything else is as in Detectron2, which also
    evaluates where hotcoco is missing, or where ``use_fast_impl`` is off.
    """

    def __init__(self, *args: object, use_fast_impl: bool = True, **kwargs: object):
        """As Detectron2's."""
        super().__init__(*args, use_fast_impl=use_fast_impl and hotcoco is None, **kwargs)
        self._by_hotcoco = use_fast_impl and is_fast(self._coco_api)
        if not use_fast_impl:
            return
        if self._by_hotcoco:
            logger.info(f"COCO evaluation by hotcoco {hotcoco.__version__}")
        elif hotcoco is None:
            logger.info("For the same COCO figures, sooner: pip install hotcoco")
        else:
            logger.warning(
                "An annotation has id 0, which pycocotools takes for 'not found' wherever it is "
                "found: COCO's ids start at 1. For figures equal to its own, it evaluates itself."
            )

    def _eval_predictions(self, predictions: list[dict], img_ids: list[int] | None = None) -> None:
        if not self._by_hotcoco:
            super()._eval_predictions(predictions, img_ids)
            return
        results = list(itertools.chain(*(image["instances"] for image in predictions)))
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
        for task in sorted(tasks):
            found = None
            if results:
                found = evaluate(
                    self._coco_api,
                    results,
                    task,
                    kpt_oks_sigmas=self._kpt_oks_sigmas,
                    img_ids=img_ids,
                    max_dets_per_image=self._max_dets_per_image,
                )
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


def is_fast(truth: COCO) -> bool:
    """Whether hotcoco is here, and evaluates these annotations as pycocotools does."""
    return hotcoco is not None and 0 not in truth.anns


def evaluate(
    coco_gt: COCO,
    coco_results: Sequence[dict],
    iou_type: str,
    kpt_oks_sigmas: Sequence[float] = (),
    img_ids: Collection[int] | None = None,
    max_dets_per_image: Sequence[int] = (1, 10, 100),
) -> COCOeval:
    """Evaluates results in COCO's format by hotcoco.

    Args:
        coco_gt: the annotations.
        coco_results: at least one; they are not changed.
        iou_type: "bbox", "segm" or "keypoints".
        kpt_oks_sigmas: one for each keypoint; COCO's by default.
        img_ids: of the images that count; all by default.
        max_dets_per_image: three limits; the figures are those at the last. Not for keypoints.

    Returns:
        ``stats``, 12 figures (10 for keypoints), and ``eval`` with "precision" (T, R, K, A, M),
        "recall" (T, K, A, M) and "scores", as pycocotools' ``summarize()`` leaves them.

    Raises:
        ValueError: if results are for images that ``coco_gt`` has not, or numbers of keypoints
            disagree.
    """
    by_image = defaultdict(list)
    for result in coco_results:
        by_image[result["image_id"]].append(result)
    if unknown := sorted(by_image.keys() - coco_gt.imgs.keys()):
        raise ValueError(f"results for images that the annotations have not: {unknown[:10]}")

    # pycocotools has the last word: it sums up, and Detectron2's part of it for other limits.
    at_100 = max_dets_per_image[2] == 100
    evaluation = (COCOeval if at_100 else coco_evaluation.COCOevalMaxDets)(iouType=iou_type)
    options = hotcoco.Params(iou_type)
    if iou_type == "keypoints":
        if len(kpt_oks_sigmas):
            evaluation.params.kpt_oks_sigmas = np.array(kpt_oks_sigmas)
        _check_keypoints(coco_gt, coco_results[0], len(evaluation.params.kpt_oks_sigmas))
        options.kpt_oks_sigmas = evaluation.params.kpt_oks_sigmas.tolist()
    else:
        evaluation.params.maxDets = sorted(max_dets_per_image)
        options.max_dets = evaluation.params.maxDets

    # In order of the ids, which decides between equal scores.
    images = [coco_gt.imgs[i] for i in sorted(coco_gt.imgs if img_ids is None else set(img_ids))]
    stream = hotcoco.StreamingEval(coco_gt.dataset["categories"], iou_type, params=options)
    with tqdm(total=len(images), desc=f"evaluating {iou_type}", unit="image") as progress:
        for start in range(0, len(images), IMAGES_AT_ONCE):
            chunk = images[start : start + IMAGES_AT_ONCE]
            truths = [a for image in chunk for a in coco_gt.imgToAnns.get(image["id"], ())]
            results = [r for image in chunk for r in by_image.get(image["id"], ())]
            stream.update(
                chunk,
                [truth for truth in truths if truth["category_id"] in coco_gt.cats],
                [
                    {key: result[key] for key in keys_of(iou_type, result)}
                    for result in results
                    if result["category_id"] in coco_gt.cats
                ],
            )
            progress.update(len(chunk))
    found = stream.finalize()
    found.accumulate()
    evaluation.eval = found.eval
    evaluation.summarize()
    return evaluation


def keys_of(iou_type: str, result: dict) -> list[str]:
    """The keys of a result that its evaluation reads."""
    keys = ("image_id", "category_id", "score", *KEYS[iou_type])
    return [key for key in keys if key in result]


def _check_keypoints(coco_gt: COCO, result: dict, num_sigmas: int) -> None:
    counts = {"TEST.KEYPOINT_OKS_SIGMAS": num_sigmas, "predictions": len(result["keypoints"]) // 3}
    for annotation in coco_gt.anns.values():
        counts["annotations"] = len(annotation["keypoints"]) // 3
        break
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} in {name}" for name, count in counts.items())
        raise ValueError(f"numbers of keypoints disagree: {listed}")
