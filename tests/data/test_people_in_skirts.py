"""What keeps the legs' place from being told by anything but the arms."""

from nl_detectron.data import draw_people_in_skirts, people
from nl_detectron.evidence.measures import TOLERANCE

import numpy as np
import pytest
from detectron2.data.datasets.builtin_meta import COCO_PERSON_KEYPOINT_NAMES as NAMES

NUM_IMAGES, SIZE = 100, (128, 128)
HIDDEN = [f"{side}_{joint}" for side in ("left", "right") for joint in ("hip", "knee", "ankle")]


def figure(seed, size=SIZE):
    """The keypoints by name, (x, y, visibility) each, and the box."""
    [instance] = draw_people_in_skirts(np.random.default_rng(seed), size).instances
    y, x = np.nonzero(instance.mask)
    box = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
    return dict(zip(NAMES, instance.keypoints, strict=True)), box


@pytest.fixture(scope="module")
def figures():
    return [figure([13, i]) for i in range(NUM_IMAGES)]


def lean(keypoints, joint, end) -> list[int]:
    """To which side of the image, -1 or 1, both limbs point from their joint to their end."""
    sides = ("left", "right")
    steps = [keypoints[f"{side}_{end}"][0] - keypoints[f"{side}_{joint}"][0] for side in sides]
    return np.sign(steps).tolist()


def test_legs_alone_are_hidden(figures):
    for keypoints, _ in figures:
        assert {name for name in NAMES if keypoints[name][2] == 1} == set(HIDDEN)
        assert all(keypoints[name][2] == 2 for name in NAMES if name not in HIDDEN)


def test_legs_point_where_forearms_do(figures):
    directions = []
    for keypoints, _ in figures:
        limbs = ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle")
        [direction] = {side for joint, end in limbs for side in lean(keypoints, joint, end)}
        directions.append(direction)
    assert 0.4 < np.mean(np.array(directions) == 1) < 0.6


@pytest.mark.parametrize("size", [SIZE, (200, 150)])
def test_figures_are_whole_and_their_boxes_hold_all_limbs(size):
    for i in range(NUM_IMAGES // 4):
        keypoints, (x0, y0, x1, y1) = figure([14, i], size)
        assert min(x0, y0) > 0 and x1 < size[1] and y1 < size[0]
        for x, y, _ in keypoints.values():
            assert x0 < x < x1 - 1 and y0 < y < y1 - 1


@pytest.mark.parametrize("seed", range(20))
def test_boxes_and_what_is_below_the_arms_are_the_same_for_both_sides(seed, monkeypatch):
    """With all other choices alike, only the forearms differ."""
    found = {}
    limbs = people._swaying_limbs
    for direction in (-1, 1):

        def both_to_one_side(rng, side, out, sway, direction=direction):
            return limbs(rng, side, out, direction * out)

        monkeypatch.setattr(people, "_swaying_limbs", both_to_one_side)
        rng = np.random.default_rng([15, seed])
        scene = draw_people_in_skirts(rng, SIZE)
        [instance] = scene.instances
        found[direction] = scene.image, instance.mask, instance.keypoints
    (image, mask, keypoints), (image_2, mask_2, keypoints_2) = found.values()
    forearms = int(keypoints[[NAMES.index("left_elbow"), NAMES.index("right_elbow")], 1].max()) + 6
    np.testing.assert_array_equal(image[forearms:], image_2[forearms:])
    assert (image[:forearms] != image_2[:forearms]).any()
    for axis in (0, 1):
        rows, rows_2 = (np.nonzero(m.any(axis=axis))[0] for m in (mask, mask_2))
        assert (rows[0], rows[-1]) == (rows_2[0], rows_2[-1])
    ankles = [NAMES.index("left_ankle"), NAMES.index("right_ankle")]
    moved = np.abs(keypoints[ankles] - keypoints_2[ankles])[:, 0] / np.ptp(np.nonzero(mask)[0])
    assert (moved > 3 * TOLERANCE).all()  # nothing in between counts for both
