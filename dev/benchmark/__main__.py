"""Measures speed and memory beside the peers, and writes the tables as a page of Markdown.

python -m dev.benchmark --suite quick
python -m dev.benchmark --suite all --output docs/benchmarks.md
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
    parser.add_argument("--output", type=Path, metavar="FILE", help="for the page; else printed")
    args = parser.parse_args()
    if args.output is not None and not args.output.parent.is_dir():
        raise UsageError(f"--output {args.output}: there is no folder {args.output.parent}")
    suites = SUITES if args.suite in ("all", "quick") else (args.suite,)
    write(benchmark(suites, quick=args.suite == "quick", device=default_device()), args.output)


if __name__ == "__main__":
    with usage_errors():
        main()
