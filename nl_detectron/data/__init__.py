from . import builtin as _  # only registration
from .drawing import Instance, Scene
from .far_cue import FAR_CUE_CLASSES, draw_matching_key, draw_one_key
from .generate import KINDS, generate
from .people import PERSON_SKELETON, draw_people
from .shapes import SHAPE_CLASSES, draw_shapes

__all__ = [
    "FAR_CUE_CLASSES",
    "KINDS",
    "PERSON_SKELETON",
    "SHAPE_CLASSES",
    "Instance",
    "Scene",
    "draw_matching_key",
    "draw_one_key",
    "draw_people",
    "draw_shapes",
    "generate",
]
