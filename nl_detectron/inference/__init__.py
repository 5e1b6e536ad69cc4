from ..data.images import ImageError, read_image
from ..structures import Attention, AttentionMap
from .images import find_inputs
from .optimize import DTYPES, optimize_for_inference
from .predictor import Predictor
from .run import attention_files, predict_files

__all__ = [
    "DTYPES",
    "Attention",
    "AttentionMap",
    "ImageError",
    "Predictor",
    "attention_files",
    "find_inputs",
    "optimize_for_inference",
    "predict_files",
    "read_image",
]
