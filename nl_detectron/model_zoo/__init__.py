"""The configs of nl_detectron by name, as ``detectron2.model_zoo`` has those of Detectron2."""

from .catalog import get, get_config, get_config_file, list_configs

__all__ = ["get", "get_config", "get_config_file", "list_configs"]
