"""How many of a model's detections a file of another precision has."""

import pytest
import torch
from detectron2.structures import Boxes, Instances

from nl_detectron.export.agreement import agree, agreement, agreement_table


def instances(boxes, scores, classes) -> Instances:
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    found = Instances((20, 20), pred_boxes=Boxes(boxes))
    found.scores, found.pred_classes = torch.tensor(scores), torch.tensor(classes)
    return found


BOXES = [[0, 0, 5, 5], [4, 4, 9, 9], [10, 10, 19, 19]]
MODEL = instances(BOXES, [0.9, 0.6, 0.3], [0, 1, 0])


def test_what_a_model_is_sure_of_is_looked_for():
    row = agreement("a", MODEL, MODEL)
    assert (row.expected, row.found, row.ious, row.scores, row.others) == (2, 2, 2, 0, 2)
    assert agree([row])


@pytest.mark.parametrize(
    ("boxes", "scores", "classes", "found"),
    [
        ([BOXES[1], BOXES[0]], [0.5, 0.9], [1, 0], 2),  # in another order
        (BOXES[:2], [0.9, 0.6], [0, 0], 1),  # of another class
        ([[0, 0, 5, 2], BOXES[1]], [0.9, 0.6], [0, 1], 1),  # of another place
        (BOXES[:1], [0.1], [0], 1),  # less sure
        ([], [], [], 0),
    ],
)
def test_what_is_found(boxes, scores, classes, found):
    assert agreement("a", MODEL, instances(boxes, scores, classes)).found == found


def test_differences_are_means_of_what_was_found():
    row = agreement("a", MODEL, instances([[0, 0, 5, 4], BOXES[1]], [0.8, 0.4], [0, 1]))
    assert row.found == 2 and row.others == 1
    assert row.ious == pytest.approx(1.8) and row.scores == pytest.approx(0.3)
    text = agreement_table([row, row])
    assert text.splitlines()[-1].split() == ["all", "4", "4", "0.900", "0.150", "2"]


def test_nine_in_ten_are_enough_over_all_images():
    whole = agreement("a", MODEL, MODEL)
    half = agreement("b", MODEL, MODEL[:1])
    assert half.found == 1 and not agree([half])
    assert agree([*[whole] * 4, half]) and not agree([*[whole] * 3, half])


def test_nothing_and_nothing_agree():
    row = agreement("blank", MODEL[:0], MODEL[:0])
    assert agree([row]) and "-" in agreement_table([row])
