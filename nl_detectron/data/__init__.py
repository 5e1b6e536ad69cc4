from . import builtin as _  # only registration
from .drawing import Instance, Scene
from .far_cue import (
    MATCHING_KEY_CLASSES,
    ONE_KEY_CLASSES,
    draw_lone_key,
    draw_matching_key,
    draw_one_key,
)
from .generate import KINDS, generate
from .people import PERSON_SKELETON, draw_people, draw_people_in_skirts
from .shapes import SHAPE_CLASSES, draw_shapes

__all__ = [
    "KINDS",
    "MATCHING_KEY_CLASSES",
    "ONE_KEY_CLASSES",
    "PERSON_SKELETON",
    "SHAPE_CLASSES",
    "Instance",
    "Scene",
    "draw_lone_key",
    "draw_matching_key",
    "draw_one_key",
    "draw_people",
    "draw_people_in_skirts",
    "draw_shapes",
    "generate",
]
