"""Whether numbers are finite, of many tensors at once."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no tensor has NaN or infinity, with one wait for a GPU that they are on."""
    checked = [t.detach() for t in tensors if t.is_floating_point() and t.numel()]
    if not checked:
        return True
    # Greatest magnitudes are not finite where a number is not, and cannot overflow.
    greatest = torch._foreach_norm(checked, float("inf"))
    return bool(torch.stack([value.float() for value in greatest]).isfinite().all())


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of those that have NaN or infinity."""
    if all_finite(tensors.values()):
        return []
    return [name for name, tensor in tensors.items() if not all_finite([tensor])]
