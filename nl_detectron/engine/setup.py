"""From command-line arguments to a config that has been checked, before any long work."""

import argparse
import json
import os
import re
import tempfile
from urllib.parse import urlparse

import detectron2
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser
from detectron2.modeling import BACKBONE_REGISTRY, ROI_KEYPOINT_HEAD_REGISTRY
from detectron2.utils.file_io import PathManager

from ..config import add_non_local_config, non_local_options
from ..errors import UsageError, did_you_mean
from ..model_zoo import get_config_file
from ..modeling.backbone import check_placement
from ..modeling.insertion import build_block
from ..modeling.keypoint_head import check_keypoint_head_placement
from ..solver import OPTIMIZERS, check_lr_factors
from .launch import num_cpu_cores
from .trainer import EVALUATORS

# Metadata of Detectron2's datasets that names files or folders which must be there
DATASET_PATHS = (
    "json_file",
    "image_root",
    "panoptic_json",
    "panoptic_root",
    "sem_seg_root",
    "dirname",
    "image_dir",
    "gt_dir",
)


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's command line for training, and what to do about checkpoints."""
    parser = default_argument_parser()
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="run what the files of weights and configs tell to: only for files of your own",
    )
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        help="go on with weights that do not fit the model, after a table of what was loaded",
    )
    return parser


def load_cfg(args: argparse.Namespace) -> CfgNode:
    """The config of ``--config-file`` and the trailing ``KEY VALUE`` opts, frozen.

    ``MODEL.DEVICE`` is ``cuda`` where there is CUDA and ``cpu`` elsewhere, unless the file or the
    opts say otherwise.

    Args:
        args: as parsed by :func:`argument_parser`, or by Detectron2's default_argument_parser.
            Where ``config_file`` is a name of :mod:`nl_detectron.model_zoo`, the path of that
            config takes its place.

    Raises:
        UsageError: if the file or a key does not exist, or a value has the wrong type.
    """
    cfg = get_cfg()
    add_non_local_config(cfg)
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    resolve_config_file(args)
    if args.config_file.endswith(".py"):
        raise UsageError(
            f"--config-file {args.config_file} is a LazyConfig: use tools/lazyconfig_train_net.py"
        )
    _merge(cfg, args)
    cfg.freeze()
    return cfg


def resolve_config_file(args: argparse.Namespace) -> None:
    """Puts the path in the place of ``args.config_file`` where that is a name of our model zoo.

    Raises:
        UsageError: if there is neither such a file nor such a config in the zoo.
    """
    if args.config_file and not PathManager.isfile(args.config_file):
        try:
            args.config_file = get_config_file(args.config_file)
        except RuntimeError as error:
            raise UsageError(
                f"--config-file {args.config_file} does not exist, and {error}"
            ) from None


