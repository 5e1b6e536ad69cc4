"""Rules by which pickled tensors become tensors of storages that are read apart from the pickle."""

import collections
import math
from collections.abc import Callable
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .arrays import ARRAYS, NDARRAY
from .pickles import DataUnpickler, Name, Part, UnpicklingError, show

_STORAGES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
    "UntypedStorage": torch.uint8,
}
STORAGES = {
    Name(module, kind): dtype
    for module in ("torch", "torch.storage")
    for kind, dtype in _STORAGES.items()
}
DTYPES = {
    Name("torch", name): dtype
    for name in dir(torch)
    if isinstance(dtype := getattr(torch, name), torch.dtype) and not name.startswith("q")
}


class Storage(Part):
    """The memory of tensors: ``count`` items of ``dtype`` in ``data``."""

    called = "a tensor's storage"

    def __init__(self, dtype: torch.dtype, count: int, data: bytearray):
        self.dtype, self.count, self.data = dtype, count, data
        if data:
            self.memory = torch.frombuffer(data, dtype=torch.uint8).untyped_storage()
        else:  # of which torch makes no tensor
            self.memory = torch.UntypedStorage(0, device="cpu")


class Storages:
    """The storages that a pickle refers to, each made once, by ``make`` of its key and size."""

    def __init__(self, make: Callable[[str, int], bytearray]):
        self.found: dict[str, Storage] = {}
        self._make = make

    def __call__(self, pid: object) -> Storage:
        """What a persistent id stands for: (storage, kind, key, device, items[, part of another]).

        The device is where the storage was; it is on the CPU here.
        """
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise UnpicklingError("it refers to something other than a tensor's storage")
        kind, key, _, count = pid[1:5]
        if not isinstance(kind, Name) or kind not in STORAGES:
            raise UnpicklingError(f"it has a storage of an unknown kind: {show(kind)}")
        if not isinstance(key, str) or type(count) is not int or count < 0:
            raise UnpicklingError("it has a malformed storage")
        if pid[5:] not in ((), (None,)):
            raise UnpicklingError("it has a storage within another, as before torch 0.4")
        dtype = STORAGES[kind]
        if key not in self.found:
            data = self._make(key, count * dtype.itemsize)
            self.found[key] = Storage(dtype, count, data)
        storage = self.found[key]
        if (storage.dtype, storage.count) != (dtype, count):
            raise UnpicklingError(f"storage {show(key)} is declared in two ways")
        return storage


def _is_sizes(value: object) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) <= 64  # as many dimensions as torch has
        and all(type(n) is int and 0 <= n < 2**48 for n in value)
    )


def _tensor(
    storage: object,
    offset: Any,
    shape: Any,
    stride: Any,
    dtype: torch.dtype | None = None,
    metadata: object = None,
) -> Tensor:
    """Stands in for ``torch._utils._rebuild_tensor``, and the later ones below.

    No element lies outside of the storage, and there are no more of them than it has, which strides
    of 0 could show.
    """
    if not isinstance(storage, Storage):
        raise UnpicklingError("it has a tensor without a storage")
    if dtype is None:
        dtype = storage.dtype
    elif not isinstance(dtype, torch.dtype):
        raise UnpicklingError(f"it has a tensor whose type is {show(dtype)}")
    if not _is_sizes(shape) or not _is_sizes((offset,)) or not _is_sizes(stride):
        raise UnpicklingError("a tensor's offset, shape or stride is malformed or negative")
    if len(shape) != len(stride):
        raise UnpicklingError(f"a tensor of shape {shape} has the stride {stride}")
    stored = len(storage.data)
    if math.prod(shape) * dtype.itemsize > stored:
        raise UnpicklingError(f"a tensor of shape {shape} stores {stored} bytes")
    last = sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    end = offset + (last + 1 if 0 not in shape else 0)
    if end * dtype.itemsize > stored:
        raise UnpicklingError(f"a tensor of shape {shape} is not within its storage")
    tensor = torch.empty(0, dtype=dtype, device="cpu").set_(storage.memory, offset, shape, stride)
    if metadata:
        if not isinstance(metadata, dict) or not metadata.keys() <= {"conj", "neg"}:
            raise UnpicklingError("it has a tensor with unknown metadata")
        tensor = tensor.conj() if metadata.get("conj") else tensor
        tensor = torch._neg_view(tensor) if metadata.get("neg") else tensor
    return tensor


def _tensor_v2(storage: object, offset: Any, shape: Any, stride: Any, *rest: Any) -> Tensor:
    # requires_grad, backward_hooks[, metadata]
    return _tensor(storage, offset, shape, stride, None, *rest[2:])


def _tensor_v3(storage: object, offset: Any, shape: Any, stride: Any, *rest: Any) -> Tensor:
    # requires_grad, backward_hooks, dtype[, metadata]
    return _tensor(storage, offset, shape, stride, *rest[2:])


def _parameter(data: object, *_: object) -> Tensor:
    if not isinstance(data, Tensor):
        raise UnpicklingError(f"it has a parameter that is {show(data)}")
    return data


def _size(sizes: Any = ()) -> torch.Size:
    if not _is_sizes(sizes):
        raise UnpicklingError("it has a malformed torch.Size")
    return torch.Size(sizes)


def _device(kind: object, index: object = None) -> torch.device:
    if not isinstance(kind, str) or not (index is None or type(index) is int):
        raise UnpicklingError("it has a malformed torch.device")
    return torch.device(kind) if index is None else torch.device(kind, index)


def _counter(counts: object = None) -> collections.Counter:
    if counts is not None and type(counts) is not dict:
        raise UnpicklingError("it counts in something other than a dictionary")
    if not all(type(count) is int for count in (counts or {}).values()):
        raise UnpicklingError("it counts with something other than whole numbers")
    return collections.Counter(counts)


TENSORS: dict[Name, Callable] = {
    Name("torch._utils", "_rebuild_tensor"): _tensor,
    Name("torch._utils", "_rebuild_tensor_v2"): _tensor_v2,
    Name("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
    Name("torch._utils", "_rebuild_parameter"): _parameter,
    Name("torch", "Size"): _size,
    Name("torch", "device"): _device,
    Name("collections", "Counter"): _counter,  # in the state of a learning rate schedule
}


def load_tensors(file: BinaryIO, storages: Storages) -> Any:
    """The tensors, arrays and plain containers that a pickle holds.

    Raises:
        UnpicklingError: if it holds anything else, or is damaged.
    """
    names = {NDARRAY: NDARRAY, **{name: name for name in STORAGES}, **DTYPES}
    return DataUnpickler(file, calls=ARRAYS | TENSORS, names=names, persistent=storages).load()
