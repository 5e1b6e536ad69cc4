"""Images of textured shapes that overlap each other over a cluttered background."""

import numpy as np

from .drawing import UNIT_CIRCLE, Canvas, Instance, Scene, random_texture, rotation

SHAPE_CLASSES = ("disc", "ring", "square", "triangle")


def draw_shapes(rng: np.random.Generator, size: tuple[int, int]) -> Scene:
    """Draws two or three shapes at random places, scales, rotations, colours and textures.

    Args:
        rng: source of all random choices.
        size: (H, W) of the image in pixels; the shapes' sizes are relative to the smaller one.

    Returns:
        The scene; category `i + 1` is `SHAPE_CLASSES[i]`.
    """
    canvas = Canvas(rng, size)

    def draw(number: int) -> int:
        category, scale = int(rng.integers(len(SHAPE_CLASSES))), min(size)
        stretch = rng.uniform(0.16, 0.3) * scale * np.array([1, rng.uniform(0.75, 1)])
        turn, centre = rotation(rng.uniform(-0.4, 0.4)), rng.uniform(0.15, 0.85, 2) * size[::-1]
        outlines = [(o * stretch) @ turn + centre for o in _outlines(SHAPE_CLASSES[category], rng)]
        canvas.paint(outlines, random_texture(rng, rng.uniform(0.025, 0.06) * scale), number)
        return category + 1

    categories = [canvas.place(draw) for _ in range(rng.integers(2, 4))]
    instances = [Instance(c, canvas.mask(number)) for number, c in enumerate(categories, start=1)]
    return Scene(canvas.image(), instances)


def _outlines(name: str, rng: np.random.Generator) -> list[np.ndarray]:
    """The polygons, each (n, 2), of a shape in the unit circle."""
    if name == "disc":
        return [UNIT_CIRCLE]
    if name == "ring":
        return [UNIT_CIRCLE, UNIT_CIRCLE * rng.uniform(0.35, 0.5)]
    corners = {"square": 4, "triangle": 3}[name]
    angles = (np.arange(corners) + 0.5) * (2 * np.pi / corners)
    return [np.stack([np.cos(angles), np.sin(angles)], axis=1)]
