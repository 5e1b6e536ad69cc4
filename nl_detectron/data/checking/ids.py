"""Categories, and the ids that connect them, the images and the annotations."""

import itertools
from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np

from ...errors import one_line
from .findings import Effect, Findings, Kind

NO_INFO = Kind("file", "no info", Effect.CORRECTED)
NO_CATEGORIES = Kind("file", "no categories", Effect.STOPS, "name at least one class")
CATEGORY_NO_ID = Kind("category", "no usable id", Effect.STOPS, "give each category an id")
ID_TYPE = "id of another type: a number as text or as a fraction, or mixed"
CATEGORY_ID_TYPE = Kind("category", ID_TYPE, Effect.REPAIRED)
CATEGORY_TWICE = Kind("category", "listed twice", Effect.REPAIRED)
CATEGORY_ID_TWICE = Kind(
    "category", "id of two categories", Effect.STOPS, "number categories apart"
)
CATEGORY_NAME_TWICE = Kind(
    "category", "name of another category, too: two classes of one name", Effect.SUSPICIOUS
)
CATEGORY_NO_NAME = Kind("category", "name missing or no text: the id is taken", Effect.REPAIRED)
CATEGORY_NAME_UNPRINTABLE = Kind(
    "category", "name with what cannot be printed: it is written out", Effect.CORRECTED
)
CATEGORY_GAPS = Kind("category", "ids that are not 1, 2, 3 and so on", Effect.FINE)
CATEGORY_KEYPOINTS = Kind("category", "keypoints that are no list of names", Effect.CORRECTED)
CATEGORY_SKELETON = Kind("category", "skeleton with points that are not there", Effect.SUSPICIOUS)

IMAGE_NO_ID = Kind("image", "no usable id", Effect.STOPS, "give each image an id of its own")
IMAGE_ID_TYPE = Kind("image", ID_TYPE, Effect.REPAIRED)
IMAGE_ID_TEXT = Kind("image", "id that is text", Effect.FINE)
IMAGE_TWICE = Kind("image", "listed twice", Effect.CORRECTED)
IMAGE_ID_TWICE = Kind(
    "image", "id of two images", Effect.STOPS, "number images, and their annotations, apart"
)

ANNOTATION_NO_ID = Kind("annotation", "id missing or no number: a new one", Effect.REPAIRED)
ANNOTATION_ID_TYPE = Kind("annotation", ID_TYPE, Effect.CORRECTED)
ANNOTATION_ID_0 = Kind("annotation", "id 0, below or too large: a new one", Effect.CORRECTED)
ANNOTATION_ID_TWICE = Kind("annotation", "id that another one has: a new one", Effect.REPAIRED)
NO_IMAGE_ID = Kind("annotation", "no usable image_id", Effect.STOPS, "say which image it is of")
IMAGE_REFERENCE_TYPE = Kind("annotation", "image_id of another type", Effect.REPAIRED)
NO_SUCH_IMAGE = Kind("annotation", "image_id of no image in the file", Effect.LEFT_OUT)
NO_SUCH_CATEGORY = Kind(
    "annotation",
    "category_id of no category",
    Effect.STOPS,
    "add the category, or take the annotation out",
)
CATEGORY_REFERENCE_TYPE = Kind("annotation", "category_id of another type", Effect.REPAIRED)
EMPTY_IMAGE = Kind("image", "no annotations", Effect.FINE)

MAX_ID = 2**53  # pycocotools keeps ids as float64


def plain_id(value: Any) -> int | str | None:
    """An id as a whole number if it can be one without loss, text as it is, else None.

    ``"7"`` and ``7.0`` are 7, but ``"007"`` is text. None, truth values, lists and objects are
    no ids.
    """
    if type(value) is int:
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str) and value:
        is_number = value.isascii() and value.isdigit() and len(value) < 20
        return int(value) if is_number and str(int(value)) == value else value
    return None


def has_id(entry: dict, key: str) -> bool:
    """Whether what is there under that key can be looked up as an id."""
    return isinstance(entry.get(key), (int, str))


