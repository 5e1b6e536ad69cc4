"""A process that dies or hangs ends the others soon, and a line says which, where and why."""

import os
import re
import socket
import subprocess

import pytest

from tests.gpus import needs_two_gpus
from tests.places import ROOT

from .conftest import needs_two_cores

SCRIPT = """
import os, signal, sys, time
from datetime import timedelta

import torch
from detectron2.utils import comm
from torch import distributed

from nl_detectron.engine import failures, launch

failures.ROLL_CALL = timedelta(seconds=2)
on_gpus = torch.cuda.is_available()  # where the start alone takes seconds


def main(fault, rank):
    for step in range(3):
        if step == 2 and comm.get_rank() == rank:
            if fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "raises":
                raise KeyError("so and so\\nand more")
            if fault == "hangs":
                time.sleep(200 if on_gpus else 60)  # nobody ends it where its launch is killed
        sums = torch.ones(1000, device="cuda" if on_gpus else "cpu")
        distributed.all_reduce(sums)
        sums.tolist()  # NCCL has only been told until then


if __name__ == "__main__":
    fault, rank, num_gpus, machines, machine, url = sys.argv[1:]
    launch(
        main, int(num_gpus), int(machines), int(machine), url,
        args=(fault, int(rank)), timeout=timedelta(seconds=20 if on_gpus else 3),
    )
"""
HOST = re.escape(socket.gethostname())
RESUME = "All processes end; the same command with --resume goes on from the last checkpoint"


@pytest.fixture
def start(python, tmp_path):
    """Starts a launch of processes, of which one has a fault."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    started = []

    def start(*arguments: object) -> subprocess.Popen:
        process = subprocess.Popen(
            [str(python), str(script), *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


def errors_of(process: subprocess.Popen) -> str:
    """What a launch that fails says."""
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in errors, errors
    return errors


def free_url() -> str:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{listening.getsockname()[1]}"


@needs_two_cores
@pytest.mark.parametrize(
    ("fault", "rank", "line"),
    [
        (
            "killed",
            1,
            "rank 1 of 2 {at}: ended by SIGKILL, as the kernel does where memory is full",
        ),
        ("raises", 0, r"rank 0 of 2 {at}: KeyError: 'so and so\\nand more'"),
        ("hangs", 0, "rank 1 of 2 {at}: no answer from rank 0 of 2 {at}: .* 3000ms .*"),
    ],
)
def test_the_rank_its_host_and_its_error_are_on_one_line(start, fault, rank, line):
    errors = errors_of(start(fault, rank, 2, 1, 0, "auto"))
    line = line.replace("{at}", rf"\(process \d+ on {HOST}\)")
    assert re.search(rf"^error: {line}\. {RESUME}$", errors, re.MULTILINE), errors


@needs_two_gpus
@pytest.mark.parametrize(
    ("fault", "rank", "line"),
    [
        ("killed", 1, "rank 1 of 2 .*: ended by SIGKILL"),
        ("raises", 0, "rank 0 of 2 .*: KeyError: 'so and so"),
        ("hangs", 0, "rank 1 of 2 "),  # which PyTorch's watchdog has ended, or its own error
    ],
)
def test_a_process_of_a_gpu_is_named_too(start, fault, rank, line):
    process = start(fault, rank, 2, 1, 0, "auto")
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 1
    assert re.search(rf"^error: {line}", errors, re.MULTILINE), errors


@needs_two_cores
def test_each_machine_says_what_it_knows(start):
    """Two launches, as of two machines: one's process hangs, so the other one's gives it up."""
    url = free_url()
    first, second = (start("hangs", 1, 1, 2, machine, url) for machine in (0, 1))
    at = rf"\(process \d+ on {HOST}\)"
    errors = errors_of(first)
    assert re.search(rf"^error: rank 0 of 2 {at}: no answer from rank 1 of 2 {at}", errors, re.M)
    second.kill()


def test_a_machine_that_does_not_come_is_not_waited_for_without_end(start):
    process = start("none", 0, 1, 2, 0, free_url())
    errors = errors_of(process)
    assert re.search(r"^error: rank 0 of 2 .* 1/2 clients joined", errors, re.MULTILINE), errors
