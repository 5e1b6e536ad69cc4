from .checkpointer import NonLocalCheckpointer
from .config import read_config
from .reading import CheckpointError, read_checkpoint
from .report import LoadReport
from .vocabulary import read_vocabulary

__all__ = [
    "CheckpointError",
    "LoadReport",
    "NonLocalCheckpointer",
    "read_checkpoint",
    "read_config",
    "read_vocabulary",
]
