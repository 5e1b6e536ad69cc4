"""Moments at which a training can be killed; each is set for one iteration, counted from 0."""

import functools
import io
import os
import signal
from collections.abc import Callable
from typing import Any

import torch
from detectron2.modeling.proposal_generator import RPN
from detectron2.utils.events import get_event_storage, has_event_storage

from nl_detectron.checkpoint import NonLocalCheckpointer
from nl_detectron.engine.best import BestHook
from nl_detectron.evaluation import COCOEvaluator


def die() -> bool:
    os.kill(os.getpid(), signal.SIGKILL)
    return True


def in_the_forward_pass(iteration: int) -> None:
    _before(RPN, "forward", lambda rpn, *_: rpn.training and _at(iteration) and die())


def in_the_backward_pass(iteration: int) -> None:
    losses = RPN.losses

    def watched(self: RPN, *args: Any) -> dict[str, torch.Tensor]:
        found = losses(self, *args)
        if _at(iteration):
            next(iter(found.values())).register_hook(lambda _: die())
        return found

    RPN.losses = watched


def checkpoint_half_written(iteration: int) -> None:
    save = torch.save

    def half(content: Any, file: io.BufferedWriter) -> None:
        if isinstance(content, dict) and content.get("iteration") == iteration:
            buffer = io.BytesIO()
            save(content, buffer)
            file.write(buffer.getvalue()[: buffer.tell() // 2])
            file.flush()
            die()
        save(content, file)

    torch.save = half  # type: ignore[assignment]


def checkpoint_not_renamed(iteration: int) -> None:
    name = f"model_{iteration:07d}.pth"
    _before(os, "replace", lambda _, new: os.path.basename(new) == name and die())


def checkpoint_not_yet_last(iteration: int) -> None:
    name = f"model_{iteration:07d}.pth"
    _before(NonLocalCheckpointer, "tag_last_checkpoint", lambda _, last: last == name and die())


def evaluation_half_done(iteration: int) -> None:
    seen: list[None] = []

    def second(*_: Any) -> None:
        seen.extend([None] * _at(iteration))
        if len(seen) == 2:
            die()

    _before(COCOEvaluator, "process", second)


def evaluation_done(iteration: int) -> None:
    """Before its figures are anywhere."""
    evaluate = COCOEvaluator.evaluate

    def watched(self: COCOEvaluator, *args: Any, **options: Any) -> Any:
        results = evaluate(self, *args, **options)
        if _at(iteration):
            die()
        return results

    COCOEvaluator.evaluate = watched


def evaluation_not_written(iteration: int) -> None:
    """The best checkpoint knows it, metrics.json does not."""
    _before(BestHook, "_write_figures", lambda _: _at(iteration) and die())


def _at(iteration: int) -> bool:
    return has_event_storage() and get_event_storage().iter == iteration


def _before(owner: Any, name: str, first: Callable[..., Any]) -> None:
    function = getattr(owner, name)

    @functools.wraps(function)
    def watched(*args: Any, **options: Any) -> Any:
        first(*args)
        return function(*args, **options)

    setattr(owner, name, watched)
