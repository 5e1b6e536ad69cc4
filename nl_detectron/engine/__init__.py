from .checks import check_cfg, check_lazy_cfg
from .config import cfg_from_text, load_cfg, load_lazy_cfg
from .launch import launch
from .lazy import build_model_of
from .trainer import Trainer

__all__ = [
    "Trainer",
    "build_model_of",
    "cfg_from_text",
    "check_cfg",
    "check_lazy_cfg",
    "launch",
    "load_cfg",
    "load_lazy_cfg",
]
