"""Reads checkpoint files without executing anything that is in them."""

import json
import os
import pickle
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names
from torch import Tensor

from ..errors import UsageError
from ..regular import problem
from .safety.archives import check_records, load_torch
from .safety.arrays import load_arrays
from .safety.pickles import DamagedError, UnpicklingError
from .safety.tables import open_safetensors

TRUST_HINT = "If you trust where the file comes from, trust=True loads it all the same"

OTHER = "Weights of other libraries are converted by tools/convert_checkpoint.py"


class CheckpointError(UsageError):
    """A checkpoint that cannot be loaded, is not safe to load, or does not fit the model."""


def read_checkpoint(path: str, *, trust: bool = False) -> dict[str, Any]:
    """What a local file holds: NumPy arrays (``.pkl``) or tensors on the CPU (all others).

    Nothing that the file names is executed, whatever it holds, unless ``trust`` is set.

    Args:
        path: a local file; ``.pkl`` is a pickle, ``.safetensors`` is safetensors, and anything
            else a file of ``torch.save``.
        trust: execute what a pickle names, as ``pickle.load`` does.

    Returns:
        the dictionary in the file. That of a ``.safetensors`` file has its tensors in ``"model"``,
        beside what its metadata hold.

    Raises:
        CheckpointError: if the file is not there, damaged, or holds something that is not data.
    """
    if wrong := problem(path):
        raise CheckpointError(f"checkpoint {path} {wrong}")
    try:
        if path.endswith(".safetensors"):
            content = _read_safetensors(path)
        elif path.endswith(".pkl"):
            with open(path, "rb") as file:
                content = pickle.load(file, encoding="latin1") if trust else load_arrays(file)
        elif trust:
            check_records(path)
            content = torch.load(path, map_location="cpu", weights_only=False)
        else:
            content = load_torch(path)
    except CheckpointError:
        raise
    except UnpicklingError as error:
        reason = " ".join(str(error).split())[:300]
        hint = "" if isinstance(error, DamagedError) else f". {TRUST_HINT}"
        raise CheckpointError(
            f"checkpoint {path} is not loaded: {reason}{hint}", arguments=["trust"] if hint else []
        ) from error
    except Exception as error:  # whatever a broken file leads to
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise CheckpointError(
            f"checkpoint {path} is damaged or cut off, or is no {os.path.splitext(path)[1]} file "
            f"({reason})"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"checkpoint {path} holds a {type(content).__name__}, not a dictionary of tensors"
        )
    return content


def as_detectron2(content: dict[str, Any], path: str) -> dict[str, Any]:
    """What a file holds, in the form that Detectron2 gives the files of each zoo.

    Returns:
        a dictionary whose ``"model"`` are the weights, of Caffe2 if its ``"__author__"`` says so,
        and by the ends of their names if ``"matching_heuristics"`` is set.

    Raises:
        CheckpointError: if the weights are no dictionary of arrays or tensors.
    """
    if path.endswith(".pkl") and not ("model" in content and "__author__" in content):
        # not of Detectron2's zoo: of Detectron1's, or an ImageNet model
        blobs = _dictionary(content.get("blobs", content))
        weights = {k: v for k, v in blobs.items() if not str(k).endswith("_momentum")}
        content = {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}
    elif path.endswith(".pyth"):  # pycls
        blobs = _dictionary(content.get("model_state", {}))
        weights = {k: v for k, v in blobs.items() if not str(k).endswith("num_batches_tracked")}
        content = {"model": weights, "__author__": "pycls", "matching_heuristics": True}
    return content if "model" in content else {"model": content}


def as_tensors(weights: Any) -> dict[str, Tensor]:
    """A dictionary of arrays or tensors as one of tensors.

    It is without the versions of layers that torch keeps with a state dict: Detectron2's FrozenBN
    takes a BatchNorm's for its own, and then subtracts its epsilon from the variances.

    Raises:
        CheckpointError: if it is none.
    """
    for name, value in _dictionary(weights).items():
        if not isinstance(name, str) or not isinstance(value, (np.ndarray, Tensor)):
            raise CheckpointError(
                f"it holds a {type(value).__name__} at {name!r} where weights should be. {OTHER}"
            )
    return {name: torch.as_tensor(value) for name, value in weights.items()}


def _dictionary(weights: Any) -> dict:
    if not isinstance(weights, dict):
        raise CheckpointError(f"its weights are a {type(weights).__name__}, no dictionary. {OTHER}")
    return weights


def caffe2_to_detectron2(content: dict[str, Any]) -> dict[str, Tensor]:
    """The weights of :func:`as_detectron2`, renamed if they are of Caffe2.

    Raises:
        CheckpointError: if they are no weights of Caffe2.
    """
    weights = as_tensors(content["model"])
    if content.get("__author__") != "Caffe2":
        return weights
    try:
        return convert_c2_detectron_names(weights)[0]
    except (AssertionError, IndexError, RuntimeError) as error:
        raise CheckpointError(f"its weights are not Detectron1's ({error!r:.200})") from error


def _read_safetensors(path: str) -> dict[str, Any]:
    with open_safetensors(path) as file:
        metadata = file.metadata() or {}
        names = file.keys()
        content: dict[str, Any] = {"model": {name: file.get_tensor(name) for name in names}}
    for key in ("config", "overrides", "vocabulary", "__author__"):
        if key in metadata:
            content[key] = metadata[key]
    if "versions" in metadata:
        content["versions"] = json.loads(metadata["versions"])
    if metadata.get("matching_heuristics") == "True":
        content["matching_heuristics"] = True
    return content
