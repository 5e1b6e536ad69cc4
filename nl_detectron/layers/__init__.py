from .asymmetric import AsymmetricNonLocalBlock
from .base import NON_LOCAL_BLOCK_REGISTRY, BaseNonLocalBlock, block_kind, build_block
from .criss_cross import CrissCrossBlock
from .disentangled import DisentangledNonLocalBlock
from .efficient import EfficientAttentionBlock
from .expectation_maximization import EMABlock
from .global_context import GlobalContextBlock
from .latent_gnn import LatentGNNBlock
from .names import non_local_blocks
from .non_local import NonLocalBlock
from .options import BlockOptions
from .pairwise import DISTRIBUTIONS, PAIRWISE_FUNCTIONS
from .simplified import SimplifiedNonLocalBlock

__all__ = [
    "DISTRIBUTIONS",
    "NON_LOCAL_BLOCK_REGISTRY",
    "PAIRWISE_FUNCTIONS",
    "AsymmetricNonLocalBlock",
    "BaseNonLocalBlock",
    "BlockOptions",
    "CrissCrossBlock",
    "DisentangledNonLocalBlock",
    "EMABlock",
    "EfficientAttentionBlock",
    "GlobalContextBlock",
    "LatentGNNBlock",
    "NonLocalBlock",
    "SimplifiedNonLocalBlock",
    "block_kind",
    "build_block",
    "non_local_blocks",
]
