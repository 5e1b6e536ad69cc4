"""Configs and models by name."""

from importlib import import_module
from pathlib import Path

import torch
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_model
from omegaconf import DictConfig
from torch import nn

from ..checkpoint import NonLocalCheckpointer
from ..config import add_non_local_config
from ..errors import closest

# A folder beside the package in a clone, and inside of it where it is installed
_CONFIGS = Path(import_module("nl_detectron.configs").__path__[0]).resolve()


def list_configs() -> list[str]:
    """The names of all configs: YAML and LazyConfigs (``.py``), without the bases of others."""
    files = (file for suffix in ("yaml", "py") for file in _CONFIGS.glob(f"*/*.{suffix}"))
    return sorted(
        file.relative_to(_CONFIGS).as_posix() for file in files if not file.name.startswith("Base")
    )


def get_config_file(config_path: str) -> str:
    """The path of a config file.

    Args:
        config_path: relative to ``configs/``, such as
            ``"COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_nl_1x.yaml"``.

    Raises:
        RuntimeError: if there is none of that name; it names the closest ones.
    """
    file = _CONFIGS / config_path
    if not file.is_file():

        def shown(name: str) -> str:
            # Folder and ending count only where they were given.
            name = name if "/" in config_path else name.rpartition("/")[2]
            return name if config_path.endswith((".yaml", ".py")) else name.rpartition(".")[0]

        names = {shown(name): name for name in list_configs()}
        found = [names[name] for name in closest(config_path, names, cutoff=0)]
        raise RuntimeError(
            f"{config_path} is not in the model zoo of nl_detectron; the closest are "
            f"{', '.join(found)}. nl_detectron.model_zoo.list_configs() names all"
        )
    return str(file)


def get_config(config_path: str, trained: bool = False) -> CfgNode | DictConfig:
    """A config, with the keys of nl_detectron.

    Args:
        config_path: see :func:`get_config_file`.
        trained: start from trained weights. There are some for those configs only that are
            Detectron2's own; of the others none has been published.

    Raises:
        RuntimeError: if there is no such config, or no trained weights for it.
    """
    file = get_config_file(config_path)
    url = None
    if trained:
        from detectron2 import model_zoo  # here, since it warns of its own use of pkg_resources

        url = model_zoo.get_checkpoint_url(config_path)
    if file.endswith(".py"):
        cfg = LazyConfig.load(file)
        if url:
            cfg.train.init_checkpoint = url
        return cfg
    cfg = get_cfg()
    add_non_local_config(cfg)
    cfg.merge_from_file(file)
    if url:
        cfg.MODEL.WEIGHTS = url
    return cfg


def get(config_path: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """A model with the weights that its config names, in training mode.

    Args:
        config_path: see :func:`get_config_file`.
        trained: see :func:`get_config`.
        device: by default the config's where there is CUDA, and the CPU elsewhere.

    Raises:
        RuntimeError: if there is no such config, or no trained weights for it.
    """
    cfg = get_config(config_path, trained)
    if device is None and not torch.cuda.is_available():
        device = "cpu"
    if isinstance(cfg, CfgNode):
        cfg.MODEL.DEVICE = device or cfg.MODEL.DEVICE
        model, weights = build_model(cfg), cfg.MODEL.WEIGHTS
    else:
        model, weights = instantiate(cfg.model), cfg.train.init_checkpoint
        model.to(device or cfg.train.device)
    NonLocalCheckpointer(model).load(weights)
    return model
