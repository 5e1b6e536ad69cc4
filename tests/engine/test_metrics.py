import json
import math
import resource
import shutil

from detectron2.utils.events import EventStorage

from nl_detectron.engine.metrics import MetricsWriter, recent, restore

FILE = "metrics.json"


def write(folder, *iterations: int, start=None, max_iter=100, **figures: float) -> MetricsWriter:
    """Writes iterations' losses, and figures with the last one, as one run."""
    writer = MetricsWriter(str(folder / FILE))
    if start is not None:
        writer.go_on(start, max_iter)
    with EventStorage() as storage:
        for i in iterations:
            storage.iter = i
            storage.put_scalar("total_loss", i / 10)
            if i == iterations[-1]:
                storage.put_scalars(**figures, smoothing_hint=False)
            writer.write()
    writer.close()
    return writer


def records(folder) -> list[dict]:
    def refuse(name: str) -> None:
        raise ValueError(name)

    lines = (folder / FILE).read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def test_what_is_no_number_is_null(tmp_path):
    write(tmp_path, 0, 1, **{"bbox/AP": math.nan, "bbox/AP50": math.inf, "bbox/AP75": 2.5})
    assert records(tmp_path)[-1] == {
        "iteration": 1,
        "total_loss": 0.05,  # the median of two
        "bbox/AP": None,
        "bbox/AP50": None,
        "bbox/AP75": 2.5,
    }


def test_what_is_done_again_is_written_once(tmp_path):
    write(tmp_path, 0, 1, 2, 3)
    with open(tmp_path / FILE, "a") as file:
        file.write('{"iteration": 4, "total_lo')  # killed while it wrote
    write(tmp_path, 2, 3, 4, start=2)
    assert [r["iteration"] for r in records(tmp_path)] == [0, 1, 2, 3, 4]
    write(tmp_path, 0, start=0)  # killed before its first checkpoint
    assert [r["iteration"] for r in records(tmp_path)] == [0]


def test_what_has_been_written_is_not_written_again(tmp_path):
    write(tmp_path, 0, 1)
    write(tmp_path, 1, 2, start=2)  # the first of which is restored from the checkpoint
    assert [r["iteration"] for r in records(tmp_path)] == [0, 1, 2]


def test_the_evaluation_at_an_end_stays_if_training_goes_on(tmp_path):
    end = {"iteration": 2, "bbox/AP": 7.0}
    for max_iter, expected in ((9, [0, 1, 2]), (2, [0, 1])):
        (tmp_path / FILE).write_text("")
        write(tmp_path, 0, 1)
        with open(tmp_path / FILE, "a") as file:
            file.write(json.dumps(end) + "\n")
        MetricsWriter(str(tmp_path / FILE)).go_on(2, max_iter)
        assert [r["iteration"] for r in records(tmp_path)] == expected


def test_figures_of_an_evaluation_are_found(tmp_path):
    writer = write(tmp_path, 0, 1, **{"segm/AP": math.nan, "lr": 0.1})
    found = writer.evaluated(1)
    assert found.pop("total_loss") == 0.05 and found.pop("lr") == 0.1
    assert found.keys() == {"segm/AP"} and math.isnan(found["segm/AP"])
    assert writer.evaluated(0) == {} == writer.evaluated(2)


def test_medians_go_on_as_they_were():
    def put(storage: EventStorage, iterations: range) -> None:
        for i in iterations:
            storage.iter = i
            storage.put_scalar("loss", i * i % 7)
            storage.put_scalar("loss", i)  # twice in an iteration
            storage.put_scalar("lr", i, smoothing_hint=False)

    straight, first, second = EventStorage(), EventStorage(), EventStorage(30)
    put(straight, range(40))
    put(first, range(30))
    kept = recent(first)
    assert len(kept["loss"]["values"]) == 40  # of 20 iterations
    restore(second, kept)
    assert second.latest() == first.latest()
    put(second, range(30, 40))
    assert second.latest_with_smoothing_hint() == straight.latest_with_smoothing_hint()


def test_a_file_that_was_removed_is_noticed(tmp_path, log):
    folder = tmp_path / "run"
    folder.mkdir()
    writer = MetricsWriter(str(folder / FILE))
    with EventStorage() as storage:
        for i in range(3):
            storage.iter = i
            storage.put_scalar("total_loss", 1.0)
            if i == 1:
                shutil.rmtree(folder)
            writer.write()
    writer.close()
    lines = {record.getMessage() for record in log.records}
    assert lines == {f"ALARM: {folder / FILE} was removed during the training; it begins anew"}
    assert [r["iteration"] for r in records(folder)] == [1, 2]


def test_a_full_disk_holds_records_back(tmp_path, log):
    writer = MetricsWriter(str(tmp_path / FILE))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with EventStorage() as storage:
        for i in range(4):
            storage.iter = i
            storage.put_scalar("total_loss", 1.0)
            size = (tmp_path / FILE).stat().st_size + 10 if i == 1 else before[0]
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
            writer.write()
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    writer.close()
    assert "ALARM: " in log.text and "metrics.json cannot be written (File too large)" in log.text
    assert [r["iteration"] for r in records(tmp_path)] == [0, 1, 2, 3]