def check_categories(content: dict, findings: Findings) -> dict[Hashable, int | str]:
    """Checks and corrects the categories.

    Returns:
        The id of each category, by its plain id.
    """
    if not isinstance(content.get("info"), dict):
        content["info"] = {}
        findings.add(NO_INFO, "info")
    ids: dict[Hashable, int | str] = {}
    by_id: dict[Hashable, dict] = {}
    kept = []
    plain = [plain_id(category.get("id")) for category in content["categories"]]
    as_text = _are_mixed(plain)
    for index, (category, plain_value) in enumerate(zip(content["categories"], plain, strict=True)):
        if plain_value is None:
            findings.add(CATEGORY_NO_ID, category.get("name", f"categories[{index}]"))
            kept.append(category)
            continue
        id = str(plain_value) if as_text else plain_value
        _set_id(category, id, findings, CATEGORY_ID_TYPE)
        _check_name(category, findings)
        _check_keypoint_names(category, findings)
        if id in by_id:
            if by_id[id].get("name") == category.get("name"):
                findings.add(CATEGORY_TWICE, id)
                continue
            findings.add(CATEGORY_ID_TWICE, id, f"{by_id[id]['name']} and {category['name']}")
        by_id[id], ids[plain_value] = category, id
        kept.append(category)
    if len(kept) < len(content["categories"]):
        content["categories"] = kept
    if not kept:
        findings.add(NO_CATEGORIES, "categories")
    names: set[str] = set()
    for category in by_id.values():
        if category["name"] in names:
            findings.add(CATEGORY_NAME_TWICE, category["id"], category["name"])
        names.add(category["name"])
    if set(by_id) != set(range(1, len(by_id) + 1)):
        findings.add(CATEGORY_GAPS, ", ".join(str(id) for id in list(by_id)[:6]))
    return ids


def _check_name(category: dict, findings: Findings) -> None:
    name = category.get("name")
    if not isinstance(name, str):
        is_number = isinstance(name, int) and not isinstance(name, bool)
        category["name"] = str(name if is_number else category["id"])
        findings.add(CATEGORY_NO_NAME, category["id"], category["name"])
    elif not name.isprintable():  # it could steer the terminal that a table is shown in
        category["name"] = one_line(name)
        findings.add(CATEGORY_NAME_UNPRINTABLE, category["id"], category["name"])


def _check_keypoint_names(category: dict, findings: Findings) -> None:
    if "keypoints" not in category:
        return
    names = category["keypoints"]
    if not isinstance(names, list):
        del category["keypoints"]
        findings.add(CATEGORY_KEYPOINTS, category["id"], names)
        return
    if not all(isinstance(name, str) for name in names):
        category["keypoints"] = [
            name if isinstance(name, str) else str(i) for i, name in enumerate(names, start=1)
        ]
        findings.add(CATEGORY_KEYPOINTS, category["id"], names)
    allowed = range(1, len(names) + 1)
    skeleton = category.get("skeleton") or []
    if not isinstance(skeleton, list) or not all(
        isinstance(bone, list) and len(bone) == 2 and all(end in allowed for end in bone)
        for bone in skeleton
    ):
        findings.add(CATEGORY_SKELETON, category["id"], skeleton)


def check_image_ids(content: dict, findings: Findings) -> dict[Hashable, dict]:
    """Checks and corrects the ids of the images.

    Returns:
        The images by their plain id.
    """
    plain = [plain_id(image.get("id")) for image in content["images"]]
    as_text = _are_mixed(plain)
    images: dict[Hashable, dict] = {}
    kept = []
    for index, (image, plain_value) in enumerate(zip(content["images"], plain, strict=True)):
        if plain_value is None:
            findings.add(IMAGE_NO_ID, image.get("file_name", f"images[{index}]"))
            kept.append(image)
            continue
        id = str(plain_value) if as_text else plain_value
        _set_id(image, id, findings, IMAGE_ID_TYPE)
        if isinstance(id, str):
            findings.add(IMAGE_ID_TEXT, id)
        if plain_value in images:
            if images[plain_value].get("file_name") == image.get("file_name"):
                findings.add(IMAGE_TWICE, id, image.get("file_name"))
                continue
            names = images[plain_value].get("file_name"), image.get("file_name")
            findings.add(IMAGE_ID_TWICE, id, "{} and {}".format(*names))
        images[plain_value] = image
        kept.append(image)
    if len(kept) < len(content["images"]):
        content["images"] = kept
    return images


