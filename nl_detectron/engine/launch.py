"""Detectron2's launch, for CPU processes too."""

import argparse
import os
from collections.abc import Callable

import torch
from detectron2.engine import launch as detectron2_launch


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
    detectron2_launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
