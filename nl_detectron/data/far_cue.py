"""Strips whose answer lies far from the question: a target's class is told by a key at the far end.

What stands at one end of a strip cannot be told apart there; only who sees the other end can do it.
Keys are annotated, too: that a model finds and names them shows that it sees well from near by.
"""

from collections.abc import Sequence

import numpy as np

from .drawing import UNIT_CIRCLE, Canvas, Instance, Scene, plain, rotation

FAR_CUE_CLASSES = ("key_a", "key_b", "target_a", "target_b")
FAR_CUE_SIZE = (64, 304)  # the smallest (H, W), in pixels
KEY_ZONE, TARGET_ZONE = 48, 80  # pixels from either end, in which all of a key or target lies

RED, GREEN = (40, 40, 220), (40, 190, 40)  # BGR
# of the cores of matching keys: white, black, blue and yellow
PALETTE = ((245, 245, 245), (15, 15, 15), (220, 90, 30), (30, 215, 225))


def draw_one_key(rng: np.random.Generator, size: tuple[int, int]) -> Scene:
    """Draws one disc, the key, and two to four white targets far away, of the key's class.

    The key is of class a if it is red, and of class b if it is green.

    Args:
        rng: source of all random choices.
        size: (H, W) of the image in pixels, at least :data:`FAR_CUE_SIZE`.

    Returns:
        The scene; category `i + 1` is `FAR_CUE_CLASSES[i]`.
    """
    strip = _Strip(rng, size)
    answer = int(rng.integers(2))
    strip.add_key((RED, GREEN)[answer], answer, radius=rng.uniform(16, 22))
    for _ in range(rng.integers(2, 5)):
        strip.add_target(PALETTE[0], answer)
    return strip.scene()


def draw_matching_key(rng: np.random.Generator, size: tuple[int, int]) -> Scene:
    """Draws a red and a green key with cores of different colours, and targets in those colours.

    A target is of the class of the key whose core has its colour. Which core goes with which key,
    and which key is above the other, changes from image to image. The average of the keys says
    nothing: there is always one of each class.

    Args, Returns: as for :func:`draw_one_key`.
    """
    strip = _Strip(rng, size)
    cores = [PALETTE[i] for i in rng.choice(len(PALETTE), 2, replace=False)]
    for half, answer in enumerate(rng.permutation(2).tolist()):
        radius = rng.uniform(12, 14)
        strip.add_key((RED, GREEN)[answer], answer, radius=radius, core=cores[answer], half=half)
    for _ in range(rng.integers(2, 5)):
        answer = int(rng.integers(2))
        strip.add_target(cores[answer], answer)
    return strip.scene()


class _Strip:
    """A strip under construction, its keys within one end's zone and its targets in the other's."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]):
        self._rng, (self._height, self._width) = rng, size
        self._canvas, self._mirrored = Canvas(rng, size), rng.random() < 0.5
        self._categories: list[int] = []
        self._taken: list[tuple[float, float, float]] = []  # x, y and radius of what is there

    def add_key(
        self,
        colour: Sequence[float],
        answer: int,
        *,
        radius: float,
        core: Sequence[float] | None = None,
        half: int | None = None,
    ) -> None:
        """Adds a key; two of them take the upper half, 0, and the lower one, 1."""
        rows = (0, 1) if half is None else (half / 2, (half + 1) / 2)
        parts = [(UNIT_CIRCLE, colour)] + ([(UNIT_CIRCLE * 0.55, core)] if core else [])
        self._add(parts, radius, KEY_ZONE, at_start=not self._mirrored, rows=rows)
        self._categories.append(1 + answer)

    def add_target(self, colour: Sequence[float], answer: int) -> None:
        corners = int(self._rng.choice((3, 4, 32)))
        angles = np.arange(corners) * (2 * np.pi / corners)
        outline = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        outline = outline @ rotation(self._rng.uniform(0, np.pi))
        radius = self._rng.uniform(7, 10)  # no three of these leave no room for a fourth
        self._add([(outline, colour)], radius, TARGET_ZONE, at_start=self._mirrored)
        self._categories.append(3 + answer)

    def scene(self) -> Scene:
        numbered = enumerate(self._categories, start=1)
        instances = [Instance(c, self._canvas.mask(number)) for number, c in numbered]
        return Scene(self._canvas.image(), instances)

    def _add(
        self,
        parts: Sequence[tuple[np.ndarray, Sequence[float]]],
        radius: float,
        zone: int,
        *,
        at_start: bool,
        rows: tuple[float, float] = (0, 1),
    ) -> None:
        """Paints an object where it touches no other: in the zone at the strip's start or end.

        Args:
            parts: outlines in the unit circle and their colours, the later ones on top.
            rows: the part of the strip's height that it lies in.
        """
        start = 0 if at_start else self._width - zone
        margin = radius + 1
        while True:
            x = self._rng.uniform(start + margin, start + zone - margin)
            y = self._rng.uniform(rows[0] * self._height + margin, rows[1] * self._height - margin)
            if all(np.hypot(x - a, y - b) > radius + r + 1 for a, b, r in self._taken):
                break
        self._taken.append((x, y, radius))
        light = self._rng.uniform(0.85, 1.05)

        def paint(number: int) -> None:
            for outline, colour in parts:
                texture = plain(np.clip(np.array(colour) * light, 0, 255))
                self._canvas.paint([outline * radius + (x, y)], texture, number)

        self._canvas.place(paint)
