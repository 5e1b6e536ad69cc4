"""Measures speed and memory beside the peers; each suite's tables are a page of Markdown.

python -m dev.benchmark --suite quick
python -m dev.benchmark --suite family --output docs/benchmarks
"""

import argparse
from pathlib import Path

from nl_detectron.errors import UsageError, usage_errors

from . import SUITES, benchmark
from .suites import default_device, write


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--suite",
        choices=("all", "quick", *SUITES),
        default="quick",
        help="all: each in full; quick: a little of each (the default)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="for SUITE.md, beside what is printed"
    )
    args = parser.parse_args()
    if args.output is not None and not args.output.is_dir():
        raise UsageError(f"--output {args.output} is no folder")
    for suite in SUITES if args.suite in ("all", "quick") else (args.suite,):
        parts = benchmark(suite, quick=args.suite == "quick", device=default_device())
        write(parts, args.output and args.output / f"{suite}.md")


if __name__ == "__main__":
    with usage_errors():
        main()
