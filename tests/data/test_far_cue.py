from nl_detectron.data import draw_matching_key, draw_one_key
from nl_detectron.data.far_cue import (
    FAR_CUE_SIZE,
    GREEN,
    KEY_ZONE,
    PALETTE,
    RED,
    TARGET_ZONE,
)

import numpy as np
import pytest

NUM_IMAGES = 120
DRAW = {"one_key": draw_one_key, "matching_key": draw_matching_key}


def columns(instance) -> tuple[int, int]:
    x = np.nonzero(instance.mask.any(axis=0))[0]
    return x.min(), x.max()


def nearest(colour, colours) -> int:
    """The index of the colour, of several in BGR, that is most like this one."""
    return int(np.argmin([np.linalg.norm(colour - np.array(c)) for c in colours]))


def core(scene, key) -> int:
    """The index in PALETTE of the colour in a key's middle."""
    y, x = (round(np.mean(axis)) for axis in np.nonzero(key.mask))
    return nearest(scene.image[y - 2 : y + 3, x - 2 : x + 3].mean(axis=(0, 1)), PALETTE)


def rim(scene, key) -> int:
    """0 for a key that is red at its left border, 1 for a green one."""
    y, x = np.nonzero(key.mask)
    return nearest(
        scene.image[round(y.mean()), x.min() + 2 : x.min() + 5].mean(axis=0), (RED, GREEN)
    )


def scenes(difficulty, size=FAR_CUE_SIZE):
    for i in range(NUM_IMAGES):
        scene = DRAW[difficulty](np.random.default_rng([11, i]), size)
        keys = [x for x in scene.instances if x.category_id <= 2]
        yield scene, keys, [x for x in scene.instances if x.category_id > 2]


@pytest.mark.parametrize("size", [FAR_CUE_SIZE, (97, 410)])
@pytest.mark.parametrize("difficulty", DRAW)
def test_keys_and_targets_are_at_opposite_ends(difficulty, size):
    mirrored = 0
    for _, keys, targets in scenes(difficulty, size):
        start = columns(keys[0])[0] < size[1] / 2
        mirrored += not start
        for instances, zone, at_start in (
            (keys, KEY_ZONE, start),
            (targets, TARGET_ZONE, not start),
        ):
            for instance in instances:
                low, high = columns(instance)
                assert high < zone if at_start else low >= size[1] - zone
    assert 0.35 < mirrored / NUM_IMAGES < 0.65


def test_one_key_tells_the_class_of_all_targets():
    answers = []
    for scene, keys, targets in scenes("one_key"):
        [key] = keys
        assert rim(scene, key) == key.category_id - 1  # red is a, green is b
        assert 2 <= len(targets) <= 4
        assert {target.category_id for target in targets} == {key.category_id + 2}
        for target in targets:
            assert np.ptp(scene.image[target.mask].mean(axis=0)) < 12  # white or grey
        answers.append(key.category_id)
    assert 0.35 < np.mean(np.array(answers) == 1) < 0.65


def test_matching_keys_tell_the_class_of_targets_in_the_colour_of_their_core():
    classes, places, colours = [], [], []
    for scene, keys, targets in scenes("matching_key"):
        assert sorted(key.category_id for key in keys) == [1, 2]  # always one of each
        assert all(rim(scene, key) == key.category_id - 1 for key in keys)
        by_core = {core(scene, key): key for key in keys}
        assert len(by_core) == 2
        for target in targets:
            matching = by_core[nearest(scene.image[target.mask].mean(axis=0), PALETTE)]
            assert target.category_id == matching.category_id + 2
            classes.append(target.category_id)
        rows = {key.category_id: np.nonzero(key.mask)[0].mean() for key in keys}
        places.append(rows[1] < rows[2])
        colours += [colour for colour, key in by_core.items() if key.category_id == 1]
    # Neither the class alone nor place or core of a key gives the answer away.
    assert 0.4 < np.mean(np.array(classes) == 3) < 0.6
    assert 0.35 < np.mean(places) < 0.65
    assert min(np.bincount(colours, minlength=len(PALETTE))) > 0.12 * NUM_IMAGES


@pytest.mark.parametrize("difficulty", DRAW)
def test_nothing_is_hidden(difficulty):
    for _, keys, targets in scenes(difficulty):
        for instance in keys + targets:
            y, x = np.nonzero(instance.mask)
            assert 10 <= np.ptp(x) + 1 <= 46 and abs(np.ptp(x) - np.ptp(y)) <= 8
