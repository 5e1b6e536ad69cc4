"""What exact resume, the checks of numbers and the watch for signals add to a training step."""

import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence

import torch
from detectron2.engine.train_loop import HookBase, SimpleTrainer
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from nl_detectron.checkpoint import NonLocalCheckpointer
from nl_detectron.engine.finite import FiniteSteps
from nl_detectron.engine.resume import ExactResume
from nl_detectron.engine.signals import StopOnSignal

from .table import NOT_MEASURED, Table, text_of
from .training import NUM_INSTANCES, config_of, example

GOAL = 1.01  # times the time without


def tables(*, quick: bool, device: str) -> Iterator[Table]:
    """One table."""
    size = (128, 160) if quick else (800, 1333)
    yield step_table(size=size, rounds=3 if quick else 10, device=device)


def step_table(
    *, size: tuple[int, int], rounds: int, device: str, opts: Sequence[object] = ()
) -> Table:
    """Training steps with and without what is ours around them, in turns.

    Args:
        size: (H, W) of the image, in pixels.
        rounds: steps of each, after one that does not count.
        opts: KEY, value and so on, in the place of the config's.
    """
    with tempfile.TemporaryDirectory() as folder:
        with_ours = _Clocked(size, device, opts)
        checkpointer = NonLocalCheckpointer(with_ours.model, folder, trainer=with_ours)
        ours = [ExactResume(1, {}, lambda seed: []), FiniteSteps(checkpointer, folder)]
        with_ours.begin([*ours, StopOnSignal(checkpointer)])
        without = _Clocked(size, device, opts)
        without.begin([])
        for _ in range(rounds + 1):
            without.step()
            with_ours.step()
        with_ours.after_train()
    plain, all_of_it = (statistics.median(t.steps[1:]) for t in (without, with_ours))
    hooks = statistics.median(with_ours.in_hooks[1:])
    alone, ratio = f"{1000 * hooks:.1f}", f"{1 + hooks / plain:.4f}"
    if device != "cpu":  # hooks wait there for what the step has begun
        alone = ratio = NOT_MEASURED
    title = "Exact resume and finite checks"
    text = text_of(title, size=size, instances=NUM_INSTANCES)
    header = ("without, s", "with, s", "ratio", "ours alone, ms", "ratio", "goal")
    cells = (f"{plain:.2f}", f"{all_of_it:.2f}", f"{all_of_it / plain:.3f}", alone, ratio)
    return Table(title, text, header, [(*cells, f"≤ {GOAL}")])


class _Clocked(SimpleTrainer):
    """A training on one image, whose steps are timed: processor time or, on CUDA, wall time.

    Attributes:
        steps, in_hooks: seconds of each step, and of what its hooks took of them.
    """

    def __init__(self, size: tuple[int, int], device: str, opts: Sequence[object]):
        torch.manual_seed(0)
        model = build_model(config_of("nl_", device, opts)).train()
        parameters = [p for p in model.parameters() if p.requires_grad]
        # No learning rate: all steps are then alike.
        optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=0.9)
        super().__init__(model, itertools.repeat(example(size)), optimizer)
        self._clock = time.process_time if device == "cpu" else time.perf_counter
        self.iter = self.start_iter = 0
        self.max_iter = 1000
        self.steps: list[float] = []
        self.in_hooks: list[float] = []

    def begin(self, hooks: Sequence[HookBase]) -> None:
        """Before the first step."""
        self.register_hooks(list(hooks))
        self.storage = EventStorage(0)
        self.before_train()

    def step(self) -> None:
        self._hooks_took = 0.0
        torch.manual_seed(0)  # proposals are sampled
        began = self._clock()
        with self.storage:
            self.before_step()
            self.run_step()
            self.after_step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.steps.append(self._clock() - began)
        self.in_hooks.append(self._hooks_took)
        self.iter += 1

    def before_step(self) -> None:
        began = self._clock()
        super().before_step()
        self._hooks_took += self._clock() - began

    def after_backward(self) -> None:
        began = self._clock()
        super().after_backward()
        self._hooks_took += self._clock() - began

    def after_step(self) -> None:
        began = self._clock()
        super().after_step()
        self._hooks_took += self._clock() - began
