"""Room on the disk for the checkpoints of a training: enough to begin with, and not all kept."""

import os
import re
import shutil

from detectron2.engine.train_loop import HookBase
from detectron2.utils import comm
from torch import Tensor, nn

from ..errors import UsageError
from ..log import logger
from .loop import loop_of

SAVED = re.compile(r"model_(\d{7})\.pth")
GB = 1e9


class Room(HookBase):
    """Looks for room for all checkpoints before a training, and removes old ones during it.

    It goes after the hook that writes checkpoints.
    """

    def __init__(
        self,
        folder: str,
        *,
        period: int,
        keep: int,
        go_on: bool,
        averages: bool,
        keys: tuple[str, str],
    ):
        """
        Args:
            folder: of the checkpoints.
            period: iterations from one to the next.
            keep: how many are kept, besides the best and the last one; 0 for all.
            go_on: training is to go on where one cannot be written.
            averages: they hold the averaged weights, too.
            keys: of ``keep`` and of ``go_on`` in the config, for errors.
        """
        self._folder, self._period, self._keep = folder, period, keep
        self._go_on, self._averages, self._keys = go_on, averages, keys

    def before_train(self) -> None:
        if comm.is_main_process():
            self._check_room()

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if not self._keep or done % self._period or not comm.is_main_process():
            return
        saved = sorted(
            match[0] for name in os.listdir(self._folder) if (match := SAVED.fullmatch(name))
        )
        current = [name for name in saved if int(name[6:13]) < done]  # others are written anew
        for name in current[: -self._keep]:
            for file in (name, name.replace(".pth", ".safetensors")):
                path = os.path.join(self._folder, file)
                if os.path.exists(path):
                    os.remove(path)

    def _check_room(self) -> None:
        loop = loop_of(self.trainer)
        size = _checkpoint_size(loop.model, loop.optimizer.param_groups, self._averages)
        periodic = (self.trainer.max_iter - self.trainer.start_iter) // self._period
        # The best and the last one, and a new one is whole before an old one goes
        number = min(periodic, self._keep or periodic) + 3
        free = shutil.disk_usage(self._folder).free
        if number * size <= free:
            return
        message = (
            f"{self._folder} has room for {free / GB:.1f} GB, but {number} checkpoints of "
            f"{size / GB:.2g} GB are to be written there: make room, keep fewer by {self._keys[0]}"
        )
        if not self._go_on:
            raise UsageError(f'{message}, or set {self._keys[1]} "continue" to train all the same')
        logger.warning(message)


def _checkpoint_size(model: nn.Module, groups: list[dict], averages: bool) -> int:
    """Bytes of a checkpoint, from what the optimizers here keep of each weight."""
    trained = 0
    for group in groups:
        moments = 2 if "betas" in group else int(bool(group.get("momentum")))
        trained += moments * sum(_bytes(p) for p in group["params"])
    weights = sum(map(_bytes, model.state_dict().values()))
    return weights * (2 if averages else 1) + trained


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
