"""What a run needs is checked before any long work."""

import os
import tempfile
from collections.abc import Sequence
from urllib.parse import urlparse

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.modeling import BACKBONE_REGISTRY, ROI_KEYPOINT_HEAD_REGISTRY
from detectron2.utils.file_io import PathManager
from fvcore.common.registry import Registry
from omegaconf import DictConfig, OmegaConf

from ..config import add_non_local_config, block_options
from ..data.annotations import require_lists
from ..data.own import class_names, classes_of
from ..data.prepare import Prepared, prepare
from ..data.training import check_usable
from ..errors import UsageError, did_you_mean
from ..evaluation import EVALUATORS
from ..layers import NonLocalBlock
from ..log import logger
from ..modeling.backbone import check_placement
from ..modeling.keypoint_head import check_keypoint_head_placement
from ..solver import OPTIMIZERS, check_lr_factors
from .best import check_best
from .launch import num_cpu_cores
from .solver_checks import check_lazy_solver, check_solver

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
    prepared = {name: _check_dataset(name, cfg) for name in names}
    _check_same_classes(names)
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
    if not eval_only:
        check_lazy_solver(cfg)
    check_best(
        train.get("best_metric", ""),
        train.get("early_stopping_patience", 0),
        train.eval_period,
        keys=("train.best_metric", "train.early_stopping_patience", "train.eval_period"),
    )
    check_output_dir("train.output_dir", train.output_dir)
    check_weights("train.init_checkpoint", train.init_checkpoint, train.output_dir, resume=resume)
    trained_on = []
    for loader in ("test",) if eval_only else ("train", "test"):
        names = OmegaConf.select(cfg.dataloader, f"{loader}.dataset.names") or ()
        for name in (names,) if isinstance(names, str) else names:
            check_dataset_files(name)
            prepared = _check_annotations(name, training=loader == "train")
            if prepared:
                _stop_at_findings(name, prepared)
            if prepared and loader == "train":
                trained_on.append(prepared)
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
    try:
        device = torch.device(name).type
    except RuntimeError:
        raise UsageError(f"MODEL.DEVICE {name!r} is no device; use cuda or cpu") from None
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"MODEL.DEVICE is {name!r} but PyTorch sees no CUDA device here; use MODEL.DEVICE cpu"
        )
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
            check_keypoint_head_placement(head.NON_LOCAL.AFTER, len(head.CONV_DIMS))
    except ValueError as error:
        raise UsageError(str(error)) from error
    for where, node in (("", cfg.MODEL.NON_LOCAL), ("ROI_KEYPOINT_HEAD.", head.NON_LOCAL)):
        try:
            # A small block stands for those of the model: its constructor knows what is allowed.
            NonLocalBlock(32, options=block_options(node))
        except ValueError as error:
            raise UsageError(f"MODEL.{where}NON_LOCAL: {error}") from error
    if cfg.MODEL.KEYPOINT_ON and cfg.DATASETS.TEST:
        # Detectron2 takes COCO's 17 sigmas where none are given.
        num_sigmas = len(cfg.TEST.KEYPOINT_OKS_SIGMAS) or 17
        if num_sigmas != head.NUM_KEYPOINTS:
            raise UsageError(
                f"TEST.KEYPOINT_OKS_SIGMAS has {num_sigmas} values for "
                f"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS {head.NUM_KEYPOINTS}; give one for each"
            )


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


def unused_options(cfg: CfgNode) -> list[str]:
    """A line on each key of non-local blocks that is set but read by nothing in this config.

    It says what would make the key count.
    """
    head, backbone = cfg.MODEL.ROI_KEYPOINT_HEAD, cfg.MODEL.BACKBONE.NAME
    # What others have registered may read the keys, too.
    in_backbone = not _is_detectron2s(BACKBONE_REGISTRY, backbone)
    in_head = cfg.MODEL.KEYPOINT_ON and not _is_detectron2s(ROI_KEYPOINT_HEAD_REGISTRY, head.NAME)
    defaults = get_cfg()
    add_non_local_config(defaults)
    unused = []
    if not in_backbone:
        where = f"MODEL.BACKBONE.NAME {backbone}: the build_non_local_* backbones have blocks"
        default = defaults.MODEL.NON_LOCAL
        unused += _set_in_vain("MODEL.NON_LOCAL", cfg.MODEL.NON_LOCAL, default, where)
    if not in_head:
        where = f"MODEL.KEYPOINT_ON {cfg.MODEL.KEYPOINT_ON} and MODEL.ROI_KEYPOINT_HEAD.NAME "
        where += f"{head.NAME}: a NonLocalKeypointHead has blocks"
        default = defaults.MODEL.ROI_KEYPOINT_HEAD.NON_LOCAL
        unused += _set_in_vain("MODEL.ROI_KEYPOINT_HEAD.NON_LOCAL", head.NON_LOCAL, default, where)
    for key in ("NON_LOCAL_PAIRWISE_LR_FACTOR", "NON_LOCAL_OTHERS_LR_FACTOR"):
        if cfg.SOLVER[key] != 1 and not (in_backbone or in_head):
            unused.append(f"SOLVER.{key} has no effect on a model without non-local blocks")
    return unused


def _is_detectron2s(registry: Registry, name: str) -> bool:
    return registry.get(name).__module__.startswith("detectron2.")


def _set_in_vain(name: str, node: CfgNode, default: CfgNode, where: str) -> list[str]:
    changed = [key for key in node if node[key] != default[key]]
    return [f"{name}.{key} {node[key]} has no effect with {where}" for key in changed]


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


