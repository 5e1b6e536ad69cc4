"""What changed files do to whoever reads them: checkpoints, configs and images of strangers.

They are read in a process that may take so long and so much memory for each, and that notes what
none of them may do: run a program, reach the network, write a file, look up what a pickle names.
"""

import logging
import multiprocessing
import os
import re
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from torch import nn

from nl_detectron.checkpoint import NonLocalCheckpointer, read_config, read_vocabulary
from nl_detectron.data.images import read_image
from nl_detectron.engine.checks import check_model
from nl_detectron.engine.config import cfg_from_text
from nl_detectron.errors import UsageError
from nl_detectron.log import logger

from .mutations import Mutations
from .row import Row

KINDS = (".pkl", ".pth", ".safetensors", "YAML config", "image")
SECONDS = 30  # that a file may take
MEMORY = 4 << 30  # bytes
# Python's audit events of what no file may lead to
FORBIDDEN: tuple[str, ...] = (
    *("socket.", "urllib.Request", "subprocess.", "os.system", "os.exec", "os.posix_spawn"),
    *("os.fork", "os.kill", "os.remove", "os.rename", "shutil.", "ctypes.", "pickle.find_class"),
)


@dataclass
class Tally:
    """What came of the files of a kind."""

    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0  # the most that one took
    memory: float = 0.0  # in MiB
    wrong: list[str] = field(default_factory=list)

    def add(self, name: str, outcome: str, seconds: float, memory: float) -> None:
        self.outcomes[outcome.split(":")[0]] += 1
        self.seconds, self.memory = max(self.seconds, seconds), max(self.memory, memory)
        if outcome not in ("refused", "read"):
            self.wrong.append(f"{name} {outcome}")

    def row(self, kind: str) -> Row:
        counts = ", ".join(f"{count:,} {outcome}" for outcome, count in self.outcomes.items())
        figures = f"{counts}; at most {self.seconds:.1f} s and {self.memory:.0f} MiB"
        wrong = f"; {'; '.join(self.wrong[:3])}" if self.wrong else ""
        return Row(
            f"a changed {kind} runs nothing, ends nothing, and is read or refused in one line",
            self.outcomes.total(),
            not self.wrong,
            figures + wrong,
        )


def rows(*, mutations: int) -> Iterator[Row]:
    """So many changed files of each kind."""
    tallies = {kind: Tally() for kind in KINDS}
    for number, outcome, seconds, memory in _tries(mutations * len(KINDS)):
        kind = KINDS[number % len(KINDS)]
        tallies[kind].add(f"{kind} {number // len(KINDS)}", outcome, seconds, memory)
    for kind, tally in tallies.items():
        yield tally.row(kind)


def _tries(count: int) -> Iterator[tuple[int, str, float, float]]:
    """Number, outcome, seconds and MiB of each; a process that one has ended is begun anew."""
    context = multiprocessing.get_context("spawn")
    number = 0
    while number < count:
        receiving, sending = context.Pipe(duplex=False)
        with tempfile.TemporaryDirectory() as folder:
            process = context.Process(target=work, args=(number, count, folder, sending))
            process.start()
            sending.close()
            try:
                while True:
                    result = receiving.recv()
                    yield result
                    number = result[0] + 1
            except EOFError:
                process.join()
        if number < count:  # the one that it was at
            code = process.exitcode or 0
            ended = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            yield number, f"ended: {ended}", 0.0, 0.0
            number += 1


def work(first: int, count: int, folder: str, results: Connection) -> None:
    """Reads the files from this number on, each in a limited time and memory."""
    mutations, readers = Mutations(), _readers()
    # Whatever is imported or made once is there before anything is measured.
    for kind in KINDS:
        _outcome(readers[kind], _write(folder, *mutations(kind, -1)))
    # What decoders print of broken images
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    logger.setLevel(logging.CRITICAL)
    done: list[str] = []
    sys.addaudithook(lambda event, arguments: _audit(done, event, arguments))
    used = int(_status("VmSize") * 1024)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    for number in range(first, count):
        kind = KINDS[number % len(KINDS)]
        path = _write(folder, *mutations(kind, number // len(KINDS)))
        Path("/proc/self/clear_refs").write_text("5")  # the peak of memory is that of now
        before, start = _status("VmHWM"), time.monotonic()
        done.clear()
        signal.alarm(SECONDS)  # whose signal ends the process
        outcome = _outcome(readers[kind], path)
        signal.alarm(0)
        if done:
            outcome = f"reached out: {done[0]}"
        seconds, memory = time.monotonic() - start, (_status("VmHWM") - before) / 1024
        results.send((number, outcome, seconds, memory))
        path.unlink()


def _outcome(read: Callable[[Path], Any], path: Path) -> str:
    try:
        read(path)
    except UsageError as error:
        message = str(error)
        return "refused" if message.isprintable() else f"steered the terminal: {message!r:.200}"
    except Exception as error:
        return f"traceback: {type(error).__name__}: {error!s:.150}"
    return "read"


def _write(folder: str, suffix: str, data: bytes) -> Path:
    path = Path(folder) / f"file{suffix}"
    path.write_bytes(data)
    return path


def _readers() -> dict[str, Callable[[Path], Any]]:
    model = nn.Conv2d(3, 2, 1)

    def checkpoint(path: Path) -> None:
        try:
            read_vocabulary(str(path))
            read_config(str(path))
        finally:
            NonLocalCheckpointer(model, allow_missing=True).load(str(path))

    def config(path: Path) -> None:
        text = path.read_bytes().decode("utf-8", "replace")
        check_model(cfg_from_text(text, source="a checkpoint"))

    return {
        **dict.fromkeys((".pkl", ".pth", ".safetensors"), checkpoint),
        "YAML config": config,
        "image": read_image,
    }


def _audit(done: list[str], event: str, arguments: tuple) -> None:
    writes = event == "open" and re.search("[wax+]", str(arguments[1] or ""))
    if writes or event.startswith(FORBIDDEN):
        done.append(f"{event} {arguments!r:.100}")


def _status(name: str) -> float:
    """A line of this process's status, in KiB."""
    found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return float(found[1])
