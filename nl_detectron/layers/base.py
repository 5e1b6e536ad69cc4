"""What every block of the non-local family is, and how one is built from options."""

from detectron2.layers import CNNBlockBase
from fvcore.common.registry import Registry

from .options import BlockOptions

NON_LOCAL_BLOCK_REGISTRY = Registry("NON_LOCAL_BLOCK")


class BaseNonLocalBlock(CNNBlockBase):
    """A block of as many channels and positions as its input, which it adds something to."""


def build_block(
    in_channels: int, *, options: BlockOptions | None = None, dimension: int = 2
) -> BaseNonLocalBlock:
    """The block that ``options.block`` names.

    Args:
        in_channels: C of its input (N, C, *S) and output.
        options: of the block; by default the paper's.
        dimension: the number of axes S.

    Raises:
        ValueError: if an option is out of its range.
    """
    options = options or BlockOptions()
    kind = NON_LOCAL_BLOCK_REGISTRY.get(options.block)
    return kind(in_channels, options=options, dimension=dimension)
