import functools

import cv2
import numpy as np
import pytest

from far_cue.strips import (
    BLACK,
    CUES,
    GREEN,
    KEY_ZONE,
    MATCHING_KEY_CLASSES,
    ONE_KEY_CLASSES,
    RED,
    STRIP_SIZE,
    TARGET_ZONE,
    WHITE,
    draw_lone_key,
    draw_matching_key,
    draw_one_key,
)

NUM_IMAGES = 120
DRAW = {"one_key": draw_one_key, "lone_key": draw_lone_key, "matching_key": draw_matching_key}
COLOURS = list(CUES.values())


def columns(instance) -> tuple[int, int]:
    x = np.nonzero(instance.mask.any(axis=0))[0]
    return x.min(), x.max()


def nearest(colour, colours) -> int:
    """The index of the colour, of several in BGR, that is most like this one."""
    return int(np.argmin([np.linalg.norm(colour - np.array(c)) for c in colours]))


def core(scene, key) -> int:
    """The index in CUES of the colour in a key's middle."""
    y, x = (round(np.mean(axis)) for axis in np.nonzero(key.mask))
    return nearest(scene.image[y - 2 : y + 3, x - 2 : x + 3].mean(axis=(0, 1)), COLOURS)


def rim(scene, key, colours) -> int:
    """The index of the colour at a key's left border."""
    y, x = np.nonzero(key.mask)
    return nearest(scene.image[round(y.mean()), x.min() + 2 : x.min() + 4].mean(axis=0), colours)


@pytest.fixture(scope="module")
def scenes():
    """Draws a kind at a size once, for all tests that look at it."""

    @functools.cache
    def drawn(kind, size):
        names = ONE_KEY_CLASSES if kind == "one_key" else MATCHING_KEY_CLASSES
        num_key_classes = sum(name.startswith("key") for name in names)
        found = []
        for i in range(NUM_IMAGES):
            scene = DRAW[kind](np.random.default_rng([11, i]), size)
            keys = [x for x in scene.instances if x.category_id <= num_key_classes]
            targets = [x for x in scene.instances if x.category_id > num_key_classes]
            found.append((scene, keys, targets))
        return found

    return lambda kind, size=STRIP_SIZE: drawn(kind, size)


@pytest.mark.parametrize("size", [STRIP_SIZE, (97, 410)])
@pytest.mark.parametrize("kind", DRAW)
def test_keys_and_targets_are_at_opposite_ends(kind, size, scenes):
    mirrored = 0
    for _, keys, targets in scenes(kind, size):
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


def test_one_key_tells_the_class_of_all_targets(scenes):
    answers = []
    for scene, keys, targets in scenes("one_key"):
        [key] = keys
        assert rim(scene, key, (RED, GREEN)) == key.category_id - 1
        assert 2 <= len(targets) <= 4
        assert {target.category_id for target in targets} == {key.category_id + 2}
        for target in targets:
            assert np.ptp(scene.image[target.mask].mean(axis=0)) < 12  # white or grey
        answers.append(key.category_id)
    assert 0.35 < np.mean(np.array(answers) == 1) < 0.65


class OtherAnswer:
    """A generator's choices but for the one among two answers."""

    def __init__(self, seed: list[int]):
        self._rng = np.random.default_rng(seed)

    def __getattr__(self, name: str):
        return getattr(self._rng, name)

    def integers(self, *limits: int) -> int:
        drawn = self._rng.integers(*limits)
        return 1 - drawn if limits == (2,) else drawn


def test_nothing_but_the_key_tells_the_answer(scenes):
    """The same strip with the other answer differs within the key alone, pixel for pixel.

    So who does not see that far is at chance, as test_receptive_field.py finds of models.
    """
    for i, (scene, [key], targets) in enumerate(scenes("one_key")):
        other = draw_one_key(OtherAnswer([11, i]), STRIP_SIZE)
        assert [x.category_id for x in other.instances] == [
            x.category_id + (1 if key.category_id == 1 else -1) for x in (key, *targets)
        ]
        differs = (scene.image != other.image).any(axis=2)
        assert differs.any() and not (differs & ~dilated(key.mask)).any()


def dilated(mask: np.ndarray) -> np.ndarray:
    """With the pixels beside it, which may be covered in part."""
    return cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)


@pytest.mark.parametrize("kind", ["lone_key", "matching_key"])
def test_a_target_has_the_answer_of_the_key_whose_core_has_its_colour(kind, scenes):
    told, cues, uppers = [], [], []
    for scene, keys, targets in scenes(kind):
        answers = {}
        for key in keys:
            cue, answer = core(scene, key), rim(scene, key, (WHITE, BLACK))
            expected = f"key_{list(CUES)[cue]}_{'ab'[answer]}"
            assert MATCHING_KEY_CLASSES[key.category_id - 1] == expected
            answers[cue] = answer
        assert len(answers) == len(keys)
        if kind == "matching_key":
            assert sorted(answers.values()) == [0, 0, 1, 1]  # their average is always the same
            upper = [key for key in keys if key.mask[: len(key.mask) // 2].any()]
            uppers += [answers[core(scene, key)] for key in upper]
        assert 2 <= len(targets) <= 4
        for target in targets:
            cue = nearest(scene.image[target.mask].mean(axis=0), COLOURS)
            expected = f"target_{list(CUES)[cue]}_{'ab'[answers[cue]]}"
            assert MATCHING_KEY_CLASSES[target.category_id - 1] == expected
            told.append(answers[cue])
            cues.append((cue, answers[cue]))
    # Neither a colour nor a place gives the answer away.
    assert 0.4 < np.mean(told) < 0.6
    if uppers:
        assert 0.4 < np.mean(uppers) < 0.6
    counts = np.array([[cues.count((cue, answer)) for answer in (0, 1)] for cue in range(4)])
    assert (counts / counts.sum(axis=1, keepdims=True)).min() > 0.3


@pytest.mark.parametrize("kind", DRAW)
def test_nothing_is_hidden(kind, scenes):
    for _, keys, targets in scenes(kind):
        for instance in keys + targets:
            y, x = np.nonzero(instance.mask)
            assert 10 <= np.ptp(x) + 1 <= 46 and abs(np.ptp(x) - np.ptp(y)) <= 8
