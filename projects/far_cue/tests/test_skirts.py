"""What keeps the legs' place from being told by anything but the arms."""

import numpy as np
import pytest
from detectron2.data.datasets.builtin_meta import COCO_PERSON_KEYPOINT_NAMES as NAMES

from far_cue import skirts
from far_cue.measures import TOLERANCE
from far_cue.skirts import draw_people_in_skirts

NUM_IMAGES, SIZE = 100, (128, 128)
ARM = 6  # pixels below a shoulder where nothing of the arm is left
SIDES = ("left", "right")
LEGS = {f"{side}_{joint}" for side in SIDES for joint in ("hip", "knee", "ankle")}


def figure(seed, size=SIZE):
    """The keypoints by name, (x, y, visibility) each, and the box."""
    [instance] = draw_people_in_skirts(np.random.default_rng(seed), size).instances
    y, x = np.nonzero(instance.mask)
    box = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
    return dict(zip(NAMES, instance.keypoints, strict=True)), box


@pytest.fixture(scope="module")
def figures():
    return [figure([13, i]) for i in range(NUM_IMAGES)]


def raised(keypoints) -> str:
    """The side of the wrist that is seen."""
    [side] = [side for side in SIDES if keypoints[f"{side}_wrist"][2] == 2]
    return side


def test_legs_and_one_arm_are_hidden(figures):
    for keypoints, _ in figures:
        other = "right" if raised(keypoints) == "left" else "left"
        hidden = LEGS | {f"{other}_elbow", f"{other}_wrist"}
        assert {name for name in NAMES if keypoints[name][2] == 1} == hidden
        assert all(keypoints[name][2] == 2 for name in NAMES if name not in hidden)


def test_legs_sway_to_the_side_of_the_raised_arm(figures):
    directions = []
    for keypoints, _ in figures:
        side = raised(keypoints)
        ends = [(f"{side}_shoulder", f"{side}_elbow"), (f"{side}_elbow", f"{side}_wrist")]
        ends += [
            (f"{leg}_{a}", f"{leg}_{b}")
            for leg in SIDES
            for a, b in (("hip", "knee"), ("knee", "ankle"))
        ]
        [direction] = {np.sign(keypoints[b][0] - keypoints[a][0]) for a, b in ends}
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
    """With all other choices alike, only the shoulders and what is above them differ."""
    found = []
    for sides in (SIDES, SIDES[::-1]):
        rng = np.random.default_rng([15, seed])
        with monkeypatch.context() as patch:
            patch.setattr(skirts, "_sides", lambda rng, sides=sides: sides)
            [instance] = (scene := draw_people_in_skirts(rng, SIZE)).instances
        found.append((scene.image, instance.mask, instance.keypoints))
    (image, mask, keypoints), (image_2, mask_2, keypoints_2) = found
    shoulders = [NAMES.index("left_shoulder"), NAMES.index("right_shoulder")]
    first = int(keypoints[shoulders, 1].max()) + ARM
    np.testing.assert_array_equal(image[first:], image_2[first:])
    assert (image[:first] != image_2[:first]).any()
    for axis in (0, 1):
        rows, rows_2 = (np.nonzero(m.any(axis=axis))[0] for m in (mask, mask_2))
        assert (rows[0], rows[-1]) == (rows_2[0], rows_2[-1])
    ankles = [NAMES.index("left_ankle"), NAMES.index("right_ankle")]
    moved = np.abs(keypoints[ankles] - keypoints_2[ankles])[:, 0] / np.ptp(np.nonzero(mask)[0])
    assert (moved > 3 * TOLERANCE).all()  # nothing in between counts for both
