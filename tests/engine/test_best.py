import json
import math
import os
import subprocess

import pytest
import torch
from detectron2.engine import default_writers, hooks
from detectron2.engine.train_loop import TrainerBase

from nl_detectron.checkpoint import NonLocalCheckpointer
from nl_detectron.engine.best import check_best, may_end_early, read_best, with_best
from nl_detectron.errors import UsageError
from tests.places import ROOT

from .conftest import needs_two_cores

KEYS = ("TEST.BEST_METRIC", "TEST.EARLY_STOPPING_PATIENCE", "TEST.EVAL_PERIOD")
NAN = float("nan")


class Trainer(TrainerBase):
    """Counts its steps in a weight, and is evaluated as a script says."""

    def __init__(self, folder, figures, *, period=2, **options):
        super().__init__()
        self.model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(self.model.weight)
        self.figures, self.evaluations = iter(figures), 0
        self.checkpointer = NonLocalCheckpointer(self.model, str(folder), trainer=self)
        self.register_hooks(
            with_best(
                [
                    hooks.PeriodicCheckpointer(self.checkpointer, 100),
                    hooks.EvalHook(period, self.evaluate),
                    hooks.PeriodicWriter(default_writers(str(folder)), period=20),
                ],
                self.checkpointer,
                eval_period=period,
                **options,
            )
        )

    def run_step(self):
        self.model.weight.data += 1
        self.storage.put_scalar("total_loss", 1.0)

    def evaluate(self):
        self.evaluations += 1
        value = next(self.figures)
        return value if isinstance(value, dict) else {"bbox": {"AP": value, "AP50": -value}}

    def run(self, iterations, *, resume=False):
        start = 0
        if resume:
            self.checkpointer.resume_or_load("", resume=True)
            start = self.iter + 1
        with may_end_early():
            self.train(start, iterations)
        return self


def steps_in(folder, name: str) -> float:
    content = torch.load(folder / f"{name}.pth", weights_only=True)
    return content["model"]["weight"].item()


def lines_of(log) -> list[str]:
    """Once each, although records may come by two handlers."""
    found = {id(record): record.getMessage() for record in log.records}
    return [line for line in found.values() if line.startswith("Evaluation at ")]


def ours(log) -> list[str]:
    """What this package logged."""
    return [r.getMessage() for r in log.records if r.name.endswith(".nl_detectron")]


def test_the_best_is_kept_and_each_evaluation_has_one_line(tmp_path, log):
    Trainer(tmp_path, [10.0, 30.0, 20.0, 25.0]).run(8)
    assert steps_in(tmp_path, "model_best") == 4 and steps_in(tmp_path, "model_final") == 8
    assert lines_of(log) == [
        "Evaluation at iteration 2: bbox/AP 10.00; best: this one",
        "Evaluation at iteration 4: bbox/AP 30.00; best: this one",
        "Evaluation at iteration 6: bbox/AP 20.00; best: bbox/AP 30.00 at iteration 4",
        "Evaluation at iteration 8: bbox/AP 25.00; best: bbox/AP 30.00 at iteration 4",
    ]
    last = f"Best: bbox/AP 30.00 at iteration 4, in {tmp_path / 'model_best.pth'}"
    assert ours(log)[-1] == last
    record = {"metric": "bbox/AP", "value": 30.0, "iteration": 4, "evaluations_since": 2}
    assert read_best(str(tmp_path)) == record
    # No training goes on from the best one.
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_every_evaluation_is_in_metrics_json(tmp_path):
    Trainer(tmp_path, [10.0, 30.0, 20.0, 25.0]).run(8)
    records = map(json.loads, (tmp_path / "metrics.json").read_text().splitlines())
    found = {r["iteration"]: r["bbox/AP"] for r in records if "bbox/AP" in r}
    assert list(found.values()) == [10, 30, 20, 25]


def test_the_last_one_can_be_the_best(tmp_path):
    Trainer(tmp_path, [10.0, 30.0], period=3).run(5)
    assert steps_in(tmp_path, "model_best") == 5
    assert read_best(str(tmp_path))["iteration"] == 5


def test_an_evaluation_at_the_end_alone(tmp_path, log):
    Trainer(tmp_path, [10.0], period=0).run(3)
    assert steps_in(tmp_path, "model_best") == 3
    assert lines_of(log) == ["Evaluation at iteration 3: bbox/AP 10.00; best: this one"]


def test_an_evaluation_after_every_step(tmp_path):
    Trainer(tmp_path, [1.0, 2.0, 3.0, 2.5], period=1).run(4)
    assert steps_in(tmp_path, "model_best") == 3
    assert read_best(str(tmp_path))["evaluations_since"] == 1


def test_a_figure_can_be_named(tmp_path):
    Trainer(tmp_path, [10.0, 30.0, 5.0], metric="bbox/AP50").run(6)
    assert steps_in(tmp_path, "model_best") == 6  # AP50 is the negative


def test_the_first_task_decides_among_several(tmp_path, log):
    figures = [{"bbox": {"AP": b}, "segm": {"AP": s}} for b, s in ((3.0, 1.0), (2.0, 9.0))]
    Trainer(tmp_path, figures).run(4)
    assert steps_in(tmp_path, "model_best") == 2
    assert lines_of(log)[0].startswith("Evaluation at iteration 2: bbox/AP 3.00, segm/AP 1.00; b")


