import json
import math

import numpy as np
import pytest
from detectron2.data.datasets.builtin_meta import COCO_PERSON_KEYPOINT_NAMES as NAMES

from far_cue import measures


def truth(*annotations):
    keys = ("image_id", "category_id", "bbox")
    names = ("key", "target_x_a", "target_x_b", "target_y_a", "target_y_b")
    return {
        "annotations": [dict(zip(keys, a, strict=True)) for a in annotations],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, start=1)],
    }


def detection(image_id, category_id, bbox, score):
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}


def test_target_accuracy_in_closed_form():
    box, other = [10, 10, 20, 20], [50, 10, 20, 20]
    targets = truth((1, 2, box), (1, 3, other), (2, 3, box), (2, 1, other))
    assert measures.target_accuracy(targets, [])[1] == 0
    assert math.isnan(measures.target_accuracy(targets, [])[0])
    found = [
        detection(1, 4, [11, 10, 20, 20], 0.9),  # the right answer, a, though of another colour
        detection(1, 3, box, 0.8),  # wrong, but of a lower score
        detection(1, 2, other, 0.6),  # wrong
        detection(2, 3, [24, 10, 20, 20], 0.9),  # too far off: an IoU of 0.18
        detection(2, 1, box, 0.99),  # of a key: says nothing of the target
    ]
    assert measures.target_accuracy(targets, found) == (1 / 2, 2 / 3)
    found.append(detection(2, 3, box, 0.1))
    assert measures.target_accuracy(targets, found) == (2 / 3, 1)


def test_curves_are_read(tmp_path):
    figures = {"key_a": 80.0, "key_b": 90.0, "target_a": math.nan, "target_b": 10.0}
    records = [
        {"iteration": 19, "total_loss": 1.0},
        {"iteration": 199, **{f"bbox/AP-{name}": value for name, value in figures.items()}},
    ]
    file = tmp_path / "metrics.json"
    file.write_text("\n".join(map(json.dumps, records)))
    assert measures.read_curve(file, list(figures)) == [(199, 5.0, 85.0)]


def person(image_id, moved=None, **values):
    """A figure in a box 100 high, all joints at (50, 50) and visible but the hidden legs'."""
    keypoints = np.full((17, 3), (50.0, 50.0, 2.0))
    keypoints[NAMES.index("left_hip") :, 2] = 1
    for name, offset in (moved or {}).items():
        keypoints[NAMES.index(name), :2] += offset
    figure = {"image_id": image_id, "bbox": [0, 0, 60, 100], "category_id": 1}
    return figure | {"keypoints": keypoints.ravel().tolist()} | values


def test_joints_placed_in_closed_form():
    figures = {"annotations": [person(1), person(2)], "categories": [{"keypoints": list(NAMES)}]}
    assert measures.joints_placed(figures, [])[2] == 0
    assert all(map(math.isnan, measures.joints_placed(figures, [])[:2]))
    one = [
        person(1, {"left_ankle": (6, 8), "right_ankle": (6, 8.1), "nose": (0, -11)}, score=0.9),
        person(1, score=0.8),  # right in all, but of a lower score
        person(2, bbox=[70, 0, 60, 100], score=0.9),  # elsewhere
    ]
    assert measures.joints_placed(figures, one) == (1 / 2, 10 / 11, 1 / 2)
    # A knee is hidden, too, but it is not asked for.
    two = [*one, person(2, {"left_knee": (40, 0), "left_wrist": (40, 0)}, score=0.1)]
    assert measures.joints_placed(figures, two) == (3 / 4, 20 / 22, 1)


def test_what_is_read_of_hidden_legs(tmp_path):
    figures = {"annotations": [person(1)], "categories": [{"keypoints": list(NAMES)}]}
    file = tmp_path / "metrics.json"
    records = [{"iteration": 9, "keypoints/AP": math.nan}, {"iteration": 14, "total_loss": 1.0}]
    records.append({"iteration": 19, "keypoints/AP": 70.0})
    file.write_text("\n".join(map(json.dumps, records)))
    result = measures.JOINTS.read(figures, [person(1, score=1.0)], file)
    assert result["curve"] == [(9, 0.0), (19, 70.0)] and result["keypoint_AP"] == 70
    assert result["hidden_placed"] == result["visible_placed"] == result["figures_found"] == 100


@pytest.mark.parametrize("measure", [measures.TARGETS, measures.JOINTS])
def test_the_answer_is_a_column(measure):
    assert measure.answer in measure.columns and measure.answer.endswith("%")
