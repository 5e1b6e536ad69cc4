"""Writes weights as safetensors, and what a checkpoint says of itself."""

import os
import re

import detectron2
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..files import replacing
from ..version import __version__


def write_safetensors(path: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes tensors, and what is to be known about them, as safetensors, atomically.

    Raises:
        OSError: if it cannot be written.
    """
    separate: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in storages:
            tensor = tensor.clone()  # the format has no shared memory
        storages.add(tensor.untyped_storage().data_ptr())
        separate[name] = tensor
    with replacing(path) as temporary:
        try:
            save_file(separate, temporary, metadata={"format": "pt", **metadata})
        except SafetensorError as error:
            if found := re.search(r"\(os error (\d+)\)", str(error)):
                code = int(found[1])
                raise OSError(code, os.strerror(code), path) from error
            raise


def versions() -> dict[str, str]:
    """The versions that a checkpoint was written with."""
    return {
        "nl_detectron": __version__,
        "detectron2": str(getattr(detectron2, "__version__", "unknown")),
        "torch": str(torch.__version__),
    }
