"""From a file and options to a config."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import detectron2
import torch
import yaml
from detectron2.config import CfgNode, LazyConfig, get_cfg
from detectron2.config.compat import guess_version
from detectron2.utils.file_io import PathManager
from omegaconf import DictConfig

from ..checkpoint import read_config
from ..checkpoint.safety.texts import read_yaml
from ..config import add_non_local_config, renamed_keys, renamed_options
from ..errors import UsageError, did_you_mean
from ..log import logger
from ..model_zoo import get_config_file
from .own_data import follow_datasets, follow_datasets_lazily
from .stored import check_stored

# What Detectron2's default_setup, or our train(), reads from `train` although
# configs/common/train.py lacks it
OPTIONAL_TRAIN_KEYS = (
    "seed",
    "cudnn_benchmark",
    "float32_precision",
    "accumulate",
    "model_ema",
    "best_metric",
    "early_stopping_patience",
    "checkpoint_on_error",
)


def load_cfg(
    config_file: str | Path | None,
    opts: Sequence[str] = (),
    *,
    datasets: Sequence[tuple[str, str, str]] = (),
    trust: bool = False,
) -> CfgNode:
    """A YAML config with options on top of it, frozen.

    ``MODEL.DEVICE`` is ``cuda`` where there is CUDA and ``cpu`` elsewhere, unless the file or the
    options say otherwise.

    Args:
        config_file: a path, or a name of :mod:`nl_detectron.model_zoo`; nothing for Detectron2's
            defaults.
        opts: ``KEY VALUE`` pairs.
        datasets: added to ``DATASETS.OWN``: name, annotation file and folder of images of each.
            Own datasets are registered, and the config follows them; see
            :func:`.own_data.follow_datasets`.
        trust: run what Python tags in the file tell to.

    Raises:
        UsageError: if the file or a key does not exist, a value has the wrong type, or an own
            dataset cannot be used.
    """
    cfg = _default_cfg()
    if config_file:
        file = resolve_config_file(str(config_file))
        if file.endswith(".py"):
            raise UsageError(
                f"config_file {file} is a LazyConfig: use tools/lazyconfig_train_net.py",
                arguments=["config_file"],
            )
        trust = trust or _is_detectron2s(file)
        _merge(cfg, file, lambda: _merge_file(cfg, file, trust))
    _merge_options(cfg, opts)
    follow_datasets(cfg, datasets, said=opts[::2])
    cfg.freeze()
    return cfg


def cfg_from_text(
    text: str, opts: Sequence[str] = (), *, source: str, trust: bool = False
) -> CfgNode:
    """The same of a config in memory, complete and in YAML, such as the one in a checkpoint.

    Args:
        source: where it is from, for errors.
    """
    cfg = _default_cfg()

    def merge() -> None:
        cfg.merge_from_other_cfg(_today(read_yaml(text, trust=trust)))

    _merge(cfg, source, merge)
    _merge_options(cfg, opts)
    cfg.freeze()
    return cfg


def cfg_of_weights(
    weights: str, config: str | Path | None = None, opts: Sequence[str] = (), *, trust: bool = False
) -> CfgNode:
    """The config of a model: the file given, or else what is kept with the weights.

    Args:
        weights: a checkpoint's path or address.
        config: as for :func:`load_cfg`.
        opts: ``KEY VALUE`` pairs that override it.
        trust: execute what the files tell to.

    Raises:
        UsageError: if there is none, or it cannot be read.
    """
    if config is not None:
        return load_cfg(config, opts, trust=trust)
    text = read_config(weights, trust=trust)
    if text is None:
        raise UsageError(
            f"which config are {weights} of? Give config_file: there is none inside the file, nor "
            "a config.yaml beside it, where training writes it",
            arguments=["config_file"],
        )
    source = f"config of {Path(weights).name}"
    cfg = cfg_from_text(text, opts, source=source, trust=trust)
    if not trust and os.path.isfile(weights):
        check_stored(cfg, weights, source=source)
    return cfg


def load_lazy_cfg(
    config_file: str | Path,
    overrides: Sequence[str] = (),
    *,
    datasets: Sequence[tuple[str, str, str]] = (),
) -> DictConfig:
    """A LazyConfig with ``key=value`` overrides on top of it.

    ``train.device`` becomes ``cpu`` where there is no CUDA, unless an override sets it.

    Args:
        config_file: a path, or a name of :mod:`nl_detectron.model_zoo`.
        datasets: as for :func:`load_cfg`; see :func:`.own_data.follow_datasets_lazily`.

    Raises:
        UsageError: if the file does not exist or is no LazyConfig, if an override names a key that
            nothing reads, or if an own dataset cannot be used.
    """
    file = resolve_config_file(str(config_file))
    if not file.endswith(".py"):
        raise UsageError(
            f"config_file {file!r} is no LazyConfig (a .py file); for YAML configs use "
            "tools/train_net.py",
            arguments=["config_file"],
        )
    try:
        cfg = LazyConfig.load(file)
        for override in overrides:
            _check_override(cfg, override)
        cfg = LazyConfig.apply_overrides(cfg, list(overrides))
    except UsageError:
        raise
    except Exception as error:  # a config is code, and hydra's grammar has errors of its own
        message = " ".join(str(error).split())
        raise UsageError(f"cannot read the config from {file}: {message}") from error
    missing = [key for key in ("model", "dataloader", "train") if key not in cfg]
    if missing:
        raise UsageError(f"{file} does not define {', '.join(missing)}")
    if not torch.cuda.is_available() and not any(o.startswith("train.device=") for o in overrides):
        cfg.train.device = "cpu"
    follow_datasets_lazily(cfg, datasets, said=[o.partition("=")[0] for o in overrides])
    return cfg


def resolve_config_file(config_file: str) -> str:
    """The path of a config, which a name of our model zoo stands for.

    Raises:
        UsageError: if there is neither such a file nor such a config in the zoo.
    """
    if not config_file or PathManager.isfile(config_file):
        return config_file
    try:
        return get_config_file(config_file)
    except RuntimeError as error:
        raise UsageError(
            f"config_file {config_file} does not exist, and {error}", arguments=["config_file"]
        ) from None


def _default_cfg() -> CfgNode:
    cfg = get_cfg()
    add_non_local_config(cfg)
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    return cfg


def _merge_file(cfg: CfgNode, file: str, trust: bool) -> None:
    loaded = _today(CfgNode.load_yaml_with_base(file, allow_unsafe=trust))
    if (loaded.get("VERSION") or guess_version(loaded, file)) == cfg.VERSION:
        cfg.merge_from_other_cfg(loaded)
    else:  # Detectron2 brings it up to date
        cfg.merge_from_file(file, allow_unsafe=trust)


def _merge_options(cfg: CfgNode, opts: Sequence[str]) -> None:
    _check_pairs(opts)
    renamed, notes = renamed_options(list(opts))
    _merge(cfg, "the command line", lambda: cfg.merge_from_list(renamed))
    for note in notes:
        logger.warning(note)


def _check_pairs(opts: Sequence[str]) -> None:
    """Says what is wrong with options that are not ``KEY VALUE`` pairs."""
    for word in opts[::2]:
        if str(word).startswith("--"):
            raise UsageError(f"{word} comes after KEY VALUE pairs; options belong before the first")
        if "=" in str(word):
            key, _, value = word.partition("=")
            raise UsageError(f"{word!r} is one word; write it as two: {key} {value}")
    if len(opts) % 2:
        late = f"; {opts[-2]} belongs before them" if str(opts[-2:][0]).startswith("--") else ""
        raise UsageError(f"{opts[-1]!r} has no value: options are KEY VALUE pairs{late}")


def _today(loaded: Any) -> CfgNode:
    """A loaded config with today's names of keys."""
    if isinstance(loaded, dict):
        loaded, notes = renamed_keys(loaded)
        for note in notes:
            logger.warning(note)
    return CfgNode(loaded)


