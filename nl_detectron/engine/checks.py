"""What a run needs is checked before any long work."""

import os
import tempfile
from functools import reduce
from typing import Any
from urllib.parse import urlparse

import torch
from detectron2.config import CfgNode
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_KEYPOINT_HEAD_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    RPN_HEAD_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
)
from omegaconf import DictConfig, OmegaConf

from ..config import block_nodes, block_options
from ..data.training import check_usable
from ..errors import UsageError, did_you_mean
from ..layers import build_block
from ..log import logger
from ..modeling.backbone import check_placement
from ..modeling.heads import check_heads
from ..solver import OPTIMIZERS, check_lr_factors
from .best import check_best
from .dataset_checks import (
    check_dataset,
    check_dataset_lazily,
    check_same_categories,
    warn_of_shared_files,
)
from .devices import check_device
from .folder import check_free
from .launch import num_cpu_cores
from .own_data import dataset_names
from .solver_checks import check_lazy_solver, check_solver
from .unused import unused_options

# What Detectron2 looks up: a name that is not there ends in a KeyError
REGISTRIES = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.ANCHOR_GENERATOR.NAME": ANCHOR_GENERATOR_REGISTRY,
    "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
    "MODEL.RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
    "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
    "MODEL.ROI_BOX_HEAD.NAME": ROI_BOX_HEAD_REGISTRY,
    "MODEL.ROI_MASK_HEAD.NAME": ROI_MASK_HEAD_REGISTRY,
    "MODEL.ROI_KEYPOINT_HEAD.NAME": ROI_KEYPOINT_HEAD_REGISTRY,
    "MODEL.SEM_SEG_HEAD.NAME": SEM_SEG_HEADS_REGISTRY,
}
NORM_KEYS = (
    "MODEL.RESNETS.NORM",
    "MODEL.FPN.NORM",
    "MODEL.ROI_BOX_HEAD.NORM",
    "MODEL.ROI_MASK_HEAD.NORM",
    "MODEL.SEM_SEG_HEAD.NORM",
)
NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
DEPTHS = (18, 34, 50, 101, 152)


def check_cfg(
    cfg: CfgNode,
    *,
    eval_only: bool = False,
    resume: bool = False,
    num_gpus: int = 1,
    num_machines: int = 1,
) -> None:
    """Checks all that a run with this config needs, before it starts.

    Generated datasets that the config names are made here if they are not there yet.

    Args:
        eval_only: the run evaluates only.
        resume: it goes on from the last checkpoint in ``OUTPUT_DIR``, if there is one.
        num_gpus: processes on this machine, one a GPU or, without CUDA, on the CPU.
        num_machines: that train together.

    Raises:
        UsageError: naming the value that cannot work and what to do.
    """
    _check_device(cfg, eval_only, num_gpus, num_machines)
    check_model(cfg)
    for note in unused_options(cfg):
        logger.warning(note)
    check_best(
        cfg.TEST.BEST_METRIC,
        cfg.TEST.EARLY_STOPPING_PATIENCE,
        cfg.TEST.EVAL_PERIOD,
        keys=("TEST.BEST_METRIC", "TEST.EARLY_STOPPING_PATIENCE", "TEST.EVAL_PERIOD"),
    )
    check_output_dir("OUTPUT_DIR", cfg.OUTPUT_DIR)
    if not eval_only:
        check_free("OUTPUT_DIR", cfg.OUTPUT_DIR)
        if not resume:
            check_unused("OUTPUT_DIR", cfg.OUTPUT_DIR)
    check_weights("MODEL.WEIGHTS", cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR, resume=resume)
    if not eval_only and not cfg.DATASETS.TRAIN:
        raise UsageError(
            "DATASETS.TRAIN is empty: give config_file, or DATASETS.TRAIN in opts",
            arguments=["config_file"],
        )
    if eval_only and not cfg.DATASETS.TEST:
        raise UsageError("DATASETS.TEST is empty: there is nothing to evaluate on")
    train = () if eval_only else cfg.DATASETS.TRAIN
    names = list(dict.fromkeys((*train, *cfg.DATASETS.TEST)))
    prepared = {name: check_dataset(name, cfg) for name in names}
    check_same_categories(names)
    warn_of_shared_files(train, cfg.DATASETS.TEST)
    check_usable(
        [file for name in train if (file := prepared[name])],
        mask_format=cfg.INPUT.MASK_FORMAT if cfg.MODEL.MASK_ON else None,
        keypoints=cfg.MODEL.KEYPOINT_ON,
    )


