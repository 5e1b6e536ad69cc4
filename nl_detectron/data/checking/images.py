"""Image files: whether they are there, what they are, and whether the annotations fit them."""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import PurePosixPath, PureWindowsPath

from PIL import ExifTags, Image
from tqdm import tqdm

from .findings import Effect, Findings, Kind
from .ids import has_id
from .numbers import to_number

NO_NAME = Kind("image", "file_name missing or no text", Effect.STOPS, "name the file")
NAME = Kind("image", "file_name with backslashes or with folders too many", Effect.REPAIRED)
ABSOLUTE = Kind("image", "file_name that is an absolute path", Effect.FINE)
SUBFOLDER = Kind("image", "file_name with a folder", Effect.FINE)
OUTSIDE = Kind("image", "file_name that leads out of the image folder", Effect.SUSPICIOUS)
MISSING = Kind(
    "image", "file is not there", Effect.STOPS, "put it there, or take out the image's entry"
)
SAME_FILE = Kind("image", "file that another image has, too", Effect.SUSPICIOUS)
UNREADABLE = Kind(
    "image", "file that cannot be read as an image", Effect.STOPS, "mend it, or take it out"
)
DAMAGED = Kind("image", "file that is damaged or cut off", Effect.STOPS, "mend it, or take it out")
NO_SIZE = Kind("image", "width or height missing: read from the file", Effect.REPAIRED)
SIZE_TYPE = Kind("image", "width or height as text or as a fraction", Effect.REPAIRED)
SWAPPED = Kind("image", "width and height swapped", Effect.REPAIRED)
OTHER_SIZE = Kind(
    "image",
    "width and height that are not the file's",
    Effect.STOPS,
    "scale the annotations to the file, or use the images that were annotated",
)
TURNED = Kind(
    "image",
    "width and height of the file before it is turned as its EXIF data say, as it is in training",
    Effect.STOPS,
    "turn the annotations, or take the orientation out of the file",
)
EXIF = Kind("image", "file that is turned as its EXIF data say", Effect.FINE)
MODES = {
    "bilevel": Kind("image", "file of 1 bit", Effect.FINE),
    "16 bits": Kind("image", "file of 16 bits or more", Effect.SUSPICIOUS),
    "CMYK": Kind("image", "file in CMYK", Effect.SUSPICIOUS),
    "palette": Kind("image", "file with a palette", Effect.FINE),
    "alpha": Kind("image", "file with an alpha channel", Effect.SUSPICIOUS),
    "animated": Kind("image", "animated file: the first frame is used", Effect.SUSPICIOUS),
}
SORTS = {"1": "bilevel", "I": "16 bits", "F": "16 bits", "CMYK": "CMYK", "P": "palette"}
SORTS |= dict.fromkeys(("RGBA", "LA", "PA", "RGBa", "La"), "alpha")
THREADS, PART = 16, 1000


@dataclass(frozen=True)
class Look:
    """What a look at an image file told.

    Attributes:
        size: width and height in pixels as stored; None if it cannot be read.
        orientation: EXIF's, 1 to 8; from 5 on, width and height change places.
        sorts: keys of :data:`MODES`.
        error: why it cannot be read.
    """

    size: tuple[int, int] | None
    orientation: int = 1
    sorts: tuple[str, ...] = ()
    error: str = ""
    damaged: bool = False


def look(file: str, *, decode: bool = False) -> Look | None:
    """Reads the head of an image file, or all of it; None if it is not there."""
    if not os.path.isfile(file):
        return None
    size = None
    try:
        with Image.open(file) as image:
            size = image.size
            sorts = [SORTS[image.mode]] if image.mode in SORTS else []
            sorts += ["16 bits"] if image.mode.startswith("I;") else []
            sorts += ["alpha"] if "transparency" in image.info else []
            sorts += ["animated"] if getattr(image, "is_animated", False) else []
            if decode:
                image.seek(0)
                image.load()
            # A PNG's own getexif() would decode all of it, for data that may be at its end.
            exif = image.getexif() if decode else Image.Image.getexif(image)
            orientation = exif.get(ExifTags.Base.Orientation, 1)
            return Look(size, orientation if orientation in range(1, 9) else 1, tuple(sorts))
    # Pillow's readers raise many kinds of errors at broken files.
    except Exception as error:
        reason = str(error).replace(file, "").strip() or type(error).__name__
        return Look(None, error=reason.splitlines()[0], damaged=size is not None)


