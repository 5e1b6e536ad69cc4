"""What a model's outputs are called, kept with its weights."""

import json
from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata

from ..errors import one_line
from .reading import CheckpointError, read_checkpoint


def to_text(metadata: Metadata) -> str:
    """What a dataset's metadata say of classes and keypoints, as JSON."""
    ids = metadata.get("thing_dataset_id_to_contiguous_id", {})
    kept: dict[str, Any] = {
        "thing_classes": metadata.get("thing_classes"),
        "category_ids": [category for category, _ in sorted(ids.items(), key=lambda item: item[1])],
        "keypoint_names": metadata.get("keypoint_names"),
        "keypoint_flip_map": metadata.get("keypoint_flip_map"),
        "keypoint_connection_rules": metadata.get("keypoint_connection_rules"),
    }
    return json.dumps({key: value for key, value in kept.items() if value})


def from_text(text: object) -> dict[str, Any]:
    """The same back as attributes of metadata; nothing where there is none, or nothing usable.

    It is from a file of anybody's: whatever it holds, the result has the types that it should.
    """
    kept: Any
    try:
        kept = _printable(json.loads(text)) if isinstance(text, str) else {}
    except (ValueError, RecursionError):
        kept = {}
    if not isinstance(kept, dict) or not _names(kept.get("thing_classes")):
        return {}
    classes: list[str] = kept["thing_classes"]
    vocabulary: dict[str, Any] = {"thing_classes": classes}
    ids: Any = kept.get("category_ids")
    if _is_list(ids, int) and len(set(ids)) == len(ids) == len(classes):
        vocabulary["thing_dataset_id_to_contiguous_id"] = {id_: i for i, id_ in enumerate(ids)}
    names: Any = kept.get("keypoint_names")
    if not _names(names):
        return vocabulary
    vocabulary["keypoint_names"] = names
    pairs: Any = kept.get("keypoint_flip_map", [])
    if _is_list(pairs, list) and all(_names(p) and len(p) == 2 and {*p} <= {*names} for p in pairs):
        vocabulary["keypoint_flip_map"] = [tuple(pair) for pair in pairs]
    rules: Any = kept.get("keypoint_connection_rules", [])
    if _is_list(rules, list) and all(_is_rule(rule, names) for rule in rules):
        rules = [(start, end, tuple(colour)) for start, end, colour in rules]
        vocabulary["keypoint_connection_rules"] = rules
    return vocabulary


def read_vocabulary(path: str, *, trust: bool = False) -> dict[str, Any]:
    """What the outputs of the model in a local file are called; nothing where it does not say.

    Args:
        path: a checkpoint.
        trust: see :func:`read_checkpoint`.
    """
    try:
        return from_text(read_checkpoint(path, trust=trust).get("vocabulary"))
    except CheckpointError:  # which its load will report
        return {}


def metadata_of_model(cfg: CfgNode, vocabulary: Mapping[str, Any]) -> Metadata:
    """Metadata with a name for each of a model's classes.

    Args:
        cfg: the model's.
        vocabulary: what the weights' file says of itself. What it does not say is that of the
            config's dataset, if it is known here.
    """
    names = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
    known = MetadataCatalog.get(names[0]).as_dict() if names else {}
    node = "RETINANET" if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else "ROI_HEADS"
    num_classes = cfg.MODEL[node].NUM_CLASSES
    if len(vocabulary.get("thing_classes", ())) == num_classes:
        known = known | dict(vocabulary)
    elif len(cfg.DATASETS.CLASSES) == num_classes:
        known = known | {"thing_classes": cfg.DATASETS.CLASSES}
    classes = list(known.get("thing_classes", []))[:num_classes]
    classes += [f"class {i}" for i in range(len(classes), num_classes)]
    return Metadata(**{**known, "thing_classes": classes})


def _printable(value: Any) -> Any:
    """The same without what a name could do to a terminal or a log."""
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, list):
        return [_printable(item) for item in value]
    if isinstance(value, dict):
        return {key: _printable(item) for key, item in value.items()}
    return value


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(item) is kind for item in value)


def _names(value: object) -> bool:
    return bool(value) and _is_list(value, str)


def _is_rule(rule: list, names: list[str]) -> bool:
    if len(rule) != 3 or not all(isinstance(end, str) and end in names for end in rule[:2]):
        return False
    return _is_list(rule[2], int) and len(rule[2]) == 3 and all(0 <= c <= 255 for c in rule[2])
