"""The images and videos that paths, folders and globs name."""

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..errors import UsageError

VIDEO_SUFFIXES = {".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"}
VIDEO_SUFFIXES |= {".mts", ".ogv", ".ts", ".webm", ".wmv"}
# What OpenCV reads beyond Pillow's formats
OPENCV_SUFFIXES = {".exr", ".hdr", ".pic", ".pxm", ".ras", ".sr"}


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
