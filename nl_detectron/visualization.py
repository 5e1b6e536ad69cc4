"""Pictures for people: predictions beside the ground truth, and training curves."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor
from detectron2.structures import Instances
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import Visualizer
from matplotlib.figure import Figure

GAP = 8  # pixels between the pictures of a sheet


def draw_predictions(
    cfg: CfgNode,
    dataset_name: str,
    folder: str | Path,
    *,
    num_images: int = 16,
    min_score: float = 0.5,
    height: int = 384,
) -> list[Path]:
    """Draws a model's predictions on the first images of a dataset, beside the ground truth.

    Args:
        cfg: a config whose ``MODEL.WEIGHTS`` are trained.
        dataset_name: a registered dataset with annotations.
        folder: where one PNG for each image goes, named after the image; made if need be.
        num_images: how many images at most.
        min_score: predictions with lower scores are left out.
        height: of each picture in pixels.

    Returns:
        The files, in the dataset's order. The left half of each is the ground truth.
    """
    metadata = MetadataCatalog.get(dataset_name)
    predictor = DefaultPredictor(cfg)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for record in DatasetCatalog.get(dataset_name)[:num_images]:
        image = read_image(record["file_name"], format="BGR")
        predictions = predictor(image)["instances"].to("cpu")
        predictions = predictions[predictions.scores >= min_score]
        if predictions.has("pred_keypoint_heatmaps"):
            predictions.remove("pred_keypoint_heatmaps")  # large, and nothing is drawn of them

        def picture(draw: Callable[[Visualizer], object], image=image) -> np.ndarray:
            visualizer = Visualizer(image[:, :, ::-1], metadata, scale=height / len(image))
            draw(visualizer)
            return visualizer.get_output().get_image()[:, :, ::-1]

        truth = picture(lambda v, record=record: v.draw_dataset_dict(record))
        found = picture(lambda v, found=predictions: v.draw_instance_predictions(found))
        file = folder / Path(record["file_name"]).with_suffix(".png").name
        gap = np.full((len(truth), GAP // 2, 3), 255, np.uint8)
        _write(file, np.hstack([truth, gap, found]))
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


def plot_training_curves(metrics_file: str | Path, file: str | Path, *, title: str = "") -> None:
    """Plots the losses and the learning rate that a training run logged.

    Args:
        metrics_file: the ``metrics.json`` that Detectron2 writes to ``OUTPUT_DIR``.
        file: the PNG to write.
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
    figure.savefig(file, dpi=110)


def read_metrics(metrics_file: str | Path) -> list[dict[str, float]]:
    """The records of a ``metrics.json``, one for each time that Detectron2 wrote to it."""
    lines = Path(metrics_file).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line]


def _write(file: Path, image: np.ndarray) -> None:
    """Writes a BGR image; OpenCV alone would fail without a word."""
    file.write_bytes(cv2.imencode(file.suffix, image)[1])
