"""One of several processes fails: which, on which host, and why, on one line."""

import contextlib
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as dist
from detectron2.utils import comm
from torch.multiprocessing.spawn import ProcessException, ProcessExitedException

from ..errors import UsageError, few, one_line, usage_errors
from ..log import logger

ROLL_CALL = timedelta(seconds=10)  # to answer in, for a process that does not hang
# What PyTorch's backends say where another process is gone, and where it does not answer
GONE = ("closed by peer", "connection reset", "connection refused", "broken pipe")
LATE = ("timed out", "timeout")


class Processes:
    """The processes that train together: where each is, and which of them answer."""

    def __init__(self) -> None:
        """Called by all of them at once, when they have found each other."""
        # A group of its own, as one in which a wait was in vain is of no more use. The first rank
        # asks, and gives up before the others do.
        self._group = dist.new_group(backend="gloo", timeout=2 * ROLL_CALL)
        self._places: list[str] = comm.all_gather(_place(os.getpid()))

    def name(self, rank: int) -> str:
        """Such as ``rank 1 of 2 (process 4321 on node-a)``."""
        return f"rank {rank} of {len(self._places)} ({self._places[rank]})"

    def silent(self) -> list[int]:
        """The ranks that do not answer, as far as this process can tell."""
        try:
            dist.monitored_barrier(self._group, ROLL_CALL, wait_all_ranks=True)
        except RuntimeError as error:
            if not comm.is_main_process():
                return [0] if _says(error, LATE) else []
            found = re.search(r"Ranks? ([\d, ]+) failed", str(error))
            return [int(rank) for rank in re.findall(r"\d+", found[1])] if found else []
        return []


@contextlib.contextmanager
def failures_named() -> Iterator[None]:
    """Around what one of several processes does: ends it with exit code 1 and one line on an error.

    Where the error is that another process is gone or does not answer, the line says so, and which
    one. The traceback is in the log file of this process.
    """
    processes = Processes()
    with usage_errors():
        try:
            yield
        except UsageError:
            raise
        except Exception as error:  # whatever it is, the launch is to know
            _log_to_files(error)
            why = f"{type(error).__name__}: {error}"
            if isinstance(error, dist.DistError) or type(error) is RuntimeError:
                if _says(error, LATE) and (silent := processes.silent()):
                    why = (
                        f"no answer from {few([processes.name(rank) for rank in silent])}: {error}"
                    )
                elif _says(error, GONE):
                    why = f"another process has ended or is out of reach: {error}"
            _print(processes.name(comm.get_rank()), why)
            sys.exit(1)


def exit_code_of(error: ProcessException, *, first_rank: int, num_processes: int) -> int:
    """The exit code of a launch of which a process has failed; says why unless that one has.

    Args:
        first_rank: of the processes of this launch.
        num_processes: of all launches.
    """
    why = str(error).strip().rpartition("\n")[2]  # the last line of a traceback
    if isinstance(error, ProcessExitedException):
        if error.exit_code > 0:
            return error.exit_code
        why = f"ended by {error.signal_name}"
        if error.exit_code == -signal.SIGKILL:
            why += ", as the kernel does where memory is full"
    rank = first_rank + error.error_index
    _print(f"rank {rank} of {num_processes} ({_place(error.error_pid)})", why)
    return 1


def _place(process: int) -> str:
    return f"process {process} on {socket.gethostname()}"


def _print(who: str, why: str) -> None:
    print(
        f"error: {who}: {one_line(why):.500}. All processes end; the same command with --resume "
        "goes on from the last checkpoint",
        file=sys.stderr,
        flush=True,
    )


def _says(error: Exception, words: tuple[str, ...]) -> bool:
    return any(word in str(error).lower() for word in words)


def _log_to_files(error: Exception) -> None:
    """The traceback goes where the log does, but not to the terminal."""
    exc_info = (type(error), error, error.__traceback__)
    record = logger.makeRecord(
        logger.name, logging.ERROR, __file__, 0, "This process failed:", (), exc_info
    )
    for handler in logging.getLogger("detectron2").handlers:
        if getattr(handler, "stream", None) not in (sys.stdout, sys.stderr):
            handler.handle(record)
