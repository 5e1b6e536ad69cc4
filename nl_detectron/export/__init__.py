"""Trained detectors as files of other runtimes, and such files in a model's place."""

from .export import FORMATS, Export, export_model
from .model import ExportedModel
from .parity import table
from .runtimes import is_exported

__all__ = ["FORMATS", "Export", "ExportedModel", "export_model", "is_exported", "table"]
