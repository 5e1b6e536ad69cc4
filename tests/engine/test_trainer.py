import json
import pickle
import subprocess
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
)

from nl_detectron.checkpoint import CheckpointError, NonLocalCheckpointer, read_config
from nl_detectron.engine import Trainer, load_cfg
from nl_detectron.evaluation import COCOEvaluator, build_evaluator
from nl_detectron.visualization.curves import read_metrics
from tests.places import CONFIGS, TOOLS

from .conftest import needs_two_cores

CONFIG_FILES = {
    "shapes": CONFIGS / "quick_schedules/mask_rcnn_shapes_nl.yaml",
    "people": CONFIGS / "quick_schedules/keypoint_rcnn_people_nl.yaml",
}


def quick_cfg(kind: str, small_sets: dict[str, str], output: Path, *opts: str):
    datasets = ("DATASETS.TRAIN", f"('{small_sets[kind]}',)", "DATASETS.TEST")
    datasets += (f"('{small_sets[kind]}',)",)
    schedule = ("SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "OUTPUT_DIR", str(output))
    quick = ("MODEL.DEVICE", "cpu", "TEST.DETECTIONS_PER_IMAGE", "5")
    return load_cfg(CONFIG_FILES[kind], [*datasets, *schedule, *quick, *opts])


def last_metrics(output: Path) -> dict[str, float]:
    return read_metrics(output / "metrics.json")[-1]


@pytest.mark.parametrize("kind", CONFIG_FILES)
def test_trains_evaluates_and_resumes(kind, small_sets, tmp_path, log):
    cfg = quick_cfg(kind, small_sets, tmp_path)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    assert "Starting on cpu at iteration 0 from random weights" in log.text
    for name, value in trainer.model.state_dict().items():
        if ".nl" in name and name.endswith("out.weight"):
            assert not torch.equal(value, before[name]), name  # the zero start is left
    metrics = last_metrics(tmp_path)
    tasks = {"bbox", "segm"} | ({"keypoints"} if kind == "people" else set())
    assert {name.split("/")[0] for name in metrics if "/AP" in name} == tasks
    assert list(tmp_path.glob("events.out.tfevents.*"))

    longer = quick_cfg(kind, small_sets, tmp_path, "SOLVER.MAX_ITER", "3")
    resumed = Trainer(longer)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 2
    moments = [s["exp_avg"] for s in trainer.optimizer.state_dict()["state"].values()]
    restored = [s["exp_avg"] for s in resumed.optimizer.state_dict()["state"].values()]
    assert all(map(torch.equal, restored, moments)) and len(moments) > 100
    last = tmp_path / "model_final.pth"
    assert f"Resumed on cpu at iteration 2 from {last}" in log.text
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name

    resumed.train()
    metrics = last_metrics(tmp_path)
    assert metrics["iteration"] == 3

    weights = quick_cfg(kind, small_sets, tmp_path, "MODEL.WEIGHTS", str(last))
    results = Trainer.evaluate(weights, resume=False)
    assert f"Starting on cpu from {last}" in log.text
    assert set(results) == tasks
    for task in tasks:
        logged = metrics[f"{task}/AP"]
        assert results[task]["AP"] == pytest.approx(logged, nan_ok=True)


def test_resume_without_a_checkpoint_says_so(small_sets, tmp_path, log):
    trainer = Trainer(quick_cfg("shapes", small_sets, tmp_path))
    trainer.resume_or_load(resume=True)
    assert f"resume: there is no checkpoint in {tmp_path} yet" in log.text
    assert "Starting on cpu at iteration 0 from random weights" in log.text


def test_optimizers(small_sets, tmp_path):
    cfg = quick_cfg("shapes", small_sets, tmp_path)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    adamw = Trainer.build_optimizer(cfg, model)
    assert isinstance(adamw, torch.optim.AdamW)
    groups = {id(p): g["weight_decay"] for g in adamw.param_groups for p in g["params"]}
    assert groups[id(model[0].weight)] == cfg.SOLVER.WEIGHT_DECAY == 0.01
    assert groups[id(model[1].weight)] == 0  # no weight decay on norms, as in Detectron2
    sgd = Trainer.build_optimizer(
        quick_cfg("shapes", small_sets, tmp_path, "SOLVER.OPTIMIZER", "SGD"), model
    )
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.param_groups[0]["momentum"] == 0.9


@pytest.mark.parametrize(
    ("evaluator_type", "expected"),
    [
        ("coco", COCOEvaluator),
        ("lvis", LVISEvaluator),
        ("cityscapes_instance", CityscapesInstanceEvaluator),
        ("coco_panoptic_seg", DatasetEvaluators),
    ],
)
def test_evaluators_by_dataset_type(evaluator_type, expected, small_sets, tmp_path, monkeypatch):
    def build(self, *args, **kwargs):
        self.arguments = args, kwargs

    for cls in (COCOEvaluator, LVISEvaluator, CityscapesInstanceEvaluator):
        monkeypatch.setattr(cls, "__init__", build)
    for name in ("SemSegEvaluator", "COCOPanopticEvaluator"):
        monkeypatch.setattr(f"nl_detectron.evaluation.builders.{name}", lambda *a, **k: object())
    MetadataCatalog.get("typed").set(evaluator_type=evaluator_type)
    try:
        cfg = quick_cfg("shapes", small_sets, tmp_path)
        evaluator = build_evaluator(cfg, "typed")
    finally:
        MetadataCatalog.remove("typed")
    assert type(evaluator) is expected
    if evaluator_type == "coco":
        arguments = {"output_dir": str(tmp_path / "inference"), "kpt_oks_sigmas": []}
        assert evaluator.arguments == (("typed",), arguments)


PROPOSALS = Path(__file__).parent / "proposals.py"


@pytest.fixture
def run(python):
    def run(*command: object, env: dict[str, str] | None = None) -> None:
        whole = [str(python), *map(str, command)]
        result = subprocess.run(whole, env=env, capture_output=True, text=True)
        assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]

    return run


