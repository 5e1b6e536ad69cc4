"""A contact sheet of annotated images, the most suspicious first."""

import math
import os
from collections import defaultdict
from collections.abc import Hashable
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import Visualizer
from PIL import Image, ImageOps
from tqdm import tqdm

from ...files import write_image
from .check import Checked
from .ids import has_id
from .masks import run_lengths
from .numbers import are_numbers

TILE = 384  # pixels
GAP = 8
FAR = 1e4  # pixels beyond which Matplotlib need not draw


def write_contact_sheet(
    checked: Checked, image_root: str, file: str | Path, *, num_images: int
) -> None:
    """Draws boxes, masks and keypoints as they are in the corrected file.

    Args:
        image_root: the folder that the images' names are relative to.
        file: a PNG or JPEG by its name.
        num_images: at most; where fewer are suspicious, others are taken at even distances.
    """
    images = {image["id"]: image for image in checked.content["images"] if has_id(image, "id")}
    chosen = [id for id, _ in checked.suspicion.most_common() if id in images][:num_images]
    others = [id for id in images if id not in checked.suspicion]
    step = max(1, len(others) // max(1, num_images - len(chosen)))
    chosen += others[::step][: num_images - len(chosen)]
    shown = set(chosen)
    of_image: dict[Hashable, list[dict]] = defaultdict(list)
    for annotation in checked.annotations():
        if has_id(annotation, "image_id") and annotation["image_id"] in shown:
            of_image[annotation["image_id"]].append(annotation)
    names = {str(c.get("id")): str(c.get("name")) for c in checked.content["categories"]}
    tiles = [
        _tile(images[id], of_image[id], names, image_root)
        for id in tqdm(chosen, "pictures", leave=False)
    ]
    columns = math.ceil(math.sqrt(len(tiles)))
    blank = np.full((TILE + 24, TILE, 3), 255, np.uint8)
    tiles += [blank] * (-len(tiles) % columns if columns else 0)
    padded = [np.pad(t, ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for t in tiles]
    rows = [np.hstack(padded[i : i + columns]) for i in range(0, len(padded), max(1, columns))]
    write_image(file, np.vstack(rows) if rows else blank)


def _tile(image: dict, annotations: list[dict], names: dict[str, str], root: str) -> np.ndarray:
    """uint8 (TILE + 24, TILE, 3) BGR: the picture, and the image's id and file name below."""
    tile = np.full((TILE + 24, TILE, 3), 255, np.uint8)
    caption = f"{image['id']}: {image.get('file_name')}"
    cv2.putText(tile, caption[:60], (2, TILE + 17), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1)
    try:
        with Image.open(os.path.join(root, str(image.get("file_name")))) as opened:
            pixels = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    except Exception as error:  # Pillow's readers raise many kinds at broken files
        text = type(error).__name__
        cv2.putText(tile, text, (10, TILE // 2), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 255), 1)
        return tile
    height, width = pixels.shape[:2]
    scale = TILE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    visualizer = Visualizer(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
    for annotation in annotations[:100]:
        _draw(visualizer, annotation, names, (size[0] / width, size[1] / height), (height, width))
    drawn = visualizer.output.get_image()[: size[1], : size[0], ::-1]
    tile[: drawn.shape[0], : drawn.shape[1]] = drawn
    return tile


def _draw(
    visualizer: Visualizer,
    annotation: dict,
    names: dict[str, str],
    scale: tuple[float, float],
    image_size: tuple[int, int],
) -> None:
    id = str(annotation.get("category_id"))
    palette = colormap(rgb=True, maximum=1)
    color = palette[list(names).index(id) % len(palette)] if id in names else (1, 0, 0)
    mask = annotation.get("segmentation")
    if isinstance(mask, list):
        for polygon in mask:
            if isinstance(polygon, list) and _are_finite(polygon) and len(polygon) % 2 == 0:
                points = np.array(polygon, np.float64).reshape(-1, 2).clip(-FAR, FAR) * scale
                visualizer.draw_polygon(points, color, alpha=0.4)
    elif isinstance(mask, dict) and mask.get("size") == list(image_size):
        runs = run_lengths(mask.get("counts"))
        if runs is not None and (runs >= 0).all() and runs.sum() == math.prod(image_size):
            rle = mask
            if isinstance(mask["counts"], list):
                rle = mask_util.frPyObjects(mask, *image_size)
            pixels = cv2.resize(mask_util.decode(rle), visualizer.img.shape[1::-1])
            visualizer.draw_binary_mask(pixels, color, alpha=0.4, area_threshold=0)
    box = annotation.get("bbox")
    if isinstance(box, list) and len(box) == 4 and _are_finite(box):
        x, y, width, height = np.array(box, np.float64).clip(-FAR, FAR) * (*scale, *scale)
        visualizer.draw_box((x, y, x + width, y + height), edge_color=color)
        x, y = np.clip((x, y), 0, TILE - 20)  # where the name can be read
        visualizer.draw_text(
            names.get(id, f"category {id}"),
            (x, y),
            color=color,
            font_size=8,
            horizontal_alignment="left",
        )
    keypoints = annotation.get("keypoints")
    if isinstance(keypoints, list) and len(keypoints) % 3 == 0 and _are_finite(keypoints):
        for px, py, visibility in np.array(keypoints).reshape(-1, 3).clip(-FAR, FAR).tolist():
            if visibility > 0:
                visualizer.draw_circle((px * scale[0], py * scale[1]), color, radius=3)


def _are_finite(values: list) -> bool:
    return are_numbers(values) and all(map(math.isfinite, values))
