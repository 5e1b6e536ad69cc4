"""A training that was killed is the one that never stopped: a short form of `dev.soak.kills`."""

import json
import random
import subprocess

import numpy as np
import pytest
import torch
from detectron2.engine.train_loop import SimpleTrainer
from torch import nn

from dev.soak.kills import DETERMINISTIC
from nl_detectron.checkpoint import NonLocalCheckpointer
from nl_detectron.engine import load_cfg, load_lazy_cfg
from nl_detectron.engine.checks import check_unused
from nl_detectron.engine.resume import ExactResume, run_seed
from nl_detectron.engine.settings import PROCESSES, compare_settings, settings_of
from nl_detectron.errors import UsageError
from tests.gpus import needs_gpu, needs_two_gpus
from tests.places import CONFIGS, ROOT

QUICK = CONFIGS / "quick_schedules/mask_rcnn_shapes_nl.yaml"
ZOO = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_nl_1x.py"


@pytest.mark.slow
def test_killed_and_resumed_it_is_bit_for_bit_the_same(python, tmp_path):
    """In real processes, of YAML and LazyConfigs, with 0 and 2 workers and both aspect ratios."""
    rows = kill(python, tmp_path, "short")
    assert len(rows) == 3 and {row["tool"] for row in rows} == {
        "train_net",
        "lazyconfig_train_net",
    }
    for row in rows:
        assert row["equal"] and row["killed"] == 2, row


@pytest.mark.slow
@pytest.mark.parametrize(
    "cases", [pytest.param("cuda", marks=needs_gpu), pytest.param("two_gpus", marks=needs_two_gpus)]
)
def test_on_gpus_it_is_the_same_where_their_kernels_are_deterministic(python, tmp_path, cases):
    """Asked for as docs/reliability.md says. On one with 2 workers, and in mixed precision; on two
    with SyncBN, too."""
    again, *killed = kill(python, tmp_path, cases)
    if not again["equal"]:
        pytest.skip(f"no kill is needed for other weights here: {again['differs']}")
    assert [row["killed"] for row in killed] == [2, 2]
    assert all(row["equal"] for row in killed), killed


def test_the_page_on_reliability_says_how_to_ask_for_deterministic_kernels():
    assert DETERMINISTIC in (ROOT / "docs/reliability.md").read_text()


def kill(python, folder, cases: str) -> list[dict]:
    command = [str(python), "-m", "dev.soak.kills", str(folder), cases]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


class Noise(SimpleTrainer):
    """Trains one weight on noise, and keeps what it drew."""

    def __init__(self, folder, *, seed=3, settings=None, loader=None):
        model = nn.Linear(1, 1)
        super().__init__(model, loader or [], torch.optim.SGD(model.parameters(), lr=0.1))
        self.drawn, self.built = [], []
        self.checkpointer = NonLocalCheckpointer(model, str(folder), trainer=self)
        self.register_hooks([ExactResume(seed, settings or {"a": "1"}, self.build)])

    def build(self, seed: int) -> list:
        self.built.append(seed)
        return []

    def run_step(self):
        self.drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
        self.storage.put_scalar("total_loss", self.drawn[-1][0])


def test_what_an_iteration_draws_depends_on_its_number_alone(tmp_path):
    straight = Noise(tmp_path)
    straight.train(0, 6)
    assert len(set(straight.drawn)) == 6
    resumed = Noise(tmp_path)
    torch.rand(100)
    resumed.train(4, 6)
    assert resumed.drawn == straight.drawn[4:]
    other = Noise(tmp_path, seed=4)
    other.train(0, 6)
    assert other.drawn[0] != straight.drawn[0]


def test_a_seed_that_was_drawn_is_kept_and_the_loader_is_made_with_it(tmp_path, log):
    first = Noise(tmp_path, seed=run_seed(-1))
    first.train(0, 2)
    first.checkpointer.save("model", iteration=1)
    second = Noise(tmp_path, seed=run_seed(-1))
    second.checkpointer.resume_or_load("", resume=True)
    assert len(second.built) == 1 and "WARNING" not in [r.levelname for r in log.records]
    second.train(2, 4)
    straight = Noise(tmp_path, seed=second.built[0])
    straight.train(0, 4)
    assert straight.drawn == first.drawn + second.drawn
    assert second.storage.history("total_loss").values() == [
        (pair[0], i) for i, pair in enumerate(straight.drawn)
    ]


def test_checkpoints_of_others_resume_with_a_warning(tmp_path, log):
    trainer = Noise(tmp_path)
    trainer.train(2, 3)
    assert "does not say with which seed it was trained" in log.text
    assert "loader is not of Detectron2's making" in log.text


def test_settings_that_changed_are_named_with_both_values(tmp_path, log):
    options = ("DATASETS.TRAIN", "('a',)", "MODEL.DEVICE", "cpu")
    begun = settings_of(load_cfg(QUICK, options))
    changed = (*options, "SOLVER.BASE_LR", "0.5", "SOLVER.IMS_PER_BATCH", "4", "SEED", "9")
    unseen = ("SOLVER.CHECKPOINT_PERIOD", "7", "DATALOADER.NUM_WORKERS", "3", "OUTPUT_DIR", "x")
    compare_settings(begun, settings_of(load_cfg(QUICK, options + unseen)))
    assert not log.records
    now = settings_of(load_cfg(QUICK, (*changed, "DATASETS.TRAIN", "('b',)")))
    compare_settings(begun, now | {PROCESSES: "2"})
    for line in (
        "resume: SOLVER.BASE_LR 0.5 has no effect, it stays 0.003 as in the checkpoint",
        "resume: SEED 9 has no effect, it stays 1 as",
        "resume: SOLVER.IMS_PER_BATCH is 4, but the training was begun with 8: from here on",
        "resume: DATASETS.TRAIN is ('b',), but the training was begun with ('a',)",
        "resume: processes (--num-gpus, --num-machines) is 2, but the training was begun with 1",
    ):
        assert line in log.text
    other = settings_of(load_cfg(QUICK, (*options, "SOLVER.OPTIMIZER", "SGD")))
    with pytest.raises(UsageError, match="SOLVER.OPTIMIZER is SGD, but .* begun with AdamW"):
        compare_settings(begun, other)


def test_settings_of_lazy_configs_are_the_same_in_each_process(log):
    begun = settings_of(load_lazy_cfg(ZOO))
    assert begun["optimizer._target_"] == "torch.optim.sgd.SGD"
    assert not any(" at 0x" in value for value in begun.values())
    compare_settings(begun, settings_of(load_lazy_cfg(ZOO, ["dataloader.train.num_workers=0"])))
    assert not log.records
    changed = ["optimizer.lr=0.5", "dataloader.train.total_batch_size=4"]
    compare_settings(begun, settings_of(load_lazy_cfg(ZOO, changed)))
    assert "resume: optimizer.lr 0.5 has no effect, it stays 0.02" in log.text
    assert "dataloader.train.total_batch_size is 4, but the training was begun with 16" in log.text


def test_a_folder_that_holds_a_training_is_not_written_over(tmp_path):
    check_unused("OUTPUT_DIR", str(tmp_path))
    (tmp_path / "last_checkpoint").write_text("model_0000003.pth")
    with pytest.raises(UsageError, match="holds a training already, .* model_0000003.pth") as error:
        check_unused("OUTPUT_DIR", str(tmp_path))
    assert "--resume goes on with it" in error.value.on_command_line()
