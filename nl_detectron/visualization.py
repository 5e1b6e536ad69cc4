"""Pictures for people: predictions, attention and training curves."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.data.detection_utils import read_image
from detectron2.structures import Instances
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import Visualizer
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from .structures import Attention, AttentionMap

GAP = 8  # pixels between the pictures of a sheet


def draw_predictions(
    predictor: Callable[[np.ndarray], Instances],
    dataset_name: str,
    folder: str | Path,
    *,
    num_images: int = 16,
    height: int = 384,
) -> list[Path]:
    """Draws a model's predictions on the first images of a dataset, beside the ground truth.

    Args:
        predictor: a trained model, such as :class:`nl_detectron.Predictor`.
        dataset_name: a registered dataset with annotations.
        folder: where one PNG for each image goes, named after the image; made if need be.
        num_images: how many images at most.
        height: of each picture in pixels.

    Returns:
        The files, in the dataset's order. The left half of each is the ground truth.
    """
    metadata = MetadataCatalog.get(dataset_name)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for record in DatasetCatalog.get(dataset_name)[:num_images]:
        image = read_image(record["file_name"], format="BGR")
        scale = height / len(image)
        file = folder / Path(record["file_name"]).with_suffix(".png").name
        _write(file, draw_comparison(image, record, predictor(image), metadata, scale=scale))
        files.append(file)
    return files


def draw_instances(
    image: np.ndarray,
    instances: Instances,
    metadata: Metadata,
    *,
    ids: Sequence[int] | None = None,
    color_by_class: bool = False,
    scale: float = 1.0,
) -> np.ndarray:
    """Draws boxes, masks, keypoints with their skeleton, class names and scores.

    Args:
        image: uint8 (H, W, 3) BGR.
        instances: N predictions in the image's pixels, on the CPU.
        metadata: class names and keypoint connections, as Detectron2's Visualizer reads them.
        ids: N numbers that are written, and that decide the colours.
        color_by_class: where there are no ids, one colour for each class; by default the colours
            differ from instance to instance.
        scale: size of the drawing relative to the image.

    Returns:
        uint8 (scale * H, scale * W, 3) BGR.
    """
    classes = [metadata.thing_classes[index] for index in instances.pred_classes]
    labels = [f"{c} {s:.0%}" for c, s in zip(classes, instances.scores.tolist(), strict=True)]
    colors = instances.pred_classes.tolist() if color_by_class else range(len(instances))
    if ids is not None:
        colors = ids
        labels = [f"#{number} {label}" for number, label in zip(ids, labels, strict=True)]
    palette = colormap(rgb=True, maximum=1)
    visualizer = Visualizer(image[:, :, ::-1], metadata, scale=scale)
    drawn = visualizer.overlay_instances(
        boxes=instances.pred_boxes,
        masks=instances.pred_masks.numpy() if instances.has("pred_masks") else None,
        keypoints=instances.pred_keypoints if instances.has("pred_keypoints") else None,
        labels=labels,
        assigned_colors=[palette[i % len(palette)] for i in colors],
    )
    return np.ascontiguousarray(drawn.get_image()[:, :, ::-1])


def draw_ground_truth(
    image: np.ndarray, record: dict, metadata: Metadata, *, scale: float = 1.0
) -> np.ndarray:
    """Draws what a dataset's record says of an image.

    Args:
        image: uint8 (H, W, 3) BGR.
        record: of the image, as ``DatasetCatalog`` lists them.
        metadata, scale: see :func:`draw_instances`.

    Returns:
        uint8 (scale * H, scale * W, 3) BGR.
    """
    visualizer = Visualizer(image[:, :, ::-1], metadata, scale=scale)
    drawn = visualizer.draw_dataset_dict(record)
    return np.ascontiguousarray(drawn.get_image()[:, :, ::-1])


def draw_comparison(
    image: np.ndarray, record: dict, instances: Instances, metadata: Metadata, *, scale: float
) -> np.ndarray:
    """Draws the ground truth of an image on the left, and predictions on the right.

    Args:
        image, record: see :func:`draw_ground_truth`.
        instances, metadata, scale: see :func:`draw_instances`.

    Returns:
        uint8 BGR, ``scale * H`` high.
    """
    truth = draw_ground_truth(image, record, metadata, scale=scale)
    found = draw_instances(image, instances, metadata, scale=scale)
    gap = np.full((len(truth), GAP // 2, 3), 255, np.uint8)
    return np.hstack([truth, gap, found])


def draw_attention(
    image: np.ndarray, attention_map: AttentionMap, *, strongest: int = 10, height: int = 360
) -> np.ndarray:
    """Draws one block's attention over an image, as in fig. 3 of the paper.

    A heat map shows the weights, bilinear between the keys' centres; arrows go from the query to
    the strongest keys, the stronger the more opaque. Affinities that are no distribution have a
    diverging colour map around zero.

    Args:
        image: uint8 (H, W, 3) BGR.
        strongest: number of arrows.
        height: of the picture's heat map in pixels, about.

    Returns:
        uint8 BGR of another size: there are a title and a colour bar.
    """
    aspect = _aspect(image)
    figure = Figure(figsize=(height * aspect / 100 + 1.1, height / 100 + 0.5), layout="constrained")
    _attention_panel(figure, figure.subplots(), image, attention_map, strongest)
    return figure_picture(figure)


def draw_attention_sheet(
    attention: Attention,
    metadata: Metadata,
    *,
    strongest: int = 10,
    max_points: int = 5,
    height: int = 300,
) -> np.ndarray:
    """All blocks side by side: a row for each query point, the detections on the left.

    Args:
        metadata: see :func:`draw_instances`.
        strongest: number of arrows from each query.
        max_points: rows; further points are left out.
        height: of each row in pixels, about.

    Returns:
        uint8 BGR.
    """
    rows, columns = min(len(attention.points), max_points), 1 + len(attention.blocks)
    rows_shown = max(rows, 1)  # without a point the detections alone, which may be none
    aspect = _aspect(attention.image)
    size = (columns * (height * aspect / 100 + 0.9), rows_shown * (height / 100 + 0.4))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows_shown, columns, squeeze=False)
    scale = 2 * height / max(attention.image.shape[:2])
    detections = draw_instances(attention.image, attention.instances, metadata, scale=scale)
    for row, axes in enumerate(grid):
        _show(axes[0], detections, attention.image.shape[:2])
        axes[0].set_title("detections", fontsize=9)
        for axis, block in zip(axes[1:], attention.blocks, strict=True):
            found = attention.of(row, block) if row < rows else None
            if found is not None:
                _attention_panel(figure, axis, attention.image, found, strongest)
                continue
            _show(axis, attention.image, attention.image.shape[:2], grey=True)
            axis.set_title(f"{_short(block)}: no instance here", fontsize=9)
        if row < rows:
            _mark(axes[0], attention.points[row])
    return figure_picture(figure)


def heat_map(
    attention_map: AttentionMap, image_size: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """The weights over the image, bilinear between the keys' centres.

    Args:
        image_size: (H, W) of the image, in whose pixels the map's edges are.
        size: (h, w) of the result, which covers the whole image.

    Returns:
        float32 (h, w); NaN where there are no keys, which is outside the box of an instance.
    """
    coordinates, inside = [], []
    for axis, edges in enumerate((attention_map.y_edges, attention_map.x_edges)):
        position = (np.arange(size[axis]) + 0.5) * image_size[axis] / size[axis]
        centres = (edges[:-1] + edges[1:]) / 2
        coordinates.append(np.interp(position, centres, np.arange(len(centres))))
        inside.append((edges[0] <= position) & (position <= edges[-1]))
    rows, columns = (c.astype(np.float32) for c in np.meshgrid(*coordinates, indexing="ij"))
    heat = cv2.remap(attention_map.weights, columns, rows, cv2.INTER_LINEAR)
    return np.where(np.logical_and.outer(*inside), heat, np.float32("nan"))


def spotlight(
    image: np.ndarray, attention_map: AttentionMap | None, *, scale: int = 1
) -> np.ndarray:
    """The image, as bright as its positions are related to the query; all dark without a map.

    Args:
        image: uint8 (H, W, 3) BGR.

    Returns:
        uint8 (scale * H, scale * W, 3) BGR.
    """
    height, width = image.shape[:2]
    size = scale * height, scale * width
    light = np.zeros(size, np.float32)
    if attention_map is not None:
        light = np.abs(np.nan_to_num(heat_map(attention_map, (height, width), size)))
    light = 0.15 + 0.85 * light / max(light.max(), 1e-9)
    large = cv2.resize(image, size[::-1], interpolation=cv2.INTER_NEAREST)
    return (large * light[..., None]).astype(np.uint8)


def draw_cross(image: np.ndarray, point: tuple[float, float]) -> np.ndarray:
    """Marks a point, (x, y) in pixels, in a uint8 (H, W, 3) BGR image, in place; the image."""
    place = round(point[0]), round(point[1])
    return cv2.drawMarker(image, place, (255, 0, 255), cv2.MARKER_CROSS, 14, 2)


def contact_sheet(pictures: Sequence[str | Path], file: str | Path, *, columns: int) -> None:
    """Joins pictures of one size, row by row, into one file, PNG or JPEG by its name, on white."""
    images = [cv2.imread(str(picture)) for picture in pictures]
    height, width = images[0].shape[:2]
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = i // columns * (height + GAP), i % columns * (width + GAP)
        sheet[y : y + height, x : x + width] = image
    _write(Path(file), sheet)


def plot_training_curves(
    metrics_file: str | Path, file: str | Path | None = None, *, title: str = ""
) -> Figure:
    """Plots the losses and the learning rate that a training run logged.

    Args:
        metrics_file: the ``metrics.json`` that Detectron2 writes to ``OUTPUT_DIR``.
        file: the PNG to write, if any.
    """
    records = read_metrics(metrics_file)
    names = sorted({name for record in records for name in record if "loss" in name})
    # Not pyplot, which would want a display and keep the figure.
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    losses, rate = figure.subplots(1, 2, width_ratios=(3, 1))
    for name in names:
        points = [(r["iteration"], r[name]) for r in records if name in r]
        width = 2.5 if name == "total_loss" else 1.2
        losses.plot(*zip(*points, strict=True), label=name, linewidth=width)
    losses.set(xlabel="iteration", ylabel="loss", yscale="log", title=title)
    losses.legend(fontsize="small")
    points = [(r["iteration"], r["lr"]) for r in records if "lr" in r]
    rate.plot(*zip(*points, strict=True))
    rate.set(xlabel="iteration", title="learning rate")
    if file is not None:
        figure.savefig(file, dpi=110)
    return figure


def read_metrics(metrics_file: str | Path) -> list[dict[str, float]]:
    """The records of a ``metrics.json``, one for each time that Detectron2 wrote to it."""
    lines = Path(metrics_file).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line]


def _attention_panel(
    figure: Figure, axis: Axes, image: np.ndarray, attention_map: AttentionMap, strongest: int
) -> None:
    size = image.shape[:2]
    _show(axis, image, size, grey=True)
    heat = heat_map(attention_map, size, _shown_size(size))
    peak = max(float(np.nanmax(np.abs(heat), initial=0)), 1e-12)
    positive = attention_map.is_distribution
    shown = axis.imshow(
        heat,
        cmap="inferno" if positive else "RdBu_r",
        vmin=0 if positive else -peak,
        vmax=peak,
        # What is near zero lets the picture through.
        alpha=np.nan_to_num(0.35 + 0.45 * np.abs(heat) / peak),
        extent=(0, size[1], size[0], 0),
        interpolation="bilinear",
    )
    bar = figure.colorbar(shown, ax=axis, fraction=0.05, pad=0.02)
    bar.set_label("attention weight" if positive else "affinity", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    found = [key for key in attention_map.strongest(strongest, size) if key[2] > 0]
    for x, y, weight in found:
        style = {"arrowstyle": "-|>", "color": "lime" if positive else "black", "shrinkB": 0}
        style |= {"alpha": 0.25 + 0.75 * weight / found[0][2], "linewidth": 1.5}
        axis.annotate("", (x, y), attention_map.query, arrowprops=style)
    _mark(axis, attention_map.query)
    pairwise = attention_map.pairwise.replace("_", " ")
    axis.set_title(f"{_short(attention_map.block)}, {pairwise}", fontsize=9)


def _show(axis: Axes, image: np.ndarray, size: tuple[int, int], *, grey: bool = False) -> None:
    """Shows a BGR picture of an image, in the pixels of the image of this (H, W)."""
    image = cv2.resize(image, _shown_size(image.shape[:2])[::-1], interpolation=cv2.INTER_AREA)
    image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if grey else image[:, :, ::-1]
    axis.imshow(image, cmap="gray", vmin=0, vmax=255, extent=(0, size[1], size[0], 0))
    axis.set(xticks=[], yticks=[])


def _mark(axis: Axes, point: tuple[float, float]) -> None:
    axis.plot(*point, "o", color="cyan", markeredgecolor="black", markersize=7)


def _shown_size(size: tuple[int, int], longest: int = 640) -> tuple[int, int]:
    """(H, W) scaled down to what a picture shows of it."""
    scale = min(1.0, longest / max(size))
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def _aspect(image: np.ndarray) -> float:
    return min(max(image.shape[1] / image.shape[0], 0.4), 3.0)


def _short(block: str) -> str:
    """A block's name without what all names share: ``res4.nl4``, ``keypoint_head.nl2``."""
    return ".".join(block.split(".")[-2:])


def figure_picture(figure: Figure) -> np.ndarray:
    """A figure as a picture, uint8 (H, W, 3) BGR."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return cv2.cvtColor(np.asarray(canvas.buffer_rgba()), cv2.COLOR_RGBA2BGR)


def _write(file: Path, image: np.ndarray) -> None:
    """Writes a BGR image; OpenCV alone would fail without a word."""
    file.write_bytes(cv2.imencode(file.suffix, image)[1])
