"""On real COCO images, where a folder of them is given.

NL_DETECTRON_COCO_CCBY names a folder with images/, instances.json and person_keypoints.json in
COCO's format.
"""

import json
import os
from pathlib import Path

import cv2
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor

from nl_detectron import insert_non_local
from nl_detectron.data.own import forget
from nl_detectron.engine import Trainer, check_cfg, load_cfg
from nl_detectron.visualization import read_metrics
from tests.places import CONFIGS

FOLDER = os.environ.get("NL_DETECTRON_COCO_CCBY")
KINDS = {
    "instances": ("coco", "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_nl_1x.yaml"),
    "person_keypoints": ("coco_person", "COCO-Keypoints/keypoint_rcnn_R_50_FPN_nl_1x.yaml"),
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER, reason="NL_DETECTRON_COCO_CCBY names no folder of COCO images"),
]


@pytest.fixture(params=KINDS)
def config(request, tmp_path):
    metadata, config = KINDS[request.param]
    name = f"real_{request.param}"
    register_coco_instances(
        name,
        _get_builtin_metadata(metadata),
        str(Path(FOLDER, f"{request.param}.json")),
        str(Path(FOLDER, "images")),
    )
    opts = ["DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", f"('{name}',)", "MODEL.WEIGHTS", ""]
    opts += ["OUTPUT_DIR", str(tmp_path), "MODEL.RESNETS.NORM", "GN", "SEED", "1"]
    yield CONFIGS / config, opts
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_trains_evaluates_and_shows(config, tmp_path, tool):
    file, opts = config
    small = "INPUT.MIN_SIZE_TRAIN (160,) INPUT.MIN_SIZE_TEST 160 DATALOADER.NUM_WORKERS 0"
    opts += small.split()
    opts += [
        "SOLVER.MAX_ITER",
        "2",
        "SOLVER.IMS_PER_BATCH",
        "2",
        "TEST.DETECTIONS_PER_IMAGE",
        "5",
    ]
    opts += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]  # keeps some, though all are wrong
    cfg = load_cfg(file, opts)
    check_cfg(cfg)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    metrics = read_metrics(tmp_path / "metrics.json")[-1]
    tasks = {"bbox", "keypoints" if cfg.MODEL.KEYPOINT_ON else "segm"}
    assert {key.split("/")[0] for key in metrics if key.endswith("/AP")} == tasks

    # The tools on what came of it
    (tmp_path / "config.yaml").write_text(cfg.dump())
    images = Path(FOLDER, "images")
    options = ["--weights", tmp_path / "model_final.pth", "--confidence-threshold", "0"]
    drawings = ["--output", tmp_path / "drawn", "--save-json"]
    code, out, err = tool("predict", *options, "--input", images, *drawings)
    count = len(list(images.iterdir()))
    assert code == 0 and f"{count} written" in out, err
    results = json.loads((tmp_path / "drawn/coco_instances_results.json").read_text())
    records = {record["image_id"]: record for record in DatasetCatalog.get(cfg.DATASETS.TEST[0])}
    assert {result["image_id"] for result in results} >= set(records)
    for record in records.values():
        drawn = cv2.imread(str(tmp_path / "drawn" / Path(record["file_name"]).name))
        assert drawn.shape == (record["height"], record["width"], 3)
    some = sorted(images.iterdir())[::5]
    options += ["--input", *some, "--output", tmp_path / "attention"]
    code, out, err = tool("visualize_attention", *options, "--per-instance", "--max-instances", 1)
    assert code == 0 and f"{len(some)} written" in out, err
    code, out, err = tool("report", tmp_path, "--num-images", 3)
    assert code == 0, err
    assert 100_000 < (tmp_path / "report.html").stat().st_size < 10_000_000


def test_blocks_put_into_a_predictor_change_nothing_at_first(config):
    file, opts = config
    opts += ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"]
    opts += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "INPUT.MIN_SIZE_TEST", "400"]
    opts += ["MODEL.ROI_KEYPOINT_HEAD.NAME", "KRCNNConvDeconvUpsampleHead"]
    opts += ["TEST.DETECTIONS_PER_IMAGE", "5", "MODEL.RPN.POST_NMS_TOPK_TEST", "50"]
    predictor = DefaultPredictor(load_cfg(file, opts))
    record = DatasetCatalog.get(opts[1].strip("()',"))[0]
    image = read_image(record["file_name"], format="BGR")
    expected = predictor(image)["instances"]
    insert_non_local(predictor.model, ["res3.1", "res3.3", "res4.1", "res4.3", "res4.5"])
    actual = predictor(image)["instances"]
    assert len(expected) > 0
    assert torch.equal(actual.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(actual.scores, expected.scores)


def test_own_classes_from_three_commands(tmp_path, tool, monkeypatch):
    """Three classes of ids 0, 10 and 12, as an exporter might write them."""
    monkeypatch.chdir(tmp_path)
    content = json.loads(Path(FOLDER, "instances.json").read_text())
    ids = {"person": 0, "car": 10, "chair": 12}
    own = {c["id"]: ids[c["name"]] for c in content["categories"] if c["name"] in ids}
    words = []
    for split, images in (("train", content["images"][:40]), ("val", content["images"][40:])):
        names = {image["id"] for image in images}
        annotations = [
            a | {"category_id": own[a["category_id"]]}
            for a in content["annotations"]
            if a["image_id"] in names and a["category_id"] in own
        ]
        categories = [{"id": number, "name": name} for name, number in ids.items()]
        part = {"images": images, "annotations": annotations, "categories": categories}
        Path(f"{split}.json").write_text(json.dumps(part))
        words += ["--dataset", f"real_{split}", f"{split}.json", Path(FOLDER, "images")]
    config = "quick_schedules/mask_rcnn_shapes_nl.yaml"
    schedule = ("SOLVER.MAX_ITER", 4, "SOLVER.IMS_PER_BATCH", 4, "MODEL.DEVICE", "cpu")
    schedule += ("OUTPUT_DIR", "out")
    try:
        code, _, errors = tool("train_net", "--config-file", config, *words, *schedule)
        assert code == 0, errors
        weights = ("--weights", "out/model_final.pth", "--confidence-threshold", 0.05)
        image = Path(FOLDER, "images", content["images"][0]["file_name"])
        drawn = ("--input", image, "--output", "drawn", "--save-json", "--classes", "person", "car")
        code, _, errors = tool("predict", *weights, *drawn)
        assert code == 0, errors
        code, _, errors = tool("report", "out")
        assert code == 0, errors
    finally:
        for name in ("real_train", "real_val"):
            forget(name)
    for file, expected in (("out/inference", {0, 10, 12}), ("drawn", {0, 10})):
        results = json.loads(Path(file, "coco_instances_results.json").read_text())
        assert results and {result["category_id"] for result in results} <= expected
    page = Path("out/report.html").read_text()
    assert all(name in page for name in ids)
