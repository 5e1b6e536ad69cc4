#!/usr/bin/env python
"""Trains or evaluates a model, as Detectron2's own tools/train_net.py does.

    python tools/train_net.py --config-file configs/... [--num-gpus N] [--resume | --eval-only] \\
        [KEY VALUE ...]

On a machine without CUDA, --num-gpus is the number of CPU processes.
"""

import argparse

from detectron2.engine import default_setup

from nl_detectron.engine import (
    Trainer,
    argument_parser,
    check_cfg,
    launch,
    load_cfg,
    usage_errors,
)


def main(args: argparse.Namespace):
    cfg = load_cfg(args)
    default_setup(cfg, args)
    loading = {"trust_checkpoint": args.trust_checkpoint, "allow_missing": args.allow_missing}
    if args.eval_only:
        return Trainer.evaluate(cfg, resume=args.resume, **loading)
    trainer = Trainer(cfg, **loading)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    arguments = argument_parser().parse_args()
    with usage_errors():
        check_cfg(load_cfg(arguments), arguments)
        launch(main, arguments)
