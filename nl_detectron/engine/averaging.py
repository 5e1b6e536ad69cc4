"""The exponential moving average of a model's weights (EMA), evaluated and saved in their place."""

import functools
from collections.abc import Sequence
from typing import Any

from detectron2.engine.train_loop import HookBase
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..log import logger


class WeightAveraging(HookBase):
    """Averages a model's weights and buffers after each step.

    While the hooks between this one and :meth:`last` run, the model has the averaged weights: so
    they are what is evaluated and what stands in checkpoints as the model. The trained ones, from
    which the training goes on, are in the checkpoints among the trainer's state.

    In step t from 0 an average a of the weights w becomes d a + (1 - d) w, where d is the smaller
    of ``decay`` and (1 + t) / (10 + t), so that the start is soon forgotten.
    """

    def __init__(self, model: nn.Module, *, decay: float):
        """
        Args:
            model: the one in training.
            decay: weight of what has been averaged so far, from 0 to below 1.
        """
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be from 0 to below 1, got {decay}")
        self._model = model.module if isinstance(model, DistributedDataParallel) else model
        average = functools.partial(_average, decay)
        self._averaged = AveragedModel(self._model, multi_avg_fn=average, use_buffers=True)
        self._swapped = False

    def last(self) -> HookBase:
        """The hook after all those that are to have the averaged weights."""
        return _TrainedWeights(self)

    def before_train(self) -> None:
        logger.info(
            "Evaluations and checkpoints have the averaged weights; the trained ones are kept in "
            "the checkpoints for --resume"
        )

    def after_step(self) -> None:
        self._averaged.update_parameters(self._model)
        self.swap(averaged=True)

    def after_train(self) -> None:
        # Of a training that has come to its end; another one may have been left at any point.
        self.show()

    def show(self) -> None:
        """Gives the model the averaged weights, if there are any yet."""
        self.swap(averaged=self._averaged.n_averaged.item() > 0)

    def swap(self, *, averaged: bool) -> None:
        """Gives the model the averaged weights, or those in training."""
        if averaged == self._swapped:
            return
        ours, others = (_tensors(model) for model in (self._model, self._averaged.module))
        for name, tensor in ours.items():
            # The parameters stay the same objects, which an optimizer and DDP know.
            tensor.data, others[name].data = others[name].data, tensor.data
        self._swapped = averaged

    def state_dict(self) -> dict[str, Any]:
        """The weights in training; those averaged are saved as the model's."""
        trained = self._averaged.module if self._swapped else self._model
        return {"trained": trained.state_dict(), "steps": self._averaged.n_averaged.item()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the model's weights, which have been loaded, as the averaged ones."""
        self._averaged.module.load_state_dict(self._model.state_dict())
        self._averaged.n_averaged.fill_(state["steps"])
        self._model.load_state_dict(state["trained"])


class _TrainedWeights(HookBase):
    """Gives the model back the weights in training."""

    def __init__(self, averaging: WeightAveraging):
        self._averaging = averaging

    def after_step(self) -> None:
        self._averaging.swap(averaged=False)

    def after_train(self) -> None:
        self._averaging.swap(averaged=False)


def _average(
    decay: float, averaged: Sequence[Tensor], current: Sequence[Tensor], steps: Tensor
) -> None:
    step = int(steps)
    get_ema_multi_avg_fn(min(decay, (1 + step) / (10 + step)))(averaged, current, steps)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
