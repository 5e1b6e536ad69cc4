"""A config that came with weights is held against them before anything is built by it."""

import os
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from ..errors import UsageError
from .checks import check_model

# More than any model has; building it, or one prediction, would take minutes and gigabytes.
MOST, MOST_LAYERS = 10_000_000, 1000
MOST_OF = {  # by the last part of a key
    **dict.fromkeys(
        ("NUM_CONV", "NUM_FC", "NUM_CONVS", "DEPTH", "CONV_DIMS", "AFTER"), MOST_LAYERS
    ),
    "MIN_SIZE_TEST": 10_000,
    "MAX_SIZE_TEST": 10_000,
    "PRE_NMS_TOPK_TEST": 20_000,
    "POST_NMS_TOPK_TEST": 20_000,
    "TOPK_CANDIDATES_TEST": 20_000,
    "DETECTIONS_PER_IMAGE": 5_000,
    "POOLER_RESOLUTION": 128,
    "POOLER_SAMPLING_RATIO": 32,
}
PARTS = ("MODEL", "INPUT", "TEST")


def check_stored(cfg: CfgNode, file: str, *, source: str) -> None:
    """Checks that a config can be that of the weights it came with.

    Args:
        cfg: complete.
        file: of the weights.
        source: where the config is from, for errors.

    Raises:
        UsageError: naming a value that no model has, or if the model would have more parameters
            than the file has bytes.
    """
    for key, value in (n for part in PARTS for n in _numbers(cfg[part], part)):
        most = MOST_OF.get(key.rpartition(".")[2], MOST)
        if not -most <= value <= most:
            raise UsageError(f"{source}: {key} {value} is more than any model has ({most:,})")
    check_model(cfg)
    size = os.path.getsize(file)
    parameters = _count_parameters(cfg, source)
    if parameters > size:
        raise UsageError(
            f"{source}: its model has {parameters:,} parameters, which a file of {size:,} bytes "
            "cannot hold; give the config that the weights were trained with as config_file",
            arguments=["config_file"],
        )


def _count_parameters(cfg: CfgNode, source: str) -> int:
    """Of the model, which is built without its memory."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    try:
        with torch.device("meta"):
            model = build_model(cfg)
    except Exception as error:  # whatever a builder does with values that it does not expect
        reason = f"{type(error).__name__}: {error}"
        raise UsageError(f"{source}: its model cannot be built ({reason:.200})") from error
    return sum(tensor.numel() for tensor in model.state_dict().values())


def _numbers(node: Any, path: str) -> Iterator[tuple[str, float]]:
    """All numbers below a key, and how long lists are, each with its key."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _numbers(value, f"{path}.{key}")
    elif isinstance(node, (list, tuple)):
        yield path, len(node)
        for value in node:
            yield from _numbers(value, f"{path}[]")
    elif isinstance(node, (int, float)) and not isinstance(node, bool):
        yield path, node
