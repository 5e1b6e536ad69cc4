#!/usr/bin/env python
"""Trains or evaluates a model, as Detectron2's own tools/train_net.py does.

    python tools/train_net.py --config-file configs/... [--num-gpus N] [--resume | --eval-only] \\
        [KEY VALUE ...]

On a machine without CUDA, --num-gpus is the number of CPU processes.
"""

import argparse

from nl_detectron.engine import Trainer, check_cfg, launch, load_cfg, usage_errors

from detectron2.engine import default_argument_parser, default_setup


def main(args: argparse.Namespace):
    cfg = load_cfg(args)
    default_setup(cfg, args)
    if args.eval_only:
        return Trainer.evaluate(cfg, resume=args.resume)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    arguments = default_argument_parser().parse_args()
    with usage_errors():
        check_cfg(load_cfg(arguments), arguments)
        launch(main, arguments)
