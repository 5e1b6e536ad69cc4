"""Curves of a training, and figures as pictures."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def plot_training_curves(
    metrics_file: str | Path, file: str | Path | None = None, *, title: str = ""
) -> Figure:
    """Plots the losses, the learning rate and the APs that a training run logged.

    Args:
        metrics_file: the ``metrics.json`` that Detectron2 writes to ``OUTPUT_DIR``.
        file: the PNG to write, if any.
    """
    records = read_metrics(metrics_file)
    aps = ap_curves(records)
    names = sorted({name for record in records for name in record if "loss" in name})
    # Not pyplot, which would want a display and keep the figure.
    figure = Figure(figsize=(12 if aps else 9, 4.5), layout="constrained")
    losses, rate, *evaluations = figure.subplots(
        1, 3 if aps else 2, width_ratios=(3, 1, 2) if aps else (3, 1)
    )
    for name in names:
        points = [(r["iteration"], r[name]) for r in records if name in r]
        width = 2.5 if name == "total_loss" else 1.2
        losses.plot(*zip(*points, strict=True), label=name, linewidth=width)
    losses.set(xlabel="iteration", ylabel="loss", yscale="log", title=title)
    losses.legend(fontsize="small")
    points = [(r["iteration"], r["lr"]) for r in records if "lr" in r]
    rate.plot(*zip(*points, strict=True))
    rate.set(xlabel="iteration", title="learning rate")
    for axis in evaluations:
        for name, points in aps.items():
            axis.plot(*zip(*points, strict=True), "o-", markersize=4, label=name)
        axis.set(xlabel="iteration", title="AP", ylim=(0, None))
        axis.legend(fontsize="small")
    if file is not None:
        figure.savefig(file, dpi=110)
    return figure


def ap_curves(records: Iterable[Mapping[str, float]]) -> dict[str, list[tuple[float, float]]]:
    """By name, such as "bbox/AP", the evaluations of a training: iteration and AP in percent.

    NaN, where there was none, is left out. Of an iteration that was evaluated twice, as after a
    resumption, the later one counts.
    """
    curves: dict[str, dict[float, float]] = {}
    for record in records:
        for name, value in record.items():
            if name.endswith("/AP") and math.isfinite(value):
                curves.setdefault(name, {})[record["iteration"]] = value
    return {name: sorted(points.items()) for name, points in curves.items()}


def read_metrics(metrics_file: str | Path) -> list[dict[str, float]]:
    """The records of a ``metrics.json``, one for each time that Detectron2 wrote to it.

    What is no number is null in the file, and NaN here.
    """
    lines = Path(metrics_file).read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines if line]
    return [{k: math.nan if v is None else v for k, v in record.items()} for record in records]


def figure_picture(figure: Figure) -> np.ndarray:
    """A figure as a picture, uint8 (H, W, 3) BGR."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return cv2.cvtColor(np.asarray(canvas.buffer_rgba()), cv2.COLOR_RGBA2BGR)
