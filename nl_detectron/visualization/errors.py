"""Pictures of what goes wrong: kinds of error as bars, and a confusion matrix."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from ..evaluation import Errors

MOST_NUMBERS = 25  # classes up to which the numbers are written into the matrix
ROW = 0.12  # inches of a class, its name readable on a page 1000 pixels wide with 80 of them
ROW_WITH_NUMBERS = 0.3


def plot_errors(errors: Sequence[Errors]) -> Figure:
    """Bars of how much AP50 each kind of error costs, with the number of errors, by task."""
    figure = Figure(figsize=(4.4 * len(errors), 3.2), layout="constrained")
    for axis, found in zip(figure.subplots(1, len(errors), squeeze=False)[0], errors, strict=True):
        kinds = list(found.cost)[::-1]  # the first on top
        bars = axis.barh(kinds, [found.cost[kind] for kind in kinds], color="tab:red")
        labels = [f"{found.cost[kind]:.1f} ({found.counts[kind]})" for kind in kinds]
        axis.bar_label(bars, labels, padding=3, fontsize="small")
        axis.margins(x=0.3)
        axis.set_xlim(left=0)
        axis.set(xlabel="points of AP50 (number)", title=f"{found.task}: AP50 {found.ap50:.1f}")
    return figure


def plot_confusion(errors: Errors) -> Figure:
    """The confusion matrix: by row what there is, by column what it was found as.

    Colours are shares of the row. Numbers are written for up to 25 classes.
    """
    matrix, names = errors.confusion, errors.names
    few = len(names) <= MOST_NUMBERS
    side = max(4.0, 1.6 + len(names) * (ROW_WITH_NUMBERS if few else ROW))
    figure = Figure(figsize=(side, side), layout="constrained")
    axis = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    size = 8 if few else 6.5
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axis.set_yticks(range(len(names)), names, fontsize=size)
    axis.set(
        xlabel="found as", ylabel="truth", title=f"{errors.task}, scores from {errors.min_score:g}"
    )
    if few:
        for i, j in zip(*np.nonzero(matrix), strict=True):
            colour = "white" if shares[i, j] > 0.5 else "black"
            axis.text(j, i, matrix[i, j], ha="center", va="center", color=colour, fontsize=7)
    return figure
