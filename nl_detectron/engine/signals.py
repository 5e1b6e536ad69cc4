"""A training that is told to stop finishes its iteration, saves itself and says how to go on."""

import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

import torch
from detectron2.engine.train_loop import HookBase
from detectron2.utils import comm
from torch import distributed

from ..checkpoint import NonLocalCheckpointer
from ..log import logger
from .metrics import metrics_writer

# What clusters, terminals and users send; the exit code is 128 and the number, as in a shell.
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT)
# A terminal sends SIGINT to all processes, and the one that has launched them sends it on.
ONE_KEYSTROKE = 1.0  # seconds


class StopOnSignal(HookBase):
    """Ends a training at the end of an iteration in which one of its processes got a signal.

    It comes after all hooks that evaluate and write, with the weights that checkpoints hold. A
    second SIGINT is a KeyboardInterrupt at once.
    """

    def __init__(self, checkpointer: NonLocalCheckpointer):
        """
        Args:
            checkpointer: saves the training.
        """
        self._checkpointer = checkpointer
        self._number, self._since = 0, 0.0
        self._before: dict[signal.Signals, Any] = {}

    def before_train(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # where no signal comes
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
                self._before[number] = signal.signal(number, self._told)

    def after_step(self) -> None:
        if number := greatest_of_all(self._number):
            self._stop(signal.Signals(number))

    def after_train(self) -> None:
        # Of several processes one that has stopped is told so once more, by who has launched them.
        if not self._number or comm.get_world_size() == 1:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _told(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._number == number == signal.SIGINT and now - self._since > ONE_KEYSTROKE:
            raise KeyboardInterrupt
        if not self._number:
            self._number, self._since = number, now
            hint = "; Ctrl-C once more stops at once" if number == signal.SIGINT else ""
            line = f"\n{signal.Signals(number).name}: stopping after this iteration{hint}\n"
            with contextlib.suppress(OSError, ValueError):  # of a terminal that has gone: SIGHUP
                os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, line.encode())

    def _stop(self, number: signal.Signals) -> None:
        iteration = self.trainer.iter
        if writer := metrics_writer(self.trainer):
            writer.write_now()
        if iteration + 1 < self.trainer.max_iter:  # else model_final has just been written
            self._checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
        comm.synchronize()  # none ends before the checkpoint is there
        logger.warning(
            f"Stopped by {number.name} after {iteration + 1} of {self.trainer.max_iter} iterations;"
            " the same command with --resume goes on from there"
        )
        self.trainer.max_iter = iteration + 2  # so nothing takes it for the end, and evaluates
        sys.exit(128 + number)


def greatest_of_all(number: int) -> int:
    """The greatest number that any process has, the same in all."""
    if comm.get_world_size() == 1:
        return number
    told = torch.tensor(number)
    # By way of the CPU, where nothing has to wait for a GPU
    group = comm._get_global_gloo_group()
    distributed.all_reduce(told, op=distributed.ReduceOp.MAX, group=group)
    return int(told)
