"""Which tensor of a file belongs to which of a model, where their names differ by a prefix."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TypeVar

from ..layers.names import within_block

T = TypeVar("T")


def match_names(model_names: Iterable[str], tensors: Mapping[str, T]) -> dict[str, T]:
    """Gives the tensors of a file the names that they have in the model.

    As with Detectron2's ``matching_heuristics``, ``res2.0.conv1.weight`` belongs to
    ``backbone.bottom_up.res2.0.conv1.weight``: the file's name is a suffix of the model's, the
    longest one where there are several. Other than there, a tensor is never given to another
    layer that happens to have its shape: it keeps its own name, and is unexpected, when

    - its name ends the names of several tensors of the model, of any shape;
    - tensors that share the first part of their names would go to different places;
    - it would go into a non-local block (``nl4``) that its name does not tell.
    """
    model_names = set(model_names)
    best: dict[str, str] = {}  # by name in the model
    for name in model_names:
        parts = name.split(".")
        for start in range(len(parts)):
            suffix = ".".join(parts[start:])
            if suffix in tensors:
                best[name] = suffix
                break
    targets = defaultdict(list)
    for name, suffix in best.items():
        targets[suffix].append(name)
    prefixes = defaultdict(set)  # that are added, by the first part of the file's names
    for suffix, names in targets.items():
        for name in names:
            prefixes[suffix.partition(".")[0]].add(name.removesuffix(suffix))

    def name_of(suffix: str) -> str:
        names = targets.get(suffix, ())
        if suffix in model_names or len(names) != 1 or len(prefixes[suffix.partition(".")[0]]) > 1:
            return suffix
        added = names[0].removesuffix(suffix)
        if within_block(added) is not None:
            return suffix
        return names[0]

    return {name_of(name): tensor for name, tensor in tensors.items()}
