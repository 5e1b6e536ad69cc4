"""Reads checkpoint files without executing anything that is in them."""

import json
import math
import os
import pickle
import zipfile
from typing import Any

import torch
from detectron2.utils.file_io import PathManager
from packaging.version import Version
from safetensors import safe_open

from ..errors import UsageError
from .pickles import ARRAYS, DamagedError, DataUnpickler, Name, Opaque, UnpicklingError, load_arrays

# Before, a file could corrupt memory even with weights_only=True: CVE-2026-24747, and before 2.6
# run any code: CVE-2025-32434.
SAFE_TORCH = Version("2.10.0")

TRUST_HINT = "If you trust where the file comes from, --trust-checkpoint loads it all the same"

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
        reason = " ".join(str(error).split())
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
    """
    if path.endswith(".pkl"):
        if "model" in content and "__author__" in content:
            return content  # Detectron2's zoo
        blobs = content.get("blobs", content)  # Detectron1's zoo, ImageNet models
        weights = {k: v for k, v in blobs.items() if not k.endswith("_momentum")}
        return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}
    if path.endswith(".pyth"):  # pycls
        weights = content.get("model_state", {})
        weights = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
        return {"model": weights, "__author__": "pycls", "matching_heuristics": True}
    return content if "model" in content else {"model": content}


def read_config(path: str, *, trust: bool = False) -> str | None:
    """The config that belongs to a checkpoint, as YAML text, or None if there is none.

    It is looked for in the checkpoint itself, then beside it, in a file of the same name that ends
    in ``.yaml`` or in ``config.yaml``; a checkpoint of Detectron2's model zoo has the zoo's config.

    Args:
        path: as for ``MODEL.WEIGHTS``: a local file or an address.
        trust: see :func:`read_checkpoint`.

    Raises:
        CheckpointError: as :func:`read_checkpoint`.
    """
    path = path.partition("?")[0]
    if (zoo_config := _zoo_config(path)) is not None:
        return zoo_config
    local = PathManager.get_local_path(path)
    if not os.path.isfile(local):
        raise CheckpointError(f"checkpoint {path} does not exist")
    if local.endswith(".safetensors"):
        config = _safetensors_metadata(local).get("config")
    else:
        config = read_checkpoint(local, trust=trust).get("config")
    if isinstance(config, str):
        return config
    folder = os.path.dirname(local)
    for file in (os.path.splitext(local)[0] + ".yaml", os.path.join(folder, "config.yaml")):
        if os.path.isfile(file):
            with open(file, encoding="utf-8") as opened:
                return opened.read()
    return None


def _zoo_config(path: str) -> str | None:
    from detectron2 import model_zoo  # here, for its deprecation warning on import

    zoo = model_zoo.model_zoo._ModelZooUrls
    for prefix in ("detectron2://", zoo.S3_PREFIX):
        if path.startswith(prefix):
            for name, suffix in zoo.CONFIG_PATH_TO_URL_SUFFIX.items():
                if path == f"{prefix}{name}/{suffix}":
                    return model_zoo.get_config(f"{name}.yaml").dump()
    return None


def _safetensors_metadata(path: str) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except Exception as error:
        raise CheckpointError(f"checkpoint {path} is damaged or cut off ({error})") from error


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
    if zipfile.is_zipfile(path):
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
        if any(r.compress_type != zipfile.ZIP_STORED for r in records) or archive.comment:
            raise UnpicklingError("it is a compressed archive, which torch.save does not write")
        sizes = {record.filename: record.file_size for record in records}
        if len(sizes) != len(records) or sum(sizes.values()) > os.path.getsize(path):
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
        raise UnpicklingError(f"it has a storage of an unknown kind: {kind}")
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
        Name("torch._utils", "_rebuild_parameter"),
        Name("torch", "Size"),
        Name("torch", "device"),
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
