"""Images from files as the model takes them, and the files that paths, folders and globs name."""

import contextlib
import glob
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import UsageError

# A 100-megapixel picture takes 0.3 GB, and its drawing a few times that.
MAX_PIXELS = 100_000_000
VIDEO_SUFFIXES = {".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"}
VIDEO_SUFFIXES |= {".mts", ".ogv", ".ts", ".webm", ".wmv"}
# What OpenCV reads beyond Pillow's formats
OPENCV_SUFFIXES = {".exr", ".hdr", ".pic", ".pxm", ".ras", ".sr"}

# Filters of warnings are the process's, and images are opened in several threads.
_filters = threading.Lock()


class ImageError(UsageError):
    """An image or video that cannot be used; the message names it and says why."""


def read_image(file: str | Path, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads whatever Pillow or OpenCV decode, the way a viewer would show it.

    EXIF orientation is applied, transparent parts become white, grey becomes colour, and 16-bit
    values are scaled to 8 bits. Of an animation it is the first frame.

    Args:
        file: the image's path.
        max_pixels: larger images are refused, after a look at the header alone.

    Returns:
        The image, uint8 (H, W, 3) in BGR order.

    Raises:
        ImageError: if the file is missing, empty, no image, truncated or too large.
    """
    path = Path(file)
    if not path.exists():
        raise ImageError(f"{path} does not exist")
    if not path.is_file():
        raise ImageError(f"{path} is no file")
    try:
        with _filters, warnings.catch_warnings():
            # Pillow only warns of sizes that max_pixels decides about.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)  # reads the header
        with image:
            _check_size(path, *image.size, max_pixels)
            return _to_bgr(image)
    except Image.DecompressionBombError:
        raise ImageError(_too_large(path, "", max_pixels)) from None
    except UnidentifiedImageError:
        return _read_with_opencv(path, max_pixels)
    except (OSError, ValueError, SyntaxError, EOFError) as error:  # as Pillow's decoders raise
        raise ImageError(f"{path} cannot be read: {_one_line(error)}") from error


@dataclass(frozen=True)
class Input:
    """A file to predict on, and where, below the output folder, its drawing goes."""

    path: Path
    output: Path

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEO_SUFFIXES


def find_inputs(inputs: Sequence[str | Path], *, exclude: Path | None = None) -> list[Input]:
    """Lists the images and videos that paths, folders (searched through) and globs name.

    Each file is listed once. No two outputs have the same name: below a given folder they keep
    their subfolders, and where two would still meet the later one gets a number. A name whose
    format is not written gets ``.jpg`` or ``.mp4`` behind its own.

    Args:
        inputs: files, folders or glob patterns.
        exclude: a folder whose files are left out when folders are searched: the output folder.

    Raises:
        UsageError: naming an input that does not exist, matches nothing or holds no image.
    """
    files: dict[Path, Path] = {}  # output by path
    taken: set[Path] = set()
    for value in inputs:
        for path, name in _expand(str(value), exclude):
            key = path.resolve()
            if key not in files:
                files[key] = _free(_output_name(name), taken)
                taken.add(files[key])
    return [Input(path, output) for path, output in files.items()]


def _expand(value: str, exclude: Path | None) -> Iterator[tuple[Path, Path]]:
    """The files that one input names, each with its name relative to the folder given."""
    path = Path(value).expanduser()
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if _is_listed(file, path, exclude))
        if not found:
            raise UsageError(
                f"input {value}: the folder holds no images or videos", arguments=["input"]
            )
        yield from ((file, file.relative_to(path)) for file in found)
    elif path.exists():
        yield path, Path(path.name)
    elif glob.has_magic(value):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        files = [match for match in matches if match.is_file()]
        if not files:
            raise UsageError(f"input {value}: no file matches", arguments=["input"])
        yield from ((file, Path(file.name)) for file in files)
    else:
        raise UsageError(f"input {value} does not exist", arguments=["input"])


def _is_listed(file: Path, folder: Path, exclude: Path | None) -> bool:
    suffix = file.suffix.lower()
    decoded = Image.registered_extensions().get(suffix) in Image.OPEN
    known = decoded or suffix in VIDEO_SUFFIXES | OPENCV_SUFFIXES
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    if not known or hidden or not file.is_file():
        return False
    return exclude is None or not file.resolve().is_relative_to(exclude.resolve())


def _output_name(name: Path) -> Path:
    suffix = name.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return name if suffix == ".mp4" else name.with_name(name.name + ".mp4")
    return name if suffix in (".jpg", ".jpeg", ".png") else name.with_name(name.name + ".jpg")


def _free(name: Path, taken: set[Path]) -> Path:
    number, free = 1, name
    while free in taken:
        number += 1
        free = name.with_name(f"{name.stem}-{number}{name.suffix}")
    return free


def _to_bgr(image: Image.Image) -> np.ndarray:
    """A Pillow image of any mode as uint8 (H, W, 3) BGR."""
    # Loaded first: what cannot be decoded is then an error of its own, not one of the EXIF data.
    image.load()
    with contextlib.suppress(Exception):  # broken EXIF data is no reason to refuse the pixels
        image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":  # 16 or 32-bit integers or floats; convert() would clip them
        values = np.asarray(image).astype(np.float64)
        if image.mode[0] == "I":
            values = values / 257  # 65535 -> 255
        elif values.size and np.nanmax(values) <= 1:
            values = values * 255
        grey = np.clip(np.nan_to_num(values), 0, 255).round().astype(np.uint8)
        return cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1])


def _read_with_opencv(path: Path, max_pixels: int) -> np.ndarray:
    data = np.fromfile(path, np.uint8)
    if not data.size:
        raise ImageError(f"{path} is empty")
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error:
        image = None
    if image is None:
        raise ImageError(f"{path} is no image that Pillow or OpenCV can read")
    _check_size(path, image.shape[1], image.shape[0], max_pixels)
    return image


def _check_size(path: Path, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(_too_large(path, f" of {width} x {height}", max_pixels))


def _too_large(path: Path, size: str, max_pixels: int) -> str:
    return f"{path} is too large: an image{size} has more than {max_pixels:,} pixels; shrink it"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
