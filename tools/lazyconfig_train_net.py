#!/usr/bin/env python
"""Trains or evaluates a LazyConfig, as Detectron2's own tools/lazyconfig_train_net.py does.

    python tools/lazyconfig_train_net.py --config-file configs/....py [--num-gpus N] \\
        [--resume | --eval-only] [--dataset NAME JSON FOLDER ...] [key=value ...]

On a machine without CUDA, --num-gpus is the number of CPU processes.
"""

import argparse
from datetime import timedelta

from detectron2.engine import default_setup
from omegaconf import DictConfig

from nl_detectron.engine import check_lazy_cfg, launch, load_lazy_cfg
from nl_detectron.engine.config import resolve_config_file
from nl_detectron.engine.launch import num_processes
from nl_detectron.engine.lazy import evaluate_weights, train
from nl_detectron.errors import usage_errors
from nl_detectron.tools.arguments import argument_parser, run_files


def read(args: argparse.Namespace) -> DictConfig:
    """The config, with the datasets that the command line names; each process reads it."""
    run_files(args.imports)
    return load_lazy_cfg(args.config_file, args.opts, datasets=args.dataset)


def run(args: argparse.Namespace) -> object:
    """What each process does."""
    cfg = read(args)
    default_setup(cfg, args)
    loading = {"trust_checkpoint": args.trust_checkpoint, "allow_missing": args.allow_missing}
    if args.eval_only:
        return evaluate_weights(cfg, **loading)
    return train(cfg, resume=args.resume, **loading)


@usage_errors()
def main() -> None:
    args = argument_parser().parse_args()
    num_gpus, num_machines = num_processes(args.num_gpus, args.num_machines)
    # of which Detectron2's default_setup keeps a copy
    args.config_file = resolve_config_file(args.config_file)
    cfg = read(args)
    check_lazy_cfg(cfg, eval_only=args.eval_only, resume=args.resume)
    processes = (num_gpus, num_machines, args.machine_rank, args.dist_url)
    launch(run, *processes, args=(args,), timeout=timedelta(seconds=args.timeout))


if __name__ == "__main__":
    main()
