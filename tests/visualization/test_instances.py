import copy
import json

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances

from nl_detectron.data.builtin import register_generated
from nl_detectron.structures import AttentionMap
from nl_detectron.visualization import (
    contact_sheet,
    draw_ground_truth,
    draw_predictions,
    plot_training_curves,
    spotlight,
)


@pytest.fixture
def dataset(tmp_path):
    register_generated("pictured", tmp_path / "set", kind="people", num_images=3, seed=4)
    yield "pictured"
    DatasetCatalog.remove("pictured")
    MetadataCatalog.remove("pictured")


def predict(image: np.ndarray) -> Instances:
    """One box in the upper left quarter of any image."""
    instances = Instances(image.shape[:2])
    instances.pred_boxes = Boxes(torch.tensor([[4.0, 4, 60, 60]]))
    instances.scores = torch.tensor([0.9])
    instances.pred_classes = torch.tensor([0])
    return instances


def test_draws_truth_and_predictions_side_by_side(dataset, tmp_path):
    files = draw_predictions(predict, dataset, tmp_path / "out", num_images=2, height=256)
    assert [file.name for file in files] == ["000001.png", "000002.png"]
    record = DatasetCatalog.get(dataset)[0]
    drawn = cv2.imread(str(files[0])).astype(int)
    assert drawn.shape == (256, 256 + 4 + 256, 3)
    plain = cv2.resize(cv2.imread(record["file_name"]), (256, 256)).astype(int)
    truth, found = abs(drawn[:, :256] - plain).mean(2), abs(drawn[:, 260:] - plain).mean(2)
    # The truth's mask is drawn over; the prediction is in its quarter.
    assert truth.mean() > 10
    assert found[:128, :128].mean() > 2 * found[140:, 140:].mean()
    assert (drawn[:, 256:260] == 255).all()


def test_draws_annotations_of_which_some_lack_something(dataset):
    record = copy.deepcopy(DatasetCatalog.get(dataset)[0])
    image = cv2.imread(record["file_name"])
    metadata = MetadataCatalog.get(dataset)
    whole = draw_ground_truth(image, record, metadata)
    first = record["annotations"][0]
    record["annotations"] = [first, {**first}, {**first}, {**first}]
    for annotation, key in zip(
        record["annotations"][1:], ("segmentation", "keypoints", "bbox"), strict=True
    ):
        del annotation[key]
    drawn = draw_ground_truth(image, record, metadata)
    assert drawn.shape == whole.shape and abs(drawn.astype(int) - image).mean() > 1
    nothing = draw_ground_truth(image, {**record, "annotations": []}, metadata)
    del first["bbox"]
    record["annotations"] = [first]
    np.testing.assert_array_equal(draw_ground_truth(image, record, metadata), nothing)


def test_contact_sheet_reads_by_rows(tmp_path):
    files = []
    for i in range(3):
        files.append(tmp_path / f"{i}.png")
        cv2.imwrite(str(files[-1]), np.full((10, 20, 3), 50 * i, np.uint8))
    contact_sheet(files, tmp_path / "sheet.png", columns=2)
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape == (10 + 8 + 10, 20 + 8 + 20, 3)
    assert (sheet[:10, :20] == 0).all() and (sheet[:10, 28:] == 50).all()
    assert (sheet[18:, :20] == 100).all() and (sheet[18:, 28:] == 255).all()


def test_training_curves(tmp_path):
    records = [
        {"iteration": i, "total_loss": 2.0 / (i + 1), "loss_mask": 1.0 / (i + 1), "lr": 0.1}
        for i in range(0, 100, 20)
    ]
    records.append({"iteration": 99, "bbox/AP": 12.5, "segm/AP": float("nan")})
    metrics = tmp_path / "metrics.json"
    metrics.write_text("\n".join(json.dumps(record) for record in records))
    plot_training_curves(metrics, tmp_path / "curves.png", title="a title")
    image = cv2.imread(str(tmp_path / "curves.png"))
    assert image.shape[0] > 400 and 0.005 < (image < 200).any(2).mean() < 0.5


def test_spotlight_is_bright_where_the_query_looks():
    image = np.full((8, 16, 3), 200, np.uint8)
    assert (spotlight(image, None, scale=2) == 30).all()  # 0.15 of it
    weights = np.zeros((2, 4), np.float32)
    weights[1, 3] = -0.5  # signed, as a dot product's
    edges = np.linspace(0, 16, 5), np.linspace(0, 8, 3)
    attention = AttentionMap(0, "res4.nl4", "dot_product", (1.0, 1.0), weights, *edges)
    light = spotlight(image, attention, scale=2)
    assert light.shape == (16, 32, 3)
    assert light.max() >= 199 and light[12:, 28:].min() > 100
    assert (light[:4] == 30).all() and (light[:, :12] == 30).all()
