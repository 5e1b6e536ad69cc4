#!/usr/bin/env python
"""Exports a trained detector as one file for images of any size, and checks it.

    python tools/export_model.py --weights output/model_final.pth --format onnx --output exported

The file's detections are compared with the model's, and a table is printed. If they differ the
file is removed and the exit code is 1. tools/predict.py --weights runs it.
"""

import argparse
import sys
from pathlib import Path

from nl_detectron.errors import usage_errors
from nl_detectron.export import FORMATS, MOST_IMAGES, export_model
from nl_detectron.inference import find_inputs, read_image


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", required=True, metavar="FILE", help="a checkpoint")
    parser.add_argument("--format", required=True, help=", ".join(FORMATS))
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--config-file",
        metavar="FILE",
        help="a path or a name of the model zoo; by default what is kept with the weights",
    )
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        metavar="SCORE",
        help="leave out what is less sure, 0 to 1 (default: the config's)",
    )
    parser.add_argument(
        "--images", nargs="+", metavar="PATH", help="to check with (default: generated ones)"
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help="quantize by NNCF after these images, for format openvino: faster, not the same",
    )
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="run what the files of weights and config tell to: only for files of your own",
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="config options, KEY VALUE ..."
    )
    return parser.parse_args()


@usage_errors()
def main() -> int:
    args = parse_args()
    inputs = find_inputs(args.images, exclude=args.output) if args.images else []
    result = export_model(
        args.weights,
        args.output,
        format=args.format,
        config=args.config_file,
        opts=args.opts,
        confidence_threshold=args.confidence_threshold,
        images=[read_image(item.path) for item in inputs[:MOST_IMAGES]],
        int8=args.int8,
        trust=args.trust_checkpoint,
    )
    print(result.table())
    if not result.passes:
        print(f"error: {result.path} differs from the model, and was removed", file=sys.stderr)
        return 1
    print(f"written: {result.path} ({result.path.stat().st_size / 2**20:.1f} MiB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
