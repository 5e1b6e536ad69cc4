"""What a model is trained on, and what the log says of the rest."""

import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode

from nl_detectron.data.prepare import prepare
from nl_detectron.data.training import check_usable, usable_for_training
from nl_detectron.errors import UsageError
from tests.data.own_data import H, W, make, spoil, write


@pytest.fixture
def loaded(tmp_path):
    """What is known of a content's file, and its records."""

    def load(content: dict) -> tuple:
        prepared = prepare(write(content, tmp_path / "a.json"), str(tmp_path / "images"))
        MetadataCatalog.pop("loaded", None)
        return prepared, load_coco_json(prepared.json_file, str(tmp_path / "images"), "loaded")

    return load


def annotations(dicts: list[dict]) -> list[dict]:
    return [annotation for record in dicts for annotation in record["annotations"]]


def test_all_of_a_good_set_is_trained_on(loaded, tmp_path, log):
    _, dicts = loaded(make(tmp_path))
    assert usable_for_training(dicts, masks=True, keypoints=False) == dicts
    assert "Training on 8 of 8 annotations, in 4 images" in log.text
    assert "left out" not in log.text


def test_boxes_without_size_are_counted(loaded, tmp_path, log):
    def change(annotation):
        boxes = {1: [5, 5, 0, 0], 4: [500, 5, 9, 9], 7: [9, 9, -3, 5]}
        annotation["bbox"] = boxes[annotation["id"]]

    _, dicts = loaded(spoil(make(tmp_path), change, of="annotations", every=3))
    usable = usable_for_training(dicts, masks=False, keypoints=False)
    assert len(annotations(usable)) == 5 and len(annotations(dicts)) == 8
    assert "Training on 5 of 8 annotations, in 4 images; left out: 3 with a box of no" in log.text


@pytest.mark.parametrize("mask", [None, [], "missing"])
def test_objects_without_a_mask_are_counted_for_a_mask_model(mask, loaded, tmp_path, log):
    def change(annotation):
        annotation.update(segmentation=mask)
        if mask == "missing":
            del annotation["segmentation"]

    prepared, dicts = loaded(spoil(make(tmp_path), change, of="annotations", every=3))
    check_usable([prepared], mask_format="polygon", keypoints=False)
    usable = usable_for_training(dicts, masks=True, keypoints=False)
    assert len(annotations(usable)) == 5
    assert all(annotation["segmentation"] for annotation in annotations(usable))
    assert "left out: 3 without a mask" in log.text
    assert len(annotations(usable_for_training(dicts, masks=False, keypoints=False))) == 8
    prepared, dicts = loaded(spoil(make(tmp_path), change, of="annotations"))
    with pytest.raises(UsageError, match="none of 8 annotations has a mask.*MASK_ON False"):
        check_usable([prepared], mask_format="polygon", keypoints=False)
    with pytest.raises(UsageError, match="nothing to train on: 8 without a mask"):
        usable_for_training(dicts, masks=True, keypoints=False)


def test_masks_without_pixels_are_none(loaded, tmp_path):
    empty = {"size": [H, W], "counts": [H * W]}
    content = spoil(
        make(tmp_path), lambda a: a.update(segmentation=empty), of="annotations", every=2
    )
    _, dicts = loaded(content)
    assert len(annotations(usable_for_training(dicts, masks=True, keypoints=False))) == 4


def test_objects_without_keypoints_are_not_labelled(loaded, tmp_path, log):
    _, dicts = loaded(make(tmp_path, keypoints=True))
    for annotation in annotations(dicts)[::3]:
        annotation["keypoints"] = []
    del annotations(dicts)[1]["keypoints"]
    usable = annotations(usable_for_training(dicts, masks=False, keypoints=True))
    assert [len(annotation["keypoints"]) for annotation in usable] == [15] * 8
    assert usable[0]["keypoints"] == [0] * 15
    assert "Training on 8 of 8 annotations, in 4 images; 4 have no keypoints" in log.text


def test_crowds_and_what_detectron2_left_out_are_counted(loaded, tmp_path, log):
    content = spoil(make(tmp_path), lambda a: a.update(iscrowd=1), of="annotations", every=4)
    content["annotations"][1]["image_id"] = 77
    prepared, dicts = loaded(content)
    usable = usable_for_training(
        dicts[1:], masks=True, keypoints=False, total=prepared.num_annotations
    )
    assert len(annotations(usable)) == 5
    assert "5 of 8 annotations, in 3 images; left out: 1 of a crowd, 2 of images that" in log.text


def test_images_of_which_nothing_is_left(loaded, tmp_path):
    content = spoil(make(tmp_path), lambda a: a.update(iscrowd=1), of="annotations")
    for annotation in content["annotations"][2:]:
        annotation["iscrowd"] = 0
    content["annotations"] = content["annotations"][:6]
    _, dicts = loaded(content)
    options = {"masks": True, "keypoints": False}
    usable = usable_for_training(dicts, **options)
    assert [record["image_id"] for record in usable] == [2, 3, 4]  # the last one has no objects
    usable = usable_for_training(dicts, filter_empty=False, **options)
    assert [len(record["annotations"]) for record in usable] == [0, 2, 2, 0]


def test_datasets_of_other_kinds(log):
    others = [{"file_name": "a.png", "sem_seg_file_name": "b.png"}]
    assert usable_for_training(others, masks=True, keypoints=True) is others
    box = {"bbox": [1, 2, 5, 6], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    records = [{"file_name": "a.png", "width": 9, "height": 9, "annotations": [box]}]
    assert usable_for_training(records, masks=False, keypoints=False) == records
    rotated = box | {"bbox": [5, 5, 3, 2, 45], "bbox_mode": BoxMode.XYWHA_ABS}
    records[0]["annotations"] = [rotated, box | {"bbox": [5, 5, 3, 2]}]
    usable = usable_for_training(records, masks=False, keypoints=False)
    assert annotations(usable) == [rotated]
