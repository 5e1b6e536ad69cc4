"""Detectron2's launch, for CPU processes too."""

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial

import torch
from detectron2.engine import launch as detectron2_launch
from torch.multiprocessing import ProcessExitedException

from ..errors import usage_errors


def num_cpu_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def launch(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    """Runs ``main(args)`` in ``args.num_gpus`` processes: one a GPU or, without CUDA, on the CPU.

    Args:
        main: the function that each process runs; importable, as for :mod:`multiprocessing`.
        args: as parsed by :func:`detectron2.engine.default_argument_parser`.
    """
    if args.num_gpus > 1 and not torch.cuda.is_available():
        # Without it each process would start a thread for every core.
        threads = max(num_cpu_cores() // args.num_gpus, 1)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    try:
        detectron2_launch(
            main if args.num_gpus == 1 else partial(_with_usage_errors, main),
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
    except ProcessExitedException as error:
        if error.exit_code != 2:
            raise
        sys.exit(2)  # the process has said why


def _with_usage_errors(main: Callable[[argparse.Namespace], object], args: argparse.Namespace):
    # Of a process of several, only the exit code comes back.
    with usage_errors():
        main(args)
