"""What counts as the same detections."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from nl_detectron.export.parity import check_images, difference, generated_images, table


def instances(boxes, scores, classes, masks=None, keypoints=None) -> Instances:
    found = Instances((20, 20), pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32)))
    found.scores, found.pred_classes = torch.tensor(scores), torch.tensor(classes)
    if masks is not None:
        found.pred_masks = masks
    if keypoints is not None:
        found.pred_keypoints = keypoints
    return found


BOXES = [[0, 0, 5, 5], [4, 4, 9, 9]]
SAME = instances(BOXES, [0.9, 0.5], [0, 1])


@pytest.mark.parametrize(
    ("other", "passes"),
    [
        (SAME, True),
        (instances([[0, 0, 5, 5.005], BOXES[1]], [0.9, 0.5], [0, 1]), True),
        (instances([[0, 0, 5, 5.02], BOXES[1]], [0.9, 0.5], [0, 1]), False),
        (instances(BOXES, [0.9, 0.50005], [0, 1]), True),
        (instances(BOXES, [0.9, 0.5002], [0, 1]), False),
        (instances(BOXES, [0.9, 0.5], [0, 2]), False),
        (instances(BOXES[:1], [0.9], [0]), False),
    ],
)
def test_what_passes(other, passes):
    assert difference("image", SAME, other).passes is passes


def test_equal_scores_have_no_order():
    one = instances(BOXES, [0.5, 0.5], [1, 1])
    assert difference("image", one, one[[1, 0]]).boxes == 0


def test_masks_and_keypoints():
    masks = torch.zeros(2, 20, 20, dtype=torch.bool)
    masks[0, :10] = True
    moved = masks.clone()
    moved[0, 9, :4] = False
    points = torch.rand(2, 3, 3)
    one = instances(BOXES, [0.9, 0.5], [0, 1], masks, points)
    other = instances(BOXES, [0.9, 0.5], [0, 1], moved, points + torch.tensor([0.02, 0, 5]))
    found = difference("image", one, other)
    assert found.masks == pytest.approx(0.98)
    assert found.keypoints == pytest.approx(0.02, abs=1e-6)
    assert not found.passes


def test_nothing_and_nothing_are_the_same():
    found = difference("blank", SAME[:0], SAME[:0])
    assert found.passes and found.boxes is None
    assert "blank" in table([found]) and "ok" in table([found])


def test_images_have_other_sizes_and_one_is_blank():
    (image,) = generated_images(people=True, count=1)
    assert image.shape == (160, 160, 3) and image.dtype == np.uint8
    images = check_images([image])
    sizes = {checked.shape[:2] for _, checked in images}
    assert len(sizes) == len(images) == 4 and image.shape[:2] not in sizes
    assert not images[-1][1].any()
