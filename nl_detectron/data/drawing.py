"""What all kinds of generated images share: scenes, textures and a layered canvas."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np

SAMPLES = 3  # canvas samples along each side of a pixel; odd, so that one is the pixel's centre
MIN_VISIBLE = 0.3  # of the pixels that an object had before later objects covered it
MIN_PIXELS = 24
UNIT_CIRCLE = np.stack([f(np.arange(32) * (np.pi / 16)) for f in (np.cos, np.sin)], axis=1)

T = TypeVar("T")


@dataclass
class Instance:
    """An annotated object.

    Attributes:
        category_id: 1-based, as in the JSON file.
        mask: bool (H, W), the object's visible pixels.
        keypoints: None, or float64 (17, 3): x and y as pixel indices, and COCO's visibility.
    """

    category_id: int
    mask: np.ndarray
    keypoints: np.ndarray | None = None


@dataclass
class Scene:
    """A generated image, uint8 (H, W, 3) in BGR, and its objects, whose masks are disjoint."""

    image: np.ndarray
    instances: list[Instance]


@dataclass
class Texture:
    """A BGR tile, uint8 (h, w, 3), of cells `cell` pixels wide, repeated endlessly at `angle`."""

    tile: np.ndarray
    cell: float = 1.0
    angle: float = 0.0
    smooth: bool = False  # blend from cell to cell

    def crop(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """The texture, uint8 (height, width, 3), of a rectangle given in canvas samples."""
        to_tile = rotation(-self.angle) / (self.cell * SAMPLES)
        to_tile = np.column_stack([to_tile, to_tile @ (x, y)])
        flags = cv2.WARP_INVERSE_MAP | (cv2.INTER_LINEAR if self.smooth else cv2.INTER_NEAREST)
        size = width, height
        return cv2.warpAffine(self.tile, to_tile, size, flags=flags, borderMode=cv2.BORDER_WRAP)


def plain(colour: Sequence[float] | np.ndarray) -> Texture:
    """One BGR colour."""
    return Texture(np.asarray(colour).astype(np.uint8).reshape(1, 1, 3))


def random_colour(rng: np.random.Generator) -> np.ndarray:
    """A BGR colour, float64 (3,), more saturated than the background is."""
    hue, saturation, value = rng.uniform((0, 0.6, 0.3), (1, 1, 1))
    distance = np.abs((hue + np.array([1, 2, 0]) / 3) % 1 * 6 - 3)  # from each of B, G and R
    return 255 * value * (1 - saturation * (1 - (distance - 1).clip(0, 1)))


def random_texture(rng: np.random.Generator, cell: float) -> Texture:
    """Plain, stripes, checkers or noise of a bright and a dark shade, in cells of `cell` pixels."""
    a = random_colour(rng)
    b = a * rng.uniform(0.4, 0.75)
    tiles = ([[a]], [[a, b]], [[a, b], [b, a]], a + rng.random((8, 8, 1)) * (b - a))
    kind = rng.integers(len(tiles))
    tile = np.asarray(tiles[kind]).astype(np.uint8)
    return Texture(tile, cell, rng.uniform(0, np.pi), smooth=kind == 3)


def rotation(angle: float) -> np.ndarray:
    """The (2, 2) matrix that turns row vectors by `angle` radians, from x towards y."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, sin], [-sin, cos]])


