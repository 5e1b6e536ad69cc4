from .launch import launch
from .setup import UsageError, check_cfg, load_cfg, usage_errors
from .trainer import Trainer, build_evaluator

__all__ = [
    "Trainer",
    "UsageError",
    "build_evaluator",
    "check_cfg",
    "launch",
    "load_cfg",
    "usage_errors",
]
