#!/usr/bin/env python
"""Draws what a model's non-local blocks relate: the attention of points of an image.

    python tools/visualize_attention.py --weights output/demo/people/model_final.pth \\
        --input images/ --output attention --per-instance

For each image there is one picture of all blocks side by side, and a folder with one for each.
"""

import argparse
import sys

from nl_detectron.errors import usage_errors
from nl_detectron.inference import attention_files, find_inputs
from nl_detectron.tools.arguments import add_file_arguments, add_model_arguments, predictor_from


def point(text: str) -> tuple[float, float]:
    x, y = text.split(",")
    return float(x), float(y)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_file_arguments(parser)
    queries = parser.add_mutually_exclusive_group(required=True)
    queries.add_argument(
        "--point", type=point, action="append", metavar="X,Y", help="in pixels; may be repeated"
    )
    queries.add_argument(
        "--per-instance", action="store_true", help="the centre of each detected instance"
    )
    parser.add_argument(
        "--max-instances",
        type=int,
        default=5,
        metavar="N",
        help="the surest (default: %(default)s)",
    )
    parser.add_argument(
        "--strongest", type=int, default=10, metavar="K", help="arrows (default: %(default)s)"
    )
    add_model_arguments(parser)
    return parser.parse_args()


@usage_errors()
def main() -> int:
    args = parse_args()
    inputs = find_inputs(args.input, exclude=args.output)
    summary = attention_files(
        predictor_from(args),
        inputs,
        args.output,
        args.point,
        strongest=args.strongest,
        max_points=args.max_instances,
        resume=args.resume,
    )
    return summary.report(args.output)


if __name__ == "__main__":
    sys.exit(main())
