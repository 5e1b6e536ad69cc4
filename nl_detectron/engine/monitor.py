"""What non-local blocks do while they train, as scalars beside the losses."""

import math
from collections.abc import Callable

import torch
from detectron2.engine.train_loop import HookBase
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from ..layers import BaseNonLocalBlock, non_local_blocks
from ..layers.names import short_name
from ..log import logger


def attention_entropy(affinity: Tensor) -> float:
    """The mean entropy of rows of attention, relative to that of a uniform one: from 0 to 1.

    Args:
        affinity: (..., M), each row a distribution over M >= 2 keys.
    """
    entropy = torch.special.entr(affinity.float()).sum(dim=-1).mean()
    return entropy.item() / math.log(affinity.shape[-1])


class NonLocalMonitor(HookBase):
    """Writes what each non-local block does every few iterations, and warns of a collapse.

    The scalars of the block ``res4.nl4`` are

    - ``non_local/res4.nl4/entropy``: the mean entropy of its attention relative to log M, from 0
      (each query sees one key) to 1 (uniform attention); of attention that is a
      distribution only.
    - ``non_local/res4.nl4/output_ratio``: how much it adds, ||z - x|| / ||x||.

    They are of a few query positions in the first image of the batch, hence cheap, and change
    nothing about the training. Where in the first iterations all queries look at one and the same
    key, a warning says so, once for each block.
    """

    def __init__(
        self, model: nn.Module, *, period: int = 20, num_queries: int = 8, warn_until: int = 200
    ):
        """
        Args:
            model: whose blocks are watched.
            period: iterations from one record to the next.
            num_queries: query positions for the entropy, evenly spaced over the map.
            warn_until: the iteration up to which a collapse is warned of. Later, attention of all
                to a single key can be what has been learned.
        """
        if period < 1 or num_queries < 1:
            raise ValueError(
                f"period and num_queries must be at least 1, got {period} and {num_queries}"
            )
        self._period, self._num_queries, self._warn_until = period, num_queries, warn_until
        self._blocks = {short_name(name): m for name, m in non_local_blocks(model).items()}
        self._handles: list = []
        self._warned: set[str] = set()

    def before_step(self) -> None:
        if (self.trainer.iter + 1) % self._period == 0:
            for name, block in self._blocks.items():
                self._handles.append(block.register_forward_hook(self._recorder(name)))

    def after_step(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _recorder(self, name: str) -> Callable[[BaseNonLocalBlock, tuple[Tensor], Tensor], None]:
        @torch.no_grad()
        def record(block: BaseNonLocalBlock, inputs: tuple[Tensor], z: Tensor) -> None:
            x, z = inputs[0][:1], z[:1].float()
            if x.numel() == 0:  # a head without any instance
                return
            storage = get_event_storage()
            ratio = ((z - x).norm() / x.norm().clamp(min=1e-12)).item()
            storage.put_scalar(f"non_local/{name}/output_ratio", ratio, smoothing_hint=False)
            if not block.is_distribution:  # which alone has an entropy
                return
            positions = x[0, 0].numel()
            queries = torch.linspace(0, positions - 1, self._num_queries).long().unique()
            affinity = block.affinity(x, queries.to(x.device))  # (1, Q, M)
            keys = affinity.shape[-1]
            if keys < 2:
                return
            entropy = attention_entropy(affinity)
            storage.put_scalar(f"non_local/{name}/entropy", entropy, smoothing_hint=False)
            if block.embeds_queries:  # which alone can run away
                seen = keys ** attention_entropy(affinity.mean(dim=1))
                self._warn_of_collapse(name, seen, keys)

        return record

    def _warn_of_collapse(self, name: str, effective: float, keys: int) -> None:
        iteration = self.trainer.iter
        if effective < 2 and iteration <= self._warn_until and name not in self._warned:
            self._warned.add(name)
            logger.warning(
                f"The attention of non-local block {name} has collapsed: at iteration {iteration} "
                f"all queries see the same {effective:.1f} of {keys} positions, maybe for good. "
                'From random weights, use MODEL.NON_LOCAL.INIT "similarity" and a lower '
                "SOLVER.NON_LOCAL_PAIRWISE_LR_FACTOR, such as 0.1"
            )
