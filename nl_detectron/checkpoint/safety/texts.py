"""Reads YAML that is kept in a file from elsewhere."""

from typing import Any

import yaml

MAX_LENGTH = 500_000  # characters; Detectron2's whole config has some 10,000
MAX_NODES = 50_000  # keys and values, each alias counted as all that it stands for
# libyaml's where PyYAML has it, which takes a twentieth of the time
SAFE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
UNSAFE: Any = getattr(yaml, "CUnsafeLoader", yaml.UnsafeLoader)


def read_yaml(text: str, *, trust: bool = False) -> Any:
    """What a text in YAML says, which neither opens files nor multiplies.

    Args:
        trust: run what its Python tags tell to.

    Raises:
        yaml.YAMLError: if it is no YAML, or a tag tells to run something.
        ValueError: if it is too long, or its aliases stand for too much.
        RecursionError: if it is nested too deeply.
    """
    if len(text) > MAX_LENGTH:
        raise ValueError(f"it has {len(text):,} characters, more than {MAX_LENGTH:,}")
    loader = (UNSAFE if trust else SAFE)(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _count(root, {})
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """How many nodes a node stands for, aliases written out."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = MAX_NODES + 1  # of an alias within what it stands for, which has no end
    count = 1
    if isinstance(node, yaml.MappingNode):
        count += sum(_count(key, known) + _count(value, known) for key, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        count += sum(_count(value, known) for value in node.value)
    if count > MAX_NODES:
        raise ValueError(f"it stands for more than {MAX_NODES:,} keys and values")
    known[id(node)] = count
    return count