def test_what_is_no_number_or_not_there_is_never_the_best(tmp_path, log):
    Trainer(tmp_path / "a", [NAN, 4.0, NAN]).run(6)
    assert steps_in(tmp_path / "a", "model_best") == 4
    assert lines_of(log)[0].endswith("bbox/AP nan; no bbox/AP that is a number yet")
    assert math.isclose(read_best(str(tmp_path / "a"))["value"], 4)
    Trainer(tmp_path / "b", [1.0, 2.0, 3.0], metric="segm/AP", patience=1).run(6)
    assert not (tmp_path / "b/model_best.pth").exists()
    assert lines_of(log)[-1].endswith("there is no segm/AP, so that none is the best")
    Trainer(tmp_path / "c", [{}, {}, {}]).run(6)  # a set without annotations
    assert not (tmp_path / "c/model_best.pth").exists()


def test_a_resumed_training_knows_the_best(tmp_path, log):
    Trainer(tmp_path, [10.0, 30.0, 20.0]).run(6)
    resumed = Trainer(tmp_path, [25.0, 31.0]).run(10, resume=True)
    assert "Best so far: bbox/AP 30.00 at iteration 4" in log.text
    assert (
        "Evaluation at iteration 8: bbox/AP 25.00; best: bbox/AP 30.00 at iteration 4" in log.text
    )
    assert steps_in(tmp_path, "model_best") == resumed.model.weight.item() == 10


def test_a_new_training_in_the_same_folder_does_not(tmp_path):
    Trainer(tmp_path, [10.0, 30.0]).run(4)
    Trainer(tmp_path, [20.0, 10.0]).run(4)
    assert read_best(str(tmp_path))["value"] == 20
    Trainer(tmp_path, [NAN, NAN]).run(4)
    assert read_best(str(tmp_path)) is None


def test_the_best_by_another_figure_is_another_one(tmp_path):
    Trainer(tmp_path, [10.0, 30.0]).run(4)
    Trainer(tmp_path, [20.0], metric="bbox/AP50").run(6, resume=True)
    record = read_best(str(tmp_path))
    assert (record["metric"], record["value"], record["iteration"]) == ("bbox/AP50", -20, 6)


def test_early_stopping_ends_as_any_training_does(tmp_path, log):
    figures = [10.0, 30.0, 20.0, 25.0, 26.0]
    trainer = Trainer(tmp_path, figures, patience=2).run(100)
    assert trainer.model.weight.item() == 8
    line = "Early stopping at iteration 8 of 100: 2 evaluations brought no better bbox/AP"
    assert line in log.text and "Traceback" not in log.text
    assert trainer.evaluations == 5  # the last as after any training
    assert steps_in(tmp_path, "model_final") == 8 and steps_in(tmp_path, "model_best") == 4
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert ours(log)[-1].startswith("Best: bbox/AP 30.00 at iteration 4, in ")
    records = [json.loads(r) for r in (tmp_path / "metrics.json").read_text().splitlines()]
    assert records[-1] == records[-1] | {"iteration": 8, "bbox/AP": 26.0}
    # It can go on from where it was, and then gets no more patience.
    resumed = Trainer(tmp_path, [5.0, 5.0], patience=2).run(100, resume=True)
    assert resumed.start_iter == 8 and resumed.model.weight.item() == 10


def test_without_patience_there_is_no_early_end(tmp_path):
    trainer = Trainer(tmp_path, [3.0, 2.0, 1.0, 0.5, 0.1]).run(10)
    assert trainer.model.weight.item() == 10


@pytest.mark.parametrize("content", ["", "[]", '{"value": 1}', '{"value": NaN}'])
def test_a_damaged_record_is_none(content, tmp_path):
    Trainer(tmp_path, [10.0]).run(2)
    (tmp_path / "model_best.json").write_text(content)
    assert read_best(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("AP", 0, 10), "TEST.BEST_METRIC 'AP' is no figure: name the task"),
        (("", -1, 10), "TEST.EARLY_STOPPING_PATIENCE -1 must be 0"),
        (
            ("", 3, 0),
            "TEST.EARLY_STOPPING_PATIENCE 3 counts evaluations, but TEST.EVAL_PERIOD is 0",
        ),
    ],
)
def test_settings_that_cannot_work(values, message):
    with pytest.raises(UsageError, match=message):
        check_best(*values, keys=KEYS)
    check_best("bbox/AP", 3, 10, keys=KEYS)


SCRIPT = """
import sys
from pathlib import Path

from detectron2.utils import comm

from nl_detectron.engine import launch


def main(folder):
    from tests.engine.test_best import Trainer

    rank = comm.get_rank()
    # Only the main process has figures.
    figures = [10.0, 30.0, 20.0, 25.0, 26.0] if rank == 0 else [{}] * 5
    folder = Path(folder, str(rank))
    folder.mkdir()
    Trainer(folder, figures, patience=2).run(100)
    (folder / "done.txt").write_text(str(comm.get_rank() == rank))


if __name__ == "__main__":
    launch(main, 2, 1, 0, "auto", args=(sys.argv[1],))
"""


@pytest.mark.slow
@needs_two_cores
def test_two_processes_end_early_together(python, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [str(python), str(script), str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "0/done.txt").exists() and (tmp_path / "1/done.txt").exists()
    assert steps_in(tmp_path / "0", "model_final") == 8
    assert steps_in(tmp_path / "0", "model_best") == 4
