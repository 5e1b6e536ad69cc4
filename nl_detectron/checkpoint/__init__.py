from .checkpointer import NonLocalCheckpointer
from .config import read_config
from .reading import CheckpointError, read_checkpoint
from .report import LoadReport

__all__ = [
    "CheckpointError",
    "LoadReport",
    "NonLocalCheckpointer",
    "read_checkpoint",
    "read_config",
]
