#!/usr/bin/env python
"""Trains, evaluates and pictures a non-local Mask R-CNN and Keypoint R-CNN on generated images.

python tools/demo.py [--output output/demo] [KEY VALUE ...]
"""

import argparse
import signal
import sys
from pathlib import Path

from nl_detectron.demo import run_demo
from nl_detectron.engine import usage_errors

CONFIGS = {
    "shapes": "quick_schedules/mask_rcnn_shapes_nl.yaml",
    "people": "quick_schedules/keypoint_rcnn_people_nl.yaml",
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/demo"), metavar="FOLDER")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config options for both models")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which ends the trainings, too
    with usage_errors():
        run_demo(
            Path(__file__).with_name("train_net.py"), CONFIGS, arguments.output, arguments.opts
        )
