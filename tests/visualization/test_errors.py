import numpy as np
import pytest

from nl_detectron.evaluation import Errors
from nl_detectron.visualization import figure_picture, plot_confusion, plot_errors

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")


def errors_of(num_classes: int, task: str = "bbox") -> Errors:
    names = [*(f"class {i}" for i in range(num_classes)), "background"]
    confusion = np.arange((num_classes + 1) ** 2).reshape(num_classes + 1, -1)
    return Errors(
        task=task,
        ap50=40.0,
        cost={kind: float(i) for i, kind in enumerate(KINDS)},
        counts={kind: 10 * i for i, kind in enumerate(KINDS)},
        names=names,
        confusion=confusion,
        min_score=0.5,
    )


def test_bars_say_what_each_kind_costs_and_how_many_there_are():
    figure = plot_errors([errors_of(2), errors_of(2, "segm")])
    assert [axis.get_title() for axis in figure.axes] == ["bbox: AP50 40.0", "segm: AP50 40.0"]
    for axis in figure.axes:
        names = [label.get_text() for label in axis.get_yticklabels()]
        widths = [bar.get_width() for bar in axis.patches]
        assert dict(zip(names, widths, strict=True)) == {k: i for i, k in enumerate(KINDS)}
        assert [text.get_text() for text in axis.texts][0] == "5.0 (50)"


@pytest.mark.parametrize("num_classes", [1, 3, 80])
def test_every_class_is_named_on_both_sides(num_classes):
    errors = errors_of(num_classes)
    figure = plot_confusion(errors)
    picture = figure_picture(figure)
    (axis,) = figure.axes
    for labels in (axis.get_xticklabels(), axis.get_yticklabels()):
        assert [label.get_text() for label in labels] == errors.names
        boxes = [label.get_window_extent() for label in labels]
        # No name overlaps the next one.
        upright = labels[0].get_rotation() == 90
        edges = sorted((b.x0, b.x1) if upright else (b.y0, b.y1) for b in boxes)
        assert all(a[1] <= b[0] + 1 for a, b in zip(edges, edges[1:], strict=False))
    shown = axis.images[0].get_array()
    np.testing.assert_allclose(shown.sum(1), 1)
    written = len(axis.texts)
    assert written == (0 if num_classes == 80 else np.count_nonzero(errors.confusion))
    assert picture.shape[0] < 1300
