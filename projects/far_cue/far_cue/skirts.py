"""Figures whose legs are hidden, and told by their arms."""

from collections.abc import Sequence

import numpy as np

from nl_detectron.data.drawing import Canvas, Instance, Scene, random_texture
from nl_detectron.data.people import (
    LIMBS,
    Joints,
    bone_chain,
    figure_keypoints,
    paint_figure,
    random_parts,
    random_pose,
)

FIGURE_SIZE = (128, 128)  # the smallest (H, W) of an image, in pixels
# The box of the largest figure in such an image, and an ankle of it; the arms are above row ARMS
FIGURE, ANKLE, ARMS = (14, 3, 113, 126), (94, 114), 39

SKIRT = {  # its corners
    f"{side}_{end}": np.array((x * out, y))
    for side, out in (("left", 1), ("right", -1))
    for end, x, y in (("waist", 0.1, -0.05), ("hem", 0.4, 0.5))
}


def draw_people_in_skirts(rng: np.random.Generator, size: tuple[int, int]) -> Scene:
    """Draws a figure in a skirt that hides its legs, which sway to the side of its raised arm.

    The other arm is behind its back. Nothing else tells: the figure faces the camera, the skirt is
    the same for all legs, and so is the box, which head and skirt reach on all sides.

    Args:
        rng: source of all random choices.
        size: (H, W) of the image in pixels; the figure's size is relative to the smaller one.

    Returns:
        The scene with its only instance, as from :func:`draw_people`. Hips, knees and ankles are
        hidden (visibility 1), and so are one elbow and wrist.
    """
    canvas = Canvas(rng, size)

    def draw_figure(number: int) -> Joints:
        joints, parts = random_pose(rng, front=True) | SKIRT, random_parts(rng, front=True)
        raised, other = _sides(rng)
        for side, out in (("left", 1), ("right", -1)):
            joints |= _swaying_limbs(rng, side, out, raised=side == raised)
        parts["skirt"] = [
            (random_texture(rng, rng.uniform(0.03, 0.06)), dict.fromkeys(SKIRT, 0.02))
        ]
        arms, legs = (f"{other}_arm", f"{raised}_arm"), ("left_leg", "right_leg")
        order = (*legs, arms[0], "torso", "skirt", "head", arms[1])
        painted = [part for name in order for part in parts[name]]
        height = rng.uniform(0.82, 0.92) * min(size)
        low, high = np.array([(0.45, 0.53), (0.45, 0.54)]) * height  # of the box, from the hips
        hips = rng.uniform(low, np.array(size[::-1]) - high)
        lean = rng.uniform(-0.02, 0.02)
        return paint_figure(canvas, number, joints, painted, height=height, lean=lean, hips=hips)

    joints = canvas.place(draw_figure)
    figure = Instance(1, canvas.mask(1), figure_keypoints(canvas, 1, joints, size))
    return Scene(canvas.image(), [figure])


def _sides(rng: np.random.Generator) -> Sequence[str]:
    """Left and right in random order."""
    return rng.permutation(("left", "right")).tolist()


def _swaying_limbs(rng: np.random.Generator, side: str, out: int, raised: bool) -> Joints:
    """An arm that is raised or behind the back, and a leg that sways outwards or inwards."""
    up = rng.uniform((2.1, 2.2), (2.2, 2.4))
    upper_arm, forearm = up if raised else (-0.25, -1.2)
    thigh, shin = rng.uniform((0.25, 0.5), (0.35, 0.6)) * (1 if raised else -1)
    arm = bone_chain((0.105, -0.27), (0.16, 0.15), (upper_arm, forearm))
    leg = bone_chain((0.06, 0), (0.23, 0.25), (thigh, shin))
    points = zip(LIMBS, (*arm, *leg), strict=True)
    return {f"{side}_{name}": point * (out, 1) for name, point in points}