def _merge(cfg: CfgNode, source: str, merge: Callable[[], None]) -> None:
    before = cfg.clone()
    try:
        merge()
        _check_not_emptied(cfg, before)
    except yaml.constructor.ConstructorError as error:
        raise UsageError(
            f"the config {source} is not loaded: {' '.join(str(error).split())}. Such a tag could "
            "run any code; write the value out, or, if you trust the file, use trust=True",
            arguments=["trust"],
        ) from error
    except Exception as error:  # yacs and PyYAML raise KeyError, ValueError, AssertionError, ...
        text: Any = error.args[0] if isinstance(error, KeyError) else error  # str() would quote it
        message = " ".join(str(text).split())
        if unknown := re.search(r"Non-existent (?:config )?key: (\S+)", message):
            *path, key = unknown[1].split(".")
            message += did_you_mean(key, _keys(cfg, path))
        if tuple_given := re.search(
            r"'tuple'> vs. <class 'str'>\) with values .* vs. (\S+)\)", message
        ):
            message += f"; write it as \"('{tuple_given[1]}',)\""
        raise UsageError(f"cannot read the config from {source}: {message}") from error


def _check_not_emptied(cfg: CfgNode, before: CfgNode, path: str = "") -> None:
    """Refuses None where there was a value, which yacs lets take the place of any."""
    for key, value in before.items():
        if value is not None and cfg[key] is None:
            raise ValueError(f"{path}{key} has no value; the default is {value!r}")
        if isinstance(value, CfgNode):
            _check_not_emptied(cfg[key], value, f"{path}{key}.")


def _is_detectron2s(config_file: str) -> bool:
    """Whether a config is one that is installed with Detectron2, and as trusted as its code."""
    package = os.path.dirname(detectron2.__file__)
    configs = os.path.realpath(os.path.join(package, "model_zoo", "configs"))
    return os.path.realpath(config_file).startswith(configs + os.sep)


def _keys(cfg: CfgNode, path: Iterable[str]) -> list[str]:
    """The keys of the node that a path leads to; none where it leads nowhere."""
    node = cfg
    for part in path:
        node = node.get(part) if isinstance(node, CfgNode) else None
    return list(node) if isinstance(node, CfgNode) else []


def _check_override(cfg: DictConfig, override: str) -> None:
    """Refuses new keys but for arguments of what gets instantiated, which checks them itself."""
    key = override.partition("=")[0].lstrip("+~")
    node, path = cfg, ""
    for name in key.split("."):
        if not isinstance(node, DictConfig):  # an item of a list, or a value: not for us to judge
            return
        if name not in node:
            if "_target_" in node or (path == "train." and name in OPTIONAL_TRAIN_KEYS):
                return
            raise UsageError(f"the config has no key {key}{did_you_mean(name, map(str, node))}")
        node, path = node[name], f"{path}{name}."
