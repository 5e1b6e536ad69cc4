import copy
import shutil
import sys

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor
from pycocotools import mask as mask_util

from nl_detectron import Predictor
from nl_detectron.errors import UsageError
from nl_detectron.inference.predictor import resolve_device


def test_gives_what_detectron2_predicts(predictor, weights, picture):
    cfg = predictor.cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(weights["people" if cfg.MODEL.KEYPOINT_ON else "shapes"])
    image = cv2.imread(str(picture))
    expected = DefaultPredictor(cfg)(image)["instances"]
    for given in (image, picture, str(picture)):
        actual = predictor(given)
        assert len(actual) == 5 and actual.image_size == (80, 120)
        # Within the rounding of sums in another order
        assert torch.allclose(actual.pred_boxes.tensor, expected.pred_boxes.tensor, atol=0.01)
        assert torch.allclose(actual.scores, expected.scores, atol=1e-4)
        assert (actual.pred_masks != expected.pred_masks).float().mean() < 1e-3
        assert actual.has("pred_keypoints") == cfg.MODEL.KEYPOINT_ON
        assert not actual.has("pred_keypoint_heatmaps")


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_stream_gives_the_same_in_order(predictor, picture, tmp_path, workers, with_threads):
    """Also past an image that cannot be used, and when not all of it is asked for."""
    with_threads(1)
    image = cv2.imread(str(picture))
    images = [np.roll(image, 17 * i, axis=1)[: 40 + 7 * i] for i in range(5)]
    expected = [predictor(one) for one in images]
    with_threads(workers)
    several = copy.copy(predictor)
    several._workers = workers
    for actual, one in zip(several.stream(iter(images)), expected, strict=True):
        assert actual.image_size == one.image_size
        assert torch.equal(actual.pred_boxes.tensor, one.pred_boxes.tensor)
        assert torch.equal(actual.scores, one.scores)
        assert torch.equal(actual.pred_masks, one.pred_masks)
    assert torch.get_num_threads() == workers
    assert list(several.stream([])) == []
    broken = several.stream([picture, tmp_path / "nowhere.png", picture])
    assert len(next(broken)) == 5
    with pytest.raises(UsageError, match="nowhere.png does not exist"):
        next(broken)
    next(several.stream([picture] * 9)).scores.mul_(2)  # and may be changed in place
    assert torch.get_num_threads() == workers


def test_bfloat16_finds_about_the_same(weights, picture):
    options = {"confidence_threshold": 0, "device": "cpu"}
    for kind in ("shapes", "people"):
        expected = Predictor(weights[kind], **options)(picture)
        found = Predictor(weights[kind], dtype="bfloat16", **options)(picture)
        assert found.pred_boxes.tensor.dtype == found.scores.dtype == torch.float32
        assert float(found.scores[0]) == pytest.approx(float(expected.scores[0]), abs=0.02)
        assert not torch.equal(found.scores, found.scores.bfloat16().float())  # no ties by rounding
        assert found.pred_masks.dtype == torch.bool and len(found) == len(expected)


def test_one_pixel(predictor):
    instances = predictor(np.zeros((1, 1, 3), np.uint8))
    assert instances.image_size == (1, 1)


def test_threshold_and_classes(weights, picture):
    sure = Predictor(weights["shapes"], confidence_threshold=1, device="cpu")
    found = sure(picture)
    assert len(found) == 0
    assert sure.to_coco(found) == []
    for name in ("ring", "disc"):
        only = Predictor(weights["shapes"], confidence_threshold=0, classes=[name])
        assert {only.class_names[index] for index in only(picture).pred_classes} <= {name}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"confidence_threshold": 7}, "must be from 0 to 1, got 7"),
        ({"confidence_threshold": float("nan")}, "must be from 0 to 1, got nan"),
        ({"classes": ["rnig"]}, "'rnig' is no class of this model; did you mean ring"),
        ({"classes": ["zebra"]}, "'zebra' is no class .*disc, ring, square, triangle"),
        ({"device": "gpu"}, "device 'gpu' is no device"),
        ({"device": "meta"}, "device 'meta' is no device; use cuda or cpu"),
        ({"device": "mps"}, "device 'mps' is no device; use cuda or cpu"),
        ({"dtype": "float64"}, "dtype must be one of float32, bfloat16, got 'float64'"),
        ({"weights": "nowhere.pth"}, "weights nowhere.pth does not exist"),
        ({"weights": "configs/x.yaml"}, "weights configs/x.yaml is a config; weights come first"),
        ({"config": "nowhere.yaml"}, "nowhere.yaml does not exist"),
        ({"opts": ["MODEL.X", "1"]}, "MODEL.X"),
    ],
)
def test_what_cannot_work_is_named(weights, changes, message):
    arguments = {"config": None, "weights": weights["shapes"], **changes}
    with pytest.raises(UsageError, match=message):
        Predictor(**arguments)


