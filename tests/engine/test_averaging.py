"""Averaged weights are evaluated and saved; the training goes on from its own."""

import copy

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import SimpleTrainer
from detectron2.engine.train_loop import HookBase
from torch import Tensor, nn

from nl_detectron.engine.averaging import WeightAveraging


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.register_buffer("anchors", torch.randn(2), persistent=False)

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        return {"loss": self.layers(batch).square().mean() - self.layers[0].bias.sum()}


class Record(HookBase):
    """Keeps the model's state as hooks after each step, and after the training, see it."""

    def __init__(self):
        self.seen = []

    def after_step(self) -> None:
        self.seen.append(copy.deepcopy(self.trainer.model.state_dict()))

    after_train = after_step


@pytest.fixture
def batches() -> list[Tensor]:
    return list(torch.randn(6, 8, 3))


def trainer_of(model: nn.Module, batches: list[Tensor]) -> tuple[SimpleTrainer, Record, Record]:
    """A loop, what its hooks see, and what it is left with after them."""
    trainer = SimpleTrainer(model, batches, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
    averaging, inside, outside = WeightAveraging(model, decay=0.3), Record(), Record()
    trainer.register_hooks([averaging, inside, averaging.last(), outside])
    return trainer, inside, outside


def test_hooks_see_the_average_of_the_trained_weights(batches):
    model, plain = Model(), Model()
    plain.load_state_dict(model.state_dict())
    trainer, inside, outside = trainer_of(model, batches)
    trainer.train(0, 6)
    stock = SimpleTrainer(plain, batches, torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9))
    stock.train(0, 6)
    assert all(map(torch.equal, model.parameters(), plain.parameters()))  # untouched
    for name in ("layers.0.weight", "layers.1.running_mean"):
        average = outside.seen[0][name]
        for step, (averaged, trained) in enumerate(zip(inside.seen, outside.seen, strict=True)):
            if 0 < step < 6:
                decay = min(0.3, (1 + step) / (10 + step))
                average = decay * average + (1 - decay) * trained[name]
            torch.testing.assert_close(averaged[name], average)
    assert torch.equal(inside.seen[-1]["layers.0.bias"], inside.seen[-2]["layers.0.bias"])


def test_a_resumed_training_is_the_one_without_a_stop(batches, tmp_path):
    def run(model: nn.Module, folder: str, *stops: int) -> Record:
        start = 0
        for stop in stops:
            trainer, inside, _ = trainer_of(model, batches[start:])
            saved = DetectionCheckpointer(model, folder, trainer=trainer)
            saved.resume_or_load("", resume=True)
            assert trainer_starts_at(trainer) == start
            trainer._hooks.insert(2, Save(saved))
            trainer.train(start, stop)
            start, model = stop, Model()
        return inside

    def trainer_starts_at(trainer: SimpleTrainer) -> int:
        return trainer.iter + 1 if trainer.state_dict()["iteration"] else 0

    class Save(HookBase):
        def __init__(self, checkpointer: DetectionCheckpointer):
            self.checkpointer = checkpointer

        def after_step(self) -> None:
            self.checkpointer.save("model")

    model = Model()
    for name in ("straight", "stopped"):
        (tmp_path / name).mkdir()
    straight = run(copy.deepcopy(model), str(tmp_path / "straight"), 6)
    stopped = run(copy.deepcopy(model), str(tmp_path / "stopped"), 4, 6)
    for name, value in straight.seen[-1].items():
        assert torch.equal(stopped.seen[-1][name], value), name
    content = torch.load(tmp_path / "stopped/model.pth", weights_only=True)
    trained = content["trainer"]["hooks"]["WeightAveraging"]["trained"]
    assert torch.equal(content["model"]["layers.0.weight"], straight.seen[-1]["layers.0.weight"])
    assert not torch.equal(content["model"]["layers.0.weight"], trained["layers.0.weight"])


def test_a_decay_that_cannot_work_is_refused():
    with pytest.raises(ValueError, match="decay must be from 0 to below 1, got 1"):
        WeightAveraging(Model(), decay=1.0)
