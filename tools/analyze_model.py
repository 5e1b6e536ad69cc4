#!/usr/bin/env python
"""Shows what a model costs: FLOPs, activations, parameters, structure; also beside another's.

    python tools/analyze_model.py --config-file NAME_OR_PATH [--tasks flop activation ...] \\
        [--compare NAME_OR_PATH] [--size HEIGHT WIDTH] [KEY VALUE ...]

Counted for one image of --size and as many proposals and detections as the config admits.
"""

import argparse

from detectron2.engine import default_argument_parser

from nl_detectron.analysis import SIZE, TASKS, compare, describe
from nl_detectron.engine import build_model_of
from nl_detectron.errors import UsageError, usage_errors


def parse_args() -> argparse.Namespace:
    parser = default_argument_parser(epilog=__doc__)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, help="default: flop and parameter")
    parser.add_argument("--compare", metavar="CONFIG", help="a baseline; KEY VALUE go to both")
    parser.add_argument("--size", nargs=2, type=int, default=SIZE, metavar=("HEIGHT", "WIDTH"))
    return parser.parse_args()


@usage_errors()
def main() -> None:
    args = parse_args()
    if min(args.size) < 1:
        raise UsageError(f"--size {args.size[0]} {args.size[1]}: both must be at least 1 pixel")
    if not args.config_file:
        raise UsageError("--config-file is missing")
    model = build_model_of(args.config_file, args.opts)
    if tasks := args.tasks or ([] if args.compare else ["flop", "parameter"]):
        print(describe(model, tasks, args.size))
    if args.compare:
        print(compare(model, build_model_of(args.compare, args.opts), args.size))


if __name__ == "__main__":
    main()
