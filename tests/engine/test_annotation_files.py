"""Mistakes in annotation files end a run with one line before it starts, or are corrected."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_instances
from omegaconf import OmegaConf

from nl_detectron.engine import Trainer, check_cfg, check_lazy_cfg, load_cfg
from nl_detectron.engine.lazy import _build_train_loader
from nl_detectron.errors import UsageError
from tests.data.own_data import POINTS, H, W, make, prepare_annotations, spoil, write
from tests.models import make_narrow
from tests.places import CONFIGS

CONFIG = CONFIGS / "quick_schedules/mask_rcnn_shapes_nl.yaml"
PEOPLE = CONFIGS / "quick_schedules/keypoint_rcnn_people_nl.yaml"
NAMES = ("own_train", "own_val")


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Registers a training set by Detectron2's function, and a good one for evaluation."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def register(content: dict, *, encoding: str = "utf-8", corrected: bool = False) -> str:
        good = make(tmp_path, keypoints="keypoints" in content["categories"][0])
        files = [write(content, tmp_path / "train.json", encoding)]
        files.append(write(good, tmp_path / "val.json"))
        if corrected:
            files[0] = prepare_annotations(files[0], str(tmp_path / "images"))
        for name, file in zip(NAMES, files, strict=True):
            remove(name)
            register_coco_instances(name, {}, file, str(tmp_path / "images"))
        return files[0]

    yield register
    for name in NAMES:
        remove(name)


def remove(name: str) -> None:
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
    MetadataCatalog.pop(name, None)


def cfg(*opts: str, config=CONFIG):
    datasets = ("DATASETS.TRAIN", "('own_train',)", "DATASETS.TEST", "('own_val',)")
    classes = "1" if config == PEOPLE else "3"
    return load_cfg(
        str(config),
        [
            *(*datasets, "MODEL.WEIGHTS", "", "MODEL.ROI_HEADS.NUM_CLASSES", classes),
            *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "DATALOADER.NUM_WORKERS", "0"),
            *("MODEL.DEVICE", "cpu", *opts),
        ],
    )


def assert_one_line(message: str, *opts: str, **options) -> None:
    with pytest.raises(UsageError, match=message) as error:
        check_cfg(cfg(*opts, **options))
    assert len(str(error.value).splitlines()) == 1


def test_a_good_set_can_be_trained_on(own, tmp_path):
    own(make(tmp_path))
    check_cfg(cfg())


FIX = (
    "Register a corrected copy: tools/check_dataset.py --annotations .*train.json --images .*--fix"
)


@pytest.mark.parametrize(
    ("of", "change", "message"),
    [
        # What can be corrected: a corrected copy is to be registered
        (
            "annotations",
            lambda a: a.update(id=7),
            f"dataset 'own_train': .*annotation 7: id that another one .*{FIX}",
        ),
        (
            "annotations",
            lambda a: a.update(category_id=str(a["category_id"])),
            f"annotation 1: category_id of another type: '2' .7 more.*{FIX}",
        ),
        ("annotations", lambda a: a.update(image_id=str(a["image_id"])), f"image_id of .*{FIX}"),
        ("annotations", lambda a: a.pop("bbox"), f"annotation 1: bbox missing.*{FIX}"),
        ("images", lambda i: (i.pop("width"), i.pop("height")), f"image 1: width or.*{FIX}"),
        ("images", lambda i: i.update(width=H, height=W), f"image 1: width and.*swapped.*{FIX}"),
        ("images", lambda i: i.update(width=-1, height=-1), f"image 1: width or.*{FIX}"),
        ("images", lambda i: i.update(file_name="images\\" + i["file_name"]), f"backsla.*{FIX}"),
        ("images", lambda i: i.update(file_name="images/" + i["file_name"]), f"folders .*{FIX}"),
        # What cannot
        ("annotations", lambda a: a.update(category_id=9), "annotation 1: category_id of no cat"),
        ("annotations", lambda a: a.update(ignore=1), "annotation 1: ignore 1, .*iscrowd 1"),
        ("images", lambda i: i.update(file_name="gone.png"), "image 1: file is not there: .*gone"),
        # Nothing to train on
        ("annotations", lambda a: a.update(iscrowd=1), "none of 8 annotations can be trained"),
        ("annotations", lambda a: a.update(bbox=[5, 5, 0, 0]), "none of 8 .* some size"),
        ("annotations", lambda a: a.pop("segmentation"), "none .*has a mask.*MASK_ON False"),
        ("annotations", lambda a: a.update(segmentation=[]), "none .*has a mask.*MASK_ON False"),
        ("annotations", lambda a: a.update(segmentation=None), "none .*has a mask.*MASK_ON"),
    ],
)
def test_mistakes_end_the_run_with_one_line(of, change, message, own, tmp_path):
    own(spoil(make(tmp_path), change, of=of))
    assert_one_line(message)


def test_other_mistakes_end_the_run_with_one_line(own, tmp_path):
    good = make(tmp_path)
    own(good, encoding="utf-8-sig")
    assert_one_line(f"not in UTF-8 without a BOM.*{FIX}")
    own(good | {"annotations": []})
    assert_one_line("none of 0 annotations can be trained on")
    own(good | {"annotations": [], "images": []})
    assert_one_line("has no images: there is nothing to train on")
    own(good | {"categories": good["categories"][1:]})
    assert_one_line("annotation 4: category_id of no category: 1")
    rle = {"size": [H, W], "counts": [100, 50, H * W - 150]}
    own(spoil(good, lambda a: a.update(segmentation=rle), of="annotations", every=2))
    assert_one_line("run lengths .* 4 annot.*MASK_FORMAT bitmask", "INPUT.MASK_FORMAT", "polygon")
    check_cfg(cfg("INPUT.MASK_FORMAT", "bitmask"))


@pytest.mark.parametrize(
    "fault",
    [
        lambda a: a.update(keypoints=[0] * 15, num_keypoints=0),
        lambda a: a.pop("keypoints"),  # of which num_keypoints still tells
    ],
)
def test_a_keypoint_model_needs_keypoints(own, tmp_path, fault):
    own(spoil(make(tmp_path, keypoints=True), fault, of="annotations"))
    MetadataCatalog.get("own_train").set(keypoint_names=POINTS, keypoint_flip_map=[])
    points = (
        "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS",
        "5",
        "TEST.KEYPOINT_OKS_SIGMAS",
        "[.1, .1, .1, .1, .1]",
    )
    assert_one_line("none .*has a labelled keypoint", *points, config=PEOPLE)


def test_files_are_checked_once(own, tmp_path, monkeypatch):
    own(make(tmp_path))
    check_cfg(cfg())
    monkeypatch.setattr("nl_detectron.data.prepare.check_file", None)
    check_cfg(cfg())


def lazy_cfg(mask_format: str) -> OmegaConf:
    from detectron2.config import LazyCall as L
    from detectron2.data import (
        DatasetMapper,
        build_detection_train_loader,
        get_detection_dataset_dicts,
    )

    mapper = L(DatasetMapper)(
        is_train=True,
        augmentations=[],
        image_format="BGR",
        use_instance_mask=True,
        instance_mask_format=mask_format,
    )
    loader = L(build_detection_train_loader)(
        dataset=L(get_detection_dataset_dicts)(names="own_train"),
        mapper=mapper,
        total_batch_size=2,
        num_workers=0,
    )
    train = {"output_dir": "out", "init_checkpoint": "", "max_iter": 2, "eval_period": 0}
    train["device"] = "cpu"
    return OmegaConf.create(
        {"train": train, "dataloader": {"train": loader}}, flags={"allow_objects": True}
    )


def test_lazy_configs_are_checked_and_counted_likewise(own, tmp_path, log):
    good = make(tmp_path)
    own(spoil(good, lambda a: a.pop("segmentation"), of="annotations", every=3))
    check_lazy_cfg(lazy_cfg("polygon"))
    loader = _build_train_loader(lazy_cfg("polygon").dataloader.train)
    batch = next(iter(loader))
    assert len(batch) == 2 and all(item["instances"].has("gt_masks") for item in batch)
    assert "Training on 5 of 8 annotations, in 4 images; left out: 3 without a mask" in log.text
    own(spoil(good, lambda a: a.pop("segmentation"), of="annotations"))
    with pytest.raises(UsageError, match="none of 8 annotations has a mask"):
        check_lazy_cfg(lazy_cfg("polygon"))
    own(spoil(good, lambda a: a.pop("bbox"), of="annotations"))
    with pytest.raises(UsageError, match=f"dataset 'own_train': .*bbox missing.*{FIX}"):
        check_lazy_cfg(lazy_cfg("polygon"))
    rle = {"size": [H, W], "counts": [100, 50, H * W - 150]}
    own(spoil(good, lambda a: a.update(segmentation=rle), of="annotations"))
    with pytest.raises(UsageError, match="instance_mask_format"):
        check_lazy_cfg(lazy_cfg("polygon"))


def test_a_corrected_copy_is_trained_on(own, tmp_path, log):
    content = make(tmp_path)
    for i, annotation in enumerate(content["annotations"]):
        annotation |= {"category_id": str(annotation["category_id"]), "id": 0}
        annotation["image_id"] = str(annotation["image_id"])
        if i % 4 == 1:
            annotation["segmentation"] = [[1, 2], []]
        if i == 2:
            annotation["bbox"] = [3, 3, 0, 0]
        del annotation["iscrowd"]
    for image in content["images"]:
        image |= {"file_name": "images\\" + image["file_name"], "width": -1}
    read = own(content, encoding="utf-8-sig", corrected=True)
    assert len(json.loads(Path(read).read_text())["annotations"]) == 8
    run = cfg("DATASETS.TEST", "()", "OUTPUT_DIR", str(tmp_path / "out")).clone()
    run.defrost()
    make_narrow(run)
    run.INPUT.MIN_SIZE_TRAIN, run.MODEL.RPN.POST_NMS_TOPK_TRAIN = (48,), 20
    check_cfg(run)
    trainer = Trainer(run)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert trainer.iter == 2
    assert "Training on 5 of 8 annotations, in 4 images; left out: 2 without a mask" in log.text
    assert "1 with a box of no size" in log.text
    assert len(load_coco_json(read, str(tmp_path / "images"))) == 4
