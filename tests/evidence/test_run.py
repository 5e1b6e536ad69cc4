import json
import math
from concurrent.futures import Future

from nl_detectron.engine import UsageError
from nl_detectron.evidence import Run, run, run_all

import pytest

OPTS = ("SOLVER.MAX_ITER", "2")


def truth(*annotations):
    keys = ("image_id", "category_id", "bbox")
    names = ("key", "target_x_a", "target_x_b", "target_y_a", "target_y_b")
    return {
        "annotations": [dict(zip(keys, a, strict=True)) for a in annotations],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, start=1)],
    }


def detection(image_id, category_id, bbox, score):
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}


def test_target_accuracy_in_closed_form():
    box, other = [10, 10, 20, 20], [50, 10, 20, 20]
    targets = truth((1, 2, box), (1, 3, other), (2, 3, box), (2, 1, other))
    assert run.target_accuracy(targets, [])[1] == 0
    assert math.isnan(run.target_accuracy(targets, [])[0])
    found = [
        detection(1, 4, [11, 10, 20, 20], 0.9),  # the right answer, a, though of another colour
        detection(1, 3, box, 0.8),  # wrong, but of a lower score
        detection(1, 2, other, 0.6),  # wrong
        detection(2, 3, [24, 10, 20, 20], 0.9),  # too far off: an IoU of 0.18
        detection(2, 1, box, 0.99),  # of a key: says nothing of the target
    ]
    assert run.target_accuracy(targets, found) == (1 / 2, 2 / 3)
    found.append(detection(2, 3, box, 0.1))
    assert run.target_accuracy(targets, found) == (2 / 3, 1)


def test_curves_are_read(tmp_path):
    figures = {"key_a": 80.0, "key_b": 90.0, "target_a": math.nan, "target_b": 10.0}
    records = [
        {"iteration": 19, "total_loss": 1.0},
        {"iteration": 199, **{f"bbox/AP-{name}": value for name, value in figures.items()}},
    ]
    file = tmp_path / "metrics.json"
    file.write_text("\n".join(map(json.dumps, records)))
    assert run.read_curve(file, list(figures)) == [(199, 5.0, 85.0)]


def write_result(work: Run, output, **values):
    work.folder(output).mkdir(parents=True, exist_ok=True)
    result = {"fingerprint": work.fingerprint(), "target_accuracy": 50.0, **values}
    (work.folder(output) / run.RESULT).write_text(json.dumps(result))


def test_results_are_those_of_the_settings(tmp_path):
    work = Run("one_key", "plain", 1)
    assert work.result(tmp_path) is None
    write_result(work, tmp_path)
    assert work.result(tmp_path)["target_accuracy"] == 50
    assert Run("one_key", "plain", 1, OPTS).result(tmp_path) is None  # others in that folder
    assert work.fingerprint() != Run("one_key", "plain", 2).fingerprint()
    (work.folder(tmp_path) / run.RESULT).write_text("{")
    assert work.result(tmp_path) is None


def test_only_what_is_missing_is_run(tmp_path, monkeypatch, capsys):
    """In the order given, and resumed after one that fails."""
    runs = [Run("one_key", variant, 1) for variant in ("plain", "deeper", "wider", "uniform")]
    write_result(runs[0], tmp_path)
    done, broken = [], {runs[2]}

    class Pool:
        def __init__(self, workers, mp_context):
            assert workers in (1, 2)

        def submit(self, function, work, output):
            future = Future()
            try:
                future.set_result(function(work, output))
            except RuntimeError as error:
                future.set_exception(error)
            return future

        def shutdown(self, **kwargs):
            pass

    def train(work, output):
        if work in broken:
            raise RuntimeError("so and so")
        done.append(work)
        figures = {"target_accuracy": 99.0, "target_AP": 40.0, "key_AP": 80.0, "seconds": 3.0}
        write_result(work, output, **figures)
        return figures

    monkeypatch.setattr(run, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(run, "train_and_measure", train)
    monkeypatch.setattr(run.DatasetCatalog, "get", lambda name: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(UsageError, match="wider/seed_1 failed: RuntimeError"):
        run_all(runs, tmp_path, workers=2)
    assert done == [runs[1], runs[3]]
    broken.clear()
    capsys.readouterr()
    run_all(runs, tmp_path, workers=1)
    assert done == [runs[1], runs[3], runs[2]]
    out = capsys.readouterr().out
    assert "3 of 4 runs are done already" in out
    assert "one_key wider seed 1: target accuracy 99.0 %" in out and "ETA 0:00:00" in out
