"""Whether numbers are finite, of many tensors at once."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no tensor has NaN or infinity, with one wait for a GPU that they are on."""
    checked = [t.detach() for t in tensors if t.is_floating_point() and t.numel()]
    if not checked:
        return True
    # Lengths are quick to compute, but overflow; greatest magnitudes cannot, and decide then.
    return any(_finite_norms(checked, order) for order in (2, float("inf")))


def _finite_norms(tensors: list[Tensor], order: float) -> bool:
    norms = torch._foreach_norm(tensors, order)
    return bool(torch.stack([norm.float() for norm in norms]).isfinite().all())


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of those that have NaN or infinity."""
    if all_finite(tensors.values()):
        return []
    return [name for name, tensor in tensors.items() if not all_finite([tensor])]


def named_tensors(state: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """All tensors in dictionaries and lists, each with the keys that lead to it."""
    if isinstance(state, Tensor):
        yield name, state
    elif isinstance(state, Mapping):
        for key, value in state.items():
            yield from named_tensors(value, f"{name}.{key}")
    elif isinstance(state, list | tuple):
        for index, value in enumerate(state):
            yield from named_tensors(value, f"{name}.{index}")
