import argparse

import pytest
import torch
from detectron2 import model_zoo
from detectron2.data import MetadataCatalog
from detectron2.engine import default_argument_parser

from nl_detectron.engine import UsageError, argument_parser, check_cfg, load_cfg, usage_errors

from .conftest import CONFIGS, needs_two_cores

MASK = str(CONFIGS / "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_nl_1x.yaml")
KEYPOINT = str(CONFIGS / "COCO-Keypoints/keypoint_rcnn_R_50_FPN_nl_1x.yaml")
COCO = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
PERSON = {**COCO, "categories": [{"id": 1, "name": "person", "keypoints": ["nose"]}]}


def parse(*arguments: str) -> argparse.Namespace:
    return default_argument_parser().parse_args(list(arguments))


def check(*arguments: str) -> None:
    args = parse(*arguments)
    check_cfg(load_cfg(args), args)


@pytest.fixture(autouse=True)
def in_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_device_is_the_cpu_without_cuda_unless_the_config_says_otherwise(monkeypatch):
    assert load_cfg(parse()).MODEL.DEVICE == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert load_cfg(parse()).MODEL.DEVICE == "cuda"
    assert load_cfg(parse("MODEL.DEVICE", "cpu")).MODEL.DEVICE == "cpu"


def test_options_come_after_the_file():
    cfg = load_cfg(parse("--config-file", MASK, "MODEL.NON_LOCAL.NORM", "BN"))
    assert cfg.MODEL.BACKBONE.NAME == "build_non_local_resnet_fpn_backbone"
    assert cfg.MODEL.NON_LOCAL.NORM == "BN" and cfg.is_frozen()


def test_a_config_that_can_work(dataset):
    name = dataset(COCO)
    check("--config-file", MASK, "DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", f"('{name}',)")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config-file", "x.yaml"), "--config-file x.yaml does not exist"),
        (
            ("MODEL.NON_LOCAL.PAIRWIZE", "gaussian"),
            "command line: .*MODEL.NON_LOCAL.PAIRWIZE; did you mean PAIRWISE",
        ),
        (("MODEL.NON_LOCAL.SUB_SAMPLE", "7.5"), "command line: .*SUB_SAMPLE"),
        (("SOLVER.MAX_ITER",), "command line: .*odd length"),
        (("MODEL.NON_LOCAL.PAIRWISE", "gausian"), "embedded_gaussian.*'gausian'"),
        (("MODEL.NON_LOCAL.NORM", "FrozenBN"), "FrozenBN.*zero start"),
        (("MODEL.NON_LOCAL.NORM", "XN"), "MODEL.NON_LOCAL: norm='XN'.*GN"),
        (("MODEL.WEIGHTS.X", "3"), "command line: .*WEIGHTS"),
        (("MODEL.DEVICE", "gpu"), "MODEL.DEVICE 'gpu'"),
        (("SOLVER.AMP.ENABLED", "True"), "AMP.ENABLED True needs a CUDA device"),
        (("MODEL.NON_LOCAL.INNER_RATIO", "0.0"), "above 0, got 0.0"),
        (("MODEL.NON_LOCAL.AFTER", "['res4.6']"), "'res4.6'.*res4.0 to res4.5"),
        (("MODEL.BACKBONE.NAME", "build_nonlocal"), "'build_nonlocal' is not registered"),
        (
            ("MODEL.ROI_KEYPOINT_HEAD.NAME", "NonLocalKeypointhead"),
            "did you mean NonLocalKeypointHead",
        ),
        (("SOLVER.OPTIMIZER", "Adam"), "AdamW.*'Adam'"),
        (("SOLVER.NON_LOCAL_LR_FACTOR", "-1.0"), "SOLVER.NON_LOCAL_LR_FACTOR must be 0 or more"),
        (("MODEL.DEVICE", "cuda"), "no CUDA device here; use MODEL.DEVICE cpu"),
        (("MODEL.WEIGHTS", "nowhere.pth"), "nowhere.pth does not exist"),
        (("DATASETS.TRAIN", "()"), "DATASETS.TRAIN is empty"),
        (("DATASETS.TRAIN", "('shape_train',)"), "'shape_train'.*did you mean shapes_train"),
        (("--num-gpus", "4000"), "--num-gpus 4000: this machine has .* CPU cores.*use"),
        (("--num-gpus", "0"), "--num-gpus 0"),
    ],
)
def test_one_line_that_names_the_value(arguments, message, dataset):
    config = () if arguments[0] == "--config-file" else ("--config-file", MASK)
    if arguments[0].startswith("--"):
        config, arguments = (*arguments, *config), ()
    with pytest.raises(UsageError, match=message) as error:
        check(*config, "MODEL.WEIGHTS", "", *arguments)
    assert "\n" not in str(error.value)


def test_missing_coco_says_where_it_belongs():
    with pytest.raises(UsageError, match="instances_train2017.json.*DETECTRON2_DATASETS"):
        check("--config-file", MASK)


@needs_two_cores
def test_batch_that_cannot_be_shared_out():
    with pytest.raises(UsageError, match="IMS_PER_BATCH 3 .* 2 processes"):
        check("--num-gpus", "2", "--config-file", MASK, "SOLVER.IMS_PER_BATCH", "3")


