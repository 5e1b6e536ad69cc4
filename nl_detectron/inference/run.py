"""Predictions and attention for many files, drawn and written one by one."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.structures import Instances
from tqdm import tqdm

from ..data.images import ImageError
from ..engine.checks import check_output_dir
from ..errors import UsageError, one_line
from ..files import write_image
from ..memory import is_out_of_memory
from ..visualization import draw_attention, draw_attention_sheet, draw_instances
from .ahead import ahead
from .attention import check_has_blocks
from .images import Input
from .predictor import Predictor
from .video import Tracker, VideoReader, VideoWriter, load_tracker

RESULTS_FILE = "coco_instances_results.json"
FRAMES_PER_VIDEO = 1_000_000  # image ids set aside for a video's frames


@dataclass
class Summary:
    """How many files were drawn and how many had been before; what failed, and why."""

    written: int = 0
    skipped: int = 0
    failed: list[str] = field(default_factory=list)

    def report(self, output: Path) -> int:
        """Prints it, and returns the exit code: 1 if something failed, else 0."""
        skipped = f", {self.skipped} skipped that were there" if self.skipped else ""
        print(f"{self.written} written to {output}{skipped}")
        for message in self.failed:
            print(f"error: {one_line(message)}", file=sys.stderr)
        return 1 if self.failed else 0


def predict_files(
    predictor: Predictor,
    inputs: Sequence[Input],
    output: Path,
    *,
    save_json: bool = False,
    resume: bool = False,
    track: bool = False,
) -> Summary:
    """Writes each input with its predictions drawn on it below a folder, and shows progress.

    A few images are held at a time; see :meth:`Predictor.side_by_side`. A drawing is complete or
    not there at all. A file that cannot be read, or needs more memory than there is, does
    not stop the others.

    Args:
        inputs: as :func:`.images.find_inputs` lists them.
        output: the folder; made if need be.
        save_json: write ``coco_instances_results.json`` there, too, a list of results in COCO's
            format. Each also has ``file_name``, its drawing's. The image ids are the files' names
            where all are different numbers, as COCO's are, and else 1, 2, ... by input. Frame i
            (from 1) of the video with id v has the image id 1,000,000 v + i.
        resume: skip what has been written already, and keep its results.
        track: number the instances of videos, from frame to frame; results have ``track_id``.

    Raises:
        UsageError: if the folder cannot be written, or an input would be overwritten.
    """
    if track:
        load_tracker()
    _check_output(output, inputs)
    results_file = output / RESULTS_FILE
    # Without the results of what is there already, it would have to be done again to get them.
    resume = resume and (results_file.exists() or not save_json)
    results = _Results(results_file, inputs, resume=resume) if save_json else None

    def predict(item: Input) -> tuple[np.ndarray, Instances] | None:
        if item.is_video:
            return None
        image = predictor.load(item.path)
        return image, predictor(image, name=str(item.path))

    def write(item: Input, file: Path, predicted: tuple[np.ndarray, Instances] | None) -> None:
        if predicted is None:
            _predict_video(predictor, item, file, results, track)
            return
        image, instances = predicted
        drawn = draw_instances(image, instances, predictor.metadata)
        if results is not None:  # before the picture, by which resume knows what is done
            results.add(item, predictor.to_coco(instances))
        write_image(file, drawn)

    try:
        todo = _todo(inputs, output, resume)
        return _for_each(predictor.side_by_side(predict, todo), inputs, todo, output, write)
    finally:
        if results is not None:
            results.close()


def attention_files(
    predictor: Predictor,
    inputs: Sequence[Input],
    output: Path,
    points: Sequence[tuple[float, float]] | None = None,
    *,
    strongest: int = 10,
    max_points: int = 5,
    resume: bool = False,
) -> Summary:
    """Writes pictures of what the non-local blocks relate, below a folder, and shows progress.

    For ``image.jpg`` there are ``image.jpg``, all blocks side by side with a row for each query
    point, and ``image.jpg.blocks/1_x64_y64_BLOCK.png``, each of them alone.

    Args:
        inputs: images, as :func:`.images.find_inputs` lists them.
        output: the folder; made if need be.
        points: (x, y) in the images' pixels; by default the centres of detected instances.
        strongest: number of arrows from each query.
        max_points: at most so many instances of each image, the surest; all given points are used.

    Raises:
        UsageError: if the folder cannot be written, or an input would be overwritten.
    """
    check_has_blocks(predictor.model)
    _check_output(output, inputs)
    if points is not None:
        max_points = len(points)

    def load(item: Input) -> np.ndarray:
        if item.is_video:
            raise ImageError(f"{item.path} is a video; attention is drawn on images only")
        return predictor.load(item.path)

    def write(item: Input, file: Path, image: np.ndarray) -> None:
        attention = predictor.attention(image, points)
        for found in (m for m in attention.maps if m.point < max_points):
            x, y = found.query
            name = f"{found.point + 1}_x{x:.0f}_y{y:.0f}_{found.block}.png"
            drawn = draw_attention(attention.image, found, strongest=strongest)
            write_image(file.with_name(file.name + ".blocks") / name, drawn)
        sheet = draw_attention_sheet(
            attention, predictor.metadata, strongest=strongest, max_points=max_points
        )
        write_image(file, sheet)

    todo = _todo(inputs, output, resume)
    return _for_each(ahead(load, todo), inputs, todo, output, write)


def _todo(inputs: Sequence[Input], output: Path, resume: bool) -> list[Input]:
    """The inputs without those that have been written already, if a run is resumed."""
    return [item for item in inputs if not (resume and (output / item.output).exists())]


def _for_each(
    worked: Iterator[tuple[Input, Future]],
    inputs: Sequence[Input],
    todo: Sequence[Input],
    output: Path,
    write: Callable[[Input, Path, Any], None],
) -> Summary:
    """Calls write(item, its file, its future's result) with a progress bar, and counts."""
    summary = Summary(skipped=len(inputs) - len(todo))
    for item, future in tqdm(worked, unit="file", total=len(inputs), initial=summary.skipped):
        try:
            write(item, output / item.output, future.result())
            summary.written += 1
        except UsageError as error:
            message = str(error)
            named = str(item.path) in message
            summary.failed.append(message if named else f"{item.path}: {message}")
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            summary.failed.append(f"{item.path} needs more memory than there is")
    return summary


def _predict_video(
    predictor: Predictor, item: Input, file: Path, results: "_Results | None", track: bool
) -> None:
    reader = VideoReader(item.path)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial.mp4")
    predicted = predictor.side_by_side(lambda item: predictor(item[1]), reader.numbered())
    progress = tqdm(
        predicted, total=reader.num_frames, unit="frame", desc=one_line(item.path.name), leave=False
    )
    writer, tracker = None, None
    try:
        for (number, frame), found in progress:
            if writer is None:
                writer = VideoWriter(partial, reader.fps, frame.shape[:2])
                tracker = Tracker(frame.shape[:2]) if track else None
            instances = found.result()
            ids = tracker(instances) if tracker else None
            # Without ids colours by class, as those by instance would flicker.
            drawn = draw_instances(
                frame, instances, predictor.metadata, ids=ids, color_by_class=True
            )
            writer.write(drawn)
            if results is not None:
                records = predictor.to_coco(instances)
                for record, track_id in zip(records, ids or (), strict=False):
                    record["track_id"] = track_id
                results.add(item, records, frame=number)
        if writer is not None:  # a reader gives one frame at least
            writer.close()
        os.replace(partial, file)
        if reader.num_lost:
            raise ImageError(
                f"{item.path} is damaged: {reader.num_read} of "
                f"{reader.num_read + reader.num_lost} frames could be read; {file} has those"
            )
    finally:
        if writer is not None:
            writer.stop()
        partial.unlink(missing_ok=True)


class _Results:
    """Results in a JSON file that grows by lines, so that what an interrupted run wrote is kept."""

    def __init__(self, file: Path, inputs: Sequence[Input], *, resume: bool):
        self._ids = image_ids(inputs)
        done = {item.output.as_posix() for item in inputs if (file.parent / item.output).exists()}
        partial = file.with_name(f".{file.name}.partial")
        self._separator = "\n"
        with open(partial, "w", encoding="utf-8") as self._file:
            self._file.write("[")
            for result in _read_lines(file) if resume else ():
                if result["file_name"] in done:
                    self._write(result)
        os.replace(partial, file)
        self._file = open(file, "a", encoding="utf-8")  # noqa: SIM115  # closed by close()

    def add(self, item: Input, results: list[dict], frame: int | None = None) -> None:
        name = item.output.as_posix()
        image_id = self._ids[name]
        if frame is not None:
            image_id = image_id * FRAMES_PER_VIDEO + frame
        for result in results:
            self._write({**result, "image_id": image_id, "file_name": name})
        self._file.flush()

    def close(self) -> None:
        self._file.write("\n]\n")
        self._file.close()

    def _write(self, result: dict) -> None:
        self._file.write(self._separator + json.dumps(result))
        self._separator = ",\n"


def image_ids(inputs: Sequence[Input]) -> dict[str, int]:
    """Image ids by output name: the files' names if all are different numbers, else 1, 2, ..."""
    names = [item.output.as_posix() for item in inputs]
    stems = [item.path.stem for item in inputs]
    if all(stem.isdecimal() for stem in stems) and len({int(s) for s in stems}) == len(stems):
        return dict(zip(names, map(int, stems), strict=True))
    return {name: number for number, name in enumerate(names, start=1)}


def _read_lines(file: Path) -> Iterator[dict]:
    """The results in a file of ours; a last line that was cut off is left out."""
    with open(file, encoding="utf-8") as lines:
        for line in lines:
            with contextlib.suppress(ValueError):
                result = json.loads(line.rstrip().rstrip(","))
                if isinstance(result, dict) and "file_name" in result:
                    yield result


def _check_output(output: Path, inputs: Sequence[Input]) -> None:
    check_output_dir("output", str(output))
    sources = {item.path.resolve() for item in inputs}
    for item in inputs:
        if (output / item.output).resolve() in sources:
            raise UsageError(
                f"output {output}: the drawing of {item.path} would overwrite an input; choose "
                "another folder",
                arguments=["output"],
            )
