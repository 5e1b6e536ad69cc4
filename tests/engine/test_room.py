import shutil
from collections import namedtuple

import pytest
import torch
from detectron2.engine import hooks
from detectron2.engine.train_loop import SimpleTrainer
from torch import nn

from nl_detectron.checkpoint import NonLocalCheckpointer
from nl_detectron.engine.averaging import WeightAveraging
from nl_detectron.engine.room import Room
from nl_detectron.errors import UsageError

KEYS = ("SOLVER.CHECKPOINT_KEEP", "SOLVER.CHECKPOINT_ON_ERROR")
Usage = namedtuple("Usage", "total used free")


class Trainer(SimpleTrainer):
    def __init__(self, folder, *, keep=0, go_on=False, optimizer=None, averages=False):
        model = nn.Linear(300, 300)
        super().__init__(model, [], (optimizer or torch.optim.AdamW)(model.parameters(), lr=0.1))
        self.checkpointer = NonLocalCheckpointer(model, str(folder), trainer=self, safetensors=True)
        room = Room(str(folder), period=2, keep=keep, go_on=go_on, averages=averages, keys=KEYS)
        averaging = [WeightAveraging(model, decay=0.5)] if averages else []
        self.register_hooks([*averaging, hooks.PeriodicCheckpointer(self.checkpointer, 2), room])

    def run_step(self):
        self.model(torch.ones(1, 300)).sum().backward()
        self.optimizer.step()


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.glob("model_*"))


def test_the_last_checkpoints_are_kept_also_after_a_resume(tmp_path):
    Trainer(tmp_path, keep=2).train(0, 7)
    kept = ["model_0000003", "model_0000005", "model_final"]
    assert names(tmp_path) == [f"{n}.{e}" for n in kept for e in ("pth", "safetensors")]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    (tmp_path / "model_0000099.pth").write_text("of iterations that are to be done again")
    Trainer(tmp_path, keep=1).train(6, 8)
    assert [name for name in names(tmp_path) if name.endswith(".pth")] == [
        "model_0000007.pth",
        "model_0000099.pth",
        "model_final.pth",
    ]


def test_all_are_kept_by_default(tmp_path):
    Trainer(tmp_path).train(0, 6)
    assert len(list(tmp_path.glob("model_0*.pth"))) == 3


def test_without_room_no_training_begins(tmp_path, monkeypatch, log):
    free = [10**6 * 12]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, free[0]))
    tmp_path.joinpath("x").mkdir()
    Trainer(tmp_path / "x", keep=2).train(0, 40)  # 5 of 1.1 MB
    message = "has room for 0.0 GB, but 23 checkpoints of 0.0011 GB are to be written there"
    with pytest.raises(UsageError, match=f"{message}.* fewer by SOLVER.CHECKPOINT_KEEP, or set"):
        Trainer(tmp_path / "x").train(0, 40)
    assert not [r for r in log.records if r.name.endswith(".nl_detectron") and r.levelno > 20]
    Trainer(tmp_path / "x", go_on=True).train(0, 40)
    assert message in log.text


@pytest.mark.parametrize("averages", [False, True])
@pytest.mark.parametrize("momentum", [None, 0.0, 0.9])
def test_the_size_of_a_checkpoint_is_known_before(tmp_path, momentum, averages, monkeypatch):
    def sgd(parameters, lr):
        return torch.optim.SGD(parameters, lr, momentum=momentum)

    trainer = Trainer(tmp_path, optimizer=sgd if momentum is not None else None, averages=averages)
    trainer.train(0, 4)
    size = (tmp_path / "model_final.pth").stat().st_size
    for factor, enough in ((0.95, False), (1.06, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, f=factor: Usage(0, 0, f * 4 * size))
        room = Room(str(tmp_path), period=4, keep=0, go_on=False, averages=averages, keys=KEYS)
        other = Trainer(tmp_path, optimizer=sgd if momentum is not None else None)
        other.start_iter, other.max_iter = 0, 4
        room.trainer = other
        if enough:
            room.before_train()
        else:
            with pytest.raises(UsageError, match="has room for"):
                room.before_train()