@pytest.mark.slow
@needs_two_cores
@pytest.mark.parametrize(
    ("parts", "start"),  # of the images of each process; what starts two of them
    [
        (1, (PROPOSALS, "--num-gpus", 2, "--dist-url", "auto")),
        (2, ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, PROPOSALS)),
    ],
    ids=["launch", "torchrun"],
)
def test_two_processes_train_the_same_model_as_one(run, small_sets, tmp_path, parts, start):
    metadata = MetadataCatalog.get(small_sets["shapes"])
    data = (metadata.json_file, metadata.image_root)
    weights = []
    for number, command in ((1, (PROPOSALS,)), (2, start)):
        output = tmp_path / str(number)
        opts = ("OUTPUT_DIR", output, "SOLVER.ACCUMULATE", parts if number == 2 else 1)
        run(*command, *data, *opts)
        assert (output / "log.txt.rank1").exists() == (number == 2)
        weights.append(torch.load(output / "model_final.pth", weights_only=True)["model"])
    one, two = weights
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4, msg=name)
    # What started at zero is all update: it tells half a batch from a whole one.
    for stage, index in (("res3", 1), ("res4", 4)):
        name = f"backbone.bottom_up.{stage}.nl{index}.out.weight"
        assert one[name].norm() > 0
        # single precision, whose roundings are more where there are more parts
        assert (two[name] - one[name]).norm() < parts * 0.02 * one[name].norm(), name