def test_nothing_to_evaluate_on():
    with pytest.raises(UsageError, match="DATASETS.TEST is empty"):
        check("--eval-only", "--config-file", MASK, "DATASETS.TEST", "()")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<html>", "is no JSON file"),
        ([1, 2], "no COCO annotation file: it has no list of objects 'images'"),
        ({"images": [], "categories": []}, "no list of objects 'annotations'"),
        ({"images": [], "annotations": [], "categories": {}}, "no list of objects 'categories'"),
        ({**COCO, "categories": ["person"]}, "no list of objects 'categories'"),
        ({**COCO, "categories": [{}] * 81}, "81 categories .* 80 classes.*NUM_CLASSES 81"),
    ],
)
def test_annotation_files(content, message, dataset):
    name = dataset(content)
    with pytest.raises(UsageError, match=message):
        check("--config-file", MASK, "DATASETS.TRAIN", f"('{name}',)")


def test_keypoints_that_do_not_fit(dataset):
    name = dataset(PERSON)
    datasets = ("DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", f"('{name}',)")
    with pytest.raises(UsageError, match="1 keypoints for 'person'.*NUM_KEYPOINTS 17"):
        check("--config-file", KEYPOINT, *datasets)
    with pytest.raises(UsageError, match="KEYPOINT_OKS_SIGMAS has 17 values"):
        check("--config-file", KEYPOINT, *datasets, "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "1")
    with pytest.raises(UsageError, match="KEYPOINT_HEAD_AFTER.*1 to 8"):
        check("--config-file", KEYPOINT, "MODEL.NON_LOCAL.KEYPOINT_HEAD_AFTER", "[9]")


def test_output_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="OUTPUT_DIR file/output cannot be written"):
        check("--config-file", MASK, "OUTPUT_DIR", "file/output")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("MODEL: [", "while parsing a flow node.*line 1"),
        ("- a\n- b", "list"),
        ("_BASE_: nowhere.yaml", "nowhere.yaml"),
        ("MODEL:\n  MASK_ONN: True", "MODEL.MASK_ONN; did you mean MASK_ON"),
        ("MODLE:\n  MASK_ON: True", "MODLE; did you mean MODEL"),
    ],
)
def test_files_that_are_no_config(content, message, tmp_path):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UsageError, match=f"cannot read the config from config.yaml: .*{message}"):
        load_cfg(parse("--config-file", "config.yaml"))


def test_detectron2s_own_configs_are_read():
    """Also those that use Python tags, as the one of RetinaNet does."""
    file = model_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    name = "build_non_local_retinanet_resnet_fpn_backbone"
    cfg = load_cfg(parse("--config-file", file, "MODEL.BACKBONE.NAME", name))
    assert len(cfg.MODEL.ANCHOR_GENERATOR.SIZES) == 5


def test_a_test_set_needs_no_annotations(dataset):
    name = dataset({"images": [], "categories": COCO["categories"]})
    test = ("--config-file", MASK, "MODEL.WEIGHTS", "", "DATASETS.TEST", f"('{name}',)")
    check("--eval-only", *test)
    with pytest.raises(UsageError, match="no list of objects 'annotations'"):
        check(*test, "DATASETS.TRAIN", f"('{name}',)")


def test_an_evaluator_is_known_before_training(dataset):
    name = dataset(COCO)
    MetadataCatalog.get(name).evaluator_type = "coco"
    MetadataCatalog.pop(name)
    MetadataCatalog.get(name).set(evaluator_type="unheard_of")
    with pytest.raises(UsageError, match="'unheard_of'.* there are some for coco, "):
        check("--eval-only", "--config-file", MASK, "DATASETS.TEST", f"('{name}',)")


def test_weights_are_not_needed_to_resume(dataset, tmp_path):
    name = dataset(COCO)
    datasets = ("DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", "()", "OUTPUT_DIR", "out")
    arguments = ("--config-file", MASK, "MODEL.WEIGHTS", "nowhere.pth", *datasets)
    with pytest.raises(UsageError, match="nowhere.pth does not exist"):
        check("--resume", *arguments)
    (tmp_path / "out/last_checkpoint").write_text("model_final.pth")
    check("--resume", *arguments)


def test_exit_code_is_2(capsys):
    with pytest.raises(SystemExit) as exit, usage_errors():
        raise UsageError("so and so")
    assert exit.value.code == 2 and capsys.readouterr().err == "error: so and so\n"


TAGGED = 'OUTPUT_DIR: !!python/object/apply:os.system ["touch created"]\n'


@pytest.mark.parametrize("base", [False, True])
def test_a_config_runs_nothing(tmp_path, base):
    path = tmp_path / "evil.yaml"
    path.write_text(TAGGED)
    if base:
        path = tmp_path / "leaf.yaml"
        path.write_text("_BASE_: evil.yaml\n")
    with pytest.raises(UsageError, match="object/apply:os.system.*--trust-checkpoint") as error:
        load_cfg(parse("--config-file", str(path)))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "created").exists()
    trusting = argument_parser().parse_args(["--config-file", str(path), "--trust-checkpoint"])
    with pytest.raises(UsageError):  # what it has run gives no folder
        load_cfg(trusting)
    assert (tmp_path / "created").exists()


def test_configs_of_detectron2_are_trusted_as_its_code_is():
    config = model_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    cfg = load_cfg(parse("--config-file", config))
    assert len(cfg.MODEL.ANCHOR_GENERATOR.SIZES) == 5
