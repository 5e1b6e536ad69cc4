from ..errors import UsageError, usage_errors
from .launch import launch
from .setup import argument_parser, check_cfg, load_cfg
from .trainer import Trainer, build_evaluator

__all__ = [
    "Trainer",
    "UsageError",
    "argument_parser",
    "build_evaluator",
    "check_cfg",
    "launch",
    "load_cfg",
    "usage_errors",
]
