"""What goes wrong: the kinds of error that TIDE tells apart, and which classes are mixed up."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as mask_util

from . import coco
from .parts import keys_of, part, reduced
from .truth import Examined

NO_HOTCOCO = "For the kinds of error and the confusion matrix: pip install hotcoco"

# hotcoco's names, and what TIDE's paper says that they are, at an IoU t_f of 0.5 and t_b of 0.1
KINDS = {
    "Cls": "classification",  # IoU >= t_f with an object of another class
    "Loc": "localisation",  # t_b <= IoU < t_f with one of its class
    "Both": "both",  # t_b <= IoU < t_f with one of another class
    "Dupe": "duplicate",  # IoU >= t_f with one that a surer detection has found
    "Bkg": "background",  # IoU < t_b with all of them
    "Miss": "missed",  # an object that neither a detection nor an error above is about
}


@dataclass(frozen=True)
class Errors:
    """What goes wrong in one task, as TIDE (Bolya et al., ECCV 2020) tells it apart.

    Attributes:
        task: "bbox" or "segm".
        ap50: AP at IoU 0.5, in percent.
        cost: by kind of error, how many points ``ap50`` would rise if there were none of it. They
            do not add up: an error can hide another one.
        counts: how many there are of each kind.
        names: of the classes, in order of their ids, and "background" after them.
        confusion: int64 (K + 1, K + 1), how often an object of class i, the row, was found as
            class j, the column. The last column is for objects that were not found, the last row
            for detections of what is none.
        min_score: of the detections in ``confusion``; the errors are of all.
    """

    task: str
    ap50: float
    cost: dict[str, float]
    counts: dict[str, int]
    names: list[str]
    confusion: np.ndarray
    min_score: float


def find_errors(
    examined: Examined, results: Sequence[dict], task: str, *, min_score: float = 0.5
) -> Errors:
    """The errors of results in COCO's format, by hotcoco.

    Crowds, and the detections that COCO's evaluation forgives because they lie on one, are left
    out before: they are neither right nor wrong. In ``confusion`` the surest detection of any class
    comes first, and takes the free object that it overlaps most, with an IoU of at least 0.5.

    Args:
        examined: the annotations, which allow the task.
        results: finite ones.
        task: "bbox" or "segm".

    Raises:
        ImportError: if hotcoco is not installed.
    """
    if coco.hotcoco is None:
        raise ImportError(NO_HOTCOCO)
    truth, kept = _renumbered(examined, results, task)
    crowds = [annotation for annotation in truth["annotations"] if annotation["iscrowd"]]
    if crowds:
        forgiven = _forgiven(truth, kept, task)
        kept = [result for i, result in enumerate(kept, start=1) if i not in forgiven]
        truth["annotations"] = [a for a in truth["annotations"] if not a["iscrowd"]]
    evaluation = _evaluate(truth, kept, task)
    errors = _tide(evaluation)
    cost = {name: 100 * errors["delta_ap"][key] for key, name in KINDS.items()}
    cost["missed"] = _cost_of_missed(truth, kept, task, errors)
    confusion = evaluation.confusion_matrix(iou_thr=0.5, min_score=min_score)
    return Errors(
        task=task,
        ap50=100 * errors["ap_base"],
        cost=cost,
        counts={name: int(errors["counts"][key]) for key, name in KINDS.items()},
        names=[*(category["name"] for category in truth["categories"]), "background"],
        confusion=np.asarray(confusion["matrix"], np.int64),
        min_score=min_score,
    )


def _forgiven(truth: dict, results: list[dict], task: str) -> set[int]:
    """Ids, counted from 1, of the detections that lie on a crowd of their class."""
    images = {a["image_id"] for a in truth["annotations"] if a["iscrowd"]}
    annotations = [a for a in truth["annotations"] if a["image_id"] in images]
    numbered = [(i, r) for i, r in enumerate(results, start=1) if r["image_id"] in images]
    content = {**truth, "annotations": annotations}
    evaluation = _evaluate(content, [result for _, result in numbered], task)
    return {
        numbered[found - 1][0]
        for image in evaluation.eval_imgs
        if image is not None
        for found, ignored in zip(image["dtIds"], image["dtIgnore"][0], strict=True)
        if ignored
    }


def _cost_of_missed(truth: dict, results: list[dict], task: str, errors: dict) -> float:
    """Without the classes that vanish with their missed objects.

    Without a missed object there is one less to find. Where nothing of a class is left, there is
    no AP of it to average; hotcoco goes on to count it as 0.
    """
    occur = {annotation["category_id"] for annotation in truth["annotations"]}
    silent = occur - {result["category_id"] for result in results}
    vanishing = sum(_vanishes(truth, results, task, category) for category in silent)
    left = len(occur) - vanishing
    mended = errors["ap_base"] + errors["delta_ap"]["Miss"]
    return 100 * (mended * len(occur) / left - errors["ap_base"]) if left else 0.0


def _vanishes(truth: dict, results: list[dict], task: str, category: int) -> bool:
    """Whether all objects of a class of which nothing was predicted count as missed.

    They do not where a detection of another class is on one. If one more of the class is added to
    them and found, its AP is 1 without the missed objects only if there are no others.
    """
    objects = [a for a in truth["annotations"] if a["category_id"] == category]
    images = {annotation["image_id"] for annotation in objects}
    extra = {"id": max(image["id"] for image in truth["images"]) + 1, "height": 9, "width": 9}
    box = [1.0, 1.0, 5.0, 5.0]
    common = {"image_id": extra["id"], "category_id": category, "bbox": box}
    common["segmentation"] = mask_util.encode(np.asfortranarray(np.ones((9, 9), np.uint8)))
    one = {"id": max(a["id"] for a in truth["annotations"]) + 1, "area": 25.0, "iscrowd": 0}
    content = {
        "images": [image for image in truth["images"] if image["id"] in images] + [extra],
        "annotations": [a for a in truth["annotations"] if a["image_id"] in images],
        "categories": truth["categories"],
    }
    found = [result for result in results if result["image_id"] in images]
    sums = []
    for added in (0, 1):
        annotations = content["annotations"] + [{**common, **one}] * added
        detections = found + [{**common, "score": 1.0}] * added
        errors = _tide(_evaluate({**content, "annotations": annotations}, detections, task))
        num_classes = len({annotation["category_id"] for annotation in annotations})
        sums.append(num_classes * (errors["ap_base"] + errors["delta_ap"]["Miss"]))
    return bool(sums[1] - sums[0] > 1 - 1e-6)


def _tide(evaluation: "coco.hotcoco.COCOeval") -> dict:
    return evaluation.tide_errors(pos_thr=0.5, bg_thr=0.1)


def _renumbered(examined: Examined, results: Sequence[dict], task: str) -> tuple[dict, list[dict]]:
    """Truth and results with ids that count from 1, which hotcoco takes whatever they were."""
    content = reduced(examined.truth, task)
    images = {image["id"]: i for i, image in enumerate(content["images"], start=1)}
    ordered = sorted(content["categories"], key=lambda category: category["id"])
    categories = {category["id"]: i for i, category in enumerate(ordered, start=1)}

    def moved(item: dict) -> dict:
        ids = {"image_id": images[item["image_id"]]}
        return {**item, **ids, "category_id": categories[item["category_id"]]}

    truth = {
        "images": [{**image, "id": images[image["id"]]} for image in content["images"]],
        "annotations": [
            {**moved(annotation), "id": i}
            for i, annotation in enumerate(content["annotations"], start=1)
        ],
        "categories": [{**c, "id": categories[c["id"]]} for c in ordered],
    }
    found = [
        moved(part(result, keys_of(task, result)))
        for result in results
        if result["category_id"] in categories
    ]
    return truth, found


def _evaluate(truth: dict, results: list[dict], task: str) -> "coco.hotcoco.COCOeval":
    known = coco.hotcoco.COCO(truth)
    evaluation = coco.hotcoco.COCOeval(known, known.load_res(results), task)
    evaluation.params.iou_thrs, evaluation.params.max_dets = [0.5], [100]
    evaluation.params.area_rng, evaluation.params.area_rng_lbl = [[0, 1e10]], ["all"]
    evaluation.evaluate()
    return evaluation
