"""Images of articulated figures with COCO's keypoints, some of them hidden."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import cv2
import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_PERSON_KEYPOINT_NAMES

from .drawing import (
    UNIT_CIRCLE,
    Canvas,
    Instance,
    Scene,
    Texture,
    plain,
    random_colour,
    random_texture,
    rotation,
)

# COCO's own, as 1-based indices into the keypoints' names.
# fmt: off
PERSON_SKELETON = (
    (16, 14), (14, 12), (17, 15), (15, 13), (12, 13), (6, 12), (7, 13), (6, 7), (6, 8), (7, 9),
    (8, 10), (9, 11), (2, 3), (1, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 7),
)
# fmt: on

SKIN = np.array([(55, 80, 120), (185, 205, 240)])  # BGR, from dark to light
HAIR = ((20, 20, 25), (25, 50, 85), (90, 170, 215), (150, 150, 155), (30, 60, 160))
WHITE, BLACK, LIPS = plain((255, 255, 255)), plain((20, 10, 10)), plain((60, 40, 160))

# A figure is made in units of its height, with x to the right and y down from between its hips.
# It is a number of joints, which are the keypoints and a few more, and of parts, each of which
# is the convex hull of ellipses around some joints and shows those that are keypoints.
Joints = dict[str, np.ndarray]  # points (2,)
Part = tuple[Texture, Mapping[str, float | tuple[float, float]]]  # radii around joints

LIMBS = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")  # the joints of one side


def draw_people(rng: np.random.Generator, size: tuple[int, int]) -> Scene:
    """Draws one or two figures, and up to two posts or boards that may hide parts of them.

    A figure faces the camera or, one in seven, turns its back. This is what tells its left from
    its right: nothing else about it depends on the side, so that a mirrored image with left and
    right swapped is as likely as the image.

    Args:
        rng: source of all random choices.
        size: (H, W) of the image in pixels; the figures' sizes are relative to the smaller one.

    Returns:
        The scene; every instance is of category 1. Keypoints are 2 (visible) where their own
        figure shows them, 1 elsewhere in the image, and 0 with x = y = 0 outside of it.
    """
    canvas = Canvas(rng, size)

    def draw_figure(number: int, height: float, place: tuple[float, float]) -> Joints:
        front = rng.random() < 0.85
        joints, parts = random_pose(rng, front), random_parts(rng, front)
        legs, arms = rng.permutation([["left_leg", "left_arm"], ["right_leg", "right_arm"]]).T
        behind = rng.random(2) < 0.25
        lean = np.clip(rng.normal(0, 0.1), -0.25, 0.25)
        hips = rng.uniform((place[0], 0.45), (place[1], 0.62)) * size[::-1]
        order = (*legs, *arms[behind], "torso", "head", *arms[~behind])
        painted = [part for name in order for part in parts[name]]
        return paint_figure(canvas, number, joints, painted, height=height, lean=lean, hips=hips)

    def draw_occluder(number: int) -> None:
        scale = min(size)
        post = rng.uniform(0.02, 0.05) * scale, size[0]
        board = rng.uniform((0.1, 0.06), (0.25, 0.15)) * scale
        corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (post, board)[rng.integers(2)]
        centre = rng.uniform(0.1, 0.9, 2) * size[::-1]
        texture = random_texture(rng, rng.uniform(0.02, 0.05) * scale)
        canvas.paint([corners + centre], texture, number)

    # Side by side, so that they hide each other's limbs rather than each other; nearer is larger.
    count = rng.choice((1, 2), p=(0.7, 0.3))
    places = (rng.permutation(count)[:, None] + (0.25, 0.75)) / count
    heights = np.sort(rng.uniform(0.7, 1, count)) * min(size)
    draws: list[Callable[[int], Joints | None]] = [
        partial(draw_figure, height=height, place=place)
        for height, place in zip(heights, places, strict=True)
    ]
    for _ in range(rng.choice(3, p=(0.7, 0.2, 0.1))):
        draws.insert(rng.integers(len(draws) + 1), draw_occluder)
    placed = enumerate([canvas.place(draw) for draw in draws], start=1)
    instances = [
        Instance(1, canvas.mask(number), figure_keypoints(canvas, number, joints, size))
        for number, joints in placed
        if joints is not None
    ]
    return Scene(canvas.image(), instances)


def paint_figure(
    canvas: Canvas,
    number: int,
    joints: Joints,
    parts: Sequence[Part],
    *,
    height: float,
    lean: float,
    hips: np.ndarray,
) -> Joints:
    """Paints a figure, the later parts over the earlier.

    Args:
        canvas: what is painted on.
        number: the figure's, as given by `Canvas.place`.
        joints: in units of the figure's height.
        parts: of the figure, in the order of painting.
        height: the figure's, in pixels.
        lean: radians, clockwise.
        hips: the point between them, (2,), x and y in pixels.

    Returns:
        The joints in the image, in pixels.
    """
    to_image = rotation(lean) * height
    for texture, radii in parts:
        ellipses = [UNIT_CIRCLE * radius + joints[end] for end, radius in radii.items()]
        hull = cv2.convexHull(np.concatenate(ellipses).astype(np.float32))[:, 0]
        texture = replace(texture, cell=texture.cell * height)
        canvas.paint([hull @ to_image + hips], texture, number, tuple(radii))
    return {name: joint @ to_image + hips for name, joint in joints.items()}


def figure_keypoints(
    canvas: Canvas, number: int, joints: Joints, size: tuple[int, int]
) -> np.ndarray:
    """A figure's keypoints, float64 (17, 3), as in an `Instance`.

    Args:
        canvas: what all is painted on by now.
        number: the figure's.
        joints: in the image, as from :func:`paint_figure`, those of all keypoints and maybe more.
        size: (H, W) of the image.
    """
    keypoints = np.zeros((len(COCO_PERSON_KEYPOINT_NAMES), 3))
    for row, name in zip(keypoints, COCO_PERSON_KEYPOINT_NAMES, strict=True):
        point = joints[name].round(2)
        if (point >= 0).all() and (point <= (size[1] - 1, size[0] - 1)).all():
            row[:] = *point, 2 if canvas.shows(number, name, point) else 1
    return keypoints


def random_pose(rng: np.random.Generator, front: bool) -> Joints:
    """The joints of a random pose, in units of the figure's height.

    Args:
        rng: source of all random choices.
        front: whether the figure faces the camera.
    """
    joints, face_x = {}, rng.uniform(-0.25, 0.25)
    shoulder, hip = (rng.uniform(0.09, 0.12), -0.27), (rng.uniform(0.05, 0.065), 0)
    head = {"head": (0, 0), "face": (0.3 * face_x, 0.2)}  # in units of the head's radii
    head |= {"nose": (1.3 * face_x, 0.2), "mouth": (1.2 * face_x, 0.6), "throat": (0, 1.3)}
    for side in ("left", "right"):
        # A person's left is on the image's right in front view, and on its left from behind.
        out = 1 if (side == "left") == front else -1
        head |= {f"{side}_eye": (0.42 * out + face_x, -0.05), f"{side}_ear": (out, 0)}
        # Angles are from straight down towards the figure's outside.
        arm, thigh = rng.uniform(0, 2.2), rng.uniform(-0.05, 0.45)
        arms = bone_chain(shoulder, (0.16, 0.15), (arm, arm + rng.uniform(-0.6, 1)))
        legs = bone_chain(hip, (0.22, 0.22), (thigh, thigh + rng.uniform(-0.5, 0.1)))
        for name, point in zip(LIMBS, (*arms, *legs), strict=True):
            joints[f"{side}_{name}"] = point * (out, 1)
    to_body = np.diag((0.08, 0.1)) @ rotation(rng.uniform(-0.25, 0.25))
    return joints | {name: point @ to_body + (0, -0.415) for name, point in head.items()}


def bone_chain(
    start: Sequence[float], lengths: Sequence[float], angles: Sequence[float]
) -> np.ndarray:
    """The joints, float64 (n + 1, 2), of n bones one after the other.

    Args:
        start: the first joint, (2,).
        lengths: of the bones, (n,).
        angles: radians from straight down towards positive x, (n,).
    """
    steps = np.stack([np.sin(angles), np.cos(angles)], axis=1) * np.reshape(lengths, (-1, 1))
    return np.cumsum([start, *steps], axis=0)


def random_parts(rng: np.random.Generator, front: bool) -> dict[str, list[Part]]:
    """The parts of a figure in random clothes: by limb, and there in the order of painting.

    Args:
        rng: source of all random choices.
        front: whether the figure faces the camera.

    Returns:
        Of "head", "torso", and "left_arm", "left_leg" and the same of the right.
    """
    skin = plain(SKIN[0] + rng.random() * (SKIN[1] - SKIN[0]))
    hair, shoe = plain(rng.choice(HAIR)), plain(random_colour(rng))
    shirt, trousers = (random_texture(rng, rng.uniform(0.03, 0.06)) for _ in range(2))
    sleeve = shirt if rng.random() < 0.5 else skin
    shin = trousers if rng.random() < 0.7 else skin
    head: list[Part] = [(skin, {"head": 0.04, "throat": 0.04}), (hair, {"head": (0.088, 0.11)})]
    if front:
        head += [(skin, {"face": (0.072, 0.088)}), (LIPS, {"mouth": (0.03, 0.008)})]
        head += [(plain(skin.tile * 0.65), {"nose": (0.012, 0.018)})]
    parts: dict[str, list[Part]] = {"head": head}
    corners: dict[str, float | tuple[float, float]] = {}
    for side in ("left", "right"):
        names = (f"{side}_{name}" for name in ("eye", "ear", *LIMBS))
        eye, ear, shoulder, elbow, wrist, hip, knee, ankle = names
        head += [(WHITE, {eye: (0.022, 0.016)}), (BLACK, {eye: 0.011})] if front else []
        head += [(skin, {ear: 0.02})]
        corners |= {shoulder: 0.045, hip: 0.045}
        parts[f"{side}_arm"] = [
            (shirt, {shoulder: 0.04, elbow: 0.032}),
            (sleeve, {elbow: 0.031, wrist: 0.023}),
            (skin, {wrist: 0.034}),
        ]
        parts[f"{side}_leg"] = [
            (shoe, {ankle: (0.042, 0.04)}),
            (shin, {knee: 0.038, ankle: 0.026}),
            (trousers, {hip: 0.056, knee: 0.04}),
        ]
    return parts | {"torso": [(shirt, corners)]}
