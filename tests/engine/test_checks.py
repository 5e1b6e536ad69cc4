import pytest
import torch
from detectron2 import model_zoo
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from nl_detectron.engine import (
    cfg_from_text,
    check_cfg,
    check_lazy_cfg,
    load_cfg,
    load_lazy_cfg,
)
from nl_detectron.engine.devices import check_device
from nl_detectron.errors import UsageError, usage_errors
from nl_detectron.inference.predictor import resolve_device
from tests.places import CONFIGS

from .conftest import needs_two_cores

MASK = str(CONFIGS / "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_nl_1x.yaml")
KEYPOINT = str(CONFIGS / "COCO-Keypoints/keypoint_rcnn_R_50_FPN_nl_1x.yaml")
COCO = {
    "images": [{"id": 1, "file_name": "1.png", "width": 8, "height": 8}],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 1,
            "bbox": [1, 1, 5, 5],
            "area": 25,
            "iscrowd": 0,
            "segmentation": [[1, 1, 6, 1, 6, 6, 1, 6]],
        }
    ],
    "categories": [{"id": 1, "name": "thing"}],
}
MANY = [{"id": i, "name": f"class {i}"} for i in range(81)]
ONE_CLASS = ("MODEL.ROI_HEADS.NUM_CLASSES", "1")
PERSON = {**COCO, "categories": [{"id": 1, "name": "person", "keypoints": ["nose"]}]}


def check(*opts: str, config: str = MASK, **options: object) -> None:
    check_cfg(load_cfg(config, opts), **options)


@pytest.fixture(autouse=True)
def in_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_device_is_the_cpu_without_cuda_unless_the_config_says_otherwise(monkeypatch):
    assert load_cfg(None).MODEL.DEVICE == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert load_cfg(None).MODEL.DEVICE == "cuda"
    assert load_cfg(None, ["MODEL.DEVICE", "cpu"]).MODEL.DEVICE == "cpu"


def test_options_come_after_the_file():
    cfg = load_cfg(MASK, ["MODEL.NON_LOCAL.NORM", "BN"])
    assert cfg.MODEL.BACKBONE.NAME == "build_non_local_resnet_fpn_backbone"
    assert cfg.MODEL.NON_LOCAL.NORM == "BN" and cfg.is_frozen()


