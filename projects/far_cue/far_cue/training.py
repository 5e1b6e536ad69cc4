"""Trains on batches in which no answer is more frequent than the other."""

from collections.abc import Iterator, Sequence

from detectron2.config import CfgNode
from detectron2.data.samplers import TrainingSampler
from torch.utils.data import Sampler

from nl_detectron.engine import Trainer


class InTurn(Sampler[int]):
    """Endless indices, one of each group in turn; within a group as Detectron2 draws them."""

    def __init__(self, groups: Sequence[Sequence[int]]):
        self._groups = groups
        self._samplers = [TrainingSampler(len(group)) for group in groups]

    def __iter__(self) -> Iterator[int]:
        for places in zip(*self._samplers, strict=True):
            yield from (group[place] for group, place in zip(self._groups, places, strict=True))


class BalancedTrainer(Trainer):
    """A trainer whose images begin with an object of each class in turn: in strips, with a key.

    The answer reaches a target as a small part of what its block gathers, most of which is the same
    in all images. By that large rest a step follows whichever answer is the more frequent one in
    its batch, and not the key: noise in which the answer is lost for hundreds of iterations, or for
    good. With as many images of either answer it cancels out.
    """

    @classmethod
    def build_train_sampler(cls, cfg: CfgNode, dicts: list[dict]) -> InTurn:
        groups: dict[int, list[int]] = {}
        for index, record in enumerate(dicts):
            groups.setdefault(record["annotations"][0]["category_id"], []).append(index)
        return InTurn([groups[category] for category in sorted(groups)])
