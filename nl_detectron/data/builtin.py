"""Registers generated sets as Detectron2 datasets, as Detectron2 does with its builtin ones.

They are small images below `$DETECTRON2_DATASETS` (by default `datasets`), which is read when
they are registered; those of shapes and people are when this module is imported. That generates
nothing: a set is generated when it is first used.
"""

import os
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.data.datasets.builtin_meta import (
    COCO_PERSON_KEYPOINT_FLIP_MAP,
    COCO_PERSON_KEYPOINT_NAMES,
    KEYPOINT_CONNECTION_RULES,
)

from .generate import KINDS, generate


def register_generated(
    name: str, folder: str | Path, *, kind: str, num_images: int, seed: int
) -> None:
    """Registers a set that `generate` writes to `folder` when the dataset is first used.

    Args:
        name: of the new dataset.
        folder, kind, num_images, seed: see `generate`.

    Raises:
        AssertionError: if Detectron2 knows a dataset of this name already.
    """
    images = str(Path(folder, "images"))

    def load() -> list[dict]:
        json_file = generate(folder, kind=kind, num_images=num_images, seed=seed)
        return load_coco_json(str(json_file), images, name)

    DatasetCatalog.register(name, load)
    metadata = MetadataCatalog.get(name).set(
        json_file=str(Path(folder, KINDS[kind].json_name)),
        image_root=images,
        evaluator_type="coco",
        generated=True,  # on first use
        thing_classes=[category["name"] for category in KINDS[kind].categories],
    )
    if "keypoints" in KINDS[kind].categories[0]:
        metadata.set(
            keypoint_names=COCO_PERSON_KEYPOINT_NAMES,
            keypoint_flip_map=COCO_PERSON_KEYPOINT_FLIP_MAP,
            keypoint_connection_rules=KEYPOINT_CONNECTION_RULES,
        )


def register_splits(kind: str, root: str | Path | None = None) -> list[str]:
    """Registers KIND_train (2,000 images), KIND_val (300) and KIND_tiny (8).

    Args:
        kind: one of `KINDS`.
        root: the sets are below its `nl_detectron/`; by default it is Detectron2's folder of all
            datasets.

    Returns:
        These names.

    Raises:
        AssertionError: if Detectron2 knows a dataset of one of these names already.
    """
    root = root or Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser()
    names = []
    for split, num_images, seed in (("train", 2000, 1), ("val", 300, 2), ("tiny", 8, 3)):
        name = f"{kind}_{split}"
        folder = Path(root, "nl_detectron", name)
        register_generated(name, folder, kind=kind, num_images=num_images, seed=seed)
        names.append(name)
    return names


for _kind in ("shapes", "people"):
    register_splits(_kind)
