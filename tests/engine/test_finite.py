"""What is no number stops a training before it is in a checkpoint, and says where it is from."""

import math

import pytest
import torch
from detectron2.engine import AMPTrainer, hooks
from detectron2.engine.train_loop import SimpleTrainer
from torch import nn

from nl_detectron.checkpoint import CheckpointError, NonLocalCheckpointer
from nl_detectron.engine import Trainer, load_cfg
from nl_detectron.engine.finite import FiniteSteps
from nl_detectron.engine.resume import ExactResume
from nl_detectron.errors import UsageError
from nl_detectron.finite import all_finite, not_finite
from tests.places import CONFIGS

QUICK = CONFIGS / "quick_schedules/mask_rcnn_shapes_nl.yaml"


class Root(nn.Module):
    """The square root, whose gradient at 0 is infinite."""

    def forward(self, x):
        return x.clamp(min=0).sqrt()


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.root, self.last = nn.Linear(2, 2), Root(), nn.Linear(2, 1)
        nn.init.ones_(self.first.weight)

    def forward(self, batch):
        x = torch.stack([record["x"] for record in batch])
        return {"loss": self.last(self.root(self.first(x))).mean()}


def batches(broken_at=None, value=math.nan):
    for i in range(100):
        x = torch.full((2,), value if i == broken_at else 2.0)
        yield [{"file_name": f"{i}.png", "x": x}, {"file_name": f"{i}b.png", "x": x}]


class Small(SimpleTrainer):
    def __init__(self, folder, loader, *, lr=0.01, momentum=0.0):
        torch.manual_seed(0)
        model = Model()
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
        super().__init__(model, loader, optimizer)
        self.checkpointer = NonLocalCheckpointer(model, str(folder), trainer=self)
        self.evaluated = []
        self.register_hooks(
            [
                ExactResume(3, {}, lambda seed: loader),
                FiniteSteps(self.checkpointer, str(folder)),
                hooks.PeriodicCheckpointer(self.checkpointer, 1),
                hooks.EvalHook(0, lambda: self.evaluated.append(self.iter)),
            ]
        )


def test_losses_name_the_iteration_the_images_and_the_module(tmp_path):
    trainer = Small(tmp_path, batches(3))
    message = "iteration 4: losses are not finite; first made by first in the forward pass, of the "
    with pytest.raises(UsageError, match=message + "images 3.png, 3b.png. ") as error:
        trainer.train(0, 4)
    assert "--resume with that folder as the output" in error.value.on_command_line()
    assert trainer.evaluated == []
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"
    for name, value in torch.load(tmp_path / "model_0000002.pth")["model"].items():
        assert torch.equal(trainer.model.state_dict()[name], value), name

    again = Small(tmp_path / "non_finite", (b for i, b in enumerate(batches(3)) if i > 2))
    again.checkpointer.resume_or_load("", resume=True)
    with pytest.raises(UsageError, match=message):
        again.train(again.iter + 1, 10)


def test_gradients_of_finite_losses(tmp_path):
    trainer = Small(tmp_path, batches())
    nn.init.zeros_(trainer.model.first.weight)
    nn.init.zeros_(trainer.model.first.bias)
    message = r"gradients \(first.weight, first.bias\) are not finite; first in the backward pass "
    with pytest.raises(UsageError, match=message + "as the gradient of first's output"):
        trainer.train(0, 4)
    assert not (tmp_path / "last_checkpoint").exists()


def test_a_step_that_is_too_long(tmp_path):
    trainer = Small(tmp_path, batches(), lr=3e38)
    with pytest.raises(UsageError, match="iteration 1: the optimizer's step made weights that are"):
        trainer.train(0, 4)
    assert not (tmp_path / "last_checkpoint").exists()


def test_the_training_of_a_detector(small_sets, tmp_path, log):
    """Whose trainer is Detectron2's DefaultTrainer."""
    name = f"('{small_sets['shapes']}',)"
    data = ("DATASETS.TRAIN", name, "DATASETS.TEST", name, "MODEL.DEVICE", "cpu")
    schedule = ("SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "OUTPUT_DIR", str(tmp_path))
    trainer = Trainer(load_cfg(QUICK, (*data, *schedule)))
    trainer.resume_or_load(resume=False)
    nn.init.constant_(trainer.model.backbone.bottom_up.res3[0].conv2.weight, 3e38)
    made_by = "first made by backbone.bottom_up.res3.0.conv2.*, of the images .*png, .*png"
    with pytest.raises(UsageError, match=f"iteration 1: proposals are not finite; {made_by}"):
        trainer.train()
    assert not (tmp_path / "last_checkpoint").exists()
    assert (tmp_path / "non_finite/last_checkpoint").read_text() == "model_0000000.pth"


class Scaler:
    """One that halves its scale at each step, but for some."""

    def __init__(self, good=()):
        self.scale, self.steps, self.good = 2.0**60, 0, good

    def get_scale(self) -> float:
        self.steps += 1
        self.scale /= 1 if self.steps in self.good else 2
        return self.scale


@pytest.mark.parametrize(("good", "warned"), [((1,), True), ((1, 15), False)])
def test_a_scaler_that_only_skips_is_named(tmp_path, good, warned, log):
    class Half(AMPTrainer):
        def run_step(self):
            pass

    model = Model()
    trainer = Half(model, [], torch.optim.SGD(model.parameters(), 0.1), grad_scaler=Scaler(good))
    checkpointer = NonLocalCheckpointer(model, str(tmp_path))
    trainer.register_hooks([FiniteSteps(checkpointer, str(tmp_path))])
    trainer.train(0, 30)
    assert ("The last 20 steps were skipped, up to iteration 21" in log.text) == warned


def test_no_checkpoint_holds_what_is_no_number(tmp_path):
    checkpointer = NonLocalCheckpointer(Model(), str(tmp_path))
    checkpointer.model.last.bias.data.fill_(math.inf)
    with pytest.raises(CheckpointError, match="model_0000001 is not written: 1 of .* last.bias"):
        checkpointer.save("model_0000001")
    torch.save({"model": checkpointer.model.state_dict()}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"hold NaN or infinity \(last.bias\)"):
        NonLocalCheckpointer(Model()).load(str(tmp_path / "model.pth"))


def test_a_state_of_the_optimizer_that_is_no_number_is_not_gone_on_with(tmp_path):
    def small() -> Small:
        trainer = Small(tmp_path, batches(), momentum=0.9)
        trainer.checkpointer.resume_or_load("", resume=True)
        return trainer

    trainer = small()
    trainer.train(0, 1)
    trainer.optimizer.state[trainer.model.last.bias]["momentum_buffer"].fill_(math.inf)
    trainer.checkpointer.save("model_0000001")
    named = (
        r"1 of .* tensors of the training's state .* \(trainer.optimizer.state.3.momentum_buffer\)"
    )
    with pytest.raises(CheckpointError, match=named):
        small()
    weights_alone = NonLocalCheckpointer(Model())
    weights_alone.load(str(tmp_path / "model_0000001.pth"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_found_in_any_tensor(value):
    tensors = {
        "large": torch.full((5,), 3e38),  # whose squares overflow
        "empty": torch.zeros(0),
        "integers": torch.arange(3),
        "half": torch.ones(2, dtype=torch.float16),
    }
    assert all_finite(tensors.values()) and not_finite(tensors) == [] and all_finite([])
    for name in ("large", "half"):
        broken = tensors | {name: tensors[name].clone()}
        broken[name][1] = value
        assert not all_finite(broken.values()) and not_finite(broken) == [name]
