from concurrent.futures import Future

import pytest

from far_cue import Run, measures, run, run_all
from nl_detectron.errors import UsageError

from .results import write_result

OPTS = ("SOLVER.MAX_ITER", "2")


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
    runs = [Run("one_key", variant, 1) for variant in ("plain", "deeper", "gaussian", "uniform")]
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
        figures = dict.fromkeys(measures.TARGETS.columns.values(), 40.0)
        figures |= {"target_accuracy": 99.0}
        write_result(work, output, **figures)
        return figures

    monkeypatch.setattr(run, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(run, "train_and_measure", train)
    monkeypatch.setattr(run.DatasetCatalog, "get", lambda name: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(UsageError, match="gaussian/seed_1 failed: RuntimeError"):
        run_all(runs, tmp_path, workers=2)
    assert done == [runs[1], runs[3]]
    broken.clear()
    capsys.readouterr()
    run_all(runs, tmp_path, workers=1)
    assert done == [runs[1], runs[3], runs[2]]
    out = capsys.readouterr().out
    assert "3 of 4 runs are done already" in out
    assert "one_key gaussian seed 1: target accuracy 99.0 %" in out and "ETA 0:00:00" in out
