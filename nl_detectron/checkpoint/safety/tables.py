"""Opens .safetensors files whose table of tensors is no larger than a model's."""

import os
from typing import Any

from safetensors import safe_open

from .pickles import UnpicklingError

MAX_HEADER = 10_000_000  # bytes; a tensor's line takes about a hundred
MAX_TENSORS = 50_000


def open_safetensors(path: str) -> Any:
    """What ``safetensors.safe_open`` gives, to be entered.

    Its own limit on the table, 100 MB, lets a file of 13 MB name 200,000 tensors of no elements,
    each of which takes time and room, whatever the file holds.

    Raises:
        UnpicklingError: if there are more tensors than in any model.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER and length <= os.path.getsize(path):
            raise UnpicklingError(f"its table of tensors has more than {MAX_HEADER:,} bytes")
    opened = safe_open(path, framework="pt")
    if (count := len(opened.keys())) > MAX_TENSORS:
        raise UnpicklingError(f"it has {count:,} tensors, more than {MAX_TENSORS:,}")
    return opened
