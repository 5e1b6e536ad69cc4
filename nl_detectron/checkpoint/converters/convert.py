"""From a file of another library, or of another format, to one that loads here."""

import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor

from ...errors import one_line
from ...files import replacing
from ..checkpointer import NonLocalCheckpointer
from ..reading import (
    CheckpointError,
    as_detectron2,
    as_tensors,
    caffe2_to_detectron2,
    read_checkpoint,
)
from ..writing import versions, write_safetensors
from .converted import Converted
from .mmdetection import convert_mask_rcnn
from .resnet import convert_resnet
from .torchvision import convert_rcnn
from .video import convert_video_blocks


def _torchvision(weights: dict[str, Tensor], *, coco_80: bool = False) -> Converted:
    if coco_80 or any(name.startswith("roi_heads.") for name in weights):
        return convert_rcnn(weights, coco_80=coco_80)
    return convert_resnet(weights)


SOURCES: dict[str, Callable[..., Converted]] = {
    "torchvision": _torchvision,
    "timm": convert_resnet,
    "mmdetection": convert_mask_rcnn,
    "video-nonlocal-net": convert_video_blocks,
}
# Where training scripts put the weights: PyTorch's tutorials, Lightning, timm, Caffe2
CONTAINERS = ("state_dict", "model_state_dict", "model", "model_state", "weights", "blobs")
# What DDP, Lightning and torch.compile put before all names
WRAPPERS = ("module.", "model.", "_orig_mod.")
FORMATS = (".safetensors", ".pth")


def convert_file(
    source: str,
    target: str,
    *,
    library: str = "detectron2",
    cfg: CfgNode | None = None,
    base: str | None = None,
    trust: bool = False,
    **options: Any,
) -> Converted:
    """Converts a local file, and writes the result with what it needs to be used.

    Args:
        target: ``.safetensors`` (weights alone) or ``.pth``.
        library: one of :data:`SOURCES`, or ``detectron2``, also for this package's own files:
            then only the format changes.
        cfg: a config that the conversion's overrides are merged into. The model is then built on
            the CPU and the result loaded, to see that it fits, and the config is stored in it.
        base: a file of a pretrained ResNet that a file of blocks alone is added to.
        trust: see :func:`read_checkpoint`.
        options: for the library's converter.

    Raises:
        CheckpointError: if the file cannot be read or converted, or does not fit the config.
    """
    if not target.endswith(FORMATS):
        raise CheckpointError(f"{target}: the formats to convert to are {' and '.join(FORMATS)}")
    content = read_checkpoint(source, trust=trust)
    about: dict[str, Any] = {}
    if library == "detectron2":
        if "model" not in content and (key := _container(content)):
            content = {"model": _without_wrappers(as_tensors(content[key]))}
        content = as_detectron2(content, source)
        heuristics = bool(content.get("matching_heuristics", False))
        converted = Converted(caffe2_to_detectron2(content), by_suffix=heuristics)
        about = {key: content[key] for key in ("config", "overrides") if key in content}
        left_out = content.keys() - {"model", "config", "overrides", "versions"}
        if state := left_out - {"__author__", "matching_heuristics"}:
            names = one_line(", ".join(sorted(map(str, state))))
            converted.notes.append(f"left out, as not of the model: {names}")
    else:
        try:
            converter = SOURCES[library]
        except KeyError:
            known = ", ".join(("detectron2", *SOURCES))
            raise CheckpointError(f"{library!r} is none of the libraries {known}") from None
        converted = converter(_state_dict(content, source), **options)
    if base is not None:
        _add_base(converted, base, trust)
    if converted.overrides:
        about["overrides"] = _yaml(converted.overrides)
    if cfg is not None:
        cfg = cfg.clone()
        cfg.defrost()
        for key, value in converted.overrides.items():
            cfg.merge_from_list([key, value])
        cfg.MODEL.WEIGHTS = ""
        about["config"] = cfg.dump()
    _write(target, converted, about)
    if cfg is not None:
        cfg.MODEL.DEVICE = "cpu"
        NonLocalCheckpointer(build_model(cfg)).load(target)
    return converted


def _state_dict(content: dict[str, Any], path: str) -> dict[str, Tensor]:
    """The weights in a file of another library, wherever it keeps them."""
    keys = ", ".join(map(str, content))
    if key := _container(content):
        content = content[key]
    # Caffe2 stores its counters with the blobs.
    content = {k: v for k, v in content.items() if np.ndim(v) > 0 or isinstance(v, Tensor)}
    tensors = as_tensors(content)
    if not tensors:
        raise CheckpointError(
            f"{path} holds no tensors: there are none at the top, and none below any of the keys "
            f"{', '.join(CONTAINERS)}; it has {keys[:200] or 'nothing'}"
        )
    return _without_wrappers(tensors)


def _container(content: dict[str, Any]) -> str | None:
    """The key below which a training script has put the weights."""
    return next((key for key in CONTAINERS if isinstance(content.get(key), dict)), None)


def _without_wrappers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names that they have in the model itself."""
    while weights and (
        prefix := next((p for p in WRAPPERS if all(n.startswith(p) for n in weights)), None)
    ):
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights


def _add_base(converted: Converted, base: str, trust: bool) -> None:
    weights = caffe2_to_detectron2(as_detectron2(read_checkpoint(base, trust=trust), base))
    if not converted.by_suffix or not any(name.startswith("res2.") for name in weights):
        raise CheckpointError(f"{base} is no pretrained ResNet that blocks could be added to")
    overlap = converted.weights.keys() & weights.keys()
    if overlap:
        raise CheckpointError(f"{base} has {sorted(overlap)[0]}, too")
    converted.weights = weights | converted.weights


def _yaml(overrides: dict[str, Any]) -> str:
    nested: dict[str, Any] = {}
    for key, value in overrides.items():
        *path, last = key.split(".")
        node = nested
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return yaml.safe_dump(nested)


def _write(target: str, converted: Converted, about: dict[str, Any]) -> None:
    os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
    if target.endswith(".safetensors"):
        metadata = {**about, "versions": json.dumps(versions())}
        if converted.by_suffix:
            metadata["matching_heuristics"] = "True"
        write_safetensors(target, converted.weights, metadata)
        return
    # contiguous and apart: a view would be stored with all that it is a view of
    weights = {name: tensor.detach().clone() for name, tensor in converted.weights.items()}
    content = {"model": weights, **about, "versions": versions()}
    if converted.by_suffix:
        content["matching_heuristics"] = True
    with replacing(target) as temporary, open(temporary, "wb") as file:
        torch.save(content, file)  # whose own writer would not say why it cannot
