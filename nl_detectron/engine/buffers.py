"""Running statistics of norms, of which each of several processes has its own."""

from collections.abc import Sequence

from detectron2.engine.train_loop import HookBase
from detectron2.utils import comm
from torch import distributed, nn


class SameBuffers(HookBase):
    """Gives all processes the first one's buffers before anything is evaluated or saved.

    Detectron2 does not synchronize them in training. The checkpoint holds those of the first
    process, so an evaluation with those of each would be of no model that there is. It goes before
    all hooks that evaluate or save.
    """

    def __init__(self, model: nn.Module, periods: Sequence[int]):
        """
        Args:
            model: in training.
            periods: of evaluations and checkpoints, in iterations; 0 for none but the last.
        """
        self._model, self._periods = model, periods

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        is_due = any(period > 0 and done % period == 0 for period in self._periods)
        if comm.get_world_size() > 1 and (is_due or done == self.trainer.max_iter):
            for buffer in self._model.buffers():
                distributed.broadcast(buffer, 0)
