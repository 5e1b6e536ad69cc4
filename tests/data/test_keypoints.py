import pytest
from detectron2.data.datasets.builtin_meta import (
    COCO_PERSON_KEYPOINT_FLIP_MAP,
    COCO_PERSON_KEYPOINT_NAMES,
)
from pycocotools.cocoeval import Params

from nl_detectron.data.keypoints import connection_rules, flip_pairs, oks_sigmas


def test_cocos_own_pairs_are_found():
    assert flip_pairs(COCO_PERSON_KEYPOINT_NAMES) == list(COCO_PERSON_KEYPOINT_FLIP_MAP)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("left_eye", "right_eye"),
        ("Left Eye", "right eye"),
        ("eyeLeft", "eyeRight"),
        ("LeftEye", "RightEye"),
        ("l_eye", "r_eye"),
        ("eye-L", "eye-R"),
        ("L2", "R2"),
        ("ear (left, tip)", "ear (right, tip)"),
    ],
)
def test_left_and_right_are_words_in_names(left, right):
    assert flip_pairs([right, "nose", left]) == [(left, right)]


@pytest.mark.parametrize(
    "names",
    [["tl", "tr"], ["lefty", "righty"], ["left_eye"], ["left_eye", "right_ear"], ["tail", "tair"]],
)
def test_what_is_no_pair_of_words_changes_no_places(names):
    assert flip_pairs(names) == []


def test_sigmas_are_cocos_by_name_and_else_their_mean():
    coco = Params("keypoints").kpt_oks_sigmas.tolist()
    assert oks_sigmas(COCO_PERSON_KEYPOINT_NAMES) == coco
    assert oks_sigmas(["nose", "tail"]) == [coco[0], round(sum(coco) / 17, 3)]


def test_lines_have_colours_of_their_own():
    rules = connection_rules(["a", "b", "c"], [(1, 2), (2, 3), (3, 1)])
    assert [(start, end) for start, end, _ in rules] == [("a", "b"), ("b", "c"), ("c", "a")]
    assert len({colour for _, _, colour in rules}) == 3
