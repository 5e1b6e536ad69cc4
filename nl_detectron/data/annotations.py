"""Reads annotation files in COCO's format as annotation tools and editors really write them."""

import contextlib
import gc
import json
import os
from collections.abc import Iterator, Sequence

from detectron2.utils.file_io import PathManager

from ..errors import UsageError

LISTS = ("images", "annotations", "categories")


def read_annotations(json_file: str, *, lists: Sequence[str] = LISTS) -> dict:
    """The content of an annotation file in UTF-8, UTF-16 or UTF-32, with or without a BOM.

    Args:
        json_file: a path that Detectron2's PathManager knows.
        lists: the lists of objects that it must have. What is only tested on may be without
            annotations, as COCO's own test sets are.

    Raises:
        UsageError: if it cannot be read, is no JSON or lacks a list; it names the file.
    """
    data = _read(json_file)
    try:
        with _no_garbage_collection():
            content = json.loads(data.decode(json.detect_encoding(data)))
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{json_file} is no JSON file in UTF-8: byte {data[error.start]:#x} at {error.start} "
            "is none of that encoding, perhaps one of Windows' (cp1252); save it as UTF-8"
        ) from error
    except (ValueError, RecursionError) as error:
        cut_off = "; it ends early" if not data.rstrip().endswith((b"}", b"]", b"\0")) else ""
        raise UsageError(f"{json_file} is no JSON file: {error}{cut_off}") from error
    require_lists(content, json_file, lists)
    return content


def require_lists(content: object, json_file: str, lists: Sequence[str]) -> None:
    """Checks that an annotation file's content has these lists of objects.

    Raises:
        UsageError: naming the file and the first list that is missing.
    """
    for key in lists:
        values = content.get(key) if isinstance(content, dict) else None
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            raise UsageError(
                f"{json_file} is no COCO annotation file: it has no list of objects {key!r}"
            )


def is_plain_utf8(json_file: str) -> bool:
    """Whether it is encoded as pycocotools and Detectron2 read it: UTF-8 without a BOM."""
    with PathManager.open(json_file, "rb") as file:
        return json.detect_encoding(file.read(4)) == "utf-8"


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Millions of new objects would be searched for circles again and again, for minutes."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _read(json_file: str) -> bytes:
    try:
        path = PathManager.get_local_path(json_file)
        if os.path.exists(path) and not os.path.isfile(path):
            raise UsageError(f"{json_file} is no file")
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"{json_file} is no JSON file that can be read: {reason}") from error
