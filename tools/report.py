#!/usr/bin/env python
"""Writes a self-contained HTML page on a training run.

    python tools/report.py output/demo/shapes [--output report.html] [--screenshot report.png]

The page opens from disk and loads nothing from the network.
"""

import argparse
from pathlib import Path

from nl_detectron.errors import usage_errors
from nl_detectron.report import screenshot, write_report
from nl_detectron.tools.arguments import add_import_argument, run_files


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="OUTPUT_DIR", help="the training's output folder")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="by default report.html in OUTPUT_DIR"
    )
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="by default model_final.pth in OUTPUT_DIR"
    )
    parser.add_argument(
        "--num-images", type=int, default=5, metavar="N", help="best and worst images each"
    )
    parser.add_argument("--device", help="cuda or cpu; by default CUDA where there is a GPU")
    parser.add_argument(
        "--max-megabytes", type=float, default=10, metavar="MB", help="default: %(default)s"
    )
    parser.add_argument(
        "--screenshot", type=Path, metavar="FILE", help="a picture of it, made by Chromium"
    )
    add_import_argument(parser)
    return parser.parse_args()


@usage_errors()
def main() -> None:
    args = parse_args()
    run_files(args.imports)
    file = write_report(
        args.run,
        args.output or args.run / "report.html",
        weights=args.weights,
        num_images=args.num_images,
        device=args.device,
        max_bytes=int(args.max_megabytes * 1e6),
    )
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")
    if args.screenshot:
        screenshot(file, args.screenshot)
        print(args.screenshot)


if __name__ == "__main__":
    main()
