"""Curves of a training, and figures as pictures."""

import json
from pathlib import Path

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def plot_training_curves(
    metrics_file: str | Path, file: str | Path | None = None, *, title: str = ""
) -> Figure:
    """Plots the losses and the learning rate that a training run logged.

    Args:
        metrics_file: the ``metrics.json`` that Detectron2 writes to ``OUTPUT_DIR``.
        file: the PNG to write, if any.
    """
    records = read_metrics(metrics_file)
    names = sorted({name for record in records for name in record if "loss" in name})
    # Not pyplot, which would want a display and keep the figure.
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    losses, rate = figure.subplots(1, 2, width_ratios=(3, 1))
    for name in names:
        points = [(r["iteration"], r[name]) for r in records if name in r]
        width = 2.5 if name == "total_loss" else 1.2
        losses.plot(*zip(*points, strict=True), label=name, linewidth=width)
    losses.set(xlabel="iteration", ylabel="loss", yscale="log", title=title)
    losses.legend(fontsize="small")
    points = [(r["iteration"], r["lr"]) for r in records if "lr" in r]
    rate.plot(*zip(*points, strict=True))
    rate.set(xlabel="iteration", title="learning rate")
    if file is not None:
        figure.savefig(file, dpi=110)
    return figure


def read_metrics(metrics_file: str | Path) -> list[dict[str, float]]:
    """The records of a ``metrics.json``, one for each time that Detectron2 wrote to it."""
    lines = Path(metrics_file).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line]


def figure_picture(figure: Figure) -> np.ndarray:
    """A figure as a picture, uint8 (H, W, 3) BGR."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return cv2.cvtColor(np.asarray(canvas.buffer_rgba()), cv2.COLOR_RGBA2BGR)
