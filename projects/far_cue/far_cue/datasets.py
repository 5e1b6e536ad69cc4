"""Registers the generated sets of the experiment, as nl_detectron does with its own."""

from nl_detectron.data import Kind, register_kind, register_splits
from nl_detectron.data.generate import PERSON, numbered

from .skirts import FIGURE_SIZE, draw_people_in_skirts
from .strips import (
    MATCHING_KEY_CLASSES,
    ONE_KEY_CLASSES,
    STRIP_SIZE,
    draw_lone_key,
    draw_matching_key,
    draw_one_key,
)

VERSION = (
    4  # to be raised whenever the drawing changes: of the sets and of what was trained on them
)

_PEOPLE = ("person_keypoints.json", [PERSON], FIGURE_SIZE, FIGURE_SIZE, VERSION)
_ONE_KEY = ("instances.json", numbered(ONE_KEY_CLASSES), STRIP_SIZE, STRIP_SIZE, VERSION)
_MATCHING_KEY = ("instances.json", numbered(MATCHING_KEY_CLASSES), STRIP_SIZE, STRIP_SIZE, VERSION)
KINDS = {
    "people_in_skirts": Kind(draw_people_in_skirts, *_PEOPLE),
    "far_cue_one_key": Kind(draw_one_key, *_ONE_KEY),
    "far_cue_lone_key": Kind(draw_lone_key, *_MATCHING_KEY),
    "far_cue_matching_key": Kind(draw_matching_key, *_MATCHING_KEY),
}

for _name, _kind in KINDS.items():
    register_kind(_name, _kind)
    register_splits(_name)
