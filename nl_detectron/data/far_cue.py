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

WHITE, RED, GREEN = (245, 245, 245), (40, 40, 220), (40, 190, 40)  # BGR
PALETTE = (RED, GREEN, (220, 90, 30), (30, 215, 225))  # with blue and yellow


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
        strip.add_target(WHITE, answer)
    return strip.scene()


def draw_matching_key(rng: np.random.Generator, size: tuple[int, int]) -> Scene:
    """Draws two keys of different colours, and far away targets in the colours of the keys.

    One key, of class a, is a disc; the other one, of class b, is a ring. A target is of the class
    of the key in its own colour, whose place, like which colour is what, changes from image to
    image. The keys' average says nothing: it always has one disc and one ring.

    Args, Returns: as for :func:`draw_one_key`.
    """
    strip = _Strip(rng, size)
    colours = [PALETTE[i] for i in rng.choice(len(PALETTE), 2, replace=False)]
    for half, answer in enumerate(rng.permutation(2).tolist()):
        strip.add_key(
            colours[answer], answer, radius=rng.uniform(11, 14), ring=bool(answer), half=half
        )
    for _ in range(rng.integers(2, 5)):
        answer = int(rng.integers(2))
        strip.add_target(colours[answer], answer)
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
        ring: bool = False,
        half: int | None = None,
    ) -> None:
        """Adds a key; two of them take the upper half, 0, and the lower one, 1."""
        outlines = [UNIT_CIRCLE, UNIT_CIRCLE * 0.5] if ring else [UNIT_CIRCLE]
        rows = (0, 1) if half is None else (half / 2, (half + 1) / 2)
        self._add(outlines, colour, radius, KEY_ZONE, at_start=not self._mirrored, rows=rows)
        self._categories.append(1 + answer)

    def add_target(self, colour: Sequence[float], answer: int) -> None:
        corners = int(self._rng.choice((3, 4, 32)))
        angles = np.arange(corners) * (2 * np.pi / corners)
        outline = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        outline = outline @ rotation(self._rng.uniform(0, np.pi))
        radius = self._rng.uniform(7, 10)  # no three of these leave no room for a fourth
        self._add([outline], colour, radius, TARGET_ZONE, at_start=self._mirrored)
        self._categories.append(3 + answer)

    def scene(self) -> Scene:
        numbered = enumerate(self._categories, start=1)
        instances = [Instance(c, self._canvas.mask(number)) for number, c in numbered]
        return Scene(self._canvas.image(), instances)

    def _add(
        self,
        outlines: Sequence[np.ndarray],
        colour: Sequence[float],
        radius: float,
        zone: int,
        *,
        at_start: bool,
        rows: tuple[float, float] = (0, 1),
    ) -> None:
        """Paints an object where it touches no other: in the zone at the strip's start or end.

        Args:
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
        shade = plain(np.clip(np.array(colour) * self._rng.uniform(0.85, 1.05), 0, 255))
        outlines = [outline * radius + (x, y) for outline in outlines]
        self._canvas.place(lambda number: self._canvas.paint(outlines, shade, number))