def test_a_config_that_can_work(dataset):
    name = dataset(COCO)
    check(*ONE_CLASS, "DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", f"('{name}',)")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("MODEL.NON_LOCAL.PAIRWIZE", "gaussian"),
            "command line: .*MODEL.NON_LOCAL.PAIRWIZE; did you mean PAIRWISE",
        ),
        (("MODEL.NON_LOCAL.SUB_SAMPLE", "7.5"), "command line: .*SUB_SAMPLE"),
        (("SOLVER.MAX_ITER",), "'SOLVER.MAX_ITER' has no value"),
        (("MODEL.NON_LOCAL.AFTER", "None"), r"AFTER has no value; the default is \['res4.-2'\]"),
        (("MODEL.NON_LOCAL.PAIRWISE", "gausian"), "embedded_gaussian.*'gausian'"),
        (("MODEL.NON_LOCAL.NORM", "FrozenBN"), "FrozenBN.*zero start"),
        (("MODEL.NON_LOCAL.NORM", "XN"), "MODEL.NON_LOCAL: norm='XN'.*GN"),
        (("MODEL.NON_LOCAL.BLOCK", "NonLocalBlok"), "'NonLocalBlok'; did you mean NonLocalBlock"),
        (("MODEL.NON_LOCAL.RECURRENCE", "0"), "recurrence must be .* from 1, got 0"),
        (("MODEL.WEIGHTS.X", "3"), "command line: .*WEIGHTS"),
        (("MODEL.DEVICE", "gpu"), "MODEL.DEVICE 'gpu'"),
        (("MODEL.DEVICE", "meta"), "MODEL.DEVICE 'meta' is no device; use cuda or cpu"),
        (("MODEL.DEVICE", "mps"), "MODEL.DEVICE 'mps' is no device; use cuda or cpu"),
        (("SOLVER.AMP.ENABLED", "True"), "AMP.ENABLED True needs a CUDA device"),
        (("MODEL.NON_LOCAL.INNER_RATIO", "0.0"), "above 0, got 0.0"),
        (("MODEL.NON_LOCAL.AFTER", "['res4.6']"), "'res4.6'.*res4.0 to res4.5"),
        (("MODEL.BACKBONE.NAME", "build_nonlocal"), "'build_nonlocal' is not registered"),
        (
            ("MODEL.ROI_KEYPOINT_HEAD.NAME", "NonLocalKeypointhead"),
            "did you mean NonLocalKeypointHead",
        ),
        (("SOLVER.OPTIMIZER", "Adam"), "AdamW.*'Adam'"),
        (
            ("SOLVER.NON_LOCAL_OTHERS_LR_FACTOR", "-1.0"),
            "SOLVER.NON_LOCAL_OTHERS_LR_FACTOR must be 0 or more",
        ),
        (("MODEL.DEVICE", "cuda"), "no CUDA device here; use MODEL.DEVICE cpu"),
        (("MODEL.WEIGHTS", "nowhere.pth"), "nowhere.pth does not exist"),
        (("DATASETS.TRAIN", "()"), "DATASETS.TRAIN is empty"),
        (("DATASETS.TRAIN", "('shape_train',)"), "'shape_train'.*did you mean shapes_train"),
    ],
)
def test_one_line_that_names_the_value(arguments, message, dataset):
    with pytest.raises(UsageError, match=message) as error:
        check("MODEL.WEIGHTS", "", *arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": "x.yaml"}, "config_file x.yaml does not exist"),
        ({"num_gpus": 4000}, "num_gpus 4000: this machine has .* CPU cores.*use"),
        ({"num_gpus": 0}, "num_gpus 0"),
    ],
)
def test_one_line_that_names_the_argument(options, message):
    with pytest.raises(UsageError, match=message) as error:
        check("MODEL.WEIGHTS", "", **options)
    assert "\n" not in str(error.value)
    flag = "--" + error.value.arguments[0].replace("_", "-")
    assert error.value.on_command_line().startswith(f"{flag} ")


def test_missing_coco_says_where_it_belongs():
    with pytest.raises(UsageError, match="instances_train2017.json.*DETECTRON2_DATASETS"):
        check()


@needs_two_cores
def test_batch_that_cannot_be_shared_out():
    with pytest.raises(UsageError, match="IMS_PER_BATCH 3 .* 2 processes"):
        check("SOLVER.IMS_PER_BATCH", "3", num_gpus=2)


def test_nothing_to_evaluate_on():
    with pytest.raises(UsageError, match="DATASETS.TEST is empty"):
        check("DATASETS.TEST", "()", eval_only=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<html>", "is no JSON file"),
        ([1, 2], "no COCO annotation file: it has no list of objects 'images'"),
        ({"images": [], "categories": []}, "no list of objects 'annotations'"),
        ({"images": [], "annotations": [], "categories": {}}, "no list of objects 'categories'"),
        ({**COCO, "categories": ["person"]}, "no list of objects 'categories'"),
        ({**COCO, "categories": MANY}, "81 categories .* 80 classes.*NUM_CLASSES 81"),
    ],
)
def test_annotation_files(content, message, dataset):
    name = dataset(content)
    with pytest.raises(UsageError, match=message):
        check("DATASETS.TRAIN", f"('{name}',)")


