"""The best checkpoint so far, and the end of a training that does not get better."""

import contextlib
import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

from detectron2.engine import hooks
from detectron2.engine.train_loop import HookBase
from detectron2.utils import comm
from detectron2.utils.events import JSONWriter, TensorboardXWriter

from ..checkpoint import NonLocalCheckpointer
from ..errors import UsageError
from ..files import replacing
from ..log import logger
from .metrics import writers_of

RECORD = "model_best.json"


def check_best(metric: str, patience: int, eval_period: int, *, keys: Sequence[str]) -> None:
    """Checks the settings of the best checkpoint and of early stopping.

    Args:
        keys: names of the three settings, for errors.

    Raises:
        UsageError: naming the value that cannot work.
    """
    if metric and "/" not in metric:
        raise UsageError(
            f'{keys[0]} {metric!r} is no figure: name the task and the figure, such as "bbox/AP" '
            'or "keypoints/AP50", or give "" for the first task\'s AP'
        )
    if patience < 0:
        raise UsageError(f"{keys[1]} {patience} must be 0 (off) or a number of evaluations")
    if patience and eval_period < 1:
        raise UsageError(
            f"{keys[1]} {patience} counts evaluations, but {keys[2]} is {eval_period}: set "
            f"{keys[2]} to the iterations from one evaluation to the next"
        )


def with_best(
    hook_list: Sequence[HookBase | None],
    checkpointer: NonLocalCheckpointer,
    *,
    eval_period: int,
    metric: str = "",
    patience: int = 0,
) -> list[HookBase]:
    """A training's hooks, and among them those that keep the best checkpoint and stop early.

    Args:
        hook_list: with an ``EvalHook``, after which the best is looked for.
        eval_period: of that hook.
        metric: by which one is the best, such as "bbox/AP"; the first task's AP by default.
        patience: evaluations without a better one after which training ends; 0 for never.
    """
    found = [hook for hook in hook_list if hook is not None]
    place = next(i for i, hook in enumerate(found) if isinstance(hook, hooks.EvalHook)) + 1
    best = BestHook(eval_period, checkpointer, metric, patience)
    return [EarlyEnd(best), *found[:place], best, *found[place:]]


class BestHook(hooks.BestCheckpointer):
    """Detectron2's hook, which keeps ``model_best.pth``, with a memory and a line in the log.

    What is the best so far is written to ``model_best.json`` beside it, from where a resumed
    training goes on. The checkpoint does not count as the last one, with which training goes on.
    """

    def __init__(
        self,
        eval_period: int,
        checkpointer: NonLocalCheckpointer,
        metric: str = "",
        patience: int = 0,
    ):
        """
        Args:
            eval_period, metric, patience: as in :func:`with_best`.
        """
        super().__init__(eval_period, _Aside(checkpointer), metric)
        self.best_metric: Any
        self.best_iter: int | None
        self._val_metric: str
        self._logger = _quiet_logger()  # one line on each evaluation is enough
        self._model_checkpointer = checkpointer
        self._patience = patience
        self._since = 0  # evaluations after the best one
        self._evaluated = 0  # iterations done at the latest evaluation
        self._loaded: dict[str, Any] | None = None
        self._is_better = False
        self.ends = False

    def before_train(self) -> None:
        if self.trainer.start_iter > 0:
            self._restore()
        elif comm.is_main_process():
            with contextlib.suppress(FileNotFoundError):  # of another training in this folder
                os.remove(self._record_file)

    def after_step(self) -> None:
        super().after_step()
        done = self._iterations_done()
        if self._period < 1 or done % self._period or done == self.trainer.max_iter:
            return
        self._write_figures()
        # All processes end at the same step.
        if self._patience and comm.all_gather(self._since >= self._patience)[0]:
            self.ends = True
            # With this iteration's state, as at any end
            self._model_checkpointer.save("model_final", iteration=self.trainer.iter)

    def after_train(self) -> None:
        super().after_train()
        if self.trainer.iter + 1 >= self.trainer.max_iter and self.best_iter is not None:
            file = os.path.join(self._model_checkpointer.save_dir, "model_best.pth")
            logger.info(f"Best: {self._best()}, in {file}")

    def make_up(self, *, is_written: bool, is_over: bool) -> None:
        """Before a resumed training: counts the evaluation of its last iteration if none has.

        Args:
            is_written: its figures are in ``metrics.json``.
            is_over: the evaluation at the end of a training has been done here, too; one that goes
                on all the same is not to be ended at once.
        """
        start = self.trainer.start_iter
        counted, since = comm.all_gather((self._evaluated, self._since))[0]
        if counted < start:
            self.after_step()
            return
        if counted == start and not is_written:  # killed in between
            self._write_figures()
        if self._patience and since >= self._patience:
            self.ends = not is_over

    def state_dict(self) -> dict[str, Any]:
        return self._state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._loaded = state

    def _iterations_done(self) -> int:
        return min(self.trainer.iter + 1, self.trainer.max_iter)  # after training iter is max_iter

    def _update_best(self, val: float, iteration: int) -> bool:
        # Iterations are counted from 1 in all that is said of them.
        self._is_better = super()._update_best(val, self._iterations_done())
        return self._is_better

    def _best_checking(self) -> None:
        """Called after each evaluation; only the main process has figures."""
        latest = self.trainer.storage.latest()
        figures = {name: value for name, (value, _) in latest.items() if name.endswith("/AP")}
        if not figures:
            return
        self._val_metric = self._val_metric or next(iter(figures))
        self._is_better = False
        self._evaluated = self._iterations_done()
        super()._best_checking()
        self._since = 0 if self._is_better or self._val_metric not in latest else self._since + 1
        self._record()
        listed = ", ".join(f"{name} {value:.2f}" for name, value in figures.items())
        if self._val_metric not in latest:
            best = f"there is no {self._val_metric}, so that none is the best"
        elif self.best_iter is None:
            best = f"no {self._val_metric} that is a number yet"
        else:
            best = f"best: {'this one' if self._is_better else self._best()}"
        logger.info(f"Evaluation at iteration {self._iterations_done()}: {listed}; {best}")

    def _best(self) -> str:
        return f"{self._val_metric} {self.best_metric:.2f} at iteration {self.best_iter}"

    def _record(self) -> None:
        if self.best_iter is None or not comm.is_main_process():
            return
        with (
            replacing(self._record_file) as temporary,
            open(temporary, "w", encoding="utf-8") as file,
        ):
            json.dump(self._state(), file)

    def _state(self) -> dict[str, Any]:
        return {
            "metric": self._val_metric,
            "value": self.best_metric,
            "iteration": self.best_iter,
            "evaluations_since": self._since,
            "evaluated": self._evaluated,
        }

    def _restore(self) -> None:
        """Takes the later one of what the checkpoint and the record say, of iterations done."""
        states = [self._loaded, _read_record(self._model_checkpointer.save_dir)]
        start = self.trainer.start_iter
        usable = [
            state
            for state in states
            if state is not None
            and state["evaluated"] <= start
            and self._val_metric in ("", state["metric"])
        ]
        if not usable:
            return
        state = max(usable, key=lambda state: state["evaluated"])
        self._val_metric = state["metric"]
        self.best_metric, self.best_iter = state["value"], state["iteration"]
        self._since, self._evaluated = state["evaluations_since"], state["evaluated"]
        if self.best_iter is not None:
            logger.info(f"Best so far: {self._best()}")

    @property
    def _record_file(self) -> str:
        return os.path.join(self._model_checkpointer.save_dir, RECORD)

    def _write_figures(self) -> None:
        """Also where the writers' own period would skip this evaluation for a later one."""
        for writer in writers_of(self.trainer):
            if isinstance(writer, JSONWriter | TensorboardXWriter):
                writer.write()


