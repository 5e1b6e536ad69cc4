"""COCO evaluation beside Detectron2's own, which is pycocotools'."""

import contextlib
import io
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog

from nl_detectron.evaluation import COCOEvaluator
from nl_detectron.evaluation.coco import hotcoco

from .detections import KINDS, NUM_CLASSES, generate, read_predictions
from .table import NOT_MEASURED, Table, text_of

# By task: which annotations, and how many times as fast as pycocotools we mean to be
TASKS = {"bbox": ("instances", 8), "segm": ("instances", 2.7), "keypoints": ("person_keypoints", 3)}
GOAL_IN_ALL = 5
GOAL_MEMORY = 3  # GB
SIDES = ("pycocotools", "ours")
HEADER = (
    "task",
    "pycocotools, s",
    "ours, s",
    "times as fast",
    "goal",
    "pycocotools, GB",
    "ours, GB",
    "goal, GB",
    "figures",
    "largest difference",
)


@dataclass(frozen=True)
class Run:
    """One evaluation in a process of its own.

    Attributes:
        seconds: of the evaluation alone, its inputs already in memory.
        peak: bytes of memory that the process held at most, PyTorch and the predictions included;
            None where the system does not tell.
        figures: AP, AP50, ...: (12,) for boxes and masks, (10,) for keypoints.
    """

    seconds: float
    peak: int | None
    figures: np.ndarray


def tables(*, quick: bool, device: str) -> Iterator[Table]:
    """Seconds, memory and figures of each task; the device makes no difference."""
    num_images, rounds = (200, 1) if quick else (5000, 2)
    yield table(num_images=num_images, num_detections=100, rounds=rounds)


def table(*, num_images: int, num_detections: int, rounds: int) -> Table:
    """The table of :func:`tables` for sets of any size."""
    title = "COCO evaluation"
    if hotcoco is None:
        return Table(title, "Not measured: hotcoco is not installed.", HEADER, ())
    runs: dict[tuple[str, str], list[Run]] = {(task, side): [] for task in TASKS for side in SIDES}
    with TemporaryDirectory() as root:
        for kind in KINDS:
            generate(
                Path(root, kind),
                kind,
                num_images=num_images,
                seed=0,
                num_detections=num_detections,
            )
        for _ in range(rounds):
            for (task, side), found in runs.items():
                found.append(run(Path(root, TASKS[task][0]), task, side))

    rows, totals = [], dict.fromkeys(SIDES, 0.0)
    for task, (_, goal) in TASKS.items():
        theirs, ours = (runs[task, side] for side in SIDES)
        seconds = [statistics.median(run.seconds for run in side) for side in (theirs, ours)]
        memory = [_gigabytes(side) for side in (theirs, ours)]
        difference = np.abs(theirs[0].figures - ours[0].figures).max()
        figures = [str(len(ours[0].figures)), f"{difference:.0e}" if difference else "0"]
        rows.append((task, *_speed(seconds, goal), *memory, f"≤ {GOAL_MEMORY}", *figures))
        for side, value in zip(SIDES, seconds, strict=True):
            totals[side] += value
    rows.append(("all", *_speed(list(totals.values()), GOAL_IN_ALL), *[""] * 5))
    text = text_of(
        title,
        images=num_images,
        detections=num_detections,
        rounds=rounds,
        hotcoco=hotcoco.__version__,
    )
    return Table(title, text, HEADER, rows)


def run(folder: Path, task: str, side: str) -> Run:
    """Evaluates what :func:`generate` wrote, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_run, folder, task, side).result()


def _run(folder: Path, task: str, side: str) -> Run:
    name, num_classes = str(folder), NUM_CLASSES[folder.name]
    MetadataCatalog.get(name).set(
        json_file=str(folder / "annotations.json"),
        thing_classes=[f"class {k + 1}" for k in range(num_classes)],
        thing_dataset_id_to_contiguous_id={k + 1: k for k in range(num_classes)},
    )
    fast = side == "ours"
    evaluator: Any = COCOEvaluator(name, (task,), distributed=False, use_fast_impl=fast)
    evaluator.reset()
    for results in read_predictions(folder):
        evaluator._predictions.append({"image_id": results[0]["image_id"], "instances": results})

    figures, derive = [], evaluator._derive_coco_results

    def keep(found: Any, *args: object, **kwargs: object) -> dict:
        figures.append(found.stats)
        return derive(found, *args, **kwargs)

    evaluator._derive_coco_results = keep
    with contextlib.redirect_stdout(io.StringIO()):
        began = time.perf_counter()
        evaluator.evaluate()
        seconds = time.perf_counter() - began
    return Run(seconds, _peak_resident(), figures[0])


def _peak_resident() -> int | None:
    """Bytes of memory that this process has held at once at most; only Linux tells."""
    status = Path("/proc/self/status")  # getrusage's maximum may be that of the parent
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def _gigabytes(runs: list[Run]) -> str:
    peaks = [run.peak for run in runs if run.peak is not None]
    return f"{max(peaks) / 1e9:.2f}" if peaks else NOT_MEASURED


def _speed(seconds: Sequence[float], goal: float) -> tuple[str, ...]:
    theirs, ours = seconds
    return f"{theirs:.2f}", f"{ours:.2f}", f"{theirs / ours:.1f}", f"≥ {goal}"
