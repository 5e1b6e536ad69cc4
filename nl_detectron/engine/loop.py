"""The loops of training: Detectron2's, and the same with a step's batch taken in parts."""

import contextlib
import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer, TrainerBase
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import UsageError, full_disk
from ..log import say_once_of_full_disks


def build_loop(
    model: nn.Module,
    data_loader: Iterable[list[dict]],
    optimizer: torch.optim.Optimizer,
    *,
    amp: bool,
    accumulate: int = 1,
) -> SimpleTrainer:
    """What trains a model, an iteration at a time.

    Args:
        model: gives a dictionary of losses for a batch.
        data_loader: endless; of the parts of a batch where ``accumulate`` is above 1.
        amp: in mixed precision, which needs CUDA.
        accumulate: the parts of an iteration's batch.
    """
    if accumulate == 1:
        return (AMPTrainer if amp else SimpleTrainer)(model, data_loader, optimizer)
    loop = AccumulatingAMPTrainer if amp else AccumulatingTrainer
    return loop(model, data_loader, optimizer, accumulate=accumulate)


class AccumulatingTrainer(SimpleTrainer):
    """Takes ``accumulate`` batches for one step of the optimizer: less memory, the same step.

    The gradient is the mean of those of the parts, and the losses in the log are, too. It is that
    of the large batch, to rounding, where each loss is a mean over images. Where Detectron2 divides
    by what it has found in a batch (the RoIs, those with a mask), it divides within each part, and
    BN takes the statistics of each part.

    An iteration is a step of the optimizer, here as everywhere else.
    """

    def __init__(self, *args: Any, accumulate: int, **options: Any):
        """
        Args:
            args, options: see :class:`SimpleTrainer`.
            accumulate: batches of the loader for a step.
        """
        super().__init__(*args, **options)
        if accumulate < 1:
            raise ValueError(f"accumulate must be at least 1, got {accumulate}")
        self.accumulate = accumulate

    def run_step(self) -> None:
        """Trains on the next ``accumulate`` batches."""
        assert self.model.training, "the model was changed to evaluation mode"
        start = time.perf_counter()
        parts = [next(self._data_loader_iter) for _ in range(self.accumulate)]
        data_time = time.perf_counter() - start
        self.optimizer.zero_grad()
        means: dict[str, Tensor] = {}
        for number, part in enumerate(parts, start=1):
            with self._gradients_kept_apart(until_last=number < self.accumulate):
                losses = self._losses(part)
                loss = sum(losses.values(), torch.zeros(()))
                self._scaled(loss / self.accumulate).backward()
            for name, loss in losses.items():
                means[name] = means.get(name, 0) + loss.detach() / self.accumulate
        self.after_backward()
        self._write_metrics(means, data_time)
        self._step()

    def _gradients_kept_apart(self, *, until_last: bool) -> contextlib.AbstractContextManager:
        """Processes exchange gradients once a step, with those of the last part."""
        if until_last and isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()

    def _losses(self, batch: list[dict]) -> dict[str, Tensor]:
        losses = self.model(batch)
        return {"total_loss": losses} if isinstance(losses, Tensor) else losses

    def _scaled(self, loss: Tensor) -> Tensor:
        return loss

    def _step(self) -> None:
        self.optimizer.step()


class AccumulatingAMPTrainer(AccumulatingTrainer, AMPTrainer):
    """The same in mixed precision; one scale holds for all parts of a step."""

    def _losses(self, batch: list[dict]) -> dict[str, Tensor]:
        with torch.autocast("cuda", dtype=self.precision):
            return super()._losses(batch)

    def _scaled(self, loss: Tensor) -> Tensor:
        return self.grad_scaler.scale(loss)

    def _step(self) -> None:
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()


def loop_of(trainer: TrainerBase) -> SimpleTrainer:
    """The loop of a training: the trainer itself or, of Detectron2's DefaultTrainer, its own."""
    return getattr(trainer, "_trainer", trainer)


def model_of(trainer: TrainerBase) -> nn.Module:
    """The model of a training, without what wraps it for several processes."""
    model = loop_of(trainer).model
    return getattr(model, "module", model)


@contextlib.contextmanager
def usage_errors_unlogged() -> Iterator[None]:
    """Keeps Detectron2's loop from logging a :class:`UsageError` with a traceback.

    It logs each exception so, and raises it; of a UsageError the caller prints the one line. A log
    file that cannot be written is told of in one line, too. Of several processes
    :func:`.launch.launch` says which has failed, and why.

    Raises:
        UsageError: in the place of the error of a full disk.
    """

    def is_no_usage_error(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and comm.get_world_size() > 1:
            return False
        # Of numbers that are not finite, a hook makes a UsageError afterwards.
        return not (isinstance(error, UsageError | FloatingPointError) or full_disk(error))

    say_once_of_full_disks()
    log = logging.getLogger(TrainerBase.__module__)
    log.addFilter(is_no_usage_error)
    try:
        yield
    except OSError as error:
        if full_disk(error) is None:
            raise
        raise UsageError(
            f"a file cannot be written: {error}. The last good checkpoint is whole: make room, "
            "then resume",
            arguments=["resume"],
        ) from error
    finally:
        log.removeFilter(is_no_usage_error)
