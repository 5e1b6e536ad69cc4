"""Trained detectors as files of other runtimes, and such files in a model's place."""

from .export import Export, export_model
from .model import ExportedModel
from .parity import table
from .quantize import MOST_IMAGES
from .record import FORMATS
from .runtimes import is_exported

__all__ = [
    "FORMATS",
    "MOST_IMAGES",
    "Export",
    "ExportedModel",
    "export_model",
    "is_exported",
    "table",
]
