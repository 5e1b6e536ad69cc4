"""What holds of every kind of generated set, for the tests of the package and of projects."""

import importlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_PERSON_KEYPOINT_NAMES as NAMES
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from nl_detectron.data import KINDS, SHAPE_CLASSES, builtin, generate
from nl_detectron.data.drawing import MIN_PIXELS

SEED, NUM_IMAGES = 7, 10
LARGER = [(0, 0), (33, 147), (86, 7)]  # than the smallest images, in pixels
SPLITS = {"train": (2000, 1), "val": (300, 2), "tiny": (8, 3)}  # images and seed of each


@dataclass(frozen=True)
class Expected:
    """What is expected of a kind.

    Attributes:
        objects: the number of them in an image, at least and at most.
        classes: their names; by default it is people with keypoints.
        size: (H, W) of the images.
    """

    objects: tuple[int, int]
    classes: Sequence[str] = ("person",)
    size: tuple[int, int] = (128, 128)

    @property
    def people(self) -> bool:
        return self.classes == ("person",)

    @property
    def json_name(self) -> str:
        return "person_keypoints.json" if self.people else "instances.json"


BUILTIN = {"shapes": Expected((2, 3), SHAPE_CLASSES), "people": Expected((1, 2))}


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def generated_set(kind: str, folder: Path) -> Path:
    """A new set of NUM_IMAGES images, for the checks that read a JSON file."""
    return generate(folder, kind=kind, num_images=NUM_IMAGES, seed=SEED)


@contextmanager
def registered_set(kind: str, folder: Path) -> Iterator[str]:
    """The name under which a small set is registered for the while."""
    name = f"test_{kind}"
    builtin.register_generated(name, folder, kind=kind, num_images=3, seed=5)
    try:
        yield name
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def names_of(kinds: Collection[str]) -> list[str]:
    """The names of the datasets of these kinds."""
    return [f"{kind}_{split}" for kind in kinds for split in SPLITS]


def check_pycocotools_reads_the_set(kind: str, expected: Expected, json_file: Path) -> None:
    coco = COCO(json_file)
    assert json_file.name == expected.json_name
    assert coco.dataset["info"] | {"description": "", "version": 0} == {
        "description": "",
        "version": 0,
        "kind": kind,
        "seed": SEED,
        "num_images": NUM_IMAGES,
        "size": list(expected.size),
    }
    assert set(coco.dataset) == {"info", "licenses", "images", "annotations", "categories"}
    assert sorted(coco.imgs) == list(range(1, NUM_IMAGES + 1))
    assert sorted(coco.anns) == list(range(1, len(coco.anns) + 1))
    names = [coco.cats[i + 1]["name"] for i in range(len(coco.cats))]
    assert names == list(expected.classes)
    if expected.people:
        assert coco.cats[1]["keypoints"] == list(NAMES)
        bones = {frozenset((NAMES[a - 1], NAMES[b - 1])) for a, b in coco.cats[1]["skeleton"]}
        assert len(bones) == 19
        assert {"left_knee", "left_ankle"} in bones and {"left_hip", "right_knee"} not in bones


def check_annotations_are_exact(kind: str, expected: Expected, json_file: Path) -> None:
    coco = COCO(json_file)
    for i, image in coco.imgs.items():
        scene = KINDS[kind].draw(np.random.default_rng([SEED, i]), expected.size)
        on_disk = cv2.imread(str(json_file.parent / "images" / image["file_name"]))
        np.testing.assert_array_equal(on_disk, scene.image)
        annotations = coco.imgToAnns[i]
        low, high = expected.objects
        assert low <= len(annotations) <= high
        masks = [coco.annToMask(annotation) for annotation in annotations]
        assert np.sum(masks, axis=0).max() == 1  # disjoint
        for annotation, mask, instance in zip(annotations, masks, scene.instances, strict=True):
            np.testing.assert_array_equal(mask, instance.mask)
            assert isinstance(annotation["segmentation"]["counts"], str)
            assert mask_util.area(annotation["segmentation"]) == annotation["area"] == mask.sum()
            assert annotation["area"] >= MIN_PIXELS
            y, x = np.nonzero(mask)
            x_size, y_size = np.ptp(x) + 1, np.ptp(y) + 1
            assert annotation["bbox"] == [x.min(), y.min(), x_size, y_size]
            assert annotation["category_id"] == instance.category_id
            assert annotation["iscrowd"] == 0
            if expected.people:
                keypoints = np.reshape(annotation["keypoints"], (17, 3))
                np.testing.assert_array_equal(keypoints, instance.keypoints)
                assert annotation["num_keypoints"] == np.count_nonzero(keypoints[:, 2])
            else:
                assert "keypoints" not in annotation


