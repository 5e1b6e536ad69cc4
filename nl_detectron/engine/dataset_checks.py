"""What a run needs of its datasets."""

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.utils.file_io import PathManager

from ..data.annotations import require_lists
from ..data.own import class_names, classes_of
from ..data.prepare import Prepared, errors_of_dataset, prepare
from ..errors import UsageError, did_you_mean, few
from ..evaluation import EVALUATORS

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


def check_dataset(name: str, cfg: CfgNode) -> Prepared | None:
    """Checks a dataset of a config; what is known of its annotation file, if it has one of COCO's.

    Raises:
        UsageError: naming what does not fit the config, or cannot be used.
    """
    check_dataset_files(name)
    metadata = MetadataCatalog.get(name)
    evaluator_type = metadata.get("evaluator_type")
    if name in cfg.DATASETS.TEST and evaluator_type not in EVALUATORS:
        raise UsageError(
            f"dataset {name!r} has evaluator_type {evaluator_type!r} in its metadata, for which "
            f"there is no evaluator; there are some for {', '.join(EVALUATORS)}"
        )
    prepared = check_annotations(name, training=name in cfg.DATASETS.TRAIN)
    if prepared:
        _check_coco_json(name, prepared, cfg)
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


def _check_coco_json(name: str, prepared: Prepared, cfg: CfgNode) -> None:
    metadata = MetadataCatalog.get(name)
    found = class_names(prepared.categories)
    if not metadata.get("own") and metadata.get("thing_classes", found) != found:
        raise UsageError(
            f"dataset {name!r}: the categories of {prepared.original} are {few(found)}, not "
            f"{few(metadata.thing_classes)}; register data of your own by a name of its own, with "
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
                f"{did_you_mean(keypoint, names)}; keypoint_names are {few(names)}"
            )
