"""How a new layer joins layers that are already built."""

from detectron2.layers import CNNBlockBase
from torch import nn

from ..log import logger


def join(module: CNNBlockBase, around: nn.Module, name: str) -> None:
    """Gives a new block the state of the layers around it, in place.

    It takes the device and dtype of their parameters, their training mode, and is frozen if all of
    those parameters are.

    Args:
        around: what the block becomes a part of.
        name: the block's, for the log.
    """
    parameters = list(around.parameters())
    module.to(parameters[0]).train(around.training)
    if not any(p.requires_grad for p in parameters):
        logger.warning(
            f"The non-local block {name} ({module.in_channels} channels) is frozen like all "
            "layers around it: it does nothing unless trained weights are loaded into it"
        )
        module.freeze()


def insert_after(sequential: nn.Sequential, name: str, new_name: str, module: CNNBlockBase) -> None:
    """Makes ``module`` the child ``new_name`` right after child ``name``, in place.

    It takes over the state of the layers there, see :func:`join`.
    """
    join(module, sequential, new_name)
    children = list(sequential.named_children())
    for child_name, _ in children:
        delattr(sequential, child_name)
    for child_name, child in children:
        sequential.add_module(child_name, child)
        if child_name == name:
            sequential.add_module(new_name, module)
