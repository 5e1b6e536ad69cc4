"""The part of a report on what goes wrong."""

from collections.abc import Sequence

from ..evaluation import Examined, find_errors
from ..evaluation.coco import hotcoco
from ..evaluation.errors import NO_HOTCOCO
from ..visualization import figure_picture, plot_confusion, plot_errors
from .page import Section, picture


def errors_section(examined: Examined, results: Sequence[dict], *, min_score: float) -> Section:
    """Kinds of error as bars and the confusion matrix, or why they are not there.

    Args:
        examined: the annotations.
        results: in COCO's format, finite.
        min_score: of the detections in the confusion matrix.
    """
    tasks = [task for task in ("bbox", "segm") if task in examined.tasks]
    if hotcoco is None:
        return Section("Errors", note=NO_HOTCOCO)
    if not tasks:
        return Section("Errors", note="There are kinds of error of boxes and masks only.")
    errors = [find_errors(examined, results, task, min_score=min_score) for task in tasks]
    note = "Kinds of error as TIDE defines them, and how much AP50 would rise without each. In the "
    note += "matrix the surest detection takes the object that it overlaps most."
    bars, matrix = plot_errors(errors), plot_confusion(errors[0])
    return Section(
        "Errors",
        note=note,
        pictures=[
            picture(figure_picture(bars), "Kinds of error"),
            picture(figure_picture(matrix), "Confusion matrix"),
        ],
    )
