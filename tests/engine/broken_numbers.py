"""Two processes train in float or half precision, until one of them has numbers that break.

python broken_numbers.py FOLDER float|half|proposals
"""

import math
import sys

import torch
from detectron2.engine.train_loop import SimpleTrainer
from detectron2.utils import comm

from nl_detectron.checkpoint import NonLocalCheckpointer
from nl_detectron.engine import launch
from nl_detectron.engine.finite import FiniteSteps
from nl_detectron.engine.launch import ddp
from nl_detectron.engine.loop import usage_errors_unlogged
from tests.engine.test_mixed_precision import Model, OnCpu


class WithProposals(Model):
    """Looks at its numbers as Detectron2's proposals do."""

    def forward(self, batch):
        with torch.autocast("cpu", dtype=torch.float16):
            losses = super().forward(batch)
        if not losses["loss"].isfinite():
            raise FloatingPointError("Predicted boxes or scores contain Inf/NaN.")
        return losses


class Half(OnCpu):
    def __init__(self, folder, *, broken_at):
        super().__init__(folder, broken_at=broken_at)
        self.model = ddp(self.model, "cpu")


class Single(SimpleTrainer):
    def __init__(self, folder, model, loader):
        super().__init__(ddp(model, "cpu"), loader, torch.optim.SGD(model.parameters(), lr=0.01))
        checkpointer = NonLocalCheckpointer(model, folder, trainer=self)
        self.register_hooks([FiniteSteps(checkpointer, folder)])


class InSingle(Model):
    def forward(self, batch):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(batch)


def main(folder: str, kind: str) -> None:
    rank = comm.get_rank()
    names = [f"{i}_of_{rank}.png" for i in range(9)]
    values = [math.nan if i == 3 and rank == 1 else 1.0 for i in range(9)]
    loader = [
        [{"file_name": name, "x": torch.full((2,), value)}]
        for name, value in zip(names, values, strict=True)
    ]
    if kind == "half":
        trainer = Half(folder, broken_at=3 if rank == 1 else -1)
    else:
        model = WithProposals() if kind == "proposals" else InSingle()
        trainer = Single(folder, model, loader)
    with usage_errors_unlogged():
        trainer.train(0, 9)


if __name__ == "__main__":
    launch(main, 2, 1, 0, "auto", args=tuple(sys.argv[1:]))
