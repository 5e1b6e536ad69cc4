"""From command-line arguments to a config that has been checked, before any long work."""

import argparse
import contextlib
import difflib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from urllib.parse import urlparse

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import BACKBONE_REGISTRY, ROI_KEYPOINT_HEAD_REGISTRY

from ..config import add_non_local_config, non_local_options
from ..data.builtin import GENERATED
from ..layers import NonLocalBlock
from ..modeling.backbone import check_placement
from ..modeling.insertion import inner_channels
from ..modeling.keypoint_head import check_keypoint_head_placement
from ..solver import check_optimizer


class UsageError(Exception):
    """Something that the user can put right; its message is one line that says how."""


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Ends the program with exit code 2 and one line on stderr if a :class:`UsageError` occurs."""
    try:
        yield
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def load_cfg(args: argparse.Namespace) -> CfgNode:
    """The config of ``--config-file`` and the trailing ``KEY VALUE`` opts, frozen.

    ``MODEL.DEVICE`` is ``cuda`` where there is CUDA and ``cpu`` elsewhere, unless the file or the
    opts say otherwise.

    Args:
        args: as parsed by :func:`detectron2.engine.default_argument_parser`.

    Raises:
        UsageError: if the file or a key does not exist, or a value has the wrong type.
    """
    cfg = get_cfg()
    add_non_local_config(cfg)
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    _merge(cfg, args)
    cfg.freeze()
    return cfg


def check_cfg(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Checks all that a run with this config needs, before it starts.

    Generated datasets that the config names are made here if they are not there yet.

    Raises:
        UsageError: naming the value that cannot work and what to do.
    """
    _check_device(cfg.MODEL.DEVICE, args)
    _check_model(cfg)
    _check_output_dir(cfg.OUTPUT_DIR)
    if not args.eval_only and not cfg.DATASETS.TRAIN:
        raise UsageError("DATASETS.TRAIN is empty: give --config-file, or DATASETS.TRAIN in opts")
    if args.eval_only and not cfg.DATASETS.TEST:
        raise UsageError("DATASETS.TEST is empty: --eval-only has nothing to evaluate on")
    train = () if args.eval_only else cfg.DATASETS.TRAIN
    for name in dict.fromkeys((*train, *cfg.DATASETS.TEST)):
        _check_dataset(name, cfg)


def _merge(cfg: CfgNode, args: argparse.Namespace) -> None:
    if args.config_file and not os.path.isfile(args.config_file):
        raise UsageError(f"--config-file {args.config_file} does not exist")
    source = args.config_file
    try:
        if args.config_file:
            cfg.merge_from_file(args.config_file, allow_unsafe=False)
        source = "the command line"
        cfg.merge_from_list(args.opts or [])
    except Exception as error:  # yacs and PyYAML raise KeyError, ValueError, AssertionError, ...
        message = " ".join(str(error.args[0] if error.args else error).split())
        if unknown := re.search(r"Non-existent (?:config )?key: (\S+)", message):
            node, _, key = unknown[1].rpartition(".")
            message += _did_you_mean(key, _keys(cfg, node))
        raise UsageError(f"cannot read the config from {source}: {message}") from error


def _check_device(device: str, args: argparse.Namespace) -> None:
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(
            f"MODEL.DEVICE is {device!r} but PyTorch sees no CUDA device here; use MODEL.DEVICE cpu"
        )
    if torch.cuda.is_available():
        if args.num_gpus > 1 and not device.startswith("cuda"):
            raise UsageError(
                f"--num-gpus {args.num_gpus} with MODEL.DEVICE {device}: to train on several CPU "
                "processes, hide the GPUs with CUDA_VISIBLE_DEVICES="
            )
        available, unit = torch.cuda.device_count(), "GPUs"
    else:
        available, unit = len(os.sched_getaffinity(0)), "CPU cores (there is no CUDA)"
    if not 1 <= args.num_gpus <= available:
        raise UsageError(
            f"--num-gpus {args.num_gpus}: this machine has {available} {unit}; "
            f"use --num-gpus 1 to {available}"
        )


