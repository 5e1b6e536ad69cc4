from .base import NON_LOCAL_BLOCK_REGISTRY, BaseNonLocalBlock, build_block
from .names import non_local_blocks
from .non_local import NonLocalBlock
from .options import BlockOptions
from .pairwise import DISTRIBUTIONS, PAIRWISE_FUNCTIONS

__all__ = [
    "DISTRIBUTIONS",
    "NON_LOCAL_BLOCK_REGISTRY",
    "PAIRWISE_FUNCTIONS",
    "BaseNonLocalBlock",
    "BlockOptions",
    "NonLocalBlock",
    "build_block",
    "non_local_blocks",
]
