from .names import non_local_blocks
from .non_local import NonLocalBlock
from .options import BlockOptions
from .pairwise import DISTRIBUTIONS, PAIRWISE_FUNCTIONS

__all__ = [
    "DISTRIBUTIONS",
    "PAIRWISE_FUNCTIONS",
    "BlockOptions",
    "NonLocalBlock",
    "non_local_blocks",
]
