from .non_local import NonLocalBlock
from .pairwise import DISTRIBUTIONS, PAIRWISE_FUNCTIONS

__all__ = ["DISTRIBUTIONS", "PAIRWISE_FUNCTIONS", "NonLocalBlock"]
