"""One checkpoint by each backend and precision that there is for it, on the CPU."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from detectron2.data.detection_utils import read_image

from nl_detectron.errors import UsageError
from nl_detectron.export import ExportedModel, table
from nl_detectron.export.export import load, predictor, write_file
from nl_detectron.export.parity import difference
from nl_detectron.inference import Predictor

from .measure import alternate
from .table import NOT_MEASURED, Table, dtypes, text_of

TITLE = "Backends and precisions"
FILES = (
    ("torchscript", "float32"),
    ("torch-export", "float32"),
    ("onnx", "float32"),
    ("openvino", "float32"),
    ("openvino", "int8"),
)
NAMES = {
    "torchscript": "TorchScript",
    "torch-export": "torch.export",
    "onnx": "onnxruntime",
    "openvino": "OpenVINO",
}


def backends_table(
    loop: Callable[[Sequence[Path]], object],
    weights: Path,
    images: Sequence[Path],
    *,
    size: int,
    seconds: float,
    threshold: float,
) -> Table:
    """Seconds for each image, one at a time and in a stream, reading included.

    Args:
        loop: Detectron2's, beside which the others run.
        weights: a checkpoint with its config beside it.
        images: files to predict on.
        size: to which they are resized, to say so.
        seconds: how long each of both measurements may take.
        threshold: of the scores.
    """
    predictors: dict[tuple[str, str], Predictor | None] = {}
    for dtype in dtypes("cpu"):
        predictors["PyTorch", dtype] = Predictor(
            weights, device="cpu", dtype=dtype, confidence_threshold=threshold
        )
    predictors.update(_exported(weights, images, threshold))
    there = {name: made for name, made in predictors.items() if made is not None}
    stock = partial(loop, images)
    one_by_one, stream = (
        alternate(
            {"stock": stock, **{str(n): partial(call, p, images) for n, p in there.items()}},
            seconds=seconds,
        )
        for call in (_one_by_one, _in_a_stream)
    )
    rows = [("DefaultPredictor", "float32", *_cells("stock", one_by_one, stream, len(images)))]
    for name, made in predictors.items():
        cells = (
            (NOT_MEASURED, "", "", "")
            if made is None
            else _cells(str(name), one_by_one, stream, len(images))
        )
        rows.append((*name, *cells))
    header = (
        "backend",
        "precision",
        "one by one, s",
        "times as fast",
        "stream, s",
        "times as fast",
    )
    return Table(TITLE, text_of(TITLE, images=len(images), size=size), header, rows)


def _exported(
    weights: Path, images: Sequence[Path], threshold: float
) -> Iterator[tuple[tuple[str, str], Predictor | None]]:
    """The predictor of a file in each format and precision; None if it cannot be made here.

    Random weights see as much in a blank image as in others, in no order, and say nothing of what
    int8 loses. So the parity of :func:`nl_detectron.export.export_model` is not asked for, but in
    float32 the same detections in the images that are timed.
    """
    cfg, model, known = load(str(weights), threshold=threshold)
    pixels = [read_image(str(file), format="BGR") for file in images]
    expected = [predictor(cfg, model)(image) for image in pixels]
    for format, precision in FILES:
        name, int8 = (NAMES[format], precision), precision == "int8"
        folder = weights.parent / f"{format}_{precision}"
        folder.mkdir()
        try:
            path = write_file(cfg, model, known, folder, format, pixels, int8=int8)
            exported = ExportedModel(path)
        except UsageError:  # its packages are not installed
            yield name, None
            continue
        if not int8:
            found = map(predictor(cfg, exported), pixels)
            names = (file.name for file in images)
            differences = list(map(difference, names, expected, found))
            if not all(one.passes for one in differences):
                warnings.warn(f"{path} differs from its model:\n{table(differences)}", stacklevel=2)
                yield name, None
                continue
        yield name, Predictor(path, confidence_threshold=threshold)


def _one_by_one(predictor: Predictor, images: Sequence[Path]) -> None:
    for image in images:
        predictor(image)


def _in_a_stream(predictor: Predictor, images: Sequence[Path]) -> None:
    for _ in predictor.stream(images):
        pass


def _cells(
    name: str, one_by_one: dict[str, float], stream: dict[str, float], images: int
) -> tuple[str, ...]:
    return tuple(
        cell
        for times in (one_by_one, stream)
        for cell in (f"{times[name] / images:.3f}", f"{times['stock'] / times[name]:.2f}")
    )
