"""What a training writes of its figures, in a form that a resumed one goes on from."""

import contextlib
import json
import math
import os
from collections.abc import Iterator
from typing import Any

from detectron2.engine import hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
)

from ..files import replacing
from ..log import logger

WINDOW = 20  # iterations over which Detectron2's writers take medians
TIMES = ("data_time", "eta_seconds", "rank_data_time", "time")  # of no training but the one at work
EVALUATED = ("/AP", "/mIoU", "/PQ")  # ends of figures that only an evaluation gives


def build_writers(folder: str, max_iter: int) -> list[EventWriter]:
    """Detectron2's writers, with its ``metrics.json`` written by :class:`MetricsWriter`."""
    os.makedirs(folder, exist_ok=True)
    file = os.path.join(folder, "metrics.json")
    return [CommonMetricPrinter(max_iter), MetricsWriter(file), _TensorBoardWriter(folder)]


def writers_of(trainer: TrainerBase) -> Iterator[EventWriter]:
    """The writers of a training; other processes than the main one have none."""
    for hook in trainer._hooks:
        if isinstance(hook, hooks.PeriodicWriter):
            yield from hook._writers


def metrics_writer(trainer: TrainerBase) -> "MetricsWriter | None":
    """The one of ``metrics.json``, if there is one in this process."""
    found = (writer for writer in writers_of(trainer) if isinstance(writer, MetricsWriter))
    return next(found, None)


class MetricsWriter(JSONWriter):
    """Detectron2's ``metrics.json``, without the iterations that are done again after a resume.

    What is no finite number is null: NaN is no JSON.
    """

    _last_write: int

    def __init__(self, file: str):
        super().__init__(file, WINDOW)
        self._file = file
        self._file_handle: Any = _Strict(self._file_handle)
        self.extra: int | None = None

    def write(self) -> None:
        with _alarm(self._file):
            if not os.path.exists(self._file):
                logger.error(f"ALARM: {self._file} was removed during the training; it begins anew")
                self._open()
            super().write()

    def close(self) -> None:
        with _alarm(self._file):
            super().close()

    def _open(self) -> None:
        os.makedirs(os.path.dirname(self._file) or ".", exist_ok=True)
        last = self._last_write
        super().__init__(self._file, WINDOW)
        self._file_handle, self._last_write = _Strict(self._file_handle), last

    def write_now(self) -> None:
        """Writes where a training stops that is to go on.

        If that is not when it would have written, the iteration is in ``extra``.
        """
        iteration = get_event_storage().iter
        if self._last_write < iteration:
            self.extra = iteration
            self.write()

    def go_on(self, start: int, max_iter: int, *, extra: int | None = None) -> None:
        """Drops the lines of ``start`` and later, and a last one that was cut off.

        An evaluation after what was the last iteration is kept if training goes on.

        Args:
            extra: an iteration whose line is dropped, too, as it would not have been written.
        """
        self._file_handle.close()
        records = list(self._records())
        kept = [r for r in records if r["iteration"] < start and r["iteration"] != extra]
        last = max((r["iteration"] for r in kept), default=-1)
        if start < max_iter:
            kept += [r for r in records if r["iteration"] == start and "total_loss" not in r]
        with replacing(self._file) as temporary, open(temporary, "w", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(record, sort_keys=True)}\n" for record in kept)
        self._last_write = last
        self._open()

    def evaluated(self, iteration: int) -> dict[str, float]:
        """The figures of an iteration's record if it has those of an evaluation; else none.

        Args:
            iteration: from 0. What came after the last one has the number of iterations.
        """
        for record in self._records():
            if record["iteration"] == iteration and any(k.endswith(EVALUATED) for k in record):
                del record["iteration"]
                return {name: math.nan if v is None else v for name, v in record.items()}
        return {}

    def _records(self) -> Iterator[dict[str, Any]]:
        with open(self._file, encoding="utf-8") as file:
            for line in file:
                try:
                    record = json.loads(line)
                except ValueError:
                    continue  # cut off
                if isinstance(record, dict) and isinstance(record.get("iteration"), int):
                    yield record


class _TensorBoardWriter(TensorboardXWriter):
    def write(self) -> None:
        with _alarm("TensorBoard's file"):
            super().write()


@contextlib.contextmanager
def _alarm(what: str) -> Iterator[None]:
    """No training ends for a record that cannot be written; what is held back is written later."""
    try:
        yield
    except OSError as error:
        logger.error(f"ALARM: {what} cannot be written ({error.strerror}); training goes on")


class _Strict:
    """A file of JSON lines with null for numbers that are not finite."""

    def __init__(self, file: Any):
        self._opened = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._opened, name)

    def write(self, line: str) -> None:
        record = {k: v if math.isfinite(v) else None for k, v in json.loads(line).items()}
        self._opened.write(json.dumps(record, sort_keys=True, allow_nan=False) + "\n")


def recent(storage: EventStorage) -> dict[str, dict[str, Any]]:
    """What the writers still read of a storage, as data: by name ``hint``, ``values``, ``steps``.

    It is what medians are taken of, so a run that has it writes what it would have written.
    """
    hints = storage.smoothing_hints()
    kept = {}
    for name, history in storage.histories().items():
        if name in TIMES:
            continue
        pairs = history.values()[-storage.count_samples(name, WINDOW) :]
        values, steps = zip(*pairs, strict=True)
        kept[name] = {"hint": hints[name], "values": list(values), "steps": list(steps)}
    return kept


def restore(storage: EventStorage, kept: dict[str, dict[str, Any]]) -> None:
    """Puts what :func:`recent` has returned into a storage."""
    for name, scalar in kept.items():
        for value, step in zip(scalar["values"], scalar["steps"], strict=True):
            storage.put_scalar(name, value, smoothing_hint=scalar["hint"], cur_iter=step)