THREE = [{"id": i, "name": name} for i, name in enumerate(("pear", "fig", "plum"), start=1)]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (THREE[:2], "'two' has 2 categories but the model 3 classes"),
        (
            [c | {"id": 4 - c["id"]} for c in THREE],
            "'one' and 'two' have different categories: pear, fig, plum and plum, fig, pear",
        ),
    ],
)
def test_classes_that_mean_something_else_in_the_other_set(other, message, dataset):
    three = ("MODEL.WEIGHTS", "", "MODEL.ROI_HEADS.NUM_CLASSES", "3")
    train = dataset(COCO | {"categories": THREE}, "one")
    test = dataset(COCO | {"categories": other}, "two")
    with pytest.raises(UsageError, match=message):
        check(*three, "DATASETS.TRAIN", f"('{train}',)", "DATASETS.TEST", f"('{test}',)")


def test_lazy_configs_are_held_against_their_data_too(dataset):
    def check(config: str, *overrides: str) -> None:
        check_lazy_cfg(load_lazy_cfg(config, ["train.init_checkpoint=", *overrides]))

    one = dataset(COCO | {"categories": THREE}, "one")
    two = dataset(COCO | {"categories": [c | {"id": 4 - c["id"]} for c in THREE]}, "two")
    sets = [f"dataloader.train.dataset.names={one}", f"dataloader.test.dataset.names={one}"]
    mask = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_nl_1x.py"
    check(mask, *sets, "model.roi_heads.num_classes=3")
    with pytest.raises(UsageError, match="3 categories .* model 80.*model.roi_heads.num_classes 3"):
        check(mask, *sets)
    sets[1] = f"dataloader.test.dataset.names={two}"
    with pytest.raises(UsageError, match="'one' and 'two' have different categories"):
        check(mask, *sets, "model.roi_heads.num_classes=3")
    person = dataset(PERSON, "person")
    sets = [f"dataloader.{part}.dataset.names={person}" for part in ("train", "test")]
    keypoint = "COCO-Keypoints/keypoint_rcnn_R_50_FPN_nl_1x.py"
    with pytest.raises(UsageError, match="1 keypoints for 'person'.*num_keypoints 17"):
        check(keypoint, *sets)
    with pytest.raises(UsageError, match="'person' has no keypoint_names in its metadata"):
        check(keypoint, *sets, "model.roi_heads.keypoint_head.num_keypoints=1")


def test_what_is_trained_and_evaluated_on_is_said(dataset, log, request):
    one, two = dataset(COCO, "one"), "two"
    metadata = MetadataCatalog.get(one)
    register_coco_instances(two, {}, metadata.json_file, metadata.image_root)
    request.addfinalizer(lambda: (DatasetCatalog.remove(two), MetadataCatalog.remove(two)))
    for names in ((one, one), (one, two)):
        log.clear()
        check(*ONE_CLASS, "DATASETS.TRAIN", f"('{names[0]}',)", "DATASETS.TEST", f"('{names[1]}',)")
        assert f"'{names[1]}' has the annotations of 'one', which is trained on" in log.text
    log.clear()
    three = dataset(COCO, "three")
    check(*ONE_CLASS, "DATASETS.TRAIN", f"('{one}',)", "DATASETS.TEST", f"('{three}',)")
    assert "trained on" not in log.text


def test_more_classes_than_categories(dataset):
    name = dataset(COCO | {"categories": THREE})
    four = ("MODEL.WEIGHTS", "", "MODEL.ROI_HEADS.NUM_CLASSES", "4")
    with pytest.raises(UsageError, match="3 categories but the model 4 classes.*NUM_CLASSES 3"):
        check(*four, "DATASETS.TRAIN", f"('{name}',)")


