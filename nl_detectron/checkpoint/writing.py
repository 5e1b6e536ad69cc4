"""Writes files so that a kill at any moment leaves either the old file or the new one, whole."""

import contextlib
import os
from collections.abc import Iterator
from typing import IO, Any

import detectron2
import torch
from safetensors.torch import save_file
from torch import Tensor


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
    """A path to write to; what is there at the end takes the place of ``path`` in one step."""
    temporary = f"{path}.tmp"
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise
    with contextlib.suppress(OSError):  # file systems that cannot
        folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class AtomicPathManager:
    """A path manager whose writes to local files are atomic, and which else is the one given."""

    def __init__(self, path_manager: Any):
        self._path_manager = path_manager

    def __getattr__(self, name: str) -> Any:
        return getattr(self._path_manager, name)

    def open(self, path: str, mode: str = "r", **options: Any) -> Any:
        if "w" in mode and "://" not in path:
            return _replacing_file(path, mode, **options)
        return self._path_manager.open(path, mode, **options)


@contextlib.contextmanager
def _replacing_file(path: str, mode: str, **options: Any) -> Iterator[IO]:
    with replacing(path) as temporary, open(temporary, mode, **options) as file:
        yield file


def write_safetensors(path: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes tensors, and what is to be known about them, as safetensors, atomically."""
    separate: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in storages:
            tensor = tensor.clone()  # the format has no shared memory
        storages.add(tensor.untyped_storage().data_ptr())
        separate[name] = tensor
    with replacing(path) as temporary:
        save_file(separate, temporary, metadata={"format": "pt", **metadata})


def versions() -> dict[str, str]:
    """The versions that a checkpoint was written with."""
    from .. import __version__  # here, as the package imports this module

    return {
        "nl_detectron": __version__,
        "detectron2": str(getattr(detectron2, "__version__", "unknown")),
        "torch": str(torch.__version__),
    }