def check_cfg(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Checks all that a run with this config needs, before it starts.

    Generated datasets that the config names are made here if they are not there yet.

    Raises:
        UsageError: naming the value that cannot work and what to do.
    """
    _check_device(cfg, args)
    check_model(cfg)
    check_output_dir("OUTPUT_DIR", cfg.OUTPUT_DIR)
    check_weights("MODEL.WEIGHTS", cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR, args)
    if not args.eval_only and not cfg.DATASETS.TRAIN:
        raise UsageError("DATASETS.TRAIN is empty: give --config-file, or DATASETS.TRAIN in opts")
    if args.eval_only and not cfg.DATASETS.TEST:
        raise UsageError("DATASETS.TEST is empty: --eval-only has nothing to evaluate on")
    train = () if args.eval_only else cfg.DATASETS.TRAIN
    for name in dict.fromkeys((*train, *cfg.DATASETS.TEST)):
        _check_dataset(name, cfg)


def _merge(cfg: CfgNode, args: argparse.Namespace) -> None:
    source = args.config_file
    try:
        if args.config_file:
            trust = getattr(args, "trust_checkpoint", False) or _is_detectron2s(args.config_file)
            cfg.merge_from_file(args.config_file, allow_unsafe=trust)
        source = "the command line"
        cfg.merge_from_list(args.opts or [])
    except yaml.constructor.ConstructorError as error:
        raise UsageError(
            f"the config {source} is not loaded: {' '.join(str(error).split())}. Such a tag could "
            "run any code; write the value out, or, if you trust the file, use --trust-checkpoint"
        ) from error
    except Exception as error:  # yacs and PyYAML raise KeyError, ValueError, AssertionError, ...
        text = error.args[0] if isinstance(error, KeyError) else error  # str() would quote it
        message = " ".join(str(text).split())
        if unknown := re.search(r"Non-existent (?:config )?key: (\S+)", message):
            *path, key = unknown[1].split(".")
            message += did_you_mean(key, _keys(cfg, path))
        raise UsageError(f"cannot read the config from {source}: {message}") from error


def _is_detectron2s(config_file: str) -> bool:
    """Whether a config is one that is installed with Detectron2, and as trusted as its code."""
    package = os.path.dirname(detectron2.__file__)
    configs = os.path.realpath(os.path.join(package, "model_zoo", "configs"))
    return os.path.realpath(config_file).startswith(configs + os.sep)


def _check_device(cfg: CfgNode, args: argparse.Namespace) -> None:
    name = cfg.MODEL.DEVICE
    try:
        device = torch.device(name).type
    except RuntimeError:
        raise UsageError(f"MODEL.DEVICE {name!r} is no device; use cuda or cpu") from None
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"MODEL.DEVICE is {name!r} but PyTorch sees no CUDA device here; use MODEL.DEVICE cpu"
        )
    if device == "cpu" and cfg.SOLVER.AMP.ENABLED and not args.eval_only:
        raise UsageError("SOLVER.AMP.ENABLED True needs a CUDA device, but MODEL.DEVICE is 'cpu'")
    if torch.cuda.is_available():
        if args.num_gpus > 1 and device == "cpu":
            raise UsageError(
                f"--num-gpus {args.num_gpus} with MODEL.DEVICE {name}: to train on several CPU "
                "processes, hide the GPUs with CUDA_VISIBLE_DEVICES="
            )
        available, unit = torch.cuda.device_count(), "GPUs"
    else:
        available, unit = num_cpu_cores(), "CPU cores (there is no CUDA)"
    if not 1 <= args.num_gpus <= available:
        raise UsageError(
            f"--num-gpus {args.num_gpus}: this machine has {available} {unit}; "
            f"use --num-gpus 1 to {available}"
        )
    processes = args.num_gpus * args.num_machines
    if not args.eval_only and cfg.SOLVER.IMS_PER_BATCH % processes:
        raise UsageError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} cannot be shared out evenly among "
            f"{processes} processes"
        )


def check_model(cfg: CfgNode) -> None:
    """Checks that the model of a config can be built.

    Raises:
        UsageError: naming the value that cannot work and the allowed ones.
    """
    head = cfg.MODEL.ROI_KEYPOINT_HEAD
    for key, registry, name in (
        ("MODEL.BACKBONE.NAME", BACKBONE_REGISTRY, cfg.MODEL.BACKBONE.NAME),
        ("MODEL.ROI_KEYPOINT_HEAD.NAME", ROI_KEYPOINT_HEAD_REGISTRY, head.NAME),
    ):
        if name not in registry:
            names = [registered for registered, _ in registry]
            raise UsageError(f"{key} {name!r} is not registered{did_you_mean(name, names)}")
    if cfg.SOLVER.OPTIMIZER not in OPTIMIZERS:
        raise UsageError(
            f"SOLVER.OPTIMIZER must be one of {OPTIMIZERS}, got {cfg.SOLVER.OPTIMIZER!r}"
        )
    try:
        check_lr_factors(cfg)
        if cfg.MODEL.BACKBONE.NAME.startswith("build_non_local_"):
            check_placement(cfg)
        if cfg.MODEL.KEYPOINT_ON and head.NAME == "NonLocalKeypointHead":
            after = cfg.MODEL.NON_LOCAL.KEYPOINT_HEAD_AFTER
            check_keypoint_head_placement(after, len(head.CONV_DIMS))
    except ValueError as error:
        raise UsageError(str(error)) from error
    try:
        # A small block stands for those of the model: its constructor knows what is allowed.
        build_block(32, **non_local_options(cfg))
    except ValueError as error:
        raise UsageError(f"MODEL.NON_LOCAL: {error}") from error
    if cfg.MODEL.KEYPOINT_ON and cfg.DATASETS.TEST:
        # Detectron2 takes COCO's 17 sigmas where none are given.
        num_sigmas = len(cfg.TEST.KEYPOINT_OKS_SIGMAS) or 17
        if num_sigmas != head.NUM_KEYPOINTS:
            raise UsageError(
                f"TEST.KEYPOINT_OKS_SIGMAS has {num_sigmas} values for "
                f"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS {head.NUM_KEYPOINTS}; give one for each"
            )


def check_weights(key: str, weights: str, output_dir: str, args: argparse.Namespace) -> None:
    """Checks that the file of a checkpoint is there, unless the run resumes from another one."""
    if args.resume and os.path.exists(os.path.join(output_dir, "last_checkpoint")):
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
            f"{key} {folder} cannot be written ({error.strerror}); choose another one"
        ) from error


def check_dataset_files(name: str) -> None:
    """Checks that a dataset is registered and its files are there; makes a generated one.

    Raises:
        UsageError: naming the dataset or the file, and what to do.
    """
    if name not in DatasetCatalog:
        raise UsageError(
            f"dataset {name!r} is not registered{did_you_mean(name, DatasetCatalog.list())}; "
            "register your own with detectron2.data.datasets.register_coco_instances"
        )
    metadata = MetadataCatalog.get(name)
    if metadata.get("generated"):
        try:
            DatasetCatalog.get(name)  # makes it if it is not there yet
        except (OSError, ValueError) as error:
            raise UsageError(
                f"dataset {name!r} cannot be generated: {error}. Delete what is there, or choose "
                "another folder with DETECTRON2_DATASETS"
            ) from error
    for key in DATASET_PATHS:
        path = metadata.get(key)
        if path and not PathManager.exists(path):
            raise UsageError(
                f"dataset {name!r} is not there: {path} does not exist. Download it (COCO: "
                "https://cocodataset.org) into the folder that DETECTRON2_DATASETS names, laid out "
                "as in Detectron2's datasets/README.md"
            )


def _check_dataset(name: str, cfg: CfgNode) -> None:
    check_dataset_files(name)
    metadata = MetadataCatalog.get(name)
    evaluator_type = metadata.get("evaluator_type")
    if name in cfg.DATASETS.TEST and evaluator_type not in EVALUATORS:
        raise UsageError(
            f"dataset {name!r} has evaluator_type {evaluator_type!r} in its metadata, for which "
            f"there is no evaluator; there are some for {', '.join(EVALUATORS)}"
        )
    if metadata.get("json_file") and evaluator_type == "coco":
        _check_coco_json(name, metadata.json_file, cfg)


def _check_coco_json(name: str, json_file: str, cfg: CfgNode) -> None:
    try:
        with PathManager.open(json_file, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        raise UsageError(f"dataset {name!r}: {json_file} is no JSON file: {error}") from error
    # What is only tested on may be without annotations, as COCO's own test sets are.
    lists = ("images", "categories") + ("annotations",) * (name in cfg.DATASETS.TRAIN)
    for key in lists:
        values = content.get(key) if isinstance(content, dict) else None
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            raise UsageError(
                f"dataset {name!r}: {json_file} is no COCO annotation file: it has no list of "
                f"objects {key!r}"
            )
    _check_classes(name, len(content["categories"]), cfg)
    for category in content["categories"] if cfg.MODEL.KEYPOINT_ON else ():
        expected = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
        found = len(category.get("keypoints", ()))
        if found not in (0, expected):
            raise UsageError(
                f"dataset {name!r} has {found} keypoints for {category.get('name')!r}; the model, "
                f"with MODEL.KEYPOINT_ON, has NUM_KEYPOINTS {expected}"
            )


def _check_classes(name: str, num_categories: int, cfg: CfgNode) -> None:
    node = "RETINANET" if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else "ROI_HEADS"
    num_classes = cfg.MODEL[node].NUM_CLASSES
    detects = cfg.MODEL.META_ARCHITECTURE in ("GeneralizedRCNN", "PanopticFPN", "RetinaNet")
    if detects and num_classes < num_categories:
        raise UsageError(
            f"dataset {name!r} has {num_categories} categories but the model only {num_classes} "
            f"classes; set MODEL.{node}.NUM_CLASSES {num_categories}"
        )


def _keys(cfg: CfgNode, path: list[str]) -> list[str]:
    """The keys of the node that a path leads to; none where it leads nowhere."""
    node = cfg
    for part in path:
        node = node.get(part) if isinstance(node, CfgNode) else None
    return list(node) if isinstance(node, CfgNode) else []
