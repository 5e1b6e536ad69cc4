from . import builtin as _  # only registration
from .drawing import Instance, Scene
from .generate import KINDS, generate
from .people import PERSON_SKELETON, draw_people
from .shapes import SHAPE_CLASSES, draw_shapes

__all__ = [
    "KINDS",
    "PERSON_SKELETON",
    "SHAPE_CLASSES",
    "Instance",
    "Scene",
    "draw_people",
    "draw_shapes",
    "generate",
]