def check_images_depend_on_seed_and_number_only(kind: str, folder: Path) -> None:
    few = generate(folder / "few", kind=kind, num_images=2, seed=1).parent
    again = generate(folder / "again", kind=kind, num_images=2, seed=1).parent
    many = generate(folder / "many", kind=kind, num_images=4, seed=1).parent
    other = generate(folder / "other", kind=kind, num_images=2, seed=2).parent
    assert contents(few) == contents(again)
    images, more, others = (contents(folder / "images") for folder in (few, many, other))
    assert sorted(more) == ["000001.png", "000002.png", "000003.png", "000004.png"]
    assert images.items() <= more.items()
    assert len({*more.values(), *others.values()}) == 6


def check_size(kind: str, larger: tuple[int, int], folder: Path) -> None:
    """Images that are by ``larger`` pixels larger than the smallest."""
    size = tuple(np.add(KINDS[kind].min_size, larger).tolist())
    coco = COCO(generate(folder, kind=kind, num_images=2, size=size, seed=3))
    for image in coco.imgs.values():
        assert (image["height"], image["width"]) == size
        assert cv2.imread(str(folder / "images" / image["file_name"])).shape == (*size, 3)
    for annotation in coco.anns.values():
        assert tuple(annotation["segmentation"]["size"]) == size
        for x, y, visibility in np.reshape(annotation.get("keypoints", []), (-1, 3)):
            assert (0 <= x <= size[1] - 1 and 0 <= y <= size[0] - 1) or visibility == 0


def check_import_registers_below_the_root_and_writes_nothing(
    module: ModuleType,
    kinds: Mapping[str, Expected],
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That the module registers the splits of these kinds, and nothing else."""
    for name in names_of(kinds):
        monkeypatch.delitem(DatasetCatalog.data, name)
        monkeypatch.delitem(MetadataCatalog.data, name)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    before = set(DatasetCatalog)
    importlib.reload(module)
    assert sorted(set(DatasetCatalog) - before) == sorted(names_of(kinds))
    for kind, expected in kinds.items():
        for name in names_of([kind]):
            folder = root / "nl_detectron" / name
            metadata = MetadataCatalog.get(name)
            assert metadata.json_file == str(folder / expected.json_name)
            assert metadata.image_root == str(folder / "images")
    assert not list(root.iterdir())


def check_splits(kinds: Collection[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def record(folder, **arguments):
        asked[Path(folder).name] = arguments
        raise InterruptedError

    monkeypatch.setattr(builtin, "generate", record)
    for name in names_of(kinds):
        with pytest.raises(InterruptedError):
            DatasetCatalog.get(name)
    assert asked == {
        f"{kind}_{split}": {"kind": kind, "num_images": num_images, "seed": seed}
        for kind in kinds
        for split, (num_images, seed) in SPLITS.items()
    }


def check_metadata_is_complete_before_loading(kind: str, expected: Expected, folder: Path) -> None:
    with registered_set(kind, folder) as name:
        metadata = MetadataCatalog.get(name)
        assert metadata.evaluator_type == "coco"
        values = (
            _get_builtin_metadata("coco_person")
            if expected.people
            else {"thing_classes": list(expected.classes)}
        )
        assert metadata.as_dict().items() >= values.items()
        assert not folder.exists()


def check_first_use_generates(kind: str, expected: Expected, folder: Path) -> None:
    with registered_set(kind, folder) as name:
        dicts = DatasetCatalog.get(name)
        assert [Path(record["file_name"]) for record in dicts] == [
            folder / "images" / f"{i:06}.png" for i in (1, 2, 3)
        ]
        metadata = MetadataCatalog.get(name)
        assert Path(metadata.json_file).exists()
        classes = range(len(metadata.thing_classes))
        assert metadata.thing_dataset_id_to_contiguous_id == {i + 1: i for i in classes}
        for record in dicts:
            assert (record["height"], record["width"]) == expected.size
            ids = {annotation["category_id"] for annotation in record["annotations"]}
            assert ids <= set(classes)
        assert DatasetCatalog.get(name) == dicts


def check_detectron2_maps_the_set(kind: str, expected: Expected, folder: Path) -> None:
    cfg = get_cfg()
    cfg.INPUT.MASK_FORMAT = "bitmask"  # the masks are RLE
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (min(expected.size),), max(expected.size)
    cfg.MODEL.MASK_ON, cfg.MODEL.KEYPOINT_ON = True, expected.people
    with registered_set(kind, folder) as name:
        cfg.DATASETS.TRAIN = (name,)
        record = DatasetCatalog.get(name)[0]
        instances = DatasetMapper(cfg, is_train=True)(record)["instances"]
    boxes = [annotation["bbox"] for annotation in record["annotations"]]
    assert len(instances) == len(boxes)
    sizes = instances.gt_boxes.tensor[:, 2:] - instances.gt_boxes.tensor[:, :2]
    np.testing.assert_allclose(sizes.numpy(), np.array(boxes)[:, 2:])
    np.testing.assert_array_equal(  # flipped or not, boxes are tight around the masks
        instances.gt_masks.get_bounding_boxes().tensor.numpy(), instances.gt_boxes.tensor.numpy()
    )
    assert instances.has("gt_keypoints") == expected.people
