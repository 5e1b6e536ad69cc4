#!/usr/bin/env python
"""Trains models with and without non-local blocks where the answer lies far away; docs/evidence.md.

python tools/far_cue.py [--variants plain embedded_gaussian] [--seeds 501 502] [--docs docs]

Run it again to go on where it was stopped. What is not run yet is marked so in the report.
"""

import argparse
import signal
import sys
import time
from pathlib import Path

from far_cue import (
    DIFFICULTIES,
    VARIANTS,
    Run,
    run_all,
    variants_of,
    write_report,
)
from nl_detectron.engine import usage_errors

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/far_cue"), metavar="FOLDER")
    parser.add_argument("--docs", type=Path, metavar="FOLDER", help="by default that of --output")
    choices = list(DIFFICULTIES)
    parser.add_argument("--difficulties", nargs="+", default=choices, choices=choices)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="default: each task's")
    parser.add_argument("--workers", type=int, help="runs at a time; by default one for each core")
    parser.add_argument("--report-only", action="store_true", help="train nothing")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which ends the trainings, too
    start = time.time()
    seeds = {name: args.seeds or DIFFICULTIES[name].seeds for name in args.difficulties}
    # All variants with one seed before the next seed: an early stop leaves no row empty.
    runs = [
        Run(difficulty, variant, seed)
        for turn in zip(*seeds.values(), strict=True)
        for difficulty, seed in zip(seeds, turn, strict=True)
        for variant in variants_of(difficulty)
        if variant in args.variants
    ]
    with usage_errors():
        if not args.report_only:
            run_all(runs, args.output, workers=args.workers)
        report = write_report(args.output, args.docs or args.output, args.seeds, "make evidence")
    print(f"Wrote {report} in {time.time() - start:.0f} s")
