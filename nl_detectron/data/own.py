"""Datasets of one's own: an annotation file in COCO's format and a folder of images.

Other than Detectron2's ``register_coco_instances``, all that follows from the file is known when it
is registered, a file that tools have written is put right first (see :mod:`.prepare`), and
categories are matched by name with those of the model.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.data.datasets import load_coco_json

from ..errors import UsageError
from .annotations import parts_of_annotations
from .keypoints import connection_rules, flip_pairs
from .prepare import errors_of_dataset, prepare


def register_coco(
    name: str,
    json_file: str | Path,
    image_root: str | Path,
    *,
    classes: Sequence[str] | None = None,
    keypoint_flip_pairs: Sequence[tuple[str, str]] = (),
) -> Metadata:
    """Registers a dataset in COCO's format with Detectron2; anew, if it was registered so before.

    Args:
        name: of the dataset.
        json_file: the annotations.
        image_root: the folder that the images' ``file_name`` are relative to.
        classes: names by the model's class index, in the place of the file's own categories by
            rising id. A category has the index of its name, whatever its id.
        keypoint_flip_pairs: names of keypoints that change places in a mirrored image; by default
            those that "left" and "right" in their names tell.

    Returns:
        The metadata: ``thing_classes``, ``thing_dataset_id_to_contiguous_id`` and, where the file
        has keypoints, ``keypoint_names``, ``keypoint_flip_map`` and ``keypoint_connection_rules``.

    Raises:
        UsageError: if the name is taken, a file is not there or cannot be used, a category with
            annotations is not among ``classes``, or a keypoint's name is unknown.
    """
    if name in DatasetCatalog and not MetadataCatalog.get(name).get("own"):
        raise UsageError(f"dataset {name!r}: there is one of this name already; choose another")
    if not Path(json_file).is_file():
        raise UsageError(f"dataset {name!r}: there is no annotation file {json_file}")
    if not Path(image_root).is_dir():
        raise UsageError(f"dataset {name!r}: there is no folder of images {image_root}")
    with errors_of_dataset(name):
        prepared = prepare(str(json_file), str(image_root))
        prepared.stop(corrected=True)
    prepared.log()
    file = prepared.json_file
    categories = sorted(prepared.categories, key=lambda category: category["id"])
    if classes is None:
        classes = class_names(categories)
    index = _match(name, file, categories, classes)

    def load() -> list[dict]:
        records = load_coco_json(file, str(image_root))
        for record in records:
            for annotation in record["annotations"]:
                annotation["category_id"] = index[annotation["category_id"]]
        return records

    forget(name)
    DatasetCatalog.register(name, load)
    # Detectron2's evaluators want an id for each class, also for those that this file lacks.
    free = max(index, default=0) + 1
    ids = index | {
        free + number: k
        for number, k in enumerate(sorted({*range(len(classes))} - {*index.values()}))
    }
    metadata = MetadataCatalog.get(name).set(
        own=True,
        json_file=file,
        image_root=str(image_root),
        evaluator_type="coco",
        thing_classes=list(classes),
        thing_dataset_id_to_contiguous_id=dict(sorted(ids.items())),
    )
    names, skeleton = _keypoints(name, categories)
    if names:
        metadata.set(
            keypoint_names=names,
            keypoint_flip_map=_flip_map(name, names, keypoint_flip_pairs),
            keypoint_connection_rules=connection_rules(names, skeleton),
        )
    return metadata


def forget(name: str) -> None:
    """Unregisters a dataset of :func:`register_coco`, if there is one of this name."""
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def classes_of(dataset: str) -> list[str] | None:
    """The names of a registered dataset's classes by index, or None where nothing tells them.

    A dataset of Detectron2's ``register_coco_instances`` has them in its file until it is loaded.
    """
    metadata = MetadataCatalog.get(dataset)
    if metadata.get("thing_classes"):
        return list(metadata.thing_classes)
    if metadata.get("evaluator_type") != "coco" or not metadata.get("json_file"):
        return None
    return class_names(prepare(metadata.json_file, metadata.get("image_root", "")).categories)


def class_names(categories: Sequence[dict]) -> list[str]:
    """The names of categories by rising id, as Detectron2 orders classes."""
    return [str(c["name"]) for c in sorted(categories, key=lambda category: category["id"])]


def _match(
    dataset: str, file: str, categories: Sequence[dict], classes: Sequence[str]
) -> dict[int, int]:
    """The model's class index by category id; categories that nothing belongs to may be unknown."""
    index = {c["id"]: classes.index(c["name"]) for c in categories if c["name"] in classes}
    if len(index) == len(categories):
        return index
    used: Counter[int] = Counter()
    for part in parts_of_annotations(file):
        used.update(annotation["category_id"] for annotation in part)
    unknown = [c["name"] for c in categories if c["id"] not in index and used[c["id"]]]
    if unknown:
        raise UsageError(
            f"dataset {dataset!r} has annotations of {_few(unknown)}, which the model does not "
            f"know; its classes are {_few(classes)}"
        )
    return index


def _keypoints(dataset: str, categories: Sequence[dict]) -> tuple[list[str], list[list[int]]]:
    """Names and skeleton of the one set of keypoints that the categories have, or nothing."""
    with_keypoints = [c for c in categories if c.get("keypoints")]
    if not with_keypoints:
        return [], []
    first = with_keypoints[0]
    names = [str(keypoint) for keypoint in first["keypoints"]]
    for category in with_keypoints[1:]:
        if category["keypoints"] != first["keypoints"]:
            raise UsageError(
                f"dataset {dataset!r}: the categories {first['name']!r} and {category['name']!r} "
                "have different keypoints; a Keypoint R-CNN has one set for all classes"
            )
    if len(set(names)) < len(names):
        raise UsageError(f"dataset {dataset!r}: two keypoints have one name: {_few(names)}")
    skeleton = [
        [int(end) for end in line]
        for line in first.get("skeleton") or []
        if len(line) == 2 and all(1 <= int(end) <= len(names) for end in line)
    ]
    return names, skeleton


def _flip_map(
    dataset: str, names: Sequence[str], given: Sequence[tuple[str, str]]
) -> list[tuple[str, str]]:
    for keypoint in (keypoint for pair in given for keypoint in pair):
        if keypoint not in names:
            raise UsageError(
                f"DATASETS.KEYPOINT_FLIP_PAIRS names {keypoint!r}, but the keypoints of dataset "
                f"{dataset!r} are {', '.join(names)}"
            )
    return [(left, right) for left, right in given] or flip_pairs(names)


def _few(names: Sequence[str], most: int = 10) -> str:
    shown = ", ".join(repr(str(name)) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
