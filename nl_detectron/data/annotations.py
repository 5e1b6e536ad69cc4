"""Reads annotation files in COCO's format as annotation tools and editors really write them."""

import contextlib
import gc
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from detectron2.utils.file_io import PathManager

from ..errors import UsageError
from ..files import replacing
from .json_parts import read_parts

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
    content: dict = {}
    with no_garbage_collection():
        for key, value in read_annotations_in_parts(json_file):
            if key == "annotations" and key in content:
                content[key] += value
            else:
                content[key] = value
    require_lists(content, json_file, lists)
    return content


def read_annotations_in_parts(json_file: str) -> Iterator[tuple[str, Any]]:
    """The same as pairs of key and value, of which that of annotations comes in parts.

    Yields:
        Keys and values; the annotations as lists of some of them, of a few MB of the file, each
        with the key, and at least one.

    Raises:
        UsageError: if it cannot be read, or is no JSON; it names the file.
    """
    try:
        path = PathManager.get_local_path(json_file)
        if os.path.exists(path) and not os.path.isfile(path):
            raise UsageError(f"{json_file} is no file")
        with open(path, "rb") as file:
            yield from read_parts(file, "annotations")
    except UsageError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"{json_file} is no JSON file that can be read: {reason}") from error
    except UnicodeError as error:
        raise UsageError(f"{json_file} is no JSON file in UTF-8: {error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{json_file} is no JSON file: {error}") from error


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


def parts_of_annotations(json_file: str) -> Iterator[list[dict]]:
    """The annotations alone; see :func:`read_annotations_in_parts`."""
    return (value for key, value in read_annotations_in_parts(json_file) if key == "annotations")


def write_annotations(content: dict, annotations: Iterable[dict] | None, file: str | Path) -> None:
    """Writes an annotation file in one step.

    Args:
        content: all but the annotations.
        annotations: which need not be in memory all at once; None for a file without that list.
    """
    with replacing(file) as temporary, open(temporary, "w", encoding="utf-8") as stream:
        head = json.dumps(content)
        if annotations is None:
            stream.write(head)
            return
        stream.write(head[:-1] + (", " if content else "") + '"annotations": [')
        for index, annotation in enumerate(annotations):
            stream.write((", " if index else "") + json.dumps(annotation))
        stream.write("]}")


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Millions of new objects would be searched for circles again and again, for minutes."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
