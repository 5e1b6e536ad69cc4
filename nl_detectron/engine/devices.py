"""Whether the device that is asked for is here."""

import torch

from ..errors import UsageError


def device_type(name: str) -> str | None:
    """ "cuda" or "cpu", or None for another device and for what is none."""
    try:
        kind = torch.device(name).type
    except RuntimeError:
        return None
    return kind if kind in ("cuda", "cpu") else None


def check_device(key: str, name: str, *, arguments: tuple[str, ...] = ()) -> str:
    """Checks that a device is here.

    Args:
        key: where it is asked for, for errors.
        arguments: see :class:`UsageError`.

    Returns:
        "cuda" or "cpu".

    Raises:
        UsageError: if it is not, naming those that are.
    """
    kind = device_type(name)
    if kind is None:
        raise UsageError(f"{key} {name!r} is no device; use cuda or cpu", arguments=arguments)
    if kind == "cpu":
        return kind
    if not torch.cuda.is_available():
        raise UsageError(
            f"{key} is {name!r} but PyTorch sees no CUDA device here; use {key} cpu",
            arguments=arguments,
        )
    index, count = torch.device(name).index, torch.cuda.device_count()
    if index is not None and index >= count:
        known = [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(count)]
        raise UsageError(
            f"{key} {name}: there is no such device; here are {', '.join(known)} and cpu",
            arguments=arguments,
        )
    return kind