def check_files(
    images: list[dict],
    image_root: str,
    reach: Callable[[set[Hashable]], dict[Hashable, tuple[float, float]]],
    findings: Findings,
    *,
    decode: bool = False,
    progress: bool = False,
) -> None:
    """Checks and corrects names and sizes by the files.

    Args:
        images: the file's list.
        image_root: the folder that names are relative to.
        reach: how far, in x and y, the annotations of each image reach, by its id; asked for the
            ids of images whose width and height may be swapped.
        decode: read all of each file, not the head alone.
        progress: show a progress bar.
    """
    if "://" in image_root:  # not on this machine
        return
    named = []
    for index, image in enumerate(images):
        name = image.get("file_name")
        if isinstance(name, str) and name:
            named.append(image)
        else:
            findings.add(NO_NAME, image.get("id", f"images[{index}]"), repr(name))
    files = [os.path.join(image_root, image["file_name"]) for image in named]
    with ThreadPoolExecutor(THREADS) as pool:  # which holds whatever it is given at once
        parts = (files[start : start + PART] for start in range(0, len(files), PART))
        mapped = (pool.map(lambda file: look(file, decode=decode), part) for part in parts)
        looks: Iterable[Look | None] = chain.from_iterable(mapped)
        looks = list(tqdm(looks, "images", len(files), disable=not progress, leave=False))
    lost = [image for image, seen in zip(named, looks, strict=True) if seen is None]
    found = _find(lost, image_root)
    times = Counter(image["file_name"] for image in named)
    readable = []
    for image, seen in zip(named, looks, strict=True):
        id, name = image.get("id", "without id"), image["file_name"]
        if seen is None:
            if name not in found or times[name] > 1:
                findings.add(MISSING, id, os.path.join(image_root, name), image=id)
                continue
            findings.add(NAME, id, f"{name} is {found[name]}")
            image["file_name"] = name = found[name]
            seen = look(os.path.join(image_root, name), decode=decode)
        if seen is None or seen.size is None:
            error = seen.error if seen else "it is gone"
            kind = DAMAGED if seen and seen.damaged else UNREADABLE
            findings.add(kind, id, f"{os.path.join(image_root, name)}: {error}")
            continue
        if times[name] > 1:
            findings.add(SAME_FILE, id, name, image=id)
        _check_name(image, findings)
        for sort in seen.sorts:
            findings.add(MODES[sort], id, image=id)
        readable.append((image, seen))
    swapped = {i["id"] for i, seen in readable if _may_be_swapped(i, seen) and has_id(i, "id")}
    extents = reach(swapped) if swapped else {}
    for image, seen in readable:
        id = image.get("id")
        extent = extents.get(id, (0, 0)) if isinstance(id, (int, str)) else (0, 0)
        _check_size(image, seen, extent, findings)


def _find(images: list[dict], image_root: str) -> dict[str, str]:
    """The names, relative to the folder, of files that are there under a part of their name.

    A file that would be found for two images is left out: one of them is another file.
    """
    found: dict[str, str] = {}
    for image in images:
        name = image["file_name"]
        is_windows = "\\" in name or PureWindowsPath(name).drive
        parts = (PureWindowsPath if is_windows else PurePosixPath)(name).parts
        for start in range(len(parts)):
            tail = parts[start:]
            # Not an absolute path again, nor a way out of the folder
            if os.path.isabs(tail[0]) or PureWindowsPath(tail[0]).drive or ".." in tail:
                continue
            if os.path.isfile(os.path.join(image_root, *tail)):
                found[name] = "/".join(tail)
                break
    names = defaultdict(set)
    for name, file in found.items():
        names[file].add(name)
    return {name: file for name, file in found.items() if len(names[file]) == 1}


def _check_name(image: dict, findings: Findings) -> None:
    name = image["file_name"]
    if os.path.isabs(name):
        findings.add(ABSOLUTE, image.get("id"), name)
    elif os.path.normpath(name).startswith(".."):
        findings.add(OUTSIDE, image.get("id"), name)
    elif os.path.dirname(name):
        findings.add(SUBFOLDER, image.get("id"), name)


def _may_be_swapped(image: dict, seen: Look) -> bool:
    told = to_number(image.get("width")), to_number(image.get("height"))
    return seen.orientation < 5 and told != seen.size and told[::-1] == seen.size


def _check_size(image: dict, seen: Look, extent: tuple[float, float], findings: Findings) -> None:
    id = image.get("id", "without id")
    assert seen.size is not None
    shown = seen.size[::-1] if seen.orientation >= 5 else seen.size
    if seen.orientation != 1:
        findings.add(EXIF, id, f"orientation {seen.orientation}")
    values = image.get("width"), image.get("height")
    told = tuple(map(to_number, values))
    if any(n is None or not 0 < n < 1e9 for n in told):
        findings.add(NO_SIZE, id, f"{values[0]!r} x {values[1]!r}, the file's {shown}")
    elif told == shown:
        if any(type(value) is not int for value in values):
            findings.add(SIZE_TYPE, id, f"{values[0]!r} x {values[1]!r}")
    elif _may_be_swapped(image, seen) and _fits(extent, shown):
        findings.add(SWAPPED, id, f"{told}, the file's {shown}")
    else:
        kind = TURNED if told == seen.size else OTHER_SIZE
        findings.add(kind, id, f"{told}, the file's {shown}", image=id)
        return
    image["width"], image["height"] = shown


def _fits(extent: tuple[float, float], size: tuple[int, int]) -> bool:
    return extent[0] <= size[0] + 1 and extent[1] <= size[1] + 1
