"""What a run needs of its datasets."""

from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager
from omegaconf import DictConfig, OmegaConf

from ..data.annotations import require_lists
from ..data.own import class_names, classes_of
from ..data.prepare import Prepared, errors_of_dataset, prepare
from ..errors import UsageError, did_you_mean, few
from ..evaluation import EVALUATORS
from ..log import logger
from .own_data import LAZY_CLASS_KEYS, LAZY_KEYPOINT_HEAD

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


@dataclass(frozen=True)
class Expected:
    """What a model is built for, by config keys, where a config tells.

    Attributes:
        classes, keypoints: how many; None for a model without.
        classes_key, keypoints_key: where it is said.
    """

    classes: int | None
    classes_key: str
    keypoints: int | None
    keypoints_key: str

    @classmethod
    def of(cls, cfg: CfgNode) -> "Expected":
        kind = cfg.MODEL.META_ARCHITECTURE
        node = "RETINANET" if kind == "RetinaNet" else "ROI_HEADS"
        detects = kind in ("GeneralizedRCNN", "PanopticFPN", "RetinaNet")
        return cls(
            cfg.MODEL[node].NUM_CLASSES if detects else None,
            f"MODEL.{node}.NUM_CLASSES",
            cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS if cfg.MODEL.KEYPOINT_ON else None,
            "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS",
        )

    @classmethod
    def of_lazy(cls, cfg: DictConfig) -> "Expected":
        counts = {key: OmegaConf.select(cfg, key) for key in LAZY_CLASS_KEYS}
        key = next((key for key in counts if isinstance(counts[key], int)), LAZY_CLASS_KEYS[0])
        keypoints_key = f"{LAZY_KEYPOINT_HEAD}.num_keypoints"
        return cls(counts[key], key, OmegaConf.select(cfg, keypoints_key), keypoints_key)


def check_dataset(name: str, cfg: CfgNode) -> Prepared | None:
    """Checks a dataset of a config; what is known of its annotation file, if it has one of COCO's.

    Raises:
        UsageError: naming what does not fit the config, or cannot be used.
    """
    check_dataset_files(name)
    evaluator_type = MetadataCatalog.get(name).get("evaluator_type")
    if name in cfg.DATASETS.TEST and evaluator_type not in EVALUATORS:
        raise UsageError(
            f"dataset {name!r} has evaluator_type {evaluator_type!r} in its metadata, for which "
            f"there is no evaluator; there are some for {', '.join(EVALUATORS)}"
        )
    return _check_for(name, Expected.of(cfg), training=name in cfg.DATASETS.TRAIN)


def check_dataset_lazily(name: str, cfg: DictConfig, *, training: bool) -> Prepared | None:
    """The same of a LazyConfig, whose evaluators are its own."""
    check_dataset_files(name)
    return _check_for(name, Expected.of_lazy(cfg), training=training)


def _check_for(name: str, expected: Expected, *, training: bool) -> Prepared | None:
    prepared = check_annotations(name, training=training)
    if prepared:
        _check_coco_json(name, prepared, expected)
        if training and expected.keypoints is not None:
            _check_keypoint_metadata(name, expected)
    return prepared


def check_annotations(name: str, *, training: bool) -> Prepared | None:
    """Reads and checks the annotation file of a dataset in COCO's format; others have none.

    Raises:
        UsageError: naming what training or evaluation cannot use.
    """
    metadata = MetadataCatalog.get(name)
    if metadata.get("evaluator_type") != "coco" or not metadata.get("json_file"):
        return None
    with errors_of_dataset(name):
        prepared = prepare(metadata.json_file, metadata.get("image_root", ""))
        # What is only tested on may be without annotations, as COCO's own test sets are.
        if training and not prepared.has_annotations:
            require_lists({}, metadata.json_file, ["annotations"])
        prepared.stop(corrected=prepared.json_file == metadata.json_file)
    return prepared


def _check_coco_json(name: str, prepared: Prepared, expected: Expected) -> None:
    metadata = MetadataCatalog.get(name)
    found = class_names(prepared.categories)
    if not metadata.get("own") and metadata.get("thing_classes", found) != found:
        raise UsageError(
            f"dataset {name!r}: the categories of {prepared.original} are {few(found)}, not "
            f"{few(metadata.thing_classes)}; register data of your own by a name of its own, with "
            "--dataset"
        )
    classes = len(metadata.get("thing_classes", found))
    if expected.classes is not None and expected.classes != classes:
        only = "only " if expected.classes < classes else ""
        raise UsageError(
            f"dataset {name!r} has {classes} categories but the model {only}{expected.classes} "
            f"classes; set {expected.classes_key} {classes}"
        )
    for category in prepared.categories if expected.keypoints is not None else ():
        number = len(category.get("keypoints", ()))
        if number not in (0, expected.keypoints):
            raise UsageError(
                f"dataset {name!r} has {number} keypoints for {category.get('name')!r}; the model "
                f"has {expected.keypoints_key} {expected.keypoints}"
            )


def check_same_categories(names: Sequence[str]) -> None:
    """Detectron2 takes classes by their index: it must mean the same in all sets of a run."""
    classes = {name: found for name in names if (found := classes_of(name))}
    first = next(iter(classes), "")
    for name, found in classes.items():
        if found != classes[first]:
            raise UsageError(
                f"datasets {first!r} and {name!r} have different categories: "
                f"{few(classes[first])} and {few(found)}, by rising id; name the files with "
                "--dataset, which matches categories by name"
            )


def _check_keypoint_metadata(name: str, expected: Expected) -> None:
    metadata = MetadataCatalog.get(name)
    names, pairs = metadata.get("keypoint_names"), metadata.get("keypoint_flip_map")
    if names is None or pairs is None:
        lacking = "keypoint_names" if names is None else "keypoint_flip_map"
        raise UsageError(
            f"dataset {name!r} has no {lacking} in its metadata; set it by MetadataCatalog, or "
            "name the file with --dataset, which takes them from it"
        )
    if len(names) != expected.keypoints:
        raise UsageError(
            f"dataset {name!r} has {len(names)} keypoint_names in its metadata; the model has "
            f"{expected.keypoints_key} {expected.keypoints}"
        )
    for keypoint in (keypoint for pair in dict(pairs).items() for keypoint in pair):
        if keypoint not in names:
            raise UsageError(
                f"dataset {name!r}: keypoint_flip_map in its metadata names {keypoint!r}"
                f"{did_you_mean(keypoint, names)}; keypoint_names are {few(names)}"
            )


def warn_of_shared_files(train: Sequence[str], test: Sequence[str]) -> None:
    """Warns of what is trained and evaluated on: its figures say little about other images."""
    files = {name: MetadataCatalog.get(name).get("json_file") for name in (*train, *test)}
    for name in test:
        same = [other for other in train if files[name] and files[other] == files[name]]
        if same:
            logger.warning(
                f"{name!r} has the annotations of {same[0]!r}, which is trained on: its figures "
                "say how much is remembered, not how much is learned. tools/check_dataset.py "
                "--split makes two sets of one"
            )
