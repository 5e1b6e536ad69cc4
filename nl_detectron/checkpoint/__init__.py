from .checkpointer import NonLocalCheckpointer
from .reading import CheckpointError, read_checkpoint, read_config
from .report import LoadReport

__all__ = [
    "CheckpointError",
    "LoadReport",
    "NonLocalCheckpointer",
    "read_checkpoint",
    "read_config",
]
