from . import builtin as _  # only registration
from .builtin import register_generated, register_splits
from .drawing import Instance, Scene
from .generate import KINDS, Kind, generate, register_kind
from .images import ImageError, read_image
from .mapper import ImageMapper
from .own import register_coco
from .people import PERSON_SKELETON, draw_people
from .shapes import SHAPE_CLASSES, draw_shapes

__all__ = [
    "KINDS",
    "ImageError",
    "ImageMapper",
    "PERSON_SKELETON",
    "SHAPE_CLASSES",
    "Instance",
    "Kind",
    "Scene",
    "draw_people",
    "draw_shapes",
    "generate",
    "read_image",
    "register_coco",
    "register_generated",
    "register_kind",
    "register_splits",
]