def check_lazy_cfg(cfg: DictConfig, *, eval_only: bool = False, resume: bool = False) -> None:
    """The same of a LazyConfig.

    Raises:
        UsageError: naming the value that cannot work and what to do.
    """
    train = cfg.train
    device = check_device("train.device", str(train.get("device")))
    if not eval_only:
        if device == "cpu" and OmegaConf.select(train, "amp.enabled"):
            raise UsageError(
                f"train.amp.enabled True needs a CUDA device, but train.device is {train.device!r}"
            )
        check_lazy_solver(cfg)
    check_best(
        train.get("best_metric", ""),
        train.get("early_stopping_patience", 0),
        train.eval_period,
        keys=("train.best_metric", "train.early_stopping_patience", "train.eval_period"),
    )
    check_output_dir("train.output_dir", train.output_dir)
    if not eval_only:
        check_free("train.output_dir", train.output_dir)
        if not resume:
            check_unused("train.output_dir", train.output_dir)
    check_weights("train.init_checkpoint", train.init_checkpoint, train.output_dir, resume=resume)
    trained_on, names = [], []
    for loader in ("test",) if eval_only else ("train", "test"):
        for name in dataset_names(cfg, loader):
            prepared = check_dataset_lazily(name, cfg, training=loader == "train")
            names.append(name)
            if prepared and loader == "train":
                trained_on.append(prepared)
    check_same_categories(list(dict.fromkeys(names)))
    if not eval_only:
        warn_of_shared_files(dataset_names(cfg, "train"), dataset_names(cfg, "test"))
    mapper = OmegaConf.select(cfg.dataloader, "train.mapper") or {}
    check_usable(
        trained_on,
        mask_format=mapper.get("instance_mask_format", "polygon")
        if mapper.get("use_instance_mask")
        else None,
        keypoints=bool(mapper.get("use_keypoint")),
    )


def _check_device(cfg: CfgNode, eval_only: bool, num_gpus: int, num_machines: int) -> None:
    name = cfg.MODEL.DEVICE
    device = check_device("MODEL.DEVICE", name)
    if device == "cpu" and cfg.SOLVER.AMP.ENABLED and not eval_only:
        raise UsageError("SOLVER.AMP.ENABLED True needs a CUDA device, but MODEL.DEVICE is 'cpu'")
    if torch.cuda.is_available():
        if num_gpus > 1 and device == "cpu":
            raise UsageError(
                f"num_gpus {num_gpus} with MODEL.DEVICE {name}: to train on several CPU "
                "processes, hide the GPUs with CUDA_VISIBLE_DEVICES=",
                arguments=["num_gpus"],
            )
        available, unit = torch.cuda.device_count(), "GPUs"
    else:
        available, unit = num_cpu_cores(), "CPU cores (there is no CUDA)"
    if not 1 <= num_gpus <= available:
        raise UsageError(
            f"num_gpus {num_gpus}: this machine has {available} {unit}; use 1 to {available}",
            arguments=["num_gpus"],
        )
    if not eval_only:
        check_solver(cfg, processes=num_gpus * num_machines)


