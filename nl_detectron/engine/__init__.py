from ..errors import UsageError, usage_errors
from .launch import launch
from .lazy import build_model_of, check_lazy_cfg, load_lazy_cfg
from .setup import argument_parser, check_cfg, load_cfg
from .trainer import Trainer, build_evaluator

__all__ = [
    "Trainer",
    "UsageError",
    "argument_parser",
    "build_evaluator",
    "build_model_of",
    "check_cfg",
    "check_lazy_cfg",
    "launch",
    "load_cfg",
    "load_lazy_cfg",
    "usage_errors",
]
