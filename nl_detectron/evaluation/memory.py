"""Evaluation goes on after an image that needs more memory than there is."""

from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from torch import nn

from ..errors import UsageError, few
from ..log import logger
from ..memory import is_out_of_memory, predict_within_memory


class WithinMemory(nn.Module):
    """A model in evaluation that tries an image smaller where memory does not suffice.

    In what does not fit at a quarter of its sides either, nothing is found. Such images count in
    the figures as they are; :meth:`report` names them.
    """

    def __init__(self, model: nn.Module):
        """
        Args:
            model: as Detectron2's.
        """
        super().__init__()
        self.model, self.training = model, model.training
        self._smaller: list[str] = []
        self._nothing: list[str] = []

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """As the model's."""
        if len(batched_inputs) > 1:
            try:
                return self.model(batched_inputs)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
        return [self._predict(inputs) for inputs in batched_inputs]

    def report(self) -> None:
        """Says in the log which images of all processes did not fit; called by all of them."""
        found = comm.gather((self._smaller, self._nothing))
        smaller = sorted({name for names, _ in found for name in names})
        nothing = sorted({name for _, names in found for name in names})
        if smaller or nothing:
            logger.warning(
                f"{len(smaller) + len(nothing)} images did not fit into memory, so the figures are "
                f"not those of the model. Predicted at a smaller size, and counted so: "
                f"{few(smaller) or 'none'}. Nothing predicted, and all in them counted as missed: "
                f"{few(nothing) or 'none'}. With more memory, or a smaller INPUT.MIN_SIZE_TEST "
                "and MAX_SIZE_TEST for all images, the figures are those of the model"
            )

    def _predict(self, inputs: dict[str, Any]) -> dict[str, Any]:
        outputs, divisor = predict_within_memory(self.model, inputs)
        name = str(inputs.get("file_name", "an image"))
        if outputs is None:
            logger.warning(f"{name} does not fit into memory, even at 1/{divisor} of its sides")
            self._nothing.append(name)
            return {"instances": self._no_instances(inputs, name)}
        if divisor > 1:
            logger.warning(
                f"{name} does not fit into memory: predicted at 1/{divisor} of its sides"
            )
            self._smaller.append(name)
        return outputs

    def _no_instances(self, inputs: dict[str, Any], name: str) -> Instances:
        if any(part.endswith("sem_seg_head") for part, _ in self.model.named_modules()):
            raise UsageError(
                f"{name} does not fit into memory, and each of its pixels counts: evaluate at a "
                "smaller INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST, or with more memory"
            )
        height, width = inputs["image"].shape[1:]
        instances = Instances((inputs.get("height", height), inputs.get("width", width)))
        instances.pred_boxes = Boxes(torch.zeros(0, 4))
        instances.scores = torch.zeros(0)
        instances.pred_classes = torch.zeros(0, dtype=torch.int64)
        return instances