class Canvas:
    """An image under construction, `SAMPLES` times as fine as the result along each side.

    Every sample knows what was painted on it last, and a pixel belongs to the object that its
    centre sample shows. Hence masks are exact and disjoint, while colours are averages over a
    pixel's samples. Points are (x, y) in the result's pixel indices. At first there is noise of
    several frequencies, with strokes that belong to no object.

    Args:
        rng: source of all random choices.
        size: (H, W) of the result in pixels.
    """

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]):
        self._rng, self._size = rng, size
        height, width = size
        image = np.full((height, width, 3), rng.uniform(90, 190), np.float32)
        for cells, contrast, tint in ((2, 30, 15), (5, 25, 10), (16, 15, 5)):
            noise = rng.uniform(-contrast, contrast, (cells, cells, 1))
            noise = (noise + rng.uniform(-tint, tint, (cells, cells, 3))).astype(np.float32)
            image += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
        fine = width * SAMPLES, height * SAMPLES
        self._image = cv2.resize(image.clip(0, 255).astype(np.uint8), fine)
        self._labels = np.zeros(fine[::-1], np.uint16)  # indices into _parts
        # of each part the object, and the names of the keypoints that are seen there
        self._parts: list[tuple[int, Sequence[str]]] = [(0, ())]
        self._areas: list[int] = []  # of each object before later ones covered it
        t = np.linspace(0, 1, 16)[:, None]
        for _ in range(rng.integers(1, 6)):
            a, b, c = rng.uniform(-0.1, 1.1, (3, 2)) * (width, height)
            curve = _to_samples(a * (1 - t) ** 2 + b * 2 * t * (1 - t) + c * t**2)
            thickness = round(SAMPLES * rng.uniform(0.005, 0.015) * min(size))
            cv2.polylines(self._image, [curve], False, random_colour(rng).tolist(), thickness)

    def place(self, draw: Callable[[int], T]) -> T:
        """Adds an object, so that every object still shows enough of itself to be annotated.

        Args:
            draw: paints the object whose number it is given, in a random way; objects are
                numbered from 1. It is called again, with the canvas as it was, until all is well.

        Returns:
            What the last call of `draw` returned.
        """
        number = len(self._areas) + 1
        while True:
            image, labels, parts = self._image.copy(), self._labels.copy(), self._parts.copy()
            drawn = draw(number)
            visible = np.bincount(self._objects().ravel(), minlength=number + 1)[1:]
            areas = [*self._areas, visible[-1]]
            if (visible >= np.maximum(MIN_PIXELS, MIN_VISIBLE * np.array(areas))).all():
                self._areas = areas
                return drawn
            self._image, self._labels, self._parts = image, labels, parts

    def paint(
        self,
        outlines: Sequence[np.ndarray],
        texture: Texture,
        number: int,
        shows: Sequence[str] = (),
    ) -> None:
        """Paints a part of object `number` over what is there.

        Args:
            outlines: polygons, each (n, 2); one within another is a hole.
            texture: the part's colours.
            number: the object's, as given by `place`.
            shows: names of the keypoints that are seen where the part is seen.
        """
        points = [_to_samples(outline) for outline in outlines]
        x, y, width, height = cv2.boundingRect(np.concatenate(points))
        window = np.s_[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)]
        label = len(self._parts)
        self._parts.append((number, shows))
        cv2.fillPoly(self._labels, points, label)
        inside = (self._labels[window] == label).view(np.uint8)
        if inside.size > 0:  # not outside the image
            colours = texture.crop(max(x, 0), max(y, 0), *inside.shape[::-1])
            self._image[window] = cv2.copyTo(colours, inside, self._image[window])

    def mask(self, number: int) -> np.ndarray:
        """The visible pixels, bool (H, W), of an object."""
        return self._objects() == number

    def shows(self, number: int, name: str, point: np.ndarray) -> bool:
        """Whether the object's keypoint `name` is seen at `point`, which must be in the image."""
        x, y = _to_samples(point)
        owner, names = self._parts[self._labels[y, x]]
        return owner == number and name in names

    def image(self) -> np.ndarray:
        """The image, uint8 (H, W, 3) in BGR, with some sensor noise."""
        image = cv2.resize(self._image, self._size[::-1], interpolation=cv2.INTER_AREA)
        noise = self._rng.standard_normal(image.shape, np.float32) * self._rng.uniform(1, 5)
        return (image + noise).clip(0, 255).astype(np.uint8)

    def _objects(self) -> np.ndarray:
        """The number, int (H, W), of the object that each pixel's centre shows; 0 is none."""
        centres = self._labels[SAMPLES // 2 :: SAMPLES, SAMPLES // 2 :: SAMPLES]
        return np.array([number for number, _ in self._parts])[centres]


def _to_samples(points: np.ndarray) -> np.ndarray:
    """The int32 canvas indices of points given in pixel indices."""
    return np.round((points + 0.5) * SAMPLES - 0.5).astype(np.int32)
