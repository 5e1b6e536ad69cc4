"""Mixed precision with a scaler, on the CPU: resumed, and when numbers break."""

import math
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from detectron2.engine import hooks
from torch import nn

from nl_detectron.checkpoint import NonLocalCheckpointer
from nl_detectron.engine.finite import FiniteSteps
from nl_detectron.engine.loop import AccumulatingAMPTrainer
from nl_detectron.engine.resume import ExactResume
from nl_detectron.errors import UsageError
from tests.places import ROOT

from .conftest import needs_two_cores


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 8), nn.Linear(8, 1)

    def forward(self, batch):
        x = torch.stack([record["x"] for record in batch])
        assert torch.is_autocast_enabled("cpu")
        return {"loss": self.last(self.first(x + torch.rand_like(x)).relu()).float().pow(2).mean()}


class OnCpu(AccumulatingAMPTrainer):
    """In half precision, with a scale that overflows at first and grows every three steps."""

    def __init__(self, folder, *, start=0, broken_at=-1):
        torch.manual_seed(0)
        model = Model()
        batches = [
            [{"file_name": f"{i}.png", "x": torch.full((2,), math.nan if i == broken_at else 1.0)}]
            for i in range(100)
        ]
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**18, growth_interval=3)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        loader = batches[start:]
        super().__init__(model, loader, optimizer, grad_scaler=scaler, accumulate=1)
        self.checkpointer = NonLocalCheckpointer(model, str(folder), trainer=self)
        self.scales = []
        self.register_hooks(
            [
                ExactResume(3, {}, lambda seed: loader),
                FiniteSteps(self.checkpointer, str(folder)),
                hooks.PeriodicCheckpointer(self.checkpointer, 4),
            ]
        )

    def _losses(self, batch):
        with torch.autocast("cpu", dtype=torch.float16):
            return self.model(batch)

    def after_step(self):
        super().after_step()
        self.scales.append(self.grad_scaler.get_scale())


def test_a_resumed_scaler_goes_on_as_if_it_had_never_stopped(tmp_path):
    straight = OnCpu(tmp_path / "straight")
    straight.train(0, 12)
    assert straight.scales[0] < 2.0**18  # a step was skipped
    assert min(straight.scales) < max(straight.scales[8:])  # and the scale has grown
    stopped = OnCpu(tmp_path / "stopped")
    stopped.train(0, 8)
    resumed = OnCpu(tmp_path / "stopped", start=8)
    resumed.checkpointer.resume_or_load("", resume=True)
    assert resumed.grad_scaler.state_dict() == stopped.grad_scaler.state_dict()
    resumed.train(8, 12)
    assert resumed.scales == straight.scales[8:]
    assert resumed.grad_scaler.state_dict() == straight.grad_scaler.state_dict()
    for one, other in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
        for name, value in straight.optimizer.state[one].items():
            assert torch.equal(resumed.optimizer.state[other][name], value), name


def test_losses_that_are_no_number_end_the_training_here_too(tmp_path):
    trainer = OnCpu(tmp_path, broken_at=5)
    message = "iteration 6: losses are not finite; first made by first in the forward pass, of the "
    with pytest.raises(UsageError, match=message + "images 5.png"):
        trainer.train(0, 12)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000003.pth"
    again = OnCpu(tmp_path / "non_finite", start=5, broken_at=5)
    again.checkpointer.resume_or_load("", resume=True)
    with pytest.raises(UsageError, match=message):
        again.train(again.iter + 1, 12)


@needs_two_cores
@pytest.mark.parametrize("kind", ["float", "half", "proposals"])
def test_of_several_processes_the_one_whose_numbers_break_is_heard(python, tmp_path, kind):
    script = Path(__file__).with_name("broken_numbers.py")
    done = subprocess.run(
        [str(python), str(script), str(tmp_path), kind],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode in ((1, 2) if kind == "proposals" else (2,)), done.stderr
    broken = "proposals" if kind == "proposals" else "losses"
    image = "3.png" if kind == "half" else "3_of_1.png"
    line = rf"^error: iteration 4: {broken} are not finite; first made by first in .* {image}\. The"
    assert re.search(line, done.stderr, re.MULTILINE) and "Traceback" not in done.stderr
    assert (tmp_path / "non_finite/last_checkpoint").read_text() == "model_0000002.pth"