@pytest.mark.slow
@needs_two_cores
def test_the_training_script_on_two_processes(run, tmp_path, generated_sets):
    """On the registered sets, which it generates first, evaluation included."""
    output = tmp_path / "output"
    opts = ("SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2, "OUTPUT_DIR", output)
    arguments = ("--config-file", CONFIG_FILES["shapes"], "--num-gpus", 2, "--dist-url", "auto")
    datasets = ("DATASETS.TRAIN", "('shapes_tiny',)", "DATASETS.TEST", "('shapes_tiny',)")
    run(TOOLS / "train_net.py", *arguments, *datasets, *opts, env=generated_sets)
    assert "bbox/AP" in last_metrics(output)
    assert (output / "log.txt.rank1").exists()
    assert "Starting on cpu at iteration 0 from random" in (output / "log.txt").read_text()


def test_the_training_script_refuses_in_one_line(python, tmp_path):
    command = [str(python), str(TOOLS / "train_net.py"), "--config-file", "nowhere.yaml"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: --config-file nowhere.yaml does not exist, and nowhere.yaml is")


def test_weights_that_do_not_fit(small_sets, tmp_path):
    """A model without blocks starts the training of one with, and does not pass for one."""
    stock = ("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "TEST.EVAL_PERIOD", "0")
    cfg = quick_cfg("shapes", small_sets, tmp_path, *stock, "SOLVER.CHECKPOINT_SAFETENSORS", "True")
    model = Trainer.build_model(cfg)
    NonLocalCheckpointer(model, str(tmp_path), cfg=cfg).save("stock")
    weights = ("MODEL.WEIGHTS", str(tmp_path / "stock.pth"))
    cfg = quick_cfg("shapes", small_sets, tmp_path, *weights)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    assert trainer.checkpointer.report.new_non_local
    with pytest.raises(CheckpointError, match="non-local tensors are missing"):
        Trainer.evaluate(cfg, resume=False)
    assert "bbox" in Trainer.evaluate(cfg, resume=False, allow_missing=True)


def test_a_finished_model_is_fine_tuned_with_a_block(small_sets, tmp_path):
    """From a file as Detectron2's zoo has them to a non-local model that is evaluated."""
    stock = ("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone")
    model = Trainer.build_model(quick_cfg("shapes", small_sets, tmp_path, *stock))
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    zoo = tmp_path / "model_final_f10217.pkl"
    zoo.write_bytes(pickle.dumps({"model": weights, "__author__": "Detectron2 Model Zoo"}))
    start = ("MODEL.WEIGHTS", str(zoo), "TEST.EVAL_PERIOD", "0")
    trainer = Trainer(quick_cfg("shapes", small_sets, tmp_path, *start))
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert trainer.model.backbone.bottom_up.res4.nl4.out.weight.abs().max() > 0
    end = ("MODEL.WEIGHTS", str(tmp_path / "model_final.pth"))
    assert "bbox" in Trainer.evaluate(quick_cfg("shapes", small_sets, tmp_path, *end), resume=False)


def test_the_last_checkpoint_of_a_training_holds_its_config(small_sets, tmp_path):
    safetensors = ("SOLVER.CHECKPOINT_SAFETENSORS", "True", "TEST.EVAL_PERIOD", "0")
    cfg = quick_cfg("shapes", small_sets, tmp_path, *safetensors, "SOLVER.MAX_ITER", "1")
    Trainer(cfg).train()
    for name in ("model_final.pth", "model_final.safetensors"):
        assert read_config(str(tmp_path / name)) == cfg.dump()
    weights = ("MODEL.WEIGHTS", str(tmp_path / "model_final.safetensors"))
    assert "bbox" in Trainer.evaluate(
        quick_cfg("shapes", small_sets, tmp_path, *weights), resume=False
    )


@pytest.mark.slow
@needs_two_cores
@pytest.mark.parametrize("processes", [1, 2])
def test_weights_that_do_not_fit_end_the_script_in_one_line(
    python, tmp_path, generated_sets, processes
):
    torch.save({"model": {"w": torch.ones(1)}}, tmp_path / "other.pth")
    opts = ("MODEL.WEIGHTS", tmp_path / "other.pth", "OUTPUT_DIR", tmp_path / "output")
    opts += ("DATASETS.TRAIN", "('shapes_tiny',)", "DATASETS.TEST", "('shapes_tiny',)")
    opts += ("SOLVER.IMS_PER_BATCH", 2)
    arguments = ("--config-file", CONFIG_FILES["shapes"], "--num-gpus", processes)
    command = (TOOLS / "train_net.py", *arguments, "--dist-url", "auto", *opts)
    result = subprocess.run(
        [str(python), *map(str, command)], env=generated_sets, capture_output=True, text=True
    )
    assert result.returncode == 2, result.stderr[-2000:]
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert "error: the weights do not fit the model: no tensor in it fits the model" in errors[0]
    assert "Traceback" not in result.stderr


def test_the_best_checkpoint_and_an_early_end(small_sets, tmp_path, log, monkeypatch):
    figures = iter([{"bbox": {"AP": ap}} for ap in (5.0, 9.0, 8.0, 7.0)])
    monkeypatch.setattr(Trainer, "test", lambda *args: next(figures))
    options = ("SOLVER.MAX_ITER", "9", "TEST.EVAL_PERIOD", "1", "TEST.EXPECTED_RESULTS")
    options += ("[['bbox', 'AP', 7.0, 0.1]]", "TEST.EARLY_STOPPING_PATIENCE", "1")
    trainer = Trainer(quick_cfg("shapes", small_sets, tmp_path, *options))
    trainer.resume_or_load(resume=False)
    assert trainer.train() == {"bbox": {"AP": 7.0}}  # which is what was expected
    assert "Early stopping at iteration 3 of 9" in log.text
    assert f"Best: bbox/AP 9.00 at iteration 2, in {tmp_path / 'model_best.pth'}" in log.text
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert best["iteration"] == 1 and "config" in best
    resumed = Trainer(quick_cfg("shapes", small_sets, tmp_path, *options))
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 3


def test_tables_after_an_evaluation_alone(small_sets, tmp_path, log):
    """And figures of every other task where one is left out."""
    name = small_sets["shapes"]
    metadata = MetadataCatalog.get(name)
    content = json.loads(Path(metadata.json_file).read_text())
    content["annotations"][0]["segmentation"] = []
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps(content))
    register_coco_instances("without_a_mask", {}, str(file), metadata.image_root)
    options = ("DATASETS.TEST", "('without_a_mask',)", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0")
    expected = ("TEST.EXPECTED_RESULTS", "[['segm', 'AP', 7.0, 0.1]]")
    try:
        results = Trainer.evaluate(
            quick_cfg("shapes", small_sets, tmp_path, *options), resume=False
        )
        with pytest.raises(SystemExit):  # what is left out is not as expected
            cfg = quick_cfg("shapes", small_sets, tmp_path, *options, *expected)
            Trainer.evaluate(cfg, resume=False)
    finally:
        DatasetCatalog.remove("without_a_mask")
        MetadataCatalog.remove("without_a_mask")
    assert set(results) == {"bbox"} and results["bbox"]["AP"] >= 0
    assert "segm is not evaluated: no mask in 1 of " in log.text
    assert "AP by class:" in log.text and "Kinds of error (TIDE)" in log.text
    assert "truth \\ found as" in log.text
