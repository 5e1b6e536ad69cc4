"""Several processes, as Detectron2 has them, on CPUs too."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import DEFAULT_TIMEOUT, create_ddp_model
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import record
from torch.multiprocessing.spawn import ProcessException

from ..errors import UsageError
from .failures import exit_code_of, failures_named
from .signals import SIGNALS


def num_cpu_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def num_processes(num_gpus: int, num_machines: int) -> tuple[int, int]:
    """How many processes a machine and how many machines train together.

    Args:
        num_gpus, num_machines: what the command line says, 1 by default.

    Raises:
        UsageError: if both the command line and torchrun start several.
    """
    if not is_started_by_torchrun():
        return num_gpus, num_machines
    if (num_gpus, num_machines) != (1, 1):
        raise UsageError(
            f"num_gpus {num_gpus} and num_machines {num_machines} under torchrun, which starts the "
            "processes itself: leave them out, or torchrun",
            arguments=["num_gpus", "num_machines"],
        )
    on_this_machine = int(os.environ["LOCAL_WORLD_SIZE"])
    return on_this_machine, int(os.environ["WORLD_SIZE"]) // on_this_machine


def is_started_by_torchrun() -> bool:
    """Whether this is one of several processes that torchrun has started."""
    return dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1


def launch(
    main: Callable[..., object],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple[Any, ...] = (),
    *,
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> None:
    """Runs ``main(*args)`` in processes: one a GPU or, without CUDA, on the CPU.

    In a process that torchrun has started it runs there, and the arguments about processes and
    machines mean nothing.

    Of several processes one that fails ends all, with exit code 1 and a line that names it.

    Args:
        main: the function that each process runs; importable, as for :mod:`multiprocessing`.
        num_gpus_per_machine, num_machines, machine_rank, dist_url: see
            :func:`detectron2.engine.launch`.
        timeout: how long a process waits for another one, at the start and later on.

    Raises:
        UsageError: if the arguments about machines cannot work.
    """
    if is_started_by_torchrun():
        return _run_as_one_of_several(main, args, timeout)
    _check_machines(num_machines, machine_rank, dist_url)
    if num_gpus_per_machine > 1 and not torch.cuda.is_available():
        # Without it each process would start a thread for every core.
        threads = max(num_cpu_cores() // num_gpus_per_machine, 1)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    num_processes = num_gpus_per_machine * num_machines
    if num_processes == 1:
        main(*args)
        return
    if num_machines > 1:
        print(
            f"Waiting for {num_machines} machines at {dist_url}, for {timeout} at most", flush=True
        )
    try:
        with _signals_sent_on():
            detectron2_launch(
                partial(_with_failures_named, main),
                num_gpus_per_machine,
                num_machines=num_machines,
                machine_rank=machine_rank,
                dist_url=dist_url,
                args=args,
                timeout=timeout,
            )
    except ProcessException as error:
        first_rank = machine_rank * num_gpus_per_machine
        sys.exit(exit_code_of(error, first_rank=first_rank, num_processes=num_processes))


def _check_machines(num_machines: int, machine_rank: int, dist_url: str | None) -> None:
    if not 0 <= machine_rank < num_machines:
        raise UsageError(
            f"machine_rank {machine_rank} with num_machines {num_machines}: each machine has its "
            f"own, from 0 to {num_machines - 1}",
            arguments=["machine_rank", "num_machines"],
        )
    if num_machines > 1 and dist_url in (None, "auto"):
        raise UsageError(
            f"dist_url {dist_url} with num_machines {num_machines}: give each machine the same "
            "tcp://HOST:PORT, a free port of the machine of rank 0",
            arguments=["dist_url", "num_machines"],
        )


@contextlib.contextmanager
def _signals_sent_on() -> Iterator[None]:
    """Sends a signal that tells to stop to the processes that have been started, if there are any.

    This one waits for them, and ends with their exit code.
    """

    def send_on(number: int, frame: FrameType | None) -> None:
        children = multiprocessing.active_children()
        for child in children:
            if child.pid is not None:
                os.kill(child.pid, number)
        if not children:  # as without this handler
            signal.signal(number, before[signal.Signals(number)])
            signal.raise_signal(number)

    if threading.current_thread() is not threading.main_thread():
        yield  # where no signal comes
        return
    before = {
        number: signal.signal(number, send_on)
        for number in SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ddp(model: nn.Module, device: str, **options: Any) -> nn.Module:
    """Detectron2's model for several processes; DDP refuses device_ids for one on the CPU."""
    if torch.device(device).type == "cpu":
        options["device_ids"] = None
    return create_ddp_model(model, **options)


def _run_as_one_of_several(
    main: Callable[..., object], args: tuple[Any, ...], timeout: timedelta
) -> None:
    """What Detectron2's launch does in each process that it starts."""
    has_gpu = torch.cuda.is_available()
    local_rank = int(os.environ["LOCAL_RANK"])
    dist.init_process_group("nccl" if has_gpu else "gloo", timeout=timeout)
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    if has_gpu:
        torch.cuda.set_device(local_rank)
    comm.synchronize()
    _with_failures_named(record(main), *args)  # so that torchrun's summary names the error
    dist.destroy_process_group()


def _with_failures_named(main: Callable[..., object], *args: Any) -> None:
    # Of a process of several, only the exit code comes back.
    with failures_named():
        main(*args)
