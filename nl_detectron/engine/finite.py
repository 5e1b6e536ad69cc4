"""Numbers that break: a training ends in the iteration in which they do, and says where and why."""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from detectron2.engine.train_loop import AMPTrainer, HookBase, SimpleTrainer
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.structures import ImageList, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..checkpoint import NonLocalCheckpointer
from ..errors import UsageError, few
from ..finite import all_finite, not_finite
from ..layers import EMABlock
from ..log import logger
from .loop import loop_of, model_of
from .resume import ExactResume
from .signals import greatest_of_all

SKIPPED_WARNING = 20  # steps in a row that a scaler has skipped


class FiniteSteps(HookBase):
    """Ends a training whose losses, gradients or weights are no finite numbers any more.

    Of losses and gradients this is before the optimizer's step, so the weights are still good: they
    are saved, beside the other checkpoints, for a run that does the one step once more. It is the
    first of the hooks that act after a step, so nothing of it is in any checkpoint.

    In mixed precision with a scaler, gradients may be infinite: the scaler skips such steps. Where
    it does nothing else, a warning says so.
    """

    def __init__(self, checkpointer: NonLocalCheckpointer, folder: str):
        """
        Args:
            checkpointer: saves the state in which the step can be done once more.
            folder: the training's, in which ``non_finite`` is for that.
        """
        self._checkpointer, self._folder = checkpointer, os.path.join(folder, "non_finite")
        self._batches: list[list[dict[str, Any]]] = []
        self._losses: list[Tensor] = []
        self._scale, self._skipped = 0.0, 0

    def before_train(self) -> None:
        model = self._loop.model
        self._handles = [
            model.register_forward_pre_hook(self._keep_batch),
            model.register_forward_hook(self._keep_losses),
        ]
        self._parameters = dict(model_of(self.trainer).named_parameters())
        if hasattr(self.trainer, "_trainer"):  # DefaultTrainer, whose hooks miss the moment
            self._loop.register_hooks([_AfterBackward(self)])

    def before_step(self) -> None:
        self._batches, self._losses = [], []

    def after_backward(self) -> None:
        # Gradients have been summed over all processes, which therefore all come to the same.
        if self._scaler is None:
            broken = not all_finite([*self._losses, *self._gradients().values()])
        else:
            broken = greatest_of_all(not all_finite(self._losses)) > 0
        if broken:
            self._explain(together=True)

    def after_step(self) -> None:
        if broken := not_finite(self._parameters):
            rates = sorted({group["lr"] for group in self._loop.optimizer.param_groups})
            raise self._error(
                "the optimizer's step made weights that are "
                f"not finite: {few(broken, 3)}. The gradients were; the learning rate was "
                f"{rates[-1]:g}. None of it is in a checkpoint: resume repeats the step, and a new "
                "training with a lower learning rate avoids it"
            )
        self._watch_scaler()

    def after_train(self) -> None:
        # Detectron2 looks at proposals within the forward pass.
        if isinstance(sys.exc_info()[1], FloatingPointError):
            self._explain(together=False)
        self._stop_watching()

    def _stop_watching(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _keep_batch(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        if model.training:
            self._batches.append(inputs[0])

    def _keep_losses(self, model: nn.Module, inputs: tuple[Any, ...], losses: Any) -> None:
        if model.training:
            self._losses += _tensors(losses)

    def _watch_scaler(self) -> None:
        if self._scaler is None:
            return
        scale = self._scaler.get_scale()
        self._skipped = self._skipped + 1 if scale < self._scale else 0
        self._scale = scale
        if self._skipped and self._skipped % SKIPPED_WARNING == 0:
            logger.warning(
                f"The last {self._skipped} steps were skipped, up to iteration "
                f"{self.trainer.iter + 1}: their gradients overflow in half precision, at a scale "
                f"of {scale:g} now. If this goes on, nothing is learned: lower the learning rate, "
                "or train without SOLVER.AMP.ENABLED (train.amp.enabled)"
            )

    def _explain(self, *, together: bool) -> None:
        self._stop_watching()  # of which what follows is no part
        broken = self._what_is_broken()
        if not together:  # no other process may come here, and write or compute with this one
            self._checkpointer.save_to_disk = True
        module = self._first_module() if together or not self._computes_with_others() else ""
        files = [str(d.get("file_name", "?")) for batch in self._batches for d in batch]
        mine = (module, files, broken)
        all_found = comm.all_gather(mine) if together else [mine]
        module, images, broken = next((found for found in all_found if found[0]), mine)
        self._save()
        if together:
            comm.synchronize()  # as the first process saves, and one that ends would end it
        raise self._error(
            f"{broken} are not finite; first {module or 'unknown'}, of "
            f"the images {few(images, 16)}. The weights are still those of before and in "
            f"{self._folder}: resume with that folder as the output folder does this step once more"
        )

    def _what_is_broken(self) -> str:
        if not self._losses:
            return "proposals"
        if not all_finite(self._losses):
            return "losses"
        return f"gradients ({few(not_finite(self._gradients()), 3)})"

    def _error(self, message: str) -> UsageError:
        iteration = self.trainer.iter
        self.trainer.max_iter = iteration + 2  # so nothing takes it for the end, and evaluates
        return UsageError(f"iteration {iteration + 1}: {message}", arguments=["resume"])

    def _first_module(self) -> str:
        """Where the step, done once more, makes the first number that is not finite."""
        model = model_of(self.trainer)
        found: list[str] = []

        def watch(name: str) -> Any:
            def look(_: nn.Module, __: Any, output: Any) -> None:
                for tensor in _tensors(output):
                    if not found and not tensor.isfinite().all():
                        found.append(f"made by {name} in the forward pass")
                    elif tensor.requires_grad:
                        tensor.register_hook(behind)

            def behind(gradient: Tensor) -> None:
                if not found and not gradient.isfinite().all():
                    found.append(f"in the backward pass as the gradient of {name}'s output")

            return look

        handles = [m.register_forward_hook(watch(n)) for n, m in model.named_modules() if n]
        for hook in self.trainer._hooks:
            if isinstance(hook, ExactResume):
                hook.before_step()  # the same random numbers
        loop, device = self._loop, _device(model)
        precision = torch.autocast(
            device.type,
            dtype=loop.precision if isinstance(loop, AMPTrainer) else None,
            enabled=isinstance(loop, AMPTrainer),
        )
        with EventStorage(self.trainer.iter), contextlib.suppress(FloatingPointError):
            for batch in self._batches:
                with precision:
                    losses = sum(_tensors(model(batch)), torch.zeros((), device=device))
                if not found:
                    losses.backward()
        for handle in handles:
            handle.remove()
        return found[0] if found else ""

    def _computes_with_others(self) -> bool:
        kinds = (nn.SyncBatchNorm, NaiveSyncBatchNorm, EMABlock)
        modules = self._loop.model.modules()
        return comm.get_world_size() > 1 and any(isinstance(m, kinds) for m in modules)

    def _save(self) -> None:
        model = self._checkpointer.model
        for buffer in model.buffers():  # statistics, which training does not read
            if buffer.is_floating_point():
                buffer.nan_to_num_()
        self.trainer.iter -= 1  # as many as are done
        try:
            self._checkpointer.save_in(
                self._folder, f"model_{max(self.trainer.iter, 0):07d}", iteration=self.trainer.iter
            )
        finally:
            self.trainer.iter += 1

    def _gradients(self) -> dict[str, Tensor]:
        return {n: p.grad for n, p in self._parameters.items() if p.grad is not None}

    @property
    def _loop(self) -> SimpleTrainer:
        return loop_of(self.trainer)

    @property
    def _scaler(self) -> torch.amp.GradScaler | None:
        return self._loop.grad_scaler if isinstance(self._loop, AMPTrainer) else None


class _AfterBackward(HookBase):
    def __init__(self, steps: FiniteSteps):
        self._steps = steps

    def after_backward(self) -> None:
        self._steps.after_backward()


def _tensors(value: Any) -> Iterator[Tensor]:
    """Those with fractions in what a module has returned."""
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.numel():
            yield value
        return
    if isinstance(value, dict):
        nested: Iterable[Any] = value.values()
    elif isinstance(value, list | tuple):
        nested = value
    elif isinstance(value, ImageList):
        nested = [value.tensor]
    elif isinstance(value, Instances):
        nested = value.get_fields().values()
    else:
        return
    for part in nested:
        yield from _tensors(part)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
