from .non_local import NonLocalBlock
from .pairwise import PAIRWISE_FUNCTIONS

__all__ = ["PAIRWISE_FUNCTIONS", "NonLocalBlock"]