def check_references(
    annotations: list[dict],
    images: dict[Hashable, dict],
    categories: dict[Hashable, int | str],
    findings: Findings,
    *,
    start: int = 0,
) -> list[dict]:
    """Checks and corrects which image and category each annotation is of.

    Args:
        annotations: some of the file's.
        images: by their plain ids.
        categories: the id of each category, by its plain id.
        start: the index of the first of them in the file.

    Returns:
        The annotations of images that are there.
    """
    kept = []
    for index, annotation in enumerate(annotations, start):
        value = annotation.get("image_id")
        plain = plain_id(value)
        image = images.get(plain) if plain is not None else None
        if plain is None:
            findings.add(
                NO_IMAGE_ID, _label(annotation, index), annotation.get("image_id", "missing")
            )
        elif image is None:
            findings.add(NO_SUCH_IMAGE, _label(annotation, index), f"image_id {plain!r}")
            continue
        elif not _is_same(value, image["id"]):
            findings.add(IMAGE_REFERENCE_TYPE, _label(annotation, index), repr(value))
            annotation["image_id"] = image["id"]
        kept.append(annotation)
        value = annotation.get("category_id")
        category_id = plain_id(value)
        if category_id not in categories:
            label, shown = _label(annotation, index), "missing" if value is None else repr(value)
            findings.add(NO_SUCH_CATEGORY, label, shown, image=annotation.get("image_id"))
        elif not _is_same(value, categories[category_id]):
            findings.add(CATEGORY_REFERENCE_TYPE, _label(annotation, index), repr(value))
            annotation["category_id"] = categories[category_id]
    return kept


class Numbering:
    """Gives annotations ids of their own where they have none that evaluation can use.

    Args:
        ids: all that can be used in the file, int64 (N,).
        num_annotations: in the file.
    """

    def __init__(self, ids: np.ndarray, num_annotations: int) -> None:
        ids, counts = np.unique(ids, return_counts=True)
        self._shared = set(ids[counts > 1].tolist())
        self._seen: set[int] = set()  # of these
        start = int(ids.max(initial=0)) + 1
        self._free: Iterator[int] = itertools.count(start)
        if start + num_annotations >= MAX_ID:
            taken = set(ids.tolist())
            self._free = (id for id in range(1, MAX_ID) if id not in taken)

    def check(self, annotations: list[dict], findings: Findings, *, start: int = 0) -> None:
        """Checks and corrects the ids of some of the file's annotations.

        Args:
            start: the index of the first of them in the file.
        """
        for index, annotation in enumerate(annotations, start):
            value = annotation.get("id")
            plain = plain_id(value)
            if not isinstance(plain, int):
                shown = "missing" if value is None else repr(value)
                findings.add(ANNOTATION_NO_ID, f"annotations[{index}]", shown)
            elif not 0 < plain < MAX_ID:
                findings.add(ANNOTATION_ID_0, plain)
            elif plain in self._seen:
                findings.add(ANNOTATION_ID_TWICE, plain)
            else:
                if plain in self._shared:
                    self._seen.add(plain)
                if not _is_same(value, plain):
                    findings.add(ANNOTATION_ID_TYPE, repr(value))
                    annotation["id"] = plain
                continue
            annotation["id"] = next(self._free)


def usable_ids(annotations: list[dict]) -> list[int]:
    """The ids that evaluation can use, as numbers."""
    ids = (plain_id(annotation.get("id")) for annotation in annotations)
    return [id for id in ids if isinstance(id, int) and 0 < id < MAX_ID]


def _label(annotation: dict, index: int) -> object:
    return annotation.get("id", f"annotations[{index}]")


def _are_mixed(ids: list[int | str | None]) -> bool:
    """Whether some are numbers and some are text, which cannot be sorted."""
    return len({type(id) for id in ids if id is not None}) > 1


def _is_same(value: object, id: object) -> bool:
    return type(value) is type(id) and value == id


def _set_id(entry: dict, id: int | str, findings: Findings, kind: Kind) -> None:
    if not _is_same(entry["id"], id):
        findings.add(kind, repr(entry["id"]))
        entry["id"] = id