class EarlyEnd(HookBase):
    """Ends a training before its next step when :class:`BestHook` says so.

    What follows is the normal end, with its evaluation. The loop is left by an exception, as
    Detectron2 has no other way; :func:`may_end_early` goes around it.
    """

    def __init__(self, best: BestHook):
        self._best = best

    def before_step(self) -> None:
        if not self._best.ends:
            return
        logger.info(
            f"Early stopping at iteration {self.trainer.iter} of {self.trainer.max_iter}: "
            f"{self._best._patience} evaluations brought no better {self._best._val_metric}"
        )
        self.trainer.max_iter = self.trainer.iter
        raise _Ended


class _Ended(BaseException):  # noqa: N818  # no error, and Detectron2 logs a traceback of each
    """Leaves the training loop."""


@contextlib.contextmanager
def may_end_early() -> Iterator[None]:
    """Around a training that :class:`EarlyEnd` may end."""
    with contextlib.suppress(_Ended):
        yield


def read_best(folder: str) -> dict | None:
    """The record of a run's best checkpoint: metric, value, iteration, evaluations_since.

    None where there is no such checkpoint, or no record that makes sense.
    """
    record = _read_record(folder)
    if record is not None:
        del record["evaluated"]
    return record


def _read_record(folder: str) -> dict | None:
    path = os.path.join(folder, RECORD)
    if not os.path.isfile(os.path.join(folder, "model_best.pth")):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
        value, iteration = float(record["value"]), int(record["iteration"])
        since = int(record["evaluations_since"])
        evaluated = int(record.get("evaluated", iteration))  # older records lack it
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not math.isfinite(value):
        return None
    metric = str(record["metric"])
    return {
        "metric": metric,
        "value": value,
        "iteration": iteration,
        "evaluations_since": since,
        "evaluated": evaluated,
    }


class _Aside:
    """A checkpointer of files from which no training resumes."""

    def __init__(self, checkpointer: NonLocalCheckpointer):
        self._checkpointer = checkpointer

    def save(self, name: str, **state: object) -> None:
        self._checkpointer.save(name, is_last=False, **state)


def _quiet_logger() -> logging.Logger:
    quiet = logging.Logger(__name__)
    quiet.addHandler(logging.NullHandler())
    quiet.propagate = False
    return quiet
