"""Tries for up to an hour what docs/reliability.md promises, and prints one table.

    python -m dev.soak [--part kills files memory page ...] [--short] [--output docs/soak.md]

The exit code is 1 if a promise was broken.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tabulate import tabulate

from ..benchmark.table import machine
from . import files, kills, memory, page
from .row import Row

# Each part's rows, in the long form and in the short one
PARTS: dict[str, tuple[Callable[[], Iterator[Row]], Callable[[], Iterator[Row]]]] = {
    "kills": (lambda: kills.rows(short=False), lambda: kills.rows(short=True)),
    "files": (lambda: files.rows(mutations=10_000), lambda: files.rows(mutations=100)),
    "memory": (lambda: memory.rows(calls=2000), lambda: memory.rows(calls=40)),
    "page": (lambda: page.rows(calls=500), lambda: page.rows(calls=20)),
}
HEADER = ("promise", "tried", "kept", "figures")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--short", action="store_true", help="minutes: shows that all of it works")
    parser.add_argument("--output", type=Path, metavar="FILE.md", help="the table, in Markdown")
    args = parser.parse_args()
    began = time.perf_counter()
    rows: list[Row] = []
    for name in args.part:
        for row in PARTS[name][args.short]():
            rows.append(row)
            print(*row.cells(), sep=" | ", flush=True)
    minutes = (time.perf_counter() - began) / 60
    table = tabulate([row.cells() for row in rows], HEADER, "github", disable_numparse=True)
    text = f"{table}\n\nOn {machine('cpu')}, in {minutes:.0f} minutes."
    print(f"\n{text}")
    if args.output:
        args.output.write_text(f"# The last soak\n\n{text}\n", encoding="utf-8")
    return 0 if all(row.kept for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
