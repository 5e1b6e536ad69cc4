"""Strips whose answer lies far from the question: a target's class is told by a key at the far end.

What stands at one end of a strip cannot be told apart there; only who sees the other end can do it.
Keys are annotated, too: that a model finds and names them shows that it sees well from near by.
"""

from collections.abc import Sequence

import numpy as np

from nl_detectron.data.drawing import UNIT_CIRCLE, Canvas, Instance, Scene, plain, rotation

STRIP_SIZE = (64, 320)  # the smallest (H, W), in pixels
KEY_ZONE, TARGET_ZONE = 64, 80  # pixels from either end, in which all of a key or target lies
GAP = STRIP_SIZE[1] - KEY_ZONE - TARGET_ZONE  # pixels from a target to the keys, at least
NEAREST_TARGET = (KEY_ZONE + GAP, 22, KEY_ZONE + GAP + 20, 42)  # its box, in an unmirrored strip

WHITE, BLACK = (245, 245, 245), (15, 15, 15)  # BGR
RED, GREEN = (40, 40, 220), (40, 190, 40)
CUES = {  # as many as there are keys
    "red": (25, 25, 240),
    "yellow": (25, 220, 220),
    "green": (60, 220, 25),
    "blue": (240, 110, 25),
}
ONE_KEY_CLASSES = ("key_a", "key_b", "target_a", "target_b")
MATCHING_KEY_CLASSES = tuple(
    f"{name}_{cue}_{answer}" for name in ("key", "target") for cue in CUES for answer in "ab"
)


def draw_one_key(rng: np.random.Generator, size: tuple[int, int]) -> Scene:
    """Draws one disc, the key, and two to four white targets far away, of the key's class.

    The key is of class a if it is red, and of class b if it is green.

    Args:
        rng: source of all random choices.
        size: (H, W) of the image in pixels, at least :data:`STRIP_SIZE`.

    Returns:
        The scene; category `i + 1` is `ONE_KEY_CLASSES[i]`.
    """
    strip = _Strip(rng, size)
    answer = int(rng.integers(2))
    strip.add_key([(RED, GREEN)[answer]], 1 + answer, radius=(16, 22))
    for _ in range(rng.integers(2, 5)):
        strip.add_target(WHITE, 3 + answer)
    return strip.scene()


def draw_matching_key(
    rng: np.random.Generator, size: tuple[int, int], *, num_keys: int = 4
) -> Scene:
    """Draws keys with cores of different colours, and targets in those colours.

    A key has a white rim, answer a, or a black one, answer b. A target's answer is that of the key
    whose core has its colour. The class of either is its colour and its answer. Of four keys two
    have each answer; which of them and which key is where changes from image to image. The average
    of the keys' colours says nothing.

    Args:
        rng, size: as for :func:`draw_one_key`.
        num_keys: 1 to 4; with 1, the matching is done.

    Returns:
        The scene; category `i + 1` is `MATCHING_KEY_CLASSES[i]`.
    """
    strip, colours = _Strip(rng, size), list(CUES.values())
    cues = rng.choice(len(CUES), num_keys, replace=False).tolist()
    answers = (rng.permutation(4) % 2).tolist()
    cells = rng.permutation(4).tolist()
    for cue, answer, cell in zip(cues, answers, cells, strict=False):
        parts, category = [(WHITE, BLACK)[answer], colours[cue]], 1 + 2 * cue + answer
        strip.add_key(parts, category, radius=(11, 13), cell=divmod(cell, 2))
    for _ in range(rng.integers(2, 5)):
        i = int(rng.integers(num_keys))
        strip.add_target(colours[cues[i]], 1 + 2 * (len(CUES) + cues[i]) + answers[i])
    return strip.scene()


def draw_lone_key(rng: np.random.Generator, size: tuple[int, int]) -> Scene:
    """Draws what :func:`draw_matching_key` does, with a single key."""
    return draw_matching_key(rng, size, num_keys=1)


class _Strip:
    """A strip under construction, its keys within one end's zone and its targets in the other's."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]):
        self._rng, (self._height, self._width) = rng, size
        self._canvas, self._mirrored = Canvas(rng, size), rng.random() < 0.5
        self._categories: list[int] = []
        self._taken: list[tuple[float, float, float]] = []  # x, y and radius of what is there

    def add_key(
        self,
        colours: Sequence[Sequence[float]],
        category: int,
        *,
        radius: tuple[float, float],
        cell: tuple[int, int] | None = None,
    ) -> None:
        """Adds a disc.

        Args:
            colours: of the disc and, if there is a second one, of its core.
            category: 1-based.
            radius: the smallest and the largest, in pixels.
            cell: the quarter of the keys' zone that it is in, by row and column; by default any.
        """
        parts = [(UNIT_CIRCLE * part, c) for part, c in zip((1, 0.6), colours, strict=False)]
        self._add(parts, self._rng.uniform(*radius), KEY_ZONE, not self._mirrored, cell)
        self._categories.append(category)

    def add_target(self, colour: Sequence[float], category: int) -> None:
        corners = int(self._rng.choice((3, 4, 32)))
        angles = np.arange(corners) * (2 * np.pi / corners)
        outline = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        outline = outline @ rotation(self._rng.uniform(0, np.pi))
        radius = self._rng.uniform(7, 10)  # no three of these leave no room for a fourth
        self._add([(outline, colour)], radius, TARGET_ZONE, self._mirrored)
        self._categories.append(category)

    def scene(self) -> Scene:
        numbered = enumerate(self._categories, start=1)
        instances = [Instance(c, self._canvas.mask(number)) for number, c in numbered]
        return Scene(self._canvas.image(), instances)

    def _add(
        self,
        parts: Sequence[tuple[np.ndarray, Sequence[float]]],
        radius: float,
        zone: int,
        at_start: bool,
        cell: tuple[int, int] | None = None,
    ) -> None:
        """Paints an object where it touches no other: in the zone at the strip's start or end.

        Args:
            parts: outlines in the unit circle and their colours, the later ones on top.
            cell: the quarter of the zone, by row and column; by default all of it.
        """
        width, height = float(zone), float(self._height)
        x, y = 0.0 if at_start else self._width - width, 0.0
        if cell is not None:
            width, height = width / 2, height / 2
            x, y = x + cell[1] * width, y + cell[0] * height
        margin = radius + 1
        low, high = (x + margin, y + margin), (x + width - margin, y + height - margin)
        while True:
            x, y = self._rng.uniform(low, high)
            if all(np.hypot(x - a, y - b) > radius + r + 1 for a, b, r in self._taken):
                break
        self._taken.append((x, y, radius))
        light = self._rng.uniform(0.85, 1.05)

        def paint(number: int) -> None:
            for outline, colour in parts:
                texture = plain(np.clip(np.array(colour) * light, 0, 255))
                self._canvas.paint([outline * radius + (x, y)], texture, number)

        self._canvas.place(paint)
