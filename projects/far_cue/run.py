#!/usr/bin/env python
"""Trains models with and without non-local blocks where the answer lies far away; README.md.

python projects/far_cue/run.py [--variants plain embedded_gaussian] [--seeds 531 532]

Run it again to go on where it was stopped. What is not run yet is marked so in the page.
"""

import argparse
import signal
import sys
import time
from pathlib import Path

from far_cue import TASKS, VARIANTS, Run, run_all, variants_of, write_page
from nl_detectron.errors import usage_errors


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/far_cue"), metavar="FOLDER")
    parser.add_argument(
        "--docs", type=Path, metavar="FOLDER", help="of the page, by default that of --output"
    )
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="default: each task's")
    parser.add_argument("--workers", type=int, help="runs at a time; by default one for each core")
    parser.add_argument("--report-only", action="store_true", help="train nothing")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which ends the trainings, too
    start = time.time()
    seeds = {task: args.seeds or TASKS[task].seeds for task in args.tasks}
    # All variants with one seed before the next seed: an early stop leaves no row empty.
    runs = [
        Run(task, variant, seed)
        for turn in zip(*seeds.values(), strict=True)
        for task, seed in zip(seeds, turn, strict=True)
        for variant in variants_of(task)
        if variant in args.variants
    ]
    with usage_errors():
        if not args.report_only:
            run_all(runs, args.output, workers=args.workers)
        page = write_page(args.output, args.docs or args.output, args.seeds)
    print(f"Wrote {page} in {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
