#!/usr/bin/env python
"""Trains or evaluates a LazyConfig, as Detectron2's own tools/lazyconfig_train_net.py does.

    python tools/lazyconfig_train_net.py --config-file configs/....py [--num-gpus N] \\
        [--resume | --eval-only] [key=value ...]

On a machine without CUDA, --num-gpus is the number of CPU processes.
"""

import argparse

from detectron2.engine import default_setup

from nl_detectron.engine import argument_parser, launch, usage_errors
from nl_detectron.engine.lazy import (
    check_lazy_cfg,
    evaluate_weights,
    load_lazy_cfg,
    train,
)


def main(args: argparse.Namespace):
    cfg = load_lazy_cfg(args)
    default_setup(cfg, args)
    loading = {"trust_checkpoint": args.trust_checkpoint, "allow_missing": args.allow_missing}
    if args.eval_only:
        return evaluate_weights(cfg, **loading)
    return train(cfg, resume=args.resume, **loading)


if __name__ == "__main__":
    arguments = argument_parser().parse_args()
    with usage_errors():
        check_lazy_cfg(load_lazy_cfg(arguments), arguments)
        launch(main, arguments)
