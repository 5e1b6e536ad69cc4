"""Reads checkpoint files without executing anything that is in them."""

import json
import math
import os
import pickle
import zipfile
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names
from packaging.version import Version
from safetensors import safe_open
from torch import Tensor

from ..errors import UsageError
from .pickles import (
    ARRAYS,
    DamagedError,
    DataUnpickler,
    Name,
    Opaque,
    UnpicklingError,
    load_arrays,
    show,
)

# Before, a file could corrupt memory even with weights_only=True: CVE-2026-24747, and before 2.6
# run any code: CVE-2025-32434.
SAFE_TORCH = Version("2.10.0")

TRUST_HINT = "If you trust where the file comes from, --trust-checkpoint loads it all the same"

OTHER = "Weights of other libraries are converted by tools/convert_checkpoint.py"

# torch.save's formats: zip archives since torch 1.6; before, pickles that begin with this number
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
STORAGE_ITEM_BYTES = {
    **dict.fromkeys(("ByteStorage", "CharStorage", "BoolStorage", "UntypedStorage"), 1),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    **dict.fromkeys(("FloatStorage", "IntStorage"), 4),
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    "ComplexDoubleStorage": 16,
}


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
        CheckpointError: if the file is not there, damaged, or holds something that is not data, and
            for ``.pth`` files on a torch whose ``weights_only=True`` is not safe.
    """
    if not os.path.isfile(path):
        raise CheckpointError(f"checkpoint {path} does not exist")
    try:
        if path.endswith(".safetensors"):
            content = _read_safetensors(path)
        elif path.endswith(".pkl"):
            with open(path, "rb") as file:
                content = pickle.load(file, encoding="latin1") if trust else load_arrays(file)
        elif trust:
            content = torch.load(path, map_location="cpu", weights_only=False)
        else:
            content = _read_torch(path)
    except CheckpointError:
        raise
    except UnpicklingError as error:
        reason = " ".join(str(error).split())[:300]
        hint = "" if isinstance(error, DamagedError) else f". {TRUST_HINT}"
        raise CheckpointError(f"checkpoint {path} is not loaded: {reason}{hint}") from error
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
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        names = file.keys()
        content: dict[str, Any] = {"model": {name: file.get_tensor(name) for name in names}}
    for key in ("config", "overrides", "__author__"):
        if key in metadata:
            content[key] = metadata[key]
    if "versions" in metadata:
        content["versions"] = json.loads(metadata["versions"])
    if metadata.get("matching_heuristics") == "True":
        content["matching_heuristics"] = True
    return content


def _read_torch(path: str) -> dict[str, Any]:
    if Version(torch.__version__) < SAFE_TORCH:
        raise CheckpointError(
            f"checkpoint {path} is not loaded: with torch {torch.__version__} a .pth file can "
            f"take over the program even with weights_only=True (CVE-2026-24747"
            f"{', CVE-2025-32434' if Version(torch.__version__) < Version('2.6') else ''}). Use "
            f"torch {SAFE_TORCH} or later, or a .safetensors file. {TRUST_HINT}"
        )
    with open(path, "rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04"  # as torch tells
    if is_archive:
        _check_archive(path)
    else:
        _check_legacy(path)
    content = torch.load(path, map_location="cpu", weights_only=True)
    _check_tensors(content)
    return content


def _check_archive(path: str) -> None:
    """Checks that an archive of torch.save holds what it declares, before room is made for it."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        # torch stores without compression. What is compressed, or many records in one place, could
        # unfold to any size.
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise UnpicklingError("it is a compressed archive, which torch.save does not write")
        # What Python's reader of archives and torch's, for which A and a are one name, could take
        # for different contents
        offsets = [record.header_offset for record in records]
        names = {record.filename.lower() for record in records}
        if archive.comment or min(offsets, default=1) != 0 or len(names) != len(records):
            raise UnpicklingError("it is an archive that can be read in two ways")
        sizes = {record.filename: record.file_size for record in records}
        if sum(sizes.values()) > os.path.getsize(path):
            raise UnpicklingError("its records declare more than the file holds")
        pickles = [name for name in sizes if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1 or any(name.endswith("/constants.pkl") for name in sizes):
            raise UnpicklingError("it is an archive, but not one of weights")
        folder = pickles[0].removesuffix("data.pkl")

        def check_storage(pid: object) -> Opaque:
            key, num_bytes = _storage(pid)
            if sizes.get(f"{folder}data/{key}") != num_bytes:
                raise UnpicklingError(
                    f"storage {key} declares {num_bytes} bytes, but the file holds "
                    f"{sizes.get(f'{folder}data/{key}')}"
                )
            return Opaque(Name("torch", "storage"), ())

        with archive.open(pickles[0]) as file:
            _scanner(file, check_storage).load()


def _check_legacy(path: str) -> None:
    """The same for the format before torch 1.6: pickles, then all storages."""
    storages: dict[str, int] = {}

    def note_storage(pid: object) -> Opaque:
        key, num_bytes = _storage(pid)
        storages[key] = max(num_bytes, storages.get(key, 0))
        return Opaque(Name("torch", "storage"), ())

    with open(path, "rb") as file:
        try:
            magic = DataUnpickler(file, calls={}).load()
        except UnpicklingError:
            magic = None
        if magic != LEGACY_MAGIC:
            raise DamagedError("it is cut off, or is no file of torch.save")
        for _ in range(4):  # protocol, system, contents, keys of the storages
            _scanner(file, note_storage).load()
        left = os.path.getsize(path) - file.tell()
    if sum(storages.values()) + 8 * len(storages) > left:
        raise DamagedError("its storages declare more than the file holds, or it is cut off")


def _storage(pid: object) -> tuple[str, int]:
    """The key and the size in bytes that a persistent id of torch.save declares."""
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
        raise UnpicklingError("it refers to something other than a tensor's storage")
    kind, key, _, count = pid[1:5]
    if not isinstance(kind, Name) or kind.name not in STORAGE_ITEM_BYTES:
        raise UnpicklingError(f"it has a storage of an unknown kind: {show(kind)}")
    if not isinstance(key, str) or type(count) is not int or count < 0:
        raise UnpicklingError("it has a malformed storage")
    return key, count * STORAGE_ITEM_BYTES[kind.name]


def _opaque(name: Name):
    return lambda *arguments: Opaque(name, arguments)


_TENSORS = {
    name: _opaque(name)
    for name in (
        Name("torch._utils", "_rebuild_tensor"),
        Name("torch._utils", "_rebuild_tensor_v2"),
        Name("torch._utils", "_rebuild_tensor_v3"),
        Name("torch._utils", "_rebuild_parameter"),
        Name("torch", "Size"),
        Name("torch", "device"),
        Name("collections", "Counter"),  # in the state of a learning rate schedule
    )
}
_CONTAINERS = {
    name: call
    for name, call in ARRAYS.items()
    if str(name) in ("collections.OrderedDict", "_codecs.encode")
}
_DTYPES = {
    Name("torch", name) for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)
}


def _scanner(file, persistent) -> DataUnpickler:
    """Walks through a pickle of torch.save and builds none of its tensors."""
    return DataUnpickler(
        file,
        calls=_TENSORS | _CONTAINERS,
        names=lambda name: (
            name in _DTYPES
            or (name.module in ("torch", "torch.storage") and name.name in STORAGE_ITEM_BYTES)
        ),
        persistent=persistent,
    )


def _check_tensors(content: object) -> None:
    """Checks that no tensor claims more elements than it stores, as strides of 0 can."""
    seen: set[int] = set()
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, (list, tuple)):
            waiting.extend(value)
        elif isinstance(value, torch.Tensor):
            stored = value.untyped_storage().nbytes()
            if math.prod(value.shape) * value.element_size() > stored:
                raise UnpicklingError(
                    f"a tensor of shape {tuple(value.shape)} stores {stored} bytes"
                )
