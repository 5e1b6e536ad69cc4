"""What a converter returns, and the renaming that all of them do."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..reading import CheckpointError


@dataclass
class Converted:
    """Weights under this package's names, and what they need to mean the same.

    Attributes:
        weights: by name in the model, or by the end of it if ``by_suffix`` is set.
        overrides: config keys and values without which the outputs would not be equal.
        by_suffix: the names are a ResNet's own, for a model that has it anywhere.
        notes: what a user must know: what was left out, what cannot be read from the file, and
            where outputs differ.
    """

    weights: dict[str, Tensor]
    overrides: dict[str, Any] = field(default_factory=dict)
    by_suffix: bool = False
    notes: list[str] = field(default_factory=list)


# A pattern for a whole name, and the new name as a template or as a function of the match
Rule = tuple[str, str | Callable[[re.Match], str]]


def _rename(name: str, rules: Sequence[Rule]) -> str | None:
    for pattern, new in rules:
        if match := re.fullmatch(pattern, name):
            return match.expand(new) if isinstance(new, str) else new(match)
    return None


def rename_all(
    weights: Mapping[str, Tensor], rules: Sequence[Rule], source: str
) -> dict[str, Tensor]:
    """All tensors under the names that the first rule to match gives; "" leaves one out.

    Raises:
        CheckpointError: naming tensors that no rule fits, for which the model has no place.
    """
    renamed: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in weights.items():
        new = _rename(name, rules)
        if new is None:
            unknown.append(name)
        elif new:
            renamed[new] = tensor
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise CheckpointError(
            f"not converted: {', '.join(unknown[:3])}{more} have no place in Detectron2's model of "
            f"{source}, which would not compute the same without them"
        )
    return renamed


def need(weights: Mapping[str, Tensor], *names: str) -> None:
    """
    Raises:
        CheckpointError: if one of the tensors is not there.
    """
    if missing := [name for name in names if name not in weights]:
        raise CheckpointError(f"not converted: the file has no {', '.join(missing)}")
