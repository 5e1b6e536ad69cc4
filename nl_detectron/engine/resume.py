"""A training that was killed and resumed is the one that never stopped.

Nothing of the generators' states is carried on: what an iteration draws comes from the run's seed,
the number of the iteration and the process, and what a sample draws from the seed and its position
in the stream. So there is nothing to lose, and an evaluation in between disturbs nothing.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from detectron2.engine import hooks
from detectron2.engine.train_loop import HookBase
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.roi_heads import keypoint_head
from detectron2.utils import comm

from ..data.seeds import STEP, derive, seed_all
from ..data.stream import SampleStream
from ..log import logger
from .averaging import WeightAveraging
from .best import BestHook
from .loop import loop_of, model_of
from .metrics import TIMES, metrics_writer, recent, restore
from .settings import compare_settings


def run_seed(configured: int) -> int:
    """The seed of a training: the config's or, where that is negative, one for all processes."""
    return configured if configured >= 0 else comm.shared_random_seed()


def with_exact_resume(
    hook_list: Sequence[HookBase],
    *,
    seed: int,
    settings: Mapping[str, str],
    build_loader: Callable[[int], Iterable[list[dict]]],
) -> list[HookBase]:
    """A training's hooks, and around them those that make resuming it exact.

    Args:
        hook_list: all the others.
        seed: the run's, unless it resumes one with another seed.
        settings: see :func:`.settings.settings_of`.
        build_loader: the training's loader for a run's seed.
    """
    return [ExactResume(seed, settings, build_loader), *hook_list, MakeUp()]


class ExactResume(HookBase):
    """Seeds each iteration; saves and restores what Detectron2's checkpoints lack.

    In a checkpoint are the seed in use, the settings that decide about the weights, the figures of
    which the next records are medians, and what losses are divided by in dense detectors.
    """

    def __init__(
        self,
        seed: int,
        settings: Mapping[str, str],
        build_loader: Callable[[int], Iterable[list[dict]]],
    ):
        self._seed, self._settings, self._build_loader = seed, dict(settings), build_loader
        self._restored: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        storage = getattr(self.trainer, "storage", None)  # there is none before the training
        return {
            "seed": self._seed,
            "settings": self._settings,
            "figures": recent(storage) if storage is not None else {},
            "normalizer": getattr(model_of(self.trainer), "loss_normalizer", None),
            "extra": writer.extra if (writer := metrics_writer(self.trainer)) else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Also compares the settings.

        Raises:
            UsageError: see :func:`compare_settings`.
        """
        compare_settings(state["settings"], self._settings)
        self._restored = state
        if state["seed"] != self._seed:  # as where the config has none
            self._seed = state["seed"]
            loop_of(self.trainer).reset_data_loader(lambda: self._build_loader(self._seed))

    def before_train(self) -> None:
        start = self.trainer.start_iter
        stream = getattr(loop_of(self.trainer).data_loader, "dataset", None)
        if isinstance(stream, SampleStream):
            stream.start = start * getattr(loop_of(self.trainer), "accumulate", 1)
        elif start > 0:
            logger.warning(
                "resume: the training's loader is not of Detectron2's making, so it begins anew: "
                "what follows is not what a training that never stopped would do"
            )
        if (writer := metrics_writer(self.trainer)) is not None:
            extra = self._restored.get("extra")
            writer.go_on(start, self.trainer.max_iter, extra=extra)
        if start > 0:
            self._restore()

    def before_step(self) -> None:
        seed_all(derive(self._seed, STEP, self.trainer.iter, comm.get_rank()))

    def after_train(self) -> None:
        # An error in the last iteration is not to be taken for the end, and evaluated after.
        if isinstance(sys.exc_info()[1], Exception | KeyboardInterrupt):
            self.trainer.max_iter = max(self.trainer.max_iter, self.trainer.iter + 2)
        # Where nothing was left to train, the loop has counted one more than there are.
        if self.trainer.start_iter >= self.trainer.max_iter:
            self.trainer.iter = self.trainer.storage.iter = self.trainer.start_iter

    def _restore(self) -> None:
        if not self._restored:
            logger.warning(
                "resume: the checkpoint does not say with which seed it was trained, so what "
                "follows is not what a training that never stopped would do"
            )
            return
        figures = self._restored["figures"]
        restore(self.trainer.storage, figures)
        model = model_of(self.trainer)
        if self._restored["normalizer"] is not None and isinstance(model, DenseDetector):
            model.loss_normalizer = self._restored["normalizer"]
        # Detectron2 counts them in a variable of its module.
        if skipped := figures.get("kpts_num_skipped_batches"):
            keypoint_head._TOTAL_SKIPPED = int(skipped["values"][-1])


class SameImages(HookBase):
    """Lets Detectron2's PreciseBN take the first images of its loader each time, not the next ones.

    So it does not matter how often it has been run before. It goes before that hook.
    """

    def __init__(self, precise_bn: hooks.PreciseBN):
        self._precise_bn = precise_bn

    def before_step(self) -> None:
        self._precise_bn._data_iter = None


class MakeUp(HookBase):
    """Does what came after the checkpoint in its iteration, unless that has been done.

    It is the evaluation, what follows from it, and the writing of figures. The last hook of all.
    """

    def before_train(self) -> None:
        trainer, start = self.trainer, self.trainer.start_iter
        if start == 0:
            return
        writer = metrics_writer(trainer)
        last = writer.evaluated(start - 1) if writer else {}
        at_end = writer.evaluated(start) if writer else {}  # of a training that ended here
        figures, is_over = comm.all_gather((last or at_end, bool(at_end)))[0]
        averaging = [hook for hook in trainer._hooks if isinstance(hook, WeightAveraging)]
        trainer.iter = trainer.storage.iter = start - 1
        for hook in averaging:
            hook.show()
        if figures and comm.is_main_process():
            known = trainer.storage.latest()
            new = {
                name: value
                for name, value in figures.items()
                if name not in TIMES and known.get(name, (0, -1))[1] != start - 1
            }
            trainer.storage.put_scalars(**new, smoothing_hint=False)
        for hook in trainer._hooks:
            if isinstance(hook, hooks.EvalHook) and not figures:
                hook.after_step()
            elif isinstance(hook, BestHook):
                hook.make_up(is_written=bool(figures), is_over=is_over)
            elif isinstance(hook, hooks.PeriodicWriter):
                hook.after_step()
        for hook in averaging:
            hook.swap(averaged=False)
        trainer.iter = trainer.storage.iter = start
