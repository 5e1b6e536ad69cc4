"""Runs suites of measurements and writes the tables of each as a page of Markdown."""

import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import torch

from .table import Table, machine, text_of

# Each is a module of this package with `tables(*, quick: bool, device: str) -> Iterator[Table]`.
SUITES = ("block", "family", "training", "step", "prediction", "evaluation")


def benchmark(suite: str, *, quick: bool, device: str) -> Iterator[str]:
    """A suite's page in Markdown, in parts, each as soon as it is measured.

    Args:
        suite: one of :data:`SUITES`.
        quick: few cells, few repeats: shows that all of it works, not what is published.
        device: ``cpu`` or ``cuda``.
    """
    began = time.perf_counter()
    yield f"# Benchmarks: {suite}\n\n{text_of('Benchmarks', machine=machine(device))}\n"
    for table in _tables(suite, quick, device):
        yield f"\n{table.markdown()}"
    yield f"\nThis page took {(time.perf_counter() - began) / 60:.0f} minutes.\n"


def write(parts: Iterator[str], path: Path | None) -> None:
    """Prints the parts of a page as they come, and keeps what there is of it in a file."""
    page = ""
    for part in parts:
        print(part, end="", flush=True)
        page += part
        if path is not None:
            path.write_text(page, encoding="utf-8")


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _tables(suite: str, quick: bool, device: str) -> Iterator[Table]:
    # Suites are imported when they run: each needs packages that the others do not.
    return import_module(f".{suite}", __package__).tables(quick=quick, device=device)
