"""A training that is told to stop loses nothing, and says so by its exit code."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from detectron2.engine import hooks
from detectron2.engine.train_loop import TrainerBase

from nl_detectron.checkpoint import NonLocalCheckpointer
from nl_detectron.engine.metrics import build_writers
from nl_detectron.engine.signals import SIGNALS, StopOnSignal
from tests.places import ROOT

from .conftest import needs_two_cores


@pytest.fixture(autouse=True)
def as_in_a_terminal():
    """Shells let what runs in the background ignore some signals, and so would its processes."""
    ignored = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        is_interrupt = number == signal.SIGINT
        signal.signal(number, signal.default_int_handler if is_interrupt else signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


class Trainer(TrainerBase):
    """Counts its steps in a weight; sends itself signals at an iteration."""

    def __init__(self, folder, *, sent=(), at=4, final=None):
        super().__init__()
        self.model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(self.model.weight)
        self.sent, self.at, self.evaluated = sent, at, []
        self.checkpointer = NonLocalCheckpointer(self.model, str(folder), trainer=self)
        self.register_hooks(
            [
                hooks.IterationTimer(),
                hooks.PeriodicCheckpointer(self.checkpointer, 100),
                hooks.EvalHook(0, lambda: self.evaluated.append(self.iter)),
                hooks.PeriodicWriter(build_writers(str(folder), 10), period=3),
                StopOnSignal(self.checkpointer),
            ]
        )

    def run_step(self):
        self.model.weight.data += 1
        self.storage.put_scalar("total_loss", self.iter)
        if self.iter == self.at:
            for number, pause in self.sent:
                time.sleep(pause)
                signal.raise_signal(number)


def iterations(folder) -> list[int]:
    return [json.loads(r)["iteration"] for r in (folder / "metrics.json").read_text().splitlines()]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_the_iteration_is_finished_and_saved(number, tmp_path, log):
    before = signal.getsignal(number)
    trainer = Trainer(tmp_path, sent=[(number, 0)])
    try:
        with pytest.raises(SystemExit) as end:
            trainer.train(0, 10)
    finally:
        signal.signal(number, before)
    assert end.value.code == 128 + number and trainer.evaluated == []
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000004.pth"
    content = torch.load(tmp_path / "model_0000004.pth", weights_only=True)
    assert content["model"]["weight"].item() == 5 and content["iteration"] == 4
    assert iterations(tmp_path) == [2, 4]
    line = f"Stopped by {number.name} after 5 of 10 iterations; the same command with --resume"
    assert line in log.text


def test_a_terminal_that_has_gone_is_no_reason_to_lose_the_training(tmp_path, monkeypatch):
    """SIGHUP says that it has, and nothing can be written there."""
    before = signal.getsignal(signal.SIGHUP)
    reader, writer = os.pipe()
    os.close(reader)
    trainer = Trainer(tmp_path, sent=[(signal.SIGHUP, 0)])
    try:
        with os.fdopen(writer, "w") as gone, pytest.raises(SystemExit) as end:
            monkeypatch.setattr(sys, "__stderr__", gone)
            trainer.train(0, 10)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert end.value.code == 128 + signal.SIGHUP
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000004.pth"


def test_a_signal_in_the_last_iteration_leaves_the_evaluation_to_the_resumed_one(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    trainer = Trainer(tmp_path, sent=[(signal.SIGTERM, 0)], at=9)
    try:
        with pytest.raises(SystemExit):
            trainer.train(0, 10)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert trainer.evaluated == []
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_a_second_interruption_stops_at_once(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    twice = [(signal.SIGINT, 0), (signal.SIGINT, 0), (signal.SIGINT, 1.1)]
    trainer = Trainer(tmp_path, sent=twice)  # the second one of the same keystroke
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer.train(0, 10)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not (tmp_path / "last_checkpoint").exists()


def test_handlers_are_those_of_before_after_a_training(tmp_path):
    before = [signal.getsignal(number) for number in SIGNALS]
    Trainer(tmp_path / "a").train(0, 3)
    assert [signal.getsignal(number) for number in SIGNALS] == before
    thread = threading.Thread(target=Trainer(tmp_path / "b").train, args=(0, 3))
    thread.start()  # where Python allows no handlers
    thread.join()
    assert (tmp_path / "b/model_final.pth").exists()


SCRIPT = """
import signal
import sys
import time
from pathlib import Path

from detectron2.utils import comm

from nl_detectron.engine import launch


def main(folder):
    from tests.engine.test_signals import Trainer

    class Slow(Trainer):
        def run_step(self):
            super().run_step()
            time.sleep(0.05)
            Path(folder, f"{comm.get_rank()}.txt").write_text(str(self.iter))

    Slow(Path(folder, str(comm.get_rank()))).train(0, 10000)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    launch(main, 2, 1, 0, "auto", args=(sys.argv[1],))
"""


@pytest.mark.slow
@needs_two_cores
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_several_processes_stop_at_the_same_iteration(number, python, tmp_path):
    """Although the signal comes to the one alone that has launched them."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    for rank in "01":
        (tmp_path / rank).mkdir()
    command = [str(python), str(script), str(tmp_path)]
    process = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        for _ in range(1200):
            if (tmp_path / "0.txt").exists() and (tmp_path / "1.txt").exists():
                break
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number, output[-3000:]
    last = (tmp_path / "0/last_checkpoint").read_text()
    done = [(tmp_path / f"{rank}.txt").read_text() for rank in "01"]
    assert done[0] == done[1] == str(int(last.removeprefix("model_").removesuffix(".pth")))
    assert "Traceback" not in output