def _check_model(cfg: CfgNode) -> None:
    for key, registry, name in (
        ("MODEL.BACKBONE.NAME", BACKBONE_REGISTRY, cfg.MODEL.BACKBONE.NAME),
        (
            "MODEL.ROI_KEYPOINT_HEAD.NAME",
            ROI_KEYPOINT_HEAD_REGISTRY,
            cfg.MODEL.ROI_KEYPOINT_HEAD.NAME,
        ),
    ):
        if name not in registry:
            names = [registered for registered, _ in registry]
            raise UsageError(f"{key} {name!r} is not registered{_did_you_mean(name, names)}")
    head = cfg.MODEL.ROI_KEYPOINT_HEAD
    options = non_local_options(cfg)
    try:
        check_optimizer(cfg)
        if cfg.MODEL.BACKBONE.NAME.startswith("build_non_local_"):
            check_placement(cfg)
        if cfg.MODEL.KEYPOINT_ON and head.NAME == "NonLocalKeypointHead":
            after = cfg.MODEL.NON_LOCAL.KEYPOINT_HEAD_AFTER
            check_keypoint_head_placement(after, len(head.CONV_DIMS))
        # A small block stands for those of the model: its constructor knows what is allowed.
        NonLocalBlock(32, inner_channels=inner_channels(32, options.pop("inner_ratio")), **options)
    except (ValueError, KeyError) as error:
        raise UsageError(f"MODEL.NON_LOCAL: {error}") from error
    if cfg.MODEL.KEYPOINT_ON and cfg.DATASETS.TEST:
        # Detectron2 takes COCO's 17 sigmas where none are given.
        num_sigmas = len(cfg.TEST.KEYPOINT_OKS_SIGMAS) or 17
        if num_sigmas != head.NUM_KEYPOINTS:
            raise UsageError(
                f"TEST.KEYPOINT_OKS_SIGMAS has {num_sigmas} values for "
                f"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS {head.NUM_KEYPOINTS}; give one for each"
            )
    weights = cfg.MODEL.WEIGHTS.partition("?")[0]
    if weights and not urlparse(weights).scheme and not os.path.isfile(weights):
        raise UsageError(
            f"MODEL.WEIGHTS {weights} does not exist; give a file, a detectron2:// or https:// "
            'address, or "" for random weights'
        )


def _check_output_dir(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"OUTPUT_DIR {folder} cannot be written ({error.strerror}); choose another one"
        ) from error


def _check_dataset(name: str, cfg: CfgNode) -> None:
    if name not in DatasetCatalog:
        raise UsageError(
            f"dataset {name!r} is not registered{_did_you_mean(name, DatasetCatalog.list())}; "
            "register your own with detectron2.data.datasets.register_coco_instances"
        )
    if name in GENERATED:
        try:
            DatasetCatalog.get(name)  # makes it if it is not there yet
        except OSError as error:
            raise UsageError(
                f"dataset {name!r} cannot be written ({error}); choose another folder with "
                "DETECTRON2_DATASETS"
            ) from error
    metadata = MetadataCatalog.get(name)
    json_file, image_root = metadata.get("json_file"), metadata.get("image_root")
    for path in filter(None, (json_file, image_root)):
        if not os.path.exists(path):
            raise UsageError(
                f"dataset {name!r} is not there: {path} does not exist. Download it (COCO: "
                "https://cocodataset.org) into the folder that DETECTRON2_DATASETS names, laid out "
                "as in Detectron2's datasets/README.md"
            )
    if json_file and metadata.get("evaluator_type") == "coco":
        _check_coco_json(name, json_file, cfg)


def _check_coco_json(name: str, json_file: str, cfg: CfgNode) -> None:
    try:
        with open(json_file, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        raise UsageError(f"dataset {name!r}: {json_file} is no JSON file: {error}") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UsageError(
                f"dataset {name!r}: {json_file} is no COCO annotation file: it has no list {key!r}"
            )
    num_categories = len(content["categories"])
    meta_arch = cfg.MODEL.META_ARCHITECTURE
    num_classes = {
        "GeneralizedRCNN": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        "PanopticFPN": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        "RetinaNet": cfg.MODEL.RETINANET.NUM_CLASSES,
    }.get(meta_arch, num_categories)
    if num_classes < num_categories:
        raise UsageError(
            f"dataset {name!r} has {num_categories} categories but the model only {num_classes} "
            f"classes; set MODEL.{'RETINANET' if meta_arch == 'RetinaNet' else 'ROI_HEADS'}"
            f".NUM_CLASSES {num_categories}"
        )
    if cfg.MODEL.KEYPOINT_ON:
        expected = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
        for category in content["categories"]:
            found = len(category.get("keypoints", ()))
            if found != expected:
                raise UsageError(
                    f"dataset {name!r} has {found} keypoints for {category.get('name')!r}; the "
                    f"model, with MODEL.KEYPOINT_ON, has NUM_KEYPOINTS {expected}"
                )


def _did_you_mean(value: str, allowed: list[str]) -> str:
    close = difflib.get_close_matches(value, allowed, n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _keys(cfg: CfgNode, path: str) -> list[str]:
    node = cfg
    for part in filter(None, path.split(".")):
        node = node.get(part, {})
    return list(node)