def check_model(cfg: CfgNode) -> None:
    """Checks that the model of a config can be built.

    Raises:
        UsageError: naming the value that cannot work and the allowed ones.
    """
    head = cfg.MODEL.ROI_KEYPOINT_HEAD
    _check_channels(cfg)
    _check_names(cfg)
    if cfg.SOLVER.OPTIMIZER not in OPTIMIZERS:
        raise UsageError(
            f"SOLVER.OPTIMIZER must be one of {OPTIMIZERS}, got {cfg.SOLVER.OPTIMIZER!r}"
        )
    try:
        check_lr_factors(cfg)
        if cfg.MODEL.BACKBONE.NAME.startswith("build_non_local_"):
            check_placement(cfg)
        check_heads(cfg)
    except ValueError as error:
        raise UsageError(str(error)) from error
    for name, node in block_nodes(cfg).items():
        try:
            # A small block stands for those of the model: its constructor knows what is allowed.
            build_block(32, options=block_options(node))
        except ValueError as error:
            raise UsageError(f"{name}: {error}") from error
    if cfg.MODEL.KEYPOINT_ON and cfg.DATASETS.TEST:
        # Detectron2 takes COCO's 17 sigmas where none are given.
        num_sigmas = len(cfg.TEST.KEYPOINT_OKS_SIGMAS) or 17
        if num_sigmas != head.NUM_KEYPOINTS:
            raise UsageError(
                f"TEST.KEYPOINT_OKS_SIGMAS has {num_sigmas} values for "
                f"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS {head.NUM_KEYPOINTS}; give one for each"
            )


def _check_names(cfg: CfgNode) -> None:
    """Checks what is looked up by its name: parts of the model, norms and depths."""
    for key, registry in REGISTRIES.items():
        name = _value(cfg, key)
        if name not in registry and name not in ("", "PrecomputedProposals"):
            names = [registered for registered, _ in registry]
            raise UsageError(f"{key} {name!r} is not registered{did_you_mean(str(name), names)}")
    for key in NORM_KEYS:
        norm = _value(cfg, key)
        if norm not in NORMS:
            raise UsageError(f'{key} must be one of {", ".join(NORMS)} or "", got {norm!r}')
    is_resnet = "resnet" in cfg.MODEL.BACKBONE.NAME
    if is_resnet and cfg.MODEL.RESNETS.DEPTH not in DEPTHS:
        raise UsageError(
            f"MODEL.RESNETS.DEPTH must be one of {', '.join(map(str, DEPTHS))}, got "
            f"{cfg.MODEL.RESNETS.DEPTH!r}"
        )


def _value(cfg: CfgNode, key: str) -> Any:
    return reduce(lambda node, name: node[name], key.split("."), cfg)


def _check_channels(cfg: CfgNode) -> None:
    allowed = {"BGR": 3, "RGB": 3, "L": 1}
    channels = allowed.get(cfg.INPUT.FORMAT)
    if channels is None:
        raise UsageError(
            f"INPUT.FORMAT must be one of {', '.join(allowed)}, got {cfg.INPUT.FORMAT!r}"
        )
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        if len(cfg.MODEL[key]) != channels:
            raise UsageError(
                f"MODEL.{key} {list(cfg.MODEL[key])} must have {channels} values, one for each "
                f"channel of INPUT.FORMAT {cfg.INPUT.FORMAT}"
            )


def check_weights(key: str, weights: str, output_dir: str, *, resume: bool) -> None:
    """Checks that the file of a checkpoint is there, unless the run resumes from another one."""
    if resume and os.path.exists(os.path.join(output_dir, "last_checkpoint")):
        return  # which is what will be loaded
    file = weights.partition("?")[0]
    if file and not urlparse(file).scheme and not os.path.isfile(file):
        raise UsageError(
            f"{key} {file} does not exist; give a file, a detectron2:// or https:// address, or "
            '"" for random weights'
        )


def check_output_dir(key: str, folder: str) -> None:
    """Checks that a run can write into its output folder, and makes it."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"{key} {folder} cannot be written ({error.strerror}); choose another one",
            arguments=["output"],
        ) from error


def check_unused(key: str, folder: str) -> None:
    """Checks that no training has left a checkpoint in a folder, which a new one would replace."""
    try:
        with open(os.path.join(folder, "last_checkpoint"), encoding="utf-8") as file:
            last = file.read().strip()
    except FileNotFoundError:
        return
    raise UsageError(
        f"{key} {folder} holds a training already, whose last checkpoint is {last}: resume goes on "
        "with it; for a new one choose another folder, or remove this one",
        arguments=["resume"],
    )


def check_threshold(value: float) -> None:
    """Raises a UsageError unless the value is a score."""
    if not 0 <= value <= 1:
        raise UsageError(
            f"confidence_threshold must be from 0 to 1, got {value:g}",
            arguments=["confidence_threshold"],
        )