def test_own_data_in_the_place_of_coco(tmp_path, dataset):
    name = dataset(COCO)
    json_file = MetadataCatalog.get(name).json_file
    MetadataCatalog.pop(name)
    coco = MetadataCatalog.get("coco_2017_val").thing_classes
    MetadataCatalog.get(name).set(
        json_file=json_file,
        image_root=str(tmp_path / "images"),
        evaluator_type="coco",
        thing_classes=coco,
    )
    with pytest.raises(UsageError, match="categories of .* are thing, not person, bicycle.*own"):
        check("MODEL.WEIGHTS", "", "DATASETS.TEST", f"('{name}',)", eval_only=True)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "'test_dataset' has no keypoint_names in its metadata"),
        ({"keypoint_names": ["tl", "tr"]}, "'test_dataset' has no keypoint_flip_map"),
        ({"keypoint_names": ["tl"], "keypoint_flip_map": []}, "1 keypoint_names.*NUM_KEYPOINTS 2"),
        (
            {"keypoint_names": ["tl", "tr"], "keypoint_flip_map": [("tl", "tR")]},
            "names 'tR'; keypoint_names are tl, tr",
        ),
    ],
)
def test_metadata_of_keypoints_is_complete(metadata, message, dataset):
    corners = [{"id": 1, "name": "board", "keypoints": ["tl", "tr"]}]
    name = dataset(COCO | {"categories": corners})
    MetadataCatalog.get(name).set(**metadata)
    opts = ("MODEL.WEIGHTS", "", "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "2")
    with pytest.raises(UsageError, match=message):
        check(*opts, "DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", "()", config=KEYPOINT)


def test_keypoints_that_do_not_fit(dataset):
    name = dataset(PERSON)
    datasets = ("DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", f"('{name}',)")
    with pytest.raises(UsageError, match="1 keypoints for 'person'.*NUM_KEYPOINTS 17"):
        check(*datasets, config=KEYPOINT)
    with pytest.raises(UsageError, match="KEYPOINT_OKS_SIGMAS has 17 values"):
        check(*datasets, "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "1", config=KEYPOINT)
    with pytest.raises(UsageError, match="KEYPOINT_HEAD.NON_LOCAL.AFTER.*1 to 8"):
        check("MODEL.ROI_KEYPOINT_HEAD.NON_LOCAL.AFTER", "[9]", config=KEYPOINT)


def test_output_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="OUTPUT_DIR file/output cannot be written"):
        check("OUTPUT_DIR", "file/output")


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
        load_cfg("config.yaml")


def test_detectron2s_own_configs_are_read():
    """Also those that use Python tags, as the one of RetinaNet does."""
    file = model_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    name = "build_non_local_retinanet_resnet_fpn_backbone"
    cfg = load_cfg(file, ["MODEL.BACKBONE.NAME", name])
    assert len(cfg.MODEL.ANCHOR_GENERATOR.SIZES) == 5


def test_a_test_set_needs_no_annotations(dataset):
    name = dataset({"images": [], "categories": COCO["categories"]})
    test = ("MODEL.WEIGHTS", "", *ONE_CLASS, "DATASETS.TEST", f"('{name}',)")
    check(*test, eval_only=True)
    with pytest.raises(UsageError, match="no list of objects 'annotations'"):
        check(*test, "DATASETS.TRAIN", f"('{name}',)")


def test_an_evaluator_is_known_before_training(dataset):
    name = dataset(COCO)
    MetadataCatalog.get(name).evaluator_type = "coco"
    MetadataCatalog.pop(name)
    MetadataCatalog.get(name).set(evaluator_type="unheard_of")
    with pytest.raises(UsageError, match="'unheard_of'.* there are some for coco, "):
        check("DATASETS.TEST", f"('{name}',)", eval_only=True)


def test_weights_are_not_needed_to_resume(dataset, tmp_path):
    name = dataset(COCO)
    datasets = ("DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", "()", "OUTPUT_DIR", "out")
    arguments = ("MODEL.WEIGHTS", "nowhere.pth", *ONE_CLASS, *datasets)
    with pytest.raises(UsageError, match="nowhere.pth does not exist"):
        check(*arguments, resume=True)
    (tmp_path / "out/last_checkpoint").write_text("model_final.pth")
    check(*arguments, resume=True)


def test_configs_in_memory():
    text = load_cfg(KEYPOINT, ["SOLVER.MAX_ITER", "7"]).dump()
    cfg = cfg_from_text(text, ["SOLVER.BASE_LR", "0.5"], source="the config of x.pth")
    assert cfg.MODEL.KEYPOINT_ON and cfg.SOLVER.MAX_ITER == 7 and cfg.SOLVER.BASE_LR == 0.5
    assert cfg.is_frozen()
    with pytest.raises(UsageError, match="config from the config of x.pth: .*did you mean MODEL"):
        cfg_from_text("MODLE: {MASK_ON: True}", source="the config of x.pth")
    with pytest.raises(UsageError, match="'_BASE_' can only be used in files"):
        cfg_from_text("_BASE_: http://example.org/x.yaml", source="the config of x.pth")
    with pytest.raises(UsageError, match="could run any code"):
        cfg_from_text(TAGGED, source="the config of x.pth")


def test_errors_name_python_arguments_and_tools_name_flags():
    error = UsageError("dtype must be float32, got 'fp16'", arguments=["dtype"])
    assert isinstance(error, ValueError) and str(error) == "dtype must be float32, got 'fp16'"
    assert error.on_command_line() == "--dtype must be float32, got 'fp16'"
    error = UsageError("if you trust it, trust=True and x.dtype", arguments=["trust", "dtype"])
    assert error.on_command_line() == "if you trust it, --trust-checkpoint and x.dtype"


def test_what_others_called_things_stays_on_one_line():
    error = UsageError("class 'a\x1b[31mb\r\nc\u2028d': é 猫")
    assert str(error) == r"class 'a\x1b[31mb\r\nc\u2028d': é 猫"


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
    with pytest.raises(UsageError, match="object/apply:os.system.*use trust=True") as error:
        load_cfg(path)
    assert "\n" not in str(error.value)
    assert error.value.on_command_line().endswith("if you trust the file, use --trust-checkpoint")
    assert not (tmp_path / "created").exists()
    with pytest.raises(UsageError):  # what it has run gives no folder
        load_cfg(path, trust=True)
    assert (tmp_path / "created").exists()


def test_configs_of_detectron2_are_trusted_as_its_code_is():
    config = model_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    cfg = load_cfg(config)
    assert len(cfg.MODEL.ANCHOR_GENERATOR.SIZES) == 5


def test_a_gpu_that_is_not_here_is_named_with_those_that_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "AB"[i])
    assert check_device("key", "cuda") == check_device("key", "cuda:1") == "cuda"
    assert check_device("key", "cpu") == "cpu"
    here = r"cuda:9: there is no such device; here are cuda:0 \(A\), cuda:1 \(B\) and cpu"
    with pytest.raises(UsageError, match=f"MODEL.DEVICE {here}"):
        check("MODEL.DEVICE", "cuda:9")
    lazy = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_nl_1x.py"
    with pytest.raises(UsageError, match=f"train.device {here}"):
        check_lazy_cfg(load_lazy_cfg(lazy, ["train.device=cuda:9"]))
    with pytest.raises(UsageError, match="device cuda:9: there is no such device"):
        resolve_device("cuda:9")


def test_lazy_configs_are_trained_on_a_device_that_can(tmp_path):
    def check(*overrides: str) -> None:
        cfg = load_lazy_cfg("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_nl_1x.py", overrides)
        check_lazy_cfg(cfg)

    with pytest.raises(UsageError, match="train.device is 'cuda' but PyTorch sees no CUDA device"):
        check("train.device=cuda")
    with pytest.raises(UsageError, match="train.device 'gpu' is no device; use cuda or cpu"):
        check("train.device=gpu")
    with pytest.raises(UsageError, match="train.amp.enabled True needs a CUDA device"):
        check("train.device=cpu", "train.amp.enabled=True")
