import json

import pytest

from nl_detectron.visualization import figure_picture, plot_training_curves

LOSSES = [{"iteration": i, "total_loss": 2.0 / i, "lr": 0.1} for i in (1, 2, 3)]
NAN = float("nan")


@pytest.fixture
def metrics(tmp_path):
    def write(*records: dict):
        file = tmp_path / "metrics.json"
        file.write_text("\n".join(map(json.dumps, records)))
        return file

    return write


def points(axis) -> dict[str, list[list[float]]]:
    return {line.get_label(): line.get_xydata().tolist() for line in axis.lines}


def test_evaluations_are_plotted_over_iterations(metrics):
    evaluations = [
        {"iteration": 1, "bbox/AP": NAN, "bbox/AP50": 9.0, "bbox/AP-cat": 8.0},
        {"iteration": 2, "bbox/AP": 10.0, "segm/AP": 5.0},
        {"iteration": 3, "bbox/AP": 11.0, "segm/AP": 6.0},
        {"iteration": 2, "bbox/AP": 12.0},  # again, after a resumption
    ]
    figure = plot_training_curves(metrics(*LOSSES, *evaluations))
    _, _, axis = figure.axes
    assert points(axis) == {"bbox/AP": [[2, 12], [3, 11]], "segm/AP": [[2, 5], [3, 6]]}
    assert figure_picture(figure).shape == (450, 1200, 3)


@pytest.mark.parametrize("record", [{"iteration": 1}, {"iteration": 1, "bbox/AP": NAN}])
def test_without_evaluations_there_are_losses_alone(record, metrics):
    figure = plot_training_curves(metrics(*LOSSES, record))
    losses, _ = figure.axes
    assert points(losses) == {"total_loss": [[1, 2], [2, 1], [3, pytest.approx(2 / 3)]]}
