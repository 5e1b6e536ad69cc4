import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from dev.benchmark.detections import KINDS, generate, read_predictions


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("generated") / request.param
    generate(folder, request.param, num_images=30, seed=3)
    return folder


def test_a_seed_gives_the_same_set(folder, tmp_path):
    generate(tmp_path / "again", folder.name, num_images=30, seed=3)
    generate(tmp_path / "other", folder.name, num_images=30, seed=4)
    for name in ("annotations.json", "predictions.pkl"):
        again, other = ((tmp_path / f / name).read_bytes() for f in ("again", "other"))
        assert again == (folder / name).read_bytes() != other


def test_annotations_are_like_cocos(folder):
    truth = json.loads((folder / "annotations.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    annotations = truth["annotations"]
    mean = {"instances": 7.3, "person_keypoints": 4.1}[folder.name]
    assert len(annotations) == pytest.approx(30 * mean, rel=0.25)
    assert [annotation["id"] for annotation in annotations] == list(range(1, len(annotations) + 1))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(folder / "annotations.json"))
    for annotation in annotations:
        x, y, width, height = annotation["bbox"]
        rows, columns = sizes[annotation["image_id"]]
        assert x >= 0 and y >= 0 and x + width <= columns + 0.01 and y + height <= rows + 0.01
        if folder.name == "instances":
            mask = coco.annToMask(annotation)
            assert mask.shape == (rows, columns)
            assert mask.sum() == annotation["area"] > 0
        else:
            points = np.array(annotation["keypoints"]).reshape(17, 3)
            assert (points[:, 2] > 0).sum() == annotation["num_keypoints"]
    for limits in ((0, 32), (32, 96), (96, 1e5)):
        sides = np.sqrt([annotation["area"] for annotation in annotations])
        assert 0.1 < ((sides >= limits[0]) & (sides < limits[1])).mean() < 0.6


def test_detections_are_as_detectron2_makes_them(folder):
    predictions = list(read_predictions(folder))
    assert [len(results) for results in predictions] == [100] * 30
    for image_id, results in enumerate(predictions, start=1):
        assert {result["image_id"] for result in results} == {image_id}
        scores = [result["score"] for result in results]
        assert scores == sorted(scores, reverse=True)
        assert min(scores) >= 0.05 and max(scores) <= 1
    results = predictions[0]
    assert all(isinstance(value, float) for value in results[0]["bbox"])
    if folder.name == "instances":
        assert {type(result["segmentation"]["counts"]) for result in results} == {str}
        assert (mask_util.area([result["segmentation"] for result in results]) > 0).all()
        classes = {result["category_id"] for found in predictions for result in found}
        assert min(classes) == 0 and max(classes) == 79 and len(classes) > 60
    else:
        assert {len(result["keypoints"]) for result in results} == {51}


def test_crowds_are_runs_of_the_same_area(tmp_path):
    generate(tmp_path / "set", "instances", num_images=60, seed=1, num_detections=1)
    annotations = json.loads((tmp_path / "set/annotations.json").read_text())["annotations"]
    crowds = [annotation for annotation in annotations if annotation["iscrowd"]]
    assert 1 <= len(crowds) < 0.05 * len(annotations)
    for crowd in crowds:
        counts = crowd["segmentation"]["counts"]
        assert sum(counts) == np.prod(crowd["segmentation"]["size"])
        assert sum(counts[1::2]) == crowd["area"]
