"""What follows from a user's own data, from the command line's words to the picture."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.modeling import build_model

from nl_detectron import Predictor
from nl_detectron.checkpoint import CheckpointError, NonLocalCheckpointer, read_vocabulary
from nl_detectron.data.own import forget
from nl_detectron.engine import Trainer, check_cfg, load_cfg, load_lazy_cfg
from nl_detectron.errors import UsageError
from tests.own import BOARD, CORNERS, FRUIT, make_set, renumbered, write_set

MASK = "quick_schedules/mask_rcnn_shapes_nl.yaml"
KEYPOINT = "quick_schedules/keypoint_rcnn_people_nl.yaml"
LAZY = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_nl_1x.py"
SHORT = ("SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "MODEL.DEVICE", "cpu")
SHORT += ("TEST.DETECTIONS_PER_IMAGE", "5")
SHORT += ("MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.RESNETS.WIDTH_PER_GROUP", "4")


@pytest.fixture(autouse=True)
def clean(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    for name in DatasetCatalog.list():
        if MetadataCatalog.get(name).get("own"):
            forget(name)


@pytest.fixture
def fruit(tmp_path) -> list[tuple[str, str, str]]:
    """A training and a validation set of the same names with other ids."""
    content = make_set(FRUIT)
    return [
        write_set(tmp_path / "data", content, name="fruit_train"),
        write_set(tmp_path / "data", renumbered(content, {0: 8, 10: 2, 12: 5}), name="fruit_val"),
    ]


@pytest.fixture
def board(tmp_path) -> list[tuple[str, str, str]]:
    return [write_set(tmp_path / "data", make_set(BOARD, keypoints=True), name="board_train")]


def load(datasets: list, *opts: str, config: str = MASK) -> CfgNode:
    return load_cfg(config, [*SHORT, *opts], datasets=datasets)


def test_names_say_what_is_trained_on(fruit):
    cfg = load(fruit)
    assert cfg.DATASETS.TRAIN == ("fruit_train",) and cfg.DATASETS.TEST == ("fruit_val",)
    said = load(fruit, "DATASETS.TRAIN", "('fruit_val', 'fruit_train')", "DATASETS.TEST", "()")
    assert said.DATASETS.TRAIN == ("fruit_val", "fruit_train") and said.DATASETS.TEST == ()


def test_the_config_is_complete_for_a_later_run_from_elsewhere(fruit, tmp_path, monkeypatch):
    relative = [(n, str(Path(f).relative_to(tmp_path)), "data/images") for n, f, _ in fruit]
    (tmp_path / "config.yaml").write_text(load(relative).dump())
    for name, _, _ in fruit:
        forget(name)
    monkeypatch.chdir("/")
    cfg = load_cfg(tmp_path / "config.yaml")
    assert [list(dataset) for dataset in fruit] == cfg.DATASETS.OWN
    assert len(DatasetCatalog.get("fruit_val")) == 8
    for _, file, _ in fruit:  # the data have gone, but not the model
        Path(file).unlink()
    forget("fruit_val")
    assert load_cfg(tmp_path / "config.yaml").MODEL.ROI_HEADS.NUM_CLASSES == 3
    with pytest.raises(UsageError, match="'fruit_val' is not registered"):
        check_cfg(load_cfg(tmp_path / "config.yaml"), eval_only=True)


def test_the_model_has_the_classes_of_the_data(fruit):
    cfg = load(fruit)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == cfg.MODEL.RETINANET.NUM_CLASSES == 3
    assert cfg.DATASETS.CLASSES == ["apple", "pear", "plum"]
    check_cfg(cfg)
    with pytest.raises(UsageError, match="NUM_CLASSES is 4, but dataset 'fruit_train' has 3"):
        load(fruit, "MODEL.ROI_HEADS.NUM_CLASSES", "4")
    assert load(fruit, "MODEL.ROI_HEADS.NUM_CLASSES", "3").MODEL.ROI_HEADS.NUM_CLASSES == 3


def test_classes_match_by_name_in_all_sets(fruit):
    load(fruit)
    first = {
        name: DatasetCatalog.get(name)[0]["annotations"][0]["category_id"] for name, _, _ in fruit
    }
    assert first == {"fruit_train": 1, "fruit_val": 1}


def test_the_order_of_classes_can_be_said(fruit):
    cfg = load(fruit, "DATASETS.CLASSES", "['plum', 'pear', 'apple', 'fig']")
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 4
    assert DatasetCatalog.get("fruit_train")[0]["annotations"][1]["category_id"] == 0


def test_keypoints_of_the_data(board):
    cfg = load(board, "DATASETS.TEST", "('board_train',)", config=KEYPOINT)
    assert cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS == 5
    assert cfg.TEST.KEYPOINT_OKS_SIGMAS == [0.067] * 5
    check_cfg(cfg)
    sigmas = ("TEST.KEYPOINT_OKS_SIGMAS", "[0.1, 0.1, 0.1, 0.1, 0.2]")
    assert load(board, *sigmas, config=KEYPOINT).TEST.KEYPOINT_OKS_SIGMAS[4] == 0.2


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("TEST.KEYPOINT_OKS_SIGMAS", "[0.1]"), "KEYPOINT_OKS_SIGMAS has 1 values.*5 keypoints"),
        (("MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "17"), "NUM_KEYPOINTS is 17.*has 5 keypoints"),
        (("DATASETS.KEYPOINT_FLIP_PAIRS", "[['a', 'b']]"), "KEYPOINT_FLIP_PAIRS names 'a'"),
    ],
)
def test_what_contradicts_the_keypoints_is_refused(board, opts, message):
    with pytest.raises(UsageError, match=message):
        load(board, *opts, config=KEYPOINT)


def test_a_keypoint_model_needs_keypoints(fruit):
    with pytest.raises(UsageError, match="'fruit_train' has no keypoints.*without keypoints"):
        load(fruit, config=KEYPOINT)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (("a", "b"), "a dataset is a name, an annotation file and a folder"),
        (("a_train", "nothing.json", "."), "'a_train': there is no annotation file .*nothing.json"),
        (("shapes_train", "data/fruit_train.json", "data"), "one of this name already"),
    ],
)
def test_datasets_that_cannot_work(fruit, dataset, message):
    with pytest.raises(UsageError, match=message):
        load([dataset])
    with pytest.raises(UsageError, match="two datasets are called 'fruit_train'"):
        load([fruit[0], fruit[0]])


def test_nothing_to_train_on_is_said(fruit):
    with pytest.raises(UsageError, match="DATASETS.TRAIN is empty"):
        check_cfg(load(fruit[1:]))
    check_cfg(load(fruit[1:]), eval_only=True)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("OUTPUT_DIR", "x", "--resume"), "^--resume comes after KEY VALUE pairs"),
        (("OUTPUT_DIR", "x", "--num-gpus", "1"), "^--num-gpus comes after KEY VALUE pairs"),
        (("OUTPUT_DIR=x",), "'OUTPUT_DIR=x' is one word; write it as two: OUTPUT_DIR x"),
        (("OUTPUT_DIR",), "'OUTPUT_DIR' has no value"),
        (("DATASETS.TEST", "my_val"), r"write it as \"\('my_val',\)\""),
    ],
)
def test_words_after_key_value_are_explained(opts, message):
    with pytest.raises(UsageError, match=message):
        load_cfg(MASK, opts)


def test_lazy_configs_follow_the_data_too(fruit):
    cfg = load_lazy_cfg(LAZY, ["train.init_checkpoint="], datasets=fruit)
    assert cfg.dataloader.train.dataset.names == "fruit_train"
    assert cfg.dataloader.test.dataset.names == cfg.dataloader.evaluator.dataset_name == "fruit_val"
    assert cfg.model.roi_heads.num_classes == cfg.model.roi_heads.mask_head.num_classes == 3
    assert cfg.own.classes == ["apple", "pear", "plum"] and len(cfg.own.datasets) == 2
    with pytest.raises(UsageError, match="num_classes is 80, but dataset 'fruit_train' has 3"):
        load_lazy_cfg(LAZY, ["model.roi_heads.num_classes=80"], datasets=fruit)


def test_lazy_keypoint_models_follow_the_keypoints(board):
    name = "COCO-Keypoints/keypoint_rcnn_R_50_FPN_nl_1x.py"
    cfg = load_lazy_cfg(name, ["dataloader.test.dataset.names=board_train"], datasets=board)
    assert cfg.model.roi_heads.keypoint_head.num_keypoints == 5
    assert cfg.dataloader.train.mapper.keypoint_hflip_indices == [1, 0, 2, 4, 3]
    assert cfg.dataloader.evaluator.kpt_oks_sigmas == [0.067] * 5


def test_a_mirrored_image_has_its_keypoints_mirrored_and_renamed(board):
    cfg = load(board, "INPUT.MIN_SIZE_TRAIN", "(64,)", config=KEYPOINT)
    left, right = CORNERS.index("left_top"), CORNERS.index("right_top")
    seen = set()
    for _, sample in zip(range(24), iter(build_detection_train_loader(cfg)), strict=False):
        for record in sample:
            original = cv2.imread(record["file_name"])
            image = record["image"].permute(1, 2, 0).numpy()
            flipped = not np.array_equal(image, original)
            assert np.array_equal(image, original[:, ::-1] if flipped else original)
            points = record["instances"].gt_keypoints.tensor
            assert (points[:, left, 0] < points[:, right, 0]).all()  # in the picture
            seen.add(flipped)
    assert seen == {True, False}


def test_from_other_classes_only_their_layers_start_anew(fruit, tmp_path, log):
    torch.manual_seed(0)
    coco = load_cfg(MASK, [*SHORT, *("MODEL.ROI_HEADS.NUM_CLASSES", "80")])
    model = build_model(coco)
    NonLocalCheckpointer(model, str(tmp_path), cfg=coco).save("coco")
    cfg = load(fruit, "MODEL.WEIGHTS", "coco.pth", "OUTPUT_DIR", "out")
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    report = trainer.checkpointer.report
    assert [mismatch[0] for mismatch in report.new_classes] == [
        "roi_heads.box_predictor.cls_score.weight",
        "roi_heads.box_predictor.cls_score.bias",
    ]
    assert not (report.mismatched or report.missing or report.unexpected)
    assert (
        "new classes (random start)" in log.text and "[81, 256] in the model [4, 256]" in log.text
    )
    kept = trainer.model.state_dict()
    assert all(torch.equal(kept[name], model.state_dict()[name]) for name in report.loaded)
    with pytest.raises(CheckpointError, match="2 tensors are of other classes or keypoints"):
        Trainer.evaluate(cfg, resume=False)


def test_class_specific_layers_and_keypoints_are_made_by_classes(tmp_path):
    def build(num_classes: int, num_keypoints: int, fc_dim: int = 32) -> torch.nn.Module:
        opts = ["MODEL.ROI_HEADS.NUM_CLASSES", num_classes, "MODEL.ROI_BOX_HEAD.FC_DIM", fc_dim]
        opts += ["MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", num_keypoints]
        opts += ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "False"]
        return build_model(
            load_cfg(KEYPOINT, [*SHORT, *opts, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", "False"])
        )

    NonLocalCheckpointer(build(5, 17), str(tmp_path)).save("model")
    checkpointer = NonLocalCheckpointer(build(2, 3))
    checkpointer.load(str(tmp_path / "model.pth"))
    layers = {name.rpartition(".")[0] for name, _, _ in checkpointer.report.new_classes}
    heads = {"box_predictor.cls_score", "box_predictor.bbox_pred", "mask_head.predictor"}
    assert layers == {f"roi_heads.{head}" for head in (*heads, "keypoint_head.score_lowres")}
    assert len(checkpointer.report.new_classes) == 8
    with pytest.raises(CheckpointError, match="tensors have another shape"):
        NonLocalCheckpointer(build(2, 3, fc_dim=16)).load(str(tmp_path / "model.pth"))


def test_weights_are_not_evaluated_on_other_classes(fruit, tmp_path, log):
    cfg = load(fruit, "OUTPUT_DIR", "out")
    trainer = Trainer(cfg)
    trainer.checkpointer.save("model")
    assert "fruit_train: 3 classes (apple, pear, plum)" in log.text
    assert read_vocabulary("out/model.pth")["thing_classes"] == ["apple", "pear", "plum"]
    # classes are those of the weights, whatever the file's order
    other = renumbered(make_set(FRUIT), {0: 9, 12: 3})
    dataset = write_set(tmp_path / "other", other, name="other_val")
    weights = ("MODEL.WEIGHTS", "out/model.pth", "OUTPUT_DIR", "out2")
    cfg = load([dataset], *weights)
    assert cfg.DATASETS.CLASSES == ["apple", "pear", "plum"]
    Trainer.evaluate(cfg, resume=False)
    turned = load([dataset], *weights, "DATASETS.CLASSES", "['plum', 'pear', 'apple']")
    with pytest.raises(UsageError, match="classes apple, pear, plum, but .* has plum, pear, apple"):
        Trainer.evaluate(turned, resume=False)


def test_code_of_ones_own_registers_datasets(fruit, tool, tmp_path):
    name, file, images = fruit[0]
    code = "from detectron2.data.datasets import register_coco_instances\n"
    code += f"register_coco_instances('imported', {{}}, {file!r}, {images!r})\n"
    (tmp_path / "my_datasets.py").write_text(code)
    datasets = ("DATASETS.TRAIN", "('imported',)", "DATASETS.TEST", "()", "OUTPUT_DIR", "out")
    run = ("train_net", "--config-file", MASK, "--import", "my_datasets.py")
    try:
        # It is known, and so are its classes.
        code, _, errors = tool(*run, *SHORT, *datasets)
        assert code == 2 and "'imported' has 3 categories but the model 4 classes" in errors
        # The check and the training read the same command line: the file runs once.
        code, _, errors = tool(*run, *SHORT, *datasets, "MODEL.ROI_HEADS.NUM_CLASSES", 3)
        assert code == 0, errors
    finally:
        DatasetCatalog.remove("imported")
        MetadataCatalog.pop("imported")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "--import my.py does not exist"),
        ("import nothing_of_this_name", "--import my.py fails: .*nothing_of_this_name"),
        ("(", "--import my.py fails: SyntaxError"),
    ],
)
def test_code_that_cannot_run_is_named(tool, tmp_path, text, message):
    if text is not None:
        (tmp_path / "my.py").write_text(text)
    code, _, errors = tool("train_net", "--config-file", MASK, "--import", "my.py")
    assert code == 2 and re.search(message, errors.splitlines()[-1])


@pytest.mark.slow
def test_train_evaluate_and_predict_with_the_right_names(fruit, tool, tmp_path):
    words = [word for dataset in fruit for word in ("--dataset", *dataset)]
    code, _, errors = tool("train_net", "--config-file", MASK, *words, *SHORT, "OUTPUT_DIR", "out")
    assert code == 0, errors
    run = (
        "--config-file",
        "out/config.yaml",
        "--eval-only",
        "MODEL.WEIGHTS",
        "out/model_final.pth",
    )
    assert tool("train_net", *run)[0] == 0
    category_ids = {
        r["category_id"]
        for r in json.loads(Path("out/inference/coco_instances_results.json").read_text())
    }
    assert category_ids <= {8, 2, 5}  # the validation file's
    predictor = Predictor("out/model_final.pth", confidence_threshold=0.0, device="cpu")
    assert predictor.class_names == ["apple", "pear", "plum"]
    found = predictor.to_coco(predictor("data/images/1.png"))
    assert found and {result["category_id"] for result in found} <= {
        0,
        10,
        12,
    }  # the training file's
    code, out, errors = tool("report", "out")
    assert code == 0, errors
    assert "plum" in Path("out/report.html").read_text()
