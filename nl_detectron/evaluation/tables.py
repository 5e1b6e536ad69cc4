"""Tables of an evaluation, for the log."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from tabulate import tabulate

from ..log import logger
from . import coco
from .coco import COCOEvaluator, Outcome
from .errors import NO_HOTCOCO, Errors, find_errors

MOST_CLASSES = 20  # of a confusion matrix that a terminal can show
MOST_CONFUSED = 20


def log_tables(evaluator: DatasetEvaluator) -> None:
    """Logs by class and by kind of error what a :class:`COCOEvaluator` has found.

    Of other evaluators, and in processes without the predictions, there is nothing to log.
    """
    if isinstance(evaluator, DatasetEvaluators):
        for part in evaluator._evaluators:
            log_tables(part)
        return
    outcome = evaluator.outcome if isinstance(evaluator, COCOEvaluator) else None
    if outcome is None or not outcome.evaluations:
        return
    logger.info(f"AP by class:\n{class_table(outcome)}")
    if coco.hotcoco is None:
        logger.info(NO_HOTCOCO)
        return
    errors = [
        find_errors(outcome.examined, outcome.results, task)
        for task in ("bbox", "segm")
        if task in outcome.evaluations
    ]
    if not errors:
        return
    logger.info(f"Kinds of error (TIDE), and the AP50 that each costs:\n{error_table(errors)}")
    logger.info(
        f"{errors[0].task}: what was found as what, at scores from {errors[0].min_score:g} and IoU "
        f"from 0.5:\n{confusion_table(errors[0])}"
    )


def class_table(outcome: Outcome) -> str:
    """By class the number of objects, crowds aside, and AP and AP50 of each task."""
    truth, evaluations = outcome.examined.truth, outcome.evaluations
    objects = Counter(a["category_id"] for a in truth.anns.values() if not a["iscrowd"])
    header = ["class", "objects"]
    for task in evaluations:
        header += [f"{task} AP", f"{task} AP50"]
    rows = []
    for k, category in enumerate(sorted(truth.cats)):
        row = [str(truth.cats[category].get("name", category)), str(objects[category])]
        for evaluation in evaluations.values():
            precision = evaluation.eval["precision"][:, :, k, 0, -1]  # (T, R), T from 0.5
            row += [_figure(_percent(precision)), _figure(_percent(precision[:1]))]
        rows.append(row)
    return _table(header, rows)


def error_table(errors: Sequence[Errors]) -> str:
    """How many errors of each kind there are, and how much AP50 each kind costs."""
    header = ["error"]
    for found in errors:
        header += [f"{found.task}: number", f"{found.task}: AP50 it costs"]
    rows = []
    for kind in errors[0].cost:
        row = [kind]
        for found in errors:
            row += [str(found.counts[kind]), _figure(found.cost[kind])]
        rows.append(row)
    return _table(header, rows)


def confusion_table(errors: Errors) -> str:
    """The confusion matrix; of many classes only what is mixed up most."""
    names, matrix = errors.names, errors.confusion
    if len(names) <= MOST_CLASSES:
        rows = [[name, *map(str, row)] for name, row in zip(names, matrix.tolist(), strict=True)]
        return _table(["truth \\ found as", *names], rows)
    pairs = [
        (int(matrix[i, j]), names[i], names[j])
        for i in range(len(names))
        for j in range(len(names))
        if i != j and matrix[i, j] and len(names) - 1 not in (i, j)
    ]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    rows = [[truth, found, str(count)] for count, truth, found in pairs[:MOST_CONFUSED]]
    return _table(["truth", "found as", "number"], rows)


def _percent(precision: np.ndarray) -> float:
    return 100 * precision.mean() if (precision > -1).all() else math.nan


def _figure(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    right = ("left", *("right" for _ in header[1:]))
    return tabulate(
        rows, header, tablefmt="pipe", colalign=right if rows else None, disable_numparse=True
    )
