"""The options of a non-local block: what there is, what it means and what it may be, here alone.

Config keys, insertion, backbones, the keypoint head, LazyConfigs and the comparison with a
checkpoint's config follow from the fields of :class:`BlockOptions`. A new option is a field here,
its use in :class:`NonLocalBlock` and a line in docs/blocks.md.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

from .pairwise import PAIRWISE_FUNCTIONS

INITS = ("normal", "similarity")


def _option(default: Any, *, learned: bool = False, in_config: bool = True) -> Any:
    """A field; ``learned`` says that trained weights are of use with the same value only."""
    return field(default=default, metadata={"learned": learned, "in_config": in_config})


@dataclass(frozen=True, kw_only=True)
class BlockOptions:
    """How a non-local block computes and starts; by default it is the paper's.

    Attributes:
        block: the kind of block, a name in ``NON_LOCAL_BLOCK_REGISTRY``.
        pairwise: f, one of :data:`PAIRWISE_FUNCTIONS` (sec. 3.2).
        inner_ratio: inner channels D as a fraction of C; at least one channel. Half of C in the
            paper (sec. 3.3, "bottleneck").
        sub_sample: max-pool phi and g by 2 along each axis of space, never along time, which
            quarters the pairwise computation (sec. 3.3); a sequence is pooled along its one axis.
            Odd sizes round up.
        use_scale: multiply the logits of the two exponential forms by the inverse square root of
            their number of channels, as the paper's released code does.
        norm: normalisation after W_z, as for :func:`detectron2.layers.get_norm`: "" (none), "BN",
            "SyncBN", "GN", ...; apart from a ResNet's own. "FrozenBN" is refused where the block
            starts at zero, which it could never leave. A LatentGNN block has it after each layer.
        init: how theta, phi, g and w_f start. "normal" draws them with a standard deviation of
            0.01, as the paper's released code does. "similarity", for training from random
            weights, draws g with one of C ** -0.5 and theta with half of it, and makes phi equal
            to theta, so that f starts as a projection of the Gaussian's x_i^T x_j, highest among
            like positions; in the concatenation, which can compare no two positions, f starts
            positive for all.
        zero_init: start as the identity: gamma of ``norm`` zero or, without a norm, W_z zero.
        grad_checkpoint: in training, hold nothing between x and y for the backward pass, which
            computes it again: less memory for a little time, and the same gradients. Not in a
            LatentGNN block with a norm over the batch, which it has within, too.
        mask_padding: in a backbone, keep the block within each image of a padded batch: no
            position draws on padding, and padded ones stay as they are. Not with a norm over the
            batch ("BN", "SyncBN"), and not in an EMA block. A block on its own and those of a
            keypoint head, whose regions have no padding, do not ask for it.
        recurrence: of a criss-cross block: how many times it is applied, with the same layers.
        temperature: of a disentangled block: what the logits of the pairwise term are divided by.
        pairwise_gate: of a disentangled block: multiply the pairwise term by a scalar that starts
            at zero, in place of the last layer. That is the authors' block, and no identity.
        nodes: of an EMA block: its bases; of a LatentGNN block: its latent nodes.
        iterations: of an EMA block: of expectation and maximization, in each forward pass.
        momentum: of an EMA block: how much of the bases stays in each forward pass of training;
            with 1 they stay as they are.

    Raises:
        ValueError: if a value is none of the allowed ones.
    """

    block: str = _option("NonLocalBlock", learned=True)
    pairwise: str = _option("embedded_gaussian", learned=True)
    inner_ratio: float = _option(0.5)
    sub_sample: bool = _option(True, learned=True)
    use_scale: bool = _option(True, learned=True)
    norm: str | Callable[[int], nn.Module] = _option("")
    init: str = _option("normal")
    zero_init: bool = _option(True, in_config=False)
    grad_checkpoint: bool = _option(False)
    mask_padding: bool = _option(False)
    recurrence: int = _option(2, learned=True)
    temperature: float = _option(1.0, learned=True)
    pairwise_gate: bool = _option(False, learned=True)
    nodes: int = _option(64, learned=True)
    iterations: int = _option(3, learned=True)
    momentum: float = _option(0.9)

    def __post_init__(self) -> None:
        for name, allowed in (("pairwise", PAIRWISE_FUNCTIONS), ("init", INITS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        if not 0 < self.inner_ratio < math.inf:
            raise ValueError(f"inner_ratio must be above 0, got {self.inner_ratio}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum must be from 0 to 1, got {self.momentum}")
        for name in ("recurrence", "nodes", "iterations"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number from 1, got {value!r}")
        for option in fields(self):
            if isinstance(option.default, bool) and not isinstance(
                getattr(self, option.name), bool
            ):
                value = getattr(self, option.name)
                raise ValueError(f"{option.name} must be True or False, got {value!r}")


# Options that are keys of a config, in capitals
CONFIG_OPTIONS = {f.name.upper(): f for f in fields(BlockOptions) if f.metadata["in_config"]}
# Those of them with which blocks compute what they have learned, or not
LEARNED_OPTIONS = tuple(key for key, f in CONFIG_OPTIONS.items() if f.metadata["learned"])
