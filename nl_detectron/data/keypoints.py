"""What the names of keypoints tell: which are left and right, and how exactly they are placed."""

import colorsys
import re
from collections.abc import Sequence

from detectron2.data.datasets.builtin_meta import COCO_PERSON_KEYPOINT_NAMES
from pycocotools.cocoeval import Params

COCO_SIGMAS = dict(
    zip(COCO_PERSON_KEYPOINT_NAMES, Params("keypoints").kpt_oks_sigmas.tolist(), strict=True)
)
# For keypoints that COCO has not: the mean of COCO's
DEFAULT_SIGMA = round(sum(COCO_SIGMAS.values()) / len(COCO_SIGMAS), 3)

# A name's words: "left_eye", "eye-L", "LeftEye", "left eye (outer)"
WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
SIDES = {"left": "right", "l": "r"}


def flip_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """The keypoints that change places in a mirrored image, left first, by their names.

    Two names are a pair if they differ in one word, which is "left" in one and "right" in the
    other, or "l" and "r".

    >>> flip_pairs(["nose", "left_eye", "right_eye", "ear-L", "ear-R"])
    [('left_eye', 'right_eye'), ('ear-L', 'ear-R')]
    """
    by_words = {tuple(word.lower() for word in WORDS.findall(name)): name for name in names}
    pairs = []
    for words, name in by_words.items():
        for index, word in enumerate(words):
            mirrored = (*words[:index], SIDES.get(word, ""), *words[index + 1 :])
            if word in SIDES and mirrored in by_words:
                pairs.append((name, by_words[mirrored]))
    return pairs


def oks_sigmas(names: Sequence[str]) -> list[float]:
    """The object keypoint similarity's sigma of each keypoint.

    It is COCO's where COCO has a keypoint of this name, and the mean of COCO's elsewhere.
    """
    return [COCO_SIGMAS.get(name, DEFAULT_SIGMA) for name in names]


def connection_rules(
    names: Sequence[str], skeleton: Sequence[Sequence[int]]
) -> list[tuple[str, str, tuple[int, int, int]]]:
    """The lines of a skeleton as Detectron2's Visualizer draws them: two names and a colour (RGB).

    Args:
        names: of the keypoints.
        skeleton: pairs of 1-based indices, as in COCO's categories.
    """
    rules = []
    for index, (start, end) in enumerate(skeleton):
        colour = colorsys.hsv_to_rgb(index / len(skeleton), 0.75, 1)
        red, green, blue = (round(255 * value) for value in colour)
        rules.append((names[start - 1], names[end - 1], (red, green, blue)))
    return rules
