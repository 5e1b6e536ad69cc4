"""The names of non-local blocks within models, and how to find the blocks."""

import re

from torch import nn

from .base import BaseNonLocalBlock

# The layers of blocks of all kinds that make the weights with which positions draw on each other
PAIRWISE_LAYERS = ("theta", "phi", "psi", "w_f", "conv_mask")
# What is between a residual block's name and that of a block before its sum
BEFORE_SUM = re.compile(r"\.conv[23]\.activation(?=\.nl\d)")
IN_BLOCK = re.compile(r"(?:^|\.)nl\d+(?:\.(?P<rest>.*))?$")


def block_name(index: int) -> str:
    """The name of the block after the child ``index`` of a stage, or after a head's convolution."""
    return f"nl{index}"


def within_block(name: str) -> str | None:
    """What a name, such as ``res4.nl4.theta.weight``, is within a block; None outside of any."""
    found = IN_BLOCK.search(name)
    return None if found is None else found["rest"] or ""


def place_of(name: str) -> str:
    """The place of a block, ``res4.4``, from its name.

    That is ``res4.nl4`` or, before the sum of the residual block, ``res4.4.conv3.activation.nl4``.
    """
    stage, _, block = name.rpartition(".")
    if inside := BEFORE_SUM.search(name):
        return name[: inside.start()]
    return f"{stage}.{block.removeprefix('nl')}"


def short_name(name: str) -> str:
    """A block's name, without what all names share, as people read it.

    ``backbone.bottom_up.res4.nl4`` is ``res4.nl4``; before the sum of ``res4.4``, it is
    ``res4.4.nl4``.
    """
    for prefix in ("module.", "backbone.", "bottom_up."):
        name = name.removeprefix(prefix)
    return BEFORE_SUM.sub("", name)


def non_local_blocks(model: nn.Module) -> dict[str, BaseNonLocalBlock]:
    """All non-local blocks of a model by their names in it, whatever these are."""
    return {name: m for name, m in model.named_modules() if isinstance(m, BaseNonLocalBlock)}
