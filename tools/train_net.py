#!/usr/bin/env python
"""Trains or evaluates a model, as Detectron2's own tools/train_net.py does.

    python tools/train_net.py --config-file configs/... [--num-gpus N] [--resume | --eval-only] \\
        [--dataset NAME JSON FOLDER ...] [KEY VALUE ...]

On a machine without CUDA, --num-gpus is the number of CPU processes. With --eval-only,
MODEL.WEIGHTS can be a file that tools/export_model.py wrote, too.
"""

import argparse
from datetime import timedelta

from detectron2.config import CfgNode
from detectron2.engine import default_setup

from nl_detectron.engine import Trainer, check_cfg, launch, load_cfg
from nl_detectron.engine.config import resolve_config_file
from nl_detectron.engine.launch import num_processes
from nl_detectron.errors import usage_errors
from nl_detectron.export import ExportedModel, is_exported
from nl_detectron.tools.arguments import argument_parser, run_files


def read(args: argparse.Namespace) -> CfgNode:
    """The config, with the datasets that the command line names; each process reads it."""
    run_files(args.imports)
    datasets, trust = args.dataset, args.trust_checkpoint
    return load_cfg(args.config_file, args.opts, datasets=datasets, trust=trust)


def run(args: argparse.Namespace) -> object:
    """What each process does."""
    cfg = read(args)
    default_setup(cfg, args)
    loading = {"trust_checkpoint": args.trust_checkpoint, "allow_missing": args.allow_missing}
    if args.eval_only and is_exported(cfg.MODEL.WEIGHTS):
        return Trainer.test(cfg, ExportedModel(cfg.MODEL.WEIGHTS))
    if args.eval_only:
        return Trainer.evaluate(cfg, resume=args.resume, **loading)
    trainer = Trainer(cfg, **loading)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


@usage_errors()
def main() -> None:
    args = argument_parser().parse_args()
    num_gpus, num_machines = num_processes(args.num_gpus, args.num_machines)
    # of which Detectron2's default_setup keeps a copy
    args.config_file = resolve_config_file(args.config_file)
    check_cfg(
        read(args),
        eval_only=args.eval_only,
        resume=args.resume,
        num_gpus=num_gpus,
        num_machines=num_machines,
    )
    processes = (num_gpus, num_machines, args.machine_rank, args.dist_url)
    launch(run, *processes, args=(args,), timeout=timedelta(seconds=args.timeout))


if __name__ == "__main__":
    main()
