"""What is found on an image besides Detectron2's Instances."""

from dataclasses import dataclass

import numpy as np
from detectron2.structures import Instances

from .layers import DISTRIBUTIONS


@dataclass(frozen=True)
class AttentionMap:
    """The affinity of one query point to all keys of one block.

    Attributes:
        point: the index of the query point.
        block: the block's name in the model, such as ``backbone.bottom_up.res4.nl4``.
        pairwise: its pairwise function, or what kind of block it is.
        query: the point, (x, y) in the image's pixels.
        weights: float32 (h, w).
        x_edges: where the columns of keys begin and end in the image, in pixels, (w + 1,). They can
            lie beyond the image, in what was padded.
        y_edges: the same of the rows, (h + 1,).
        instance: the index of the detected instance on whose grid a keypoint head's block works.
        distribution: whether the weights are positive and sum to 1; by default as of ``pairwise``.
    """

    point: int
    block: str
    pairwise: str
    query: tuple[float, float]
    weights: np.ndarray
    x_edges: np.ndarray
    y_edges: np.ndarray
    instance: int | None = None
    distribution: bool | None = None

    @property
    def is_distribution(self) -> bool:
        """Whether the weights are positive and sum to 1; they are signed otherwise."""
        if self.distribution is None:
            return self.pairwise in DISTRIBUTIONS
        return self.distribution

    def strongest(
        self, k: int, image_size: tuple[int, int] | None = None
    ) -> list[tuple[float, float, float]]:
        """The k keys of the largest weights, by falling weight.

        Args:
            image_size: (H, W); keys whose centre is outside, in the padding, are left out.

        Returns:
            x and y of each key's centre in the image's pixels, and its weight.
        """
        xs, ys = (edges[:-1] / 2 + edges[1:] / 2 for edges in (self.x_edges, self.y_edges))
        found = []
        for index in np.argsort(-self.weights, axis=None, kind="stable"):
            row, column = np.unravel_index(index, self.weights.shape)
            x, y = float(xs[column]), float(ys[row])
            if image_size is None or (0 <= x < image_size[1] and 0 <= y < image_size[0]):
                found.append((x, y, float(self.weights[row, column])))
            if len(found) == k:
                break
        return found


@dataclass(frozen=True)
class Attention:
    """The attention of all blocks to all query points of an image.

    Attributes:
        image: uint8 (H, W, 3) BGR.
        instances: what was detected.
        points: the query points.
        blocks: names of the model's non-local blocks, in the order in which they run.
        maps: for each point, one for each block that has it. A block in the keypoint head has
            those points only that are in the box of a detected instance.
    """

    image: np.ndarray
    instances: Instances
    points: list[tuple[float, float]]
    blocks: list[str]
    maps: list[AttentionMap]

    def of(self, point: int, block: str) -> AttentionMap | None:
        """The map of a point, by its index, and a block; None where there is none."""
        return next((m for m in self.maps if m.point == point and m.block == block), None)
