import math

import cv2
import pytest
import torch
from detectron2.structures import Boxes, Instances

from dev.benchmark.prediction import (
    differences,
    equality_table,
    make_images,
    make_sides,
    precision_table,
    throughput_table,
)

from .narrow import NARROW

DTYPES = ("float32", "bfloat16")
SMALL = ("MODEL.RESNETS.RES2_OUT_CHANNELS", 16, "MODEL.RESNETS.WIDTH_PER_GROUP", 4)
SMALL += ("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_MASK_HEAD.CONV_DIM", 16)
SMALL += ("MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", [16] * 4)
SMALL += ("SOLVER.IMS_PER_BATCH", 2, "TEST.DETECTIONS_PER_IMAGE", 10)


@pytest.mark.slow
def test_throughput_and_equality(tmp_path):
    images = make_images(tmp_path, 2)
    assert [cv2.imread(str(image)).shape for image in images] == [(480, 640, 3)] * 2
    sides = make_sides(images, 96, "cpu", DTYPES, (*NARROW, "TEST.DETECTIONS_PER_IMAGE", 20))
    table = throughput_table(sides, images, size=96, seconds=0, device="cpu")
    assert [row[0] for row in table.rows] == [
        "Detectron2's DefaultPredictor loop",
        "`Predictor.stream`, float32",
        "`Predictor.stream`, bfloat16",
    ]
    assert [row[2:] for row in table.rows][0] == ("1.00", "")
    assert [row[3] for row in table.rows] == ["", "≥ 1.5", "≥ 2.0"]
    found = {row[0]: row[1] for row in equality_table(sides, images).rows}
    stock, ours = found["detections, Detectron2's / ours"].split(" / ")
    assert stock == ours and int(stock) > 20
    assert float(found["largest difference of a box, pixels"]) < 0.01
    assert float(found["largest difference of a score"]) < 1e-4
    assert float(found["share of masks' pixels that differ"]) < 0.01


@pytest.mark.slow
def test_precision(tmp_path):
    sizes = {"iterations": 1, "num_images": (8, 2)}
    table = precision_table(**sizes, device="cpu", dtypes=DTYPES, opts=SMALL)
    tasks = [("shapes", "bbox"), ("shapes", "segm")]
    tasks += [("people", "bbox"), ("people", "segm"), ("people", "keypoints")]
    assert sorted(row[:2] for row in table.rows) == sorted(tasks)
    for row in table.rows:
        stock, _, half = map(float, row[2:5])
        assert float(row[5]) == pytest.approx(half - stock, abs=0.011)


def instances(boxes: list[list[float]], scores: list[float]) -> Instances:
    return Instances(
        (10, 10),
        pred_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)),
        scores=torch.tensor(scores),
        pred_classes=torch.zeros(len(boxes), dtype=torch.int64),
        pred_masks=torch.ones(len(boxes), 10, 10, dtype=torch.bool),
    )


def test_differences():
    one, two = [0.0, 0, 5, 5], [2.0, 2, 9, 9]
    expected = instances([one, two], [0.9, 0.8])
    assert differences(expected, expected) == (0, 0, 0)
    moved = instances([[2.0, 2, 9, 8.75], one], [0.75, 0.9])  # in another order
    moved.pred_masks[0, 0] = False
    box, score, share = differences(expected, moved)
    assert (box, score, share) == pytest.approx((0.25, 0.05, 0.05))
    assert differences(expected, instances([one], [0.9])) == (math.inf,) * 3
    assert differences(expected, instances([one, one], [0.9, 0.8])) == (math.inf,) * 3
    empty = instances([], [])
    assert differences(empty, empty) == (0, 0, 0)
