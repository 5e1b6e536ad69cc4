"""Splits the content of an annotation file in two, by image."""

import random
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ..annotations import write_annotations
from .check import Checked


def split(
    images: list[dict], annotations: Iterable[dict], fraction: float, *, seed: int = 0
) -> set[str]:
    """Two parts with the same mix of classes, as near as whole images allow.

    Classes are dealt out from the rarest to the most frequent (iterative stratification). Images
    of one file stay together.

    Args:
        images, annotations: of an annotation file, checked and corrected.
        fraction: of the images that are in the first part, between 0 and 1.
        seed: the same one gives the same parts.

    Returns:
        The names of the image files in the first part.

    Raises:
        UsageError: if the fraction leaves a part empty.
    """
    file_of = {image["id"]: image["file_name"] for image in images}
    classes: dict[str, set] = {file: set() for file in file_of.values()}
    for annotation in annotations:
        classes[file_of[annotation["image_id"]]].add(annotation["category_id"])
    if not 0 < round(fraction * len(classes)) < len(classes):
        raise UsageError(
            f"split {fraction}: of {len(classes)} image files one part would have none; "
            "use a fraction between 0 and 1 such as 0.9",
            arguments=["split"],
        )
    return _stratify(classes, fraction, seed)


def write_parts(checked: Checked, first: set[str], files: tuple[Path, Path]) -> tuple[int, int]:
    """Writes the annotation files of the two parts; returns how many images each has.

    Args:
        first: the names of the image files in the first part.
    """
    counts = []
    for file, is_first in zip(files, (True, False), strict=True):
        content = checked.corrected()
        images = [i for i in content["images"] if (i["file_name"] in first) == is_first]
        ids = {image["id"] for image in images}
        annotations = (a for a in checked.annotations() if a["image_id"] in ids)
        write_annotations(content | {"images": images}, annotations, file)
        counts.append(len(images))
    return counts[0], counts[1]


def _stratify(classes: dict[str, set], fraction: float, seed: int) -> set[str]:
    """The files of the first part."""
    files = sorted(classes)
    random.Random(seed).shuffle(files)
    files_of: dict[Any, dict[str, bool]] = defaultdict(dict)  # dicts for their order
    for file in files:
        for name in classes[file]:
            files_of[name][file] = True
    # How many files, in all and of each class, each part still wants
    wanted = [share * len(files) for share in (fraction, 1 - fraction)]
    wanted_of = {
        name: [share * len(of) for share in (fraction, 1 - fraction)]
        for name, of in files_of.items()
    }
    first = set()
    left = dict.fromkeys(files)

    def deal(file: str, wants: list[float]) -> None:
        # The part that wants more of this class, or else more files
        part = max((0, 1), key=lambda part: (round(wants[part], 6), wanted[part]))
        wanted[part] -= 1
        for name in classes[file]:
            wanted_of[name][part] -= 1
            files_of[name].pop(file)
        left.pop(file)
        if part == 0:
            first.add(file)

    while any(files_of.values()):
        rarest = min(
            (name for name, of in files_of.items() if of), key=lambda n: (len(files_of[n]), str(n))
        )
        for file in list(files_of[rarest]):
            deal(file, wanted_of[rarest])
    for file in list(left):
        deal(file, wanted)
    return first
