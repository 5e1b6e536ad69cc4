import json
import re
import shutil
import sys
import weakref
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from nl_detectron import Predictor
from nl_detectron.errors import UsageError
from nl_detectron.inference import find_inputs, predict_files
from nl_detectron.inference.run import RESULTS_FILE, Summary, image_ids
from nl_detectron.inference.video import Tracker, VideoReader, VideoWriter
from tests.full_disk import files_of_at_most

SIZE = (97, 129)  # odd on purpose: the last row and column are lost in a video


@pytest.fixture
def folder(tmp_path, picture):
    """Five images of one kind, of which one is broken, and one in a subfolder of the same name."""
    images = tmp_path / "images"
    (images / "more").mkdir(parents=True)
    for i in range(1, 5):
        cv2.imwrite(str(images / f"{i}.png"), np.roll(cv2.imread(str(picture)), 20 * i, 1))
    (images / "3.png").write_bytes((images / "3.png").read_bytes()[:2000])
    picture.rename(images / "more/1.png")
    return images


@pytest.fixture
def video(tmp_path):
    """Ten frames, in which a bright square moves to the right."""
    file = tmp_path / "clip.mp4"
    writer = VideoWriter(file, 12.5, SIZE)
    for i in range(10):
        frame = np.zeros((*SIZE, 3), np.uint8)
        frame[30:60, 10 + 5 * i : 40 + 5 * i] = 255
        writer.write(frame)
    writer.close()
    return file


def test_video_out_and_in(video):
    reader = VideoReader(video)
    assert (reader.fps, reader.num_frames) == (12.5, 10)
    frames = list(reader)
    assert len(frames) == 10 and frames[0].shape == (96, 128, 3)
    assert frames[4][45, 45].min() > 200 and frames[4][45, 15].max() < 50


def test_predicts_on_a_folder(predictor, folder, tmp_path, with_threads):
    output = tmp_path / "out"
    summary = predict_files(predictor, find_inputs([folder]), output, save_json=True)
    assert (summary.written, summary.skipped) == (4, 0)
    (failure,) = summary.failed
    assert "3.png" in failure and "truncated" in failure
    drawings = sorted(file.relative_to(output).as_posix() for file in output.rglob("*.png"))
    assert drawings == ["1.png", "2.png", "4.png", "more/1.png"]
    drawn, plain = cv2.imread(str(output / "4.png")), cv2.imread(str(folder / "4.png"))
    assert drawn.shape == plain.shape and np.abs(drawn.astype(int) - plain).mean() > 5
    results = json.loads((output / RESULTS_FILE).read_text())
    assert len(results) == 4 * 5
    with_threads(1)  # as side by side: the sums of more are rounded otherwise
    expected = predictor.to_coco(predictor(folder / "4.png"), 4)
    expected = [{**result, "file_name": "4.png"} for result in expected]
    assert [result for result in results if result["file_name"] == "4.png"] == expected
    assert not list(output.rglob("*.partial*"))


def test_a_few_images_are_held_at_a_time(weights, picture, tmp_path, monkeypatch):
    predictor = Predictor(weights["shapes"], confidence_threshold=0, device="cpu")
    for i in range(8):
        (tmp_path / f"images/{i}").mkdir(parents=True)
        shutil.copy(picture, tmp_path / f"images/{i}")
    load, loaded, alive = predictor.load, [], []

    def watched(file):
        image = load(file)
        if isinstance(file, Path):
            alive.append(sum(reference() is not None for reference in loaded))
            loaded.append(weakref.ref(image))
        return image

    monkeypatch.setattr(predictor, "load", watched)
    summary = predict_files(predictor, find_inputs([tmp_path / "images"]), tmp_path / "out")
    assert summary.written == 8 and len(alive) == 8
    assert max(alive) <= 3  # what is being drawn, and two that wait


def test_resume_does_only_what_is_missing(weights, folder, tmp_path):
    predictor = Predictor(weights["shapes"], confidence_threshold=0, device="cpu")
    output, inputs = tmp_path / "out", find_inputs([folder])
    predict_files(predictor, inputs, output, save_json=True)
    whole = sorted((output / RESULTS_FILE).read_text().splitlines())
    # As if it had been killed within a line, and before the drawing of that image
    text = (output / RESULTS_FILE).read_text()
    (output / RESULTS_FILE).write_text(text[: int(len(text) * 0.6)])
    (output / "4.png").unlink()
    (output / "more/1.png").unlink()
    (output / "2.png").write_bytes(b"as it was")
    summary = predict_files(predictor, inputs, output, save_json=True, resume=True)
    assert (summary.written, summary.skipped, len(summary.failed)) == (2, 2, 1)
    assert (output / "2.png").read_bytes() == b"as it was"
    json.loads((output / RESULTS_FILE).read_text())
    again = sorted((output / RESULTS_FILE).read_text().splitlines())
    assert [line.rstrip(",") for line in again] == [line.rstrip(",") for line in whole]
    # Where there are no results to keep, all is done again.
    (output / RESULTS_FILE).unlink()
    summary = predict_files(predictor, inputs, output, save_json=True, resume=True)
    assert (summary.written, summary.skipped) == (4, 0)