def test_weights_that_cannot_be_loaded(tmp_path, weights):
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"nothing")
    config = weights["shapes"].with_name("config.yaml")
    for given in (config, None):
        with pytest.raises(UsageError, match="broken.pth is not loaded: it is cut off"):
            Predictor(broken, given)


def test_the_config_is_kept_with_the_weights(tmp_path, weights):
    """Inside of what training writes, so that the one file is enough."""
    moved = shutil.copy(weights["shapes"], tmp_path / "moved.pth")
    assert Predictor(moved).cfg.MODEL.ROI_HEADS.NUM_CLASSES == 4
    content = torch.load(weights["shapes"], weights_only=True)
    torch.save({"model": content["model"]}, tmp_path / "bare.pth")
    with pytest.raises(UsageError, match="which config are .*bare.pth of"):
        Predictor(tmp_path / "bare.pth")
    block = {k: v for k, v in content["model"].items() if ".nl4." not in k}
    torch.save({"model": block}, tmp_path / "plain.pth")
    with pytest.raises(UsageError, match="non-local tensors are missing"):
        Predictor(tmp_path / "plain.pth", weights["shapes"].with_name("config.yaml"))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((1, 5000, 3), np.uint8),
    ],
)
def test_arrays_that_are_no_image(predictor, image):
    with pytest.raises(UsageError, match="the image "):
        predictor(image)


def test_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device(None) == "cuda" and resolve_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device(None) == "cpu"
    with pytest.raises(UsageError, match="no CUDA device here"):
        resolve_device("cuda:0")


def test_classes_of_a_dataset_that_is_not_registered_here(weights):
    cfg = get_cfg()
    opts = ["DATASETS.TEST", "('of_another_script',)"]
    predictor = Predictor(weights["shapes"], device="cpu", opts=opts)
    assert predictor.class_names == [f"class {i}" for i in range(4)]
    assert cfg.MODEL.WEIGHTS == ""


def test_coco_results(predictor, picture):
    instances = predictor(picture)
    before = instances.pred_keypoints.clone() if instances.has("pred_keypoints") else None
    results = predictor.to_coco(instances, image_id=7)
    assert len(results) == 5
    for i, result in enumerate(results):
        assert result["image_id"] == 7
        assert result["category_id"] == instances.pred_classes[i] + 1
        x0, y0, x1, y1 = instances.pred_boxes.tensor[i].tolist()
        assert result["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0], abs=1e-4)
        mask = mask_util.decode(result["segmentation"]).astype(bool)
        assert np.array_equal(mask, instances.pred_masks[i].numpy())
    if before is not None:
        # COCO's keypoints are pixel indices, Detectron2's are half a pixel further.
        assert torch.equal(instances.pred_keypoints, before)
        x, y, _ = np.array(results[0]["keypoints"]).reshape(17, 3).T
        assert np.allclose(x + 0.5, before[0, :, 0]) and np.allclose(y + 0.5, before[0, :, 1])


def test_supervision_detections(predictor, picture):
    pytest.importorskip("supervision", reason="supervision is not installed")
    instances = predictor(picture)
    detections = predictor.to_supervision(instances)
    assert np.array_equal(detections.xyxy, instances.pred_boxes.tensor.numpy())
    assert np.array_equal(detections.mask, instances.pred_masks.numpy())
    names = [predictor.class_names[i] for i in instances.pred_classes]
    assert detections.data["class_name"].tolist() == names
    assert len(predictor.to_supervision(instances[:0])) == 0


def test_supervision_is_asked_for_by_name(predictor, picture, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UsageError, match="pip install supervision"):
        predictor.to_supervision(predictor(picture))