def check_dataset_files(name: str) -> None:
    """Checks that a dataset is registered and its files are there; makes a generated one.

    Raises:
        UsageError: naming the dataset or the file, and what to do.
    """
    if name not in DatasetCatalog:
        raise UsageError(
            f"dataset {name!r} is not registered{did_you_mean(name, DatasetCatalog.list())}; "
            "name files of your own with --dataset"
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


def _check_dataset(name: str, cfg: CfgNode) -> Prepared | None:
    check_dataset_files(name)
    metadata = MetadataCatalog.get(name)
    evaluator_type = metadata.get("evaluator_type")
    if name in cfg.DATASETS.TEST and evaluator_type not in EVALUATORS:
        raise UsageError(
            f"dataset {name!r} has evaluator_type {evaluator_type!r} in its metadata, for which "
            f"there is no evaluator; there are some for {', '.join(EVALUATORS)}"
        )
    prepared = _check_annotations(name, training=name in cfg.DATASETS.TRAIN)
    if prepared:
        _stop_at_findings(name, prepared)
        _check_coco_json(name, prepared, cfg)
    return prepared


def _check_annotations(name: str, *, training: bool) -> Prepared | None:
    """Reads and checks the annotation file of a dataset in COCO's format; others have none."""
    metadata = MetadataCatalog.get(name)
    if metadata.get("evaluator_type") != "coco" or not metadata.get("json_file"):
        return None
    try:
        prepared = prepare(metadata.json_file, metadata.get("image_root", ""))
        # What is only tested on may be without annotations, as COCO's own test sets are.
        if training and not prepared.has_annotations:
            require_lists({}, metadata.json_file, ["annotations"])
    except UsageError as error:
        raise UsageError(f"dataset {name!r}: {error}") from error
    return prepared


def _stop_at_findings(name: str, prepared: Prepared) -> None:
    is_copy = prepared.json_file == MetadataCatalog.get(name).json_file
    try:
        prepared.stop(corrected=is_copy)
    except UsageError as error:
        raise UsageError(f"dataset {name!r}: {error}") from error


def _check_coco_json(name: str, prepared: Prepared, cfg: CfgNode) -> None:
    metadata = MetadataCatalog.get(name)
    found = class_names(prepared.categories)
    if not metadata.get("own") and metadata.get("thing_classes", found) != found:
        raise UsageError(
            f"dataset {name!r}: the categories of {prepared.original} are {_few(found)}, not "
            f"{_few(metadata.thing_classes)}; register data of your own by a name of its own, with "
            "--dataset"
        )
    _check_classes(name, metadata.get("thing_classes", found), cfg)
    if not cfg.MODEL.KEYPOINT_ON:
        return
    expected = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    for category in prepared.categories:
        number = len(category.get("keypoints", ()))
        if number not in (0, expected):
            raise UsageError(
                f"dataset {name!r} has {number} keypoints for {category.get('name')!r}; the model, "
                f"with MODEL.KEYPOINT_ON, has NUM_KEYPOINTS {expected}"
            )
    if name in cfg.DATASETS.TRAIN:
        _check_keypoint_metadata(name, metadata, expected)


def _check_classes(name: str, classes: Sequence[str], cfg: CfgNode) -> None:
    node = "RETINANET" if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else "ROI_HEADS"
    num_classes = cfg.MODEL[node].NUM_CLASSES
    detects = cfg.MODEL.META_ARCHITECTURE in ("GeneralizedRCNN", "PanopticFPN", "RetinaNet")
    if detects and num_classes != len(classes):
        only = "only " if num_classes < len(classes) else ""
        raise UsageError(
            f"dataset {name!r} has {len(classes)} categories but the model {only}{num_classes} "
            f"classes; set MODEL.{node}.NUM_CLASSES {len(classes)}"
        )


def _check_same_classes(names: Sequence[str]) -> None:
    """Detectron2 takes classes by their index: it must mean the same in all sets of a run."""
    classes = {name: found for name in names if (found := classes_of(name))}
    first = next(iter(classes), "")
    for name, found in classes.items():
        if found != classes[first]:
            raise UsageError(
                f"datasets {first!r} and {name!r} have different categories: "
                f"{_few(classes[first])} and {_few(found)}, by rising id; name the files with "
                "--dataset, which matches categories by name"
            )


def _check_keypoint_metadata(name: str, metadata: Metadata, expected: int) -> None:
    names, pairs = metadata.get("keypoint_names"), metadata.get("keypoint_flip_map")
    if names is None or pairs is None:
        lacking = "keypoint_names" if names is None else "keypoint_flip_map"
        raise UsageError(
            f"dataset {name!r} has no {lacking} in its metadata; set it by MetadataCatalog, or "
            "name the file with --dataset, which takes them from it"
        )
    if len(names) != expected:
        raise UsageError(
            f"dataset {name!r} has {len(names)} keypoint_names in its metadata; the model has "
            f"NUM_KEYPOINTS {expected}"
        )
    for keypoint in (keypoint for pair in dict(pairs).items() for keypoint in pair):
        if keypoint not in names:
            raise UsageError(
                f"dataset {name!r}: keypoint_flip_map in its metadata names {keypoint!r}"
                f"{did_you_mean(keypoint, names)}; keypoint_names are {_few(names)}"
            )


def _few(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(map(str, names[:most])) + (", ..." if len(names) > most else "")