def test_predicts_on_a_video(predictor, video, tmp_path):
    output = tmp_path / "out"
    inputs = find_inputs([video])
    summary = predict_files(predictor, inputs, output, save_json=True, track=True)
    assert (summary.written, summary.failed) == (1, [])
    reader = VideoReader(output / "clip.mp4")
    assert (reader.fps, len(list(reader))) == (12.5, 10)
    results = json.loads((output / RESULTS_FILE).read_text())
    assert {result["image_id"] for result in results} == set(range(1_000_001, 1_000_011))
    for image_id in range(1_000_001, 1_000_011):
        ids = [result["track_id"] for result in results if result["image_id"] == image_id]
        assert len(ids) == len(set(ids)) == 5


def test_broken_videos_are_reported(predictor, video, tmp_path):
    (tmp_path / "text.avi").write_text("no video")
    (tmp_path / "half.mp4").write_bytes(video.read_bytes()[:500])
    inputs = find_inputs([tmp_path / "text.avi", tmp_path / "half.mp4", video])
    summary = predict_files(predictor, inputs, tmp_path / "out")
    assert summary.written == 1
    assert [failure.split(" is no video")[0][-8:] for failure in summary.failed] == [
        "text.avi",
        "half.mp4",
    ]
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["clip.mp4"]


def damaged(folder: Path) -> tuple[Path, Path]:
    """A video of twelve frames with the sixth damaged, and one that says to have twice as many."""
    file = folder / "whole.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for i in range(12):
        writer.write(cv2.circle(np.full((48, 64, 3), 120, np.uint8), (8 + 4 * i, 24), 8, 0, -1))
    writer.release()
    data = bytearray(file.read_bytes())
    frames = [match.start() for match in re.finditer(b"\xff\xd8\xff", bytes(data))]
    assert len(frames) == 12
    counts = data.replace((12).to_bytes(4, "little"), (24).to_bytes(4, "little"))
    data[frames[5] : frames[5] + 300] = bytes(300)
    one, short = folder / "one.avi", folder / "short.avi"
    one.write_bytes(data)
    short.write_bytes(counts)
    file.unlink()
    return one, short


def test_a_video_goes_on_after_a_damaged_frame(predictor, tmp_path):
    one, short = damaged(tmp_path)
    reader = VideoReader(one)
    numbers = [number for number, _ in reader.numbered()]
    assert numbers == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]
    assert (reader.num_read, reader.num_lost) == (11, 1)
    output = tmp_path / "out"
    summary = predict_files(predictor, find_inputs([one, short]), output, save_json=True)
    assert summary.written == 0 and summary.report(output) == 1
    assert summary.failed == [
        f"{one} is damaged: 11 of 12 frames could be read; {output}/one.avi.mp4 has those",
        f"{short} is damaged: 12 of 24 frames could be read; {output}/short.avi.mp4 has those",
    ]
    assert len(list(VideoReader(output / "one.avi.mp4"))) == 11
    results = json.loads((output / RESULTS_FILE).read_text())
    frames = {r["image_id"] - 1_000_000 for r in results if r["file_name"] == "one.avi.mp4"}
    assert frames == set(numbers)


def instances(*boxes: tuple[float, ...]) -> Instances:
    count = len(boxes)
    fields = {"scores": torch.full((count,), 0.9), "pred_classes": torch.zeros(count).long()}
    tensor = torch.tensor(boxes).reshape(-1, 4).float()
    return Instances((100, 200), pred_boxes=Boxes(tensor), **fields)


def test_ids_stay_with_what_moves():
    tracker = Tracker((100, 200))
    left, right = (10, 10, 40, 40), (150, 10, 180, 40)
    assert tracker(instances()) == []
    first, second = tracker(instances(left, right))
    # They move, and come in another order.
    assert tracker(instances((145, 10, 175, 40), (14, 10, 44, 40))) == [second, first]
    # One is missed for a frame, and known again.
    assert tracker(instances((18, 10, 48, 40))) == [first]
    assert tracker(instances((18, 10, 48, 40), (145, 10, 175, 40))) == [first, second]
    third = tracker(instances((80, 60, 99, 99)))[0]
    assert third not in (first, second)


