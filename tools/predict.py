#!/usr/bin/env python
"""Draws a model's predictions on images and videos.

    python tools/predict.py --weights output/demo/shapes/model_final.pth --input images/ clip.mp4 \\
        --output predictions

Inputs are files, folders (searched through) and quoted globs. The exit code is 1 if a file could
not be read; the others are written all the same.
"""

import argparse
import sys

from nl_detectron.errors import usage_errors
from nl_detectron.inference import find_inputs, predict_files
from nl_detectron.tools.arguments import add_file_arguments, add_model_arguments, predictor_from


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_file_arguments(parser)
    parser.add_argument("--save-json", action="store_true", help="write COCO-format results, too")
    parser.add_argument("--track", action="store_true", help="number instances through a video")
    add_model_arguments(parser)
    return parser.parse_args()


@usage_errors()
def main() -> int:
    args = parse_args()
    inputs = find_inputs(args.input, exclude=args.output)
    summary = predict_files(
        predictor_from(args),
        inputs,
        args.output,
        save_json=args.save_json,
        resume=args.resume,
        track=args.track,
    )
    return summary.report(args.output)


if __name__ == "__main__":
    sys.exit(main())
