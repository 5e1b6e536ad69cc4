"""Non-local Neural Networks for Detectron2. Importing it registers its models and datasets."""

from . import data as _  # only registration
from .config import add_non_local_config
from .inference import Predictor
from .layers import NonLocalBlock
from .modeling import NonLocalKeypointHead, insert_non_local

__all__ = [
    "NonLocalBlock",
    "NonLocalKeypointHead",
    "Predictor",
    "add_non_local_config",
    "insert_non_local",
]
__version__ = "0.1.0"
