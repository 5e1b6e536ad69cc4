import importlib
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata

from nl_detectron.data import SHAPE_CLASSES, builtin

SPLITS = ("train", "val", "tiny")
ALL_KINDS = (
    "shapes",
    "people",
    "people_in_skirts",
    "far_cue_one_key",
    "far_cue_lone_key",
    "far_cue_matching_key",
)
NAMES = [f"{kind}_{split}" for kind in ALL_KINDS for split in SPLITS]


@pytest.fixture(params=("shapes", "people", "people_in_skirts"))
def registered(request, tmp_path):
    """Kind, name and folder of a small registered set."""
    name, folder = f"test_{request.param}", tmp_path / "set"
    builtin.register_generated(name, folder, kind=request.param, num_images=3, seed=5)
    yield request.param, name, folder
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_import_registers_below_the_root_and_writes_nothing(tmp_path, monkeypatch):
    for name in NAMES:
        monkeypatch.delitem(DatasetCatalog.data, name)
        monkeypatch.delitem(MetadataCatalog.data, name)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    importlib.reload(builtin)
    assert sorted(builtin.GENERATED) == sorted(NAMES)
    for name in NAMES:
        assert name in DatasetCatalog
        folder = tmp_path / "nl_detectron" / name
        json_name = "person_keypoints.json" if name.startswith("people") else "instances.json"
        metadata = MetadataCatalog.get(name)
        assert metadata.json_file == str(folder / json_name)
        assert metadata.image_root == str(folder / "images")
    assert not list(tmp_path.iterdir())


def test_builtin_sets(monkeypatch):
    asked = {}

    def record(folder, **arguments):
        asked[Path(folder).name] = arguments
        raise InterruptedError

    monkeypatch.setattr(builtin, "generate", record)
    for name in NAMES:
        with pytest.raises(InterruptedError):
            DatasetCatalog.get(name)
    splits = {"train": (2000, 1), "val": (300, 2), "tiny": (8, 3)}
    assert asked == {
        f"{kind}_{split}": {"kind": kind, "num_images": num_images, "seed": seed}
        for kind in ALL_KINDS
        for split, (num_images, seed) in splits.items()
    }


def test_metadata_is_complete_before_loading(registered):
    kind, name, folder = registered
    metadata = MetadataCatalog.get(name)
    assert metadata.evaluator_type == "coco"
    expected = (
        {"thing_classes": list(SHAPE_CLASSES)}
        if kind == "shapes"
        else _get_builtin_metadata("coco_person")
    )
    assert metadata.as_dict().items() >= expected.items()
    assert not folder.exists()


def test_first_use_generates(registered):
    _, name, folder = registered
    dicts = DatasetCatalog.get(name)
    assert [Path(record["file_name"]) for record in dicts] == [
        folder / "images" / f"{i:06}.png" for i in (1, 2, 3)
    ]
    metadata = MetadataCatalog.get(name)
    assert Path(metadata.json_file).exists()
    classes = range(len(metadata.thing_classes))
    assert metadata.thing_dataset_id_to_contiguous_id == {i + 1: i for i in classes}
    for record in dicts:
        assert (record["height"], record["width"]) == (128, 128)
        assert {annotation["category_id"] for annotation in record["annotations"]} <= set(classes)
    assert DatasetCatalog.get(name) == dicts


def test_detectron2_maps_the_set(registered):
    kind, name, _ = registered
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = (name,)
    cfg.INPUT.MASK_FORMAT = "bitmask"  # the masks are RLE
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (128,), 128
    cfg.MODEL.MASK_ON, cfg.MODEL.KEYPOINT_ON = True, kind != "shapes"
    record = DatasetCatalog.get(name)[0]
    instances = DatasetMapper(cfg, is_train=True)(record)["instances"]
    boxes = [annotation["bbox"] for annotation in record["annotations"]]
    assert len(instances) == len(boxes)
    sizes = instances.gt_boxes.tensor[:, 2:] - instances.gt_boxes.tensor[:, :2]
    np.testing.assert_allclose(sizes.numpy(), np.array(boxes)[:, 2:])
    np.testing.assert_array_equal(  # flipped or not, boxes are tight around the masks
        instances.gt_masks.get_bounding_boxes().tensor.numpy(), instances.gt_boxes.tensor.numpy()
    )
    assert instances.has("gt_keypoints") == (kind != "shapes")


def test_names_cannot_be_registered_twice():
    with pytest.raises(AssertionError, match="already registered"):
        builtin.register_all("elsewhere")
