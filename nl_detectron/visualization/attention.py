"""Pictures of what non-local blocks relate, as in the paper's figure 3."""

from typing import Any

import cv2
import numpy as np
from detectron2.data.catalog import Metadata
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..layers.names import short_name
from ..structures import Attention, AttentionMap
from .curves import figure_picture
from .instances import draw_instances


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
            axis.set_title(f"{_last_names(block)}: no instance here", fontsize=9)
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
        color = "lime" if positive else "black"
        style: dict[str, Any] = {"arrowstyle": "-|>", "color": color, "shrinkB": 0}
        style |= {"alpha": 0.25 + 0.75 * weight / found[0][2], "linewidth": 1.5}
        axis.annotate("", (x, y), attention_map.query, arrowprops=style)
    _mark(axis, attention_map.query)
    pairwise = attention_map.pairwise.replace("_", " ")
    axis.set_title(f"{_last_names(attention_map.block)}, {pairwise}", fontsize=9)


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


def _last_names(block: str) -> str:
    """A block's name without what all names share: ``res4.nl4``, ``keypoint_head.nl2``."""
    return short_name(block).removeprefix("roi_heads.")
