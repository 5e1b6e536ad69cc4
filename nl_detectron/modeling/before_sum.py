"""A block inside a residual block: after its last norm, before the sum and the ReLU (GCNet's).

Detectron2's own forward of the residual block runs. Its last convolution applies what it has as
``activation`` right after its norm; in a residual block that is nothing, and here it is the block.
"""

from collections import OrderedDict

from detectron2.layers import CNNBlockBase, Conv2d
from detectron2.modeling.backbone.resnet import (
    BasicBlock,
    BottleneckBlock,
    DeformBottleneckBlock,
)
from torch import nn

from ..layers import BaseNonLocalBlock
from .joining import join

# Exactly these types: what a class derived from one does before its sum is not known
LAST_CONVOLUTIONS = {BasicBlock: "conv2", BottleneckBlock: "conv3", DeformBottleneckBlock: "conv3"}


def last_convolution(residual: CNNBlockBase) -> Conv2d:
    """The convolution whose normed output a residual block adds to its shortcut.

    Raises:
        ValueError: if the residual block is none of Detectron2's, or that convolution has an
            activation already.
    """
    name = LAST_CONVOLUTIONS.get(type(residual))
    if name is None:
        known = ", ".join(kind.__name__ for kind in LAST_CONVOLUTIONS)
        raise ValueError(
            f"position='before_sum' needs one of Detectron2's residual blocks ({known}), got a "
            f"{type(residual).__name__}; use position='after_block'"
        )
    convolution = getattr(residual, name)
    if convolution.activation is not None and not has_block(residual):
        raise ValueError(
            f"position='before_sum' needs a {name} without an activation, got one with "
            f"{type(convolution.activation).__name__}; use position='after_block'"
        )
    return convolution


def has_block(residual: CNNBlockBase) -> bool:
    """Whether a non-local block stands in a residual block."""
    return any(isinstance(module, BaseNonLocalBlock) for module in residual.modules())


def insert_before_sum(residual: CNNBlockBase, name: str, block: BaseNonLocalBlock) -> None:
    """Puts a block into a residual block of :data:`LAST_CONVOLUTIONS`, in place.

    Its name there is ``conv3.activation.nl4``; no other parameter is renamed.

    Args:
        name: of the block, ``nl4``.
        block: of as many channels as the residual block's output.
    """
    join(block, residual, name)
    last_convolution(residual).activation = nn.Sequential(OrderedDict({name: block}))
