"""Hand-made detections whose errors are known."""

import contextlib
import io
import math

import numpy as np
import pytest
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from nl_detectron.evaluation import coco, examine, find_errors, log_tables
from nl_detectron.evaluation.coco import COCOEvaluator, Outcome, evaluate_examined
from nl_detectron.evaluation.tables import class_table, confusion_table, error_table
from tests.docs.pages import cells_of

pytestmark = pytest.mark.skipif(
    coco.hotcoco is None, reason="hotcoco is not installed: requirements/base.txt"
)

FIRST, SECOND = [10, 10, 20, 20], [60, 60, 20, 20]
LOOSE = [10, 18, 20, 20]  # IoU 12 / 28 with FIRST
AWAY = [110, 110, 20, 20]
CAT, DOG, BIRD = 10, 20, 30  # no ids from 1 without gaps
KINDS = ["classification", "localisation", "both", "duplicate", "background", "missed"]


def truth_of(*objects: tuple, text_ids: bool = False) -> COCO:
    """Of (category, box) or (category, box, "crowd"), one image each, but for equal boxes."""
    name = str if text_ids else int
    truth = COCO()
    truth.dataset = {
        "images": [{"id": name(i), "height": 150, "width": 150} for i in (7, 8)],
        "categories": [
            {"id": i, "name": n} for i, n in ((BIRD, "bird"), (CAT, "cat"), (DOG, "dog"))
        ],
        "annotations": [
            {"id": i, "image_id": name(7), "category_id": category, "bbox": box, "area": 400}
            | {"iscrowd": int(bool(crowd)), "segmentation": [polygon(box)]}
            for i, (category, box, *crowd) in enumerate(objects, start=1)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


def polygon(box: list) -> list:
    x, y, w, h = box
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def found(*detections: tuple, image_id: object = 7) -> list[dict]:
    """Of (category, box), the surest first."""
    results = []
    for i, (category, box) in enumerate(detections):
        (rle,) = mask_util.frPyObjects([polygon(box)], 150, 150)
        results.append(
            {"image_id": image_id, "category_id": category, "score": 0.9 - 0.1 * i, "bbox": box}
            | {"segmentation": {"size": rle["size"], "counts": rle["counts"].decode()}}
        )
    return results


OBJECTS = ((CAT, FIRST), (DOG, SECOND))
# By name: detections, the kinds of error that they are, AP50 before and after each is mended.
# AP50 is the mean of cat and dog: of birds there are none.
CASES = {
    "nothing wrong": ([(CAT, FIRST), (DOG, SECOND)], {}, 100, {}),
    # Mended, the first dog becomes the cat.
    "of another class": (
        [(DOG, FIRST), (DOG, SECOND)],
        {"classification": 1},
        25,
        {"classification": 75},
    ),
    "loose": ([(CAT, LOOSE), (DOG, SECOND)], {"localisation": 1}, 50, {"localisation": 50}),
    # A loose dog where the cat is: nothing mends the cat, and without it the dog is whole.
    "both": (
        [(DOG, LOOSE), (DOG, SECOND)],
        {"both": 1, "missed": 1},
        25,
        {"both": 25, "missed": 25},
    ),
    "twice": (
        [(CAT, FIRST), (CAT, FIRST), (DOG, SECOND)],
        {"duplicate": 1},
        100,
        {"duplicate": 0},
    ),
    "of nothing": (
        [(CAT, AWAY), (CAT, FIRST), (DOG, SECOND)],
        {"background": 1},
        75,
        {"background": 25},
    ),
    "missed": ([(CAT, FIRST)], {"missed": 1}, 50, {"missed": 50}),
    # A cat on the dog, so that the dog is not missed, but taken for something else
    "missed for another class": (
        [(CAT, FIRST), (CAT, SECOND)],
        {"classification": 1},
        50,
        {"classification": 50},
    ),
    "nothing found": ([(BIRD, AWAY)], {"background": 1, "missed": 2}, 0, {}),
}


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("name", CASES)
def test_kinds_of_error_and_what_they_cost(name, task):
    detections, counts, ap50, cost = CASES[name]
    truth = truth_of(*OBJECTS)
    errors = find_errors(examine(truth, [task]), found(*detections), task)
    assert {kind: n for kind, n in errors.counts.items() if n} == counts
    assert list(errors.counts) == list(errors.cost) == KINDS
    assert errors.ap50 == pytest.approx(ap50, abs=0.6)  # over 101 points of recall
    for kind in KINDS:
        assert errors.cost[kind] == pytest.approx(cost.get(kind, 0), abs=0.6), kind


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_missed_objects_of_a_class_that_is_found_elsewhere(task):
    truth = truth_of(*OBJECTS, (DOG, AWAY))
    errors = find_errors(examine(truth, [task]), found((CAT, FIRST), (DOG, SECOND)), task)
    # Recall of dogs is 1/2: 51 of 101 points
    assert errors.ap50 == pytest.approx(100 * (1 + 51 / 101) / 2)
    assert errors.cost["missed"] == pytest.approx(100 - errors.ap50)


def test_what_lies_on_a_crowd_is_no_error():
    crowd = (CAT, [100, 100, 40, 40], "crowd")
    errors = find_errors(
        examine(truth_of(*OBJECTS, crowd), ["bbox"]),
        found((CAT, AWAY), (CAT, FIRST), (DOG, SECOND), (DOG, AWAY)),
        "bbox",
    )
    # The dog on the crowd of cats is one of nothing.
    assert {kind: n for kind, n in errors.counts.items() if n} == {"background": 1}
    assert errors.ap50 == pytest.approx(100)
    assert errors.confusion.sum() == 3


def test_confusion_matrix():
    detections = [(DOG, FIRST), (CAT, FIRST), (BIRD, AWAY), (DOG, SECOND), (CAT, SECOND)]
    results = found(*detections)
    results[-1]["score"] = 0.4  # less sure than what counts
    errors = find_errors(examine(truth_of(*OBJECTS), ["bbox"]), results, "bbox")
    assert errors.names == ["cat", "dog", "bird", "background"]
    # The surest takes the object, and the second one there is of nothing.
    assert errors.confusion.tolist() == [
        [0, 1, 0, 0],
        [0, 1, 0, 0],
        [0, 0, 0, 0],
        [1, 0, 1, 0],
    ]
    missed = find_errors(examine(truth_of(*OBJECTS), ["bbox"]), results[:1], "bbox")
    assert missed.confusion[:, -1].tolist() == [0, 1, 0, 0]


def test_ids_that_are_text():
    detections = [(DOG, FIRST), (DOG, SECOND)]
    truth = truth_of(*OBJECTS, text_ids=True)
    expected = find_errors(examine(truth_of(*OBJECTS), ["bbox"]), found(*detections), "bbox")
    actual = find_errors(examine(truth, ["bbox"]), found(*detections, image_id="7"), "bbox")
    assert actual.counts == expected.counts and actual.cost == expected.cost
    np.testing.assert_array_equal(actual.confusion, expected.confusion)


def outcome_of(truth: COCO, results: list[dict], tasks=("bbox", "segm")) -> Outcome:
    examined = examine(truth, tasks)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluations = {t: evaluate_examined(examined, results, t) for t in examined.tasks}
    return Outcome(examined, results, evaluations)


def cells(table: str) -> list[list[str]]:
    lines = table.splitlines()
    return [cells_of(line) for line in lines[:1] + lines[2:]]


def test_tables():
    outcome = outcome_of(
        truth_of(*OBJECTS, (CAT, AWAY, "crowd")), found((DOG, FIRST), (DOG, SECOND))
    )
    assert cells(class_table(outcome)) == [
        ["class", "objects", "bbox AP", "bbox AP50", "segm AP", "segm AP50"],
        ["cat", "1", "0.00", "0.00", "0.00", "0.00"],
        ["dog", "1", "50.00", "50.00", "50.00", "50.00"],
        ["bird", "0", "-", "-", "-", "-"],
    ]
    errors = find_errors(outcome.examined, outcome.results, "bbox")
    assert cells(error_table([errors]))[:2] == [
        ["error", "bbox: number", "bbox: AP50 it costs"],
        ["classification", "1", "75.00"],
    ]
    assert cells(confusion_table(errors))[:2] == [
        ["truth \\ found as", "cat", "dog", "bird", "background"],
        ["cat", "0", "1", "0", "0"],
    ]


def test_a_confusion_matrix_of_many_classes_lists_what_is_mixed_up():
    errors = find_errors(examine(truth_of(*OBJECTS), ["bbox"]), found((DOG, FIRST)), "bbox")
    names = [*(f"class {i}" for i in range(80)), "background"]
    confusion = np.zeros((81, 81), int)
    confusion[3, 4], confusion[5, 2], confusion[1, 1], confusion[80, 7] = 9, 11, 50, 60
    many = type(errors)(**{**vars(errors), "names": names, "confusion": confusion})
    assert cells(confusion_table(many)) == [
        ["truth", "found as", "number"],
        ["class 5", "class 2", "11"],
        ["class 3", "class 4", "9"],
    ]


def test_tables_in_the_log(log, monkeypatch):
    evaluator = COCOEvaluator.__new__(COCOEvaluator)
    log_tables(evaluator)
    assert log.text == ""  # nothing was evaluated
    evaluator.outcome = outcome_of(truth_of(*OBJECTS), found((DOG, FIRST), (DOG, SECOND)))
    log_tables(evaluator)
    for part in ("AP by class:", "Kinds of error", "classification", "segm: AP50", "background"):
        assert part in log.text
    log.clear()
    monkeypatch.setattr(coco, "hotcoco", None)
    log_tables(evaluator)
    assert "AP by class:" in log.text and "pip install hotcoco" in log.text
    assert not math.isnan(evaluator.outcome.evaluations["bbox"].stats[0])
