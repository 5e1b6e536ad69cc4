"""Pictures of detections, and of the truth beside them."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.structures import Instances
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import VisImage, Visualizer

from ..data.images import read_image
from ..errors import UsageError
from ..files import write_image

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
        image = read_image(record["file_name"])
        scale = height / len(image)
        file = folder / Path(record["file_name"]).with_suffix(".png").name
        write_image(file, draw_comparison(image, record, predictor(image), metadata, scale=scale))
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
    return _pixels(drawn)


def draw_ground_truth(
    image: np.ndarray, record: dict, metadata: Metadata, *, scale: float = 1.0
) -> np.ndarray:
    """Draws what a dataset's record says of an image.

    Args:
        image: uint8 (H, W, 3) BGR.
        record: of the image, as ``DatasetCatalog`` lists them. Annotations without a box are not
            drawn.
        metadata, scale: see :func:`draw_instances`.

    Returns:
        uint8 (scale * H, scale * W, 3) BGR.
    """
    visualizer = Visualizer(image[:, :, ::-1], metadata, scale=scale)
    # Detectron2 takes it that all annotations of an image have what the first one has.
    alike = defaultdict(list)
    for annotation in record.get("annotations", ()):
        if annotation.get("bbox") is not None:
            keypoints = len(annotation.get("keypoints", ()))
            alike["segmentation" in annotation, keypoints].append(annotation)
    for annotations in list(alike.values()) or [[]]:
        visualizer.draw_dataset_dict({**record, "annotations": annotations})
    return _pixels(visualizer.output)


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


def contact_sheet(pictures: Sequence[str | Path], file: str | Path, *, columns: int) -> None:
    """Joins pictures of one size, row by row, into one file, PNG or JPEG by its name, on white."""
    images = [_read(Path(picture)) for picture in pictures]
    height, width = images[0].shape[:2]
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = i // columns * (height + GAP), i % columns * (width + GAP)
        sheet[y : y + height, x : x + width] = image
    write_image(file, sheet)


def _pixels(output: VisImage) -> np.ndarray:
    """What was drawn, uint8 (H, W, 3) BGR.

    A figure and its canvas hold each other until Python looks for circles, which in a process with
    many objects is seldom: so what they hold is let go of here.
    """
    image = np.ascontiguousarray(output.get_image()[:, :, ::-1])
    output.fig.clear()
    output.canvas.renderer = None
    return image


def _read(file: Path) -> np.ndarray:
    image = cv2.imread(str(file))
    if image is None:
        raise UsageError(f"{file} is no picture that OpenCV can read")
    return image
