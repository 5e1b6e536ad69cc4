from .arguments import add_file_arguments, add_model_arguments, predictor_from
from .attention import Attention, AttentionMap, attention
from .images import ImageError, find_inputs, read_image
from .optimize import optimize_for_inference
from .predictor import Predictor
from .run import attention_files, predict_files

__all__ = [
    "Attention",
    "AttentionMap",
    "ImageError",
    "Predictor",
    "add_file_arguments",
    "add_model_arguments",
    "attention",
    "attention_files",
    "find_inputs",
    "optimize_for_inference",
    "predict_files",
    "predictor_from",
    "read_image",
]