def test_tracking_needs_scipy(predictor, video, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if "detectron2.tracking" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(UsageError, match="track needs scipy.*pip install scipy"):
        predict_files(predictor, find_inputs([video]), tmp_path / "out", track=True)


def test_image_ids(tmp_path):
    def ids(*names: str) -> list[int]:
        for name in names:
            (tmp_path / name).touch()
        return list(image_ids(find_inputs([tmp_path / name for name in names])).values())

    assert ids("000139.jpg", "000285.jpg") == [139, 285]
    assert ids("000139.jpg", "139.jpg") == [1, 2]
    assert ids("000139.jpg", "cat.jpg") == [1, 2]


def test_an_input_is_never_overwritten(predictor, folder):
    before = (folder / "1.png").read_bytes()
    with pytest.raises(UsageError, match="would overwrite an input"):
        predict_files(predictor, find_inputs([folder]), folder)
    with pytest.raises(UsageError, match="cannot be written"):
        predict_files(predictor, find_inputs([folder]), folder / "1.png")
    assert (folder / "1.png").read_bytes() == before


def test_the_tool(tool, weights, folder, video, tmp_path):
    options = ["--weights", weights["people"], "--output", tmp_path / "out", "--device", "cpu"]
    inputs = ["--input", folder, video, "--track", "--save-json", "--dtype", "bfloat16"]
    code, out, err = tool("predict", *options, *inputs)
    assert code == 1 and "3.png" in err and "Traceback" not in err
    assert "on cpu" in out and "5 written" in out
    assert (tmp_path / "out/clip.mp4").exists() and (tmp_path / "out/more/1.png").exists()
    code, out, _ = tool("predict", *options, "--input", folder / "1.png", "--resume")
    assert code == 0 and "0 written" in out and "1 skipped" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--input", "nowhere.jpg"), "nowhere.jpg does not exist"),
        (("--confidence-threshold", "7"), "must be from 0 to 1, got 7"),
        (("--classes", "persn"), "did you mean person"),
    ],
)
def test_the_tool_names_what_cannot_work(tool, weights, picture, tmp_path, arguments, message):
    options = ["--weights", weights["people"], "--output", tmp_path / "out", "--input", picture]
    code, _, err = tool("predict", *options, *arguments)
    assert code == 2 and message in err and err.count("\n") == 1


def test_names_of_files_cannot_steer_a_terminal(capsys, tmp_path):
    summary = Summary(failed=["a\x1b[31m\n.jpg needs more memory than there is"])
    assert summary.report(tmp_path) == 1
    assert capsys.readouterr().err == ("error: a\\x1b[31m\\n.jpg needs more memory than there is\n")


def test_a_full_disk_is_one_line(tool, weights, picture, tmp_path):
    options = ["--weights", weights["shapes"], "--output", tmp_path / "out", "--device", "cpu"]
    with files_of_at_most(1000):
        code, _, err = tool("predict", *options, "--input", picture)
    assert code == 2 and "Traceback" not in err
    assert f"/{picture.name} cannot be written: File too large; make room there" in err
    assert list((tmp_path / "out").iterdir()) == []


def test_a_video_for_which_there_is_no_room_is_not_there(predictor, video, tmp_path, capsys):
    with files_of_at_most(1000):
        summary = predict_files(predictor, find_inputs([video]), tmp_path / "out")
    assert summary.written == 0 and len(summary.failed) == 1
    assert "cannot be written whole; is there room on the disk?" in summary.failed[0]
    assert list((tmp_path / "out").iterdir()) == []


def test_images_without_memory_for_them_are_made_smaller_or_named(
    weights, tmp_path, monkeypatch, log
):
    unresized = ("INPUT.MIN_SIZE_TEST", "0")
    predictor = Predictor(weights["shapes"], confidence_threshold=0, device="cpu", opts=unresized)
    (tmp_path / "in").mkdir()
    for name, size in {"a": (64, 64), "b": (64, 128), "c": (64, 2000)}.items():
        cv2.imwrite(str(tmp_path / f"in/{name}.png"), np.full((*size, 3), 90, np.uint8))
    real = predictor.model.forward

    def forward(batch):
        if batch[0]["image"][0].numel() > 64 * 64:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to")
        return real(batch)

    monkeypatch.setattr(predictor.model, "forward", forward)
    summary = predict_files(predictor, find_inputs([tmp_path / "in"]), tmp_path / "out")
    assert summary.written == 2
    [message] = summary.failed
    assert message.endswith("c.png needs more memory than there is, at 1/4 of its size")
    assert "b.png did not fit into memory: predicted at 1/2 of its size" in log.text
