"""What travels with an exported model, so that the file alone is enough to run it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata

from ..version import __version__

KEY = "nl_detectron"  # under which the file holds it, as JSON
FORMAT_VERSION = 1


def describe(
    cfg: CfgNode, outputs: Sequence[str], known: Metadata, *, precision: str = "float32"
) -> dict[str, Any]:
    """The metadata of a model that is exported, of values that JSON has.

    Args:
        cfg: the model's config, as it is exported.
        outputs: the names of the graph's outputs.
        known: what its classes and keypoints are called.
        precision: of most of its products.
    """
    retinanet = cfg.MODEL.META_ARCHITECTURE == "RetinaNet"
    node = cfg.MODEL.RETINANET if retinanet else cfg.MODEL.ROI_HEADS
    return {
        "format_version": FORMAT_VERSION,
        "architecture": cfg.MODEL.META_ARCHITECTURE,
        "precision": precision,
        "input": {
            "name": "image",
            "layout": "channels, height, width",
            "dtype": "uint8",
            "channel_order": cfg.INPUT.FORMAT,
            "resize_shortest_edge_to": cfg.INPUT.MIN_SIZE_TEST,
            "longest_edge_at_most": cfg.INPUT.MAX_SIZE_TEST,
            "pixel_mean_within_the_graph": list(cfg.MODEL.PIXEL_MEAN),
            "pixel_std_within_the_graph": list(cfg.MODEL.PIXEL_STD),
        },
        "outputs": list(outputs),
        "class_names": list(known.thing_classes),
        "category_ids": [
            [number, index]
            for number, index in known.get("thing_dataset_id_to_contiguous_id", {}).items()
        ],
        "keypoint_names": list(known.get("keypoint_names", [])),
        "keypoint_flip_map": [list(pair) for pair in known.get("keypoint_flip_map", [])],
        "keypoint_connection_rules": [
            [one, other, list(color)]
            for one, other, color in known.get("keypoint_connection_rules", [])
        ],
        "score_threshold": node.SCORE_THRESH_TEST,
        "nms_threshold": node.NMS_THRESH_TEST,
        "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        "versions": {
            "nl_detectron": __version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
        "config": cfg.dump(),
    }


def to_text(metadata: Mapping[str, Any]) -> str:
    return json.dumps(metadata)


def from_text(text: str | None) -> dict[str, Any] | None:
    """The metadata in a file's text; None if there is none that this version can read."""
    try:
        metadata = json.loads(text or "")
    except ValueError:
        return None
    if not isinstance(metadata, dict) or metadata.get("format_version") != FORMAT_VERSION:
        return None
    return metadata
