"""One short training with many of the options that are ours, and what comes after it."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from nl_detectron import Predictor
from nl_detectron.data import generate
from nl_detectron.engine import Trainer, check_cfg, load_cfg
from nl_detectron.engine.loop import AccumulatingTrainer
from nl_detectron.errors import UsageError
from nl_detectron.report import write_report
from tests.places import CONFIGS, TOOLS

from .conftest import needs_two_cores

QUICK = CONFIGS / "quick_schedules/mask_rcnn_shapes_nl.yaml"


def options(small_sets: dict[str, str], output: Path, *opts: object) -> CfgNode:
    name = f"('{small_sets['shapes']}',)"
    schedule = ("SOLVER.MAX_ITER", "3", "SOLVER.IMS_PER_BATCH", "4", "OUTPUT_DIR", str(output))
    ours = ("SOLVER.ACCUMULATE", "2", "MODEL_EMA.ENABLED", "True", "MODEL_EMA.DECAY", "0.5")
    grey = ("INPUT.FORMAT", "L", "MODEL.PIXEL_MEAN", "[103.5]", "MODEL.PIXEL_STD", "[57.4]")
    data = ("DATASETS.TRAIN", name, "DATASETS.TEST", name, "DATALOADER.NUM_WORKERS", "0")
    quick = ("MODEL.DEVICE", "cpu", "TEST.DETECTIONS_PER_IMAGE", "5")
    quick += ("MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.RESNETS.WIDTH_PER_GROUP", "4")
    return load_cfg(QUICK, [*data, *schedule, *ours, *grey, *quick, *map(str, opts)])


@pytest.fixture(scope="module")
def trained(small_sets, tmp_path_factory) -> tuple[Path, Trainer, dict]:
    """The folder of a run, its trainer, and what it evaluated at its end."""
    output = tmp_path_factory.mktemp("run")
    cfg = options(small_sets, output)
    check_cfg(cfg)
    (output / "config.yaml").write_text(cfg.dump())
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return output, trainer, trainer._last_eval_results


def test_an_iteration_is_a_step_of_the_whole_batch(trained):
    _, trainer, _ = trained
    assert isinstance(trainer._trainer, AccumulatingTrainer)
    assert trainer.data_loader.batch_size == 2
    assert trainer.iter == 3
    [step] = {state["step"].item() for state in trainer.optimizer.state.values()}
    assert step == 3
    # The last ones: what is written are medians, whose sum is not that of the sums.
    losses = {name: value for name, (value, _) in trainer.storage.latest().items()}
    parts = sum(value for name, value in losses.items() if name.startswith("loss_"))
    assert losses["total_loss"] == pytest.approx(parts, rel=1e-4) and parts > 0


def test_the_averaged_weights_are_saved_and_evaluated(trained, small_sets, log):
    output, trainer, results = trained
    content = torch.load(output / "model_final.pth", weights_only=True)
    trained_state = content["trainer"]["hooks"]["WeightAveraging"]["trained"]
    name = "backbone.bottom_up.res4.nl4.out.weight"
    assert torch.equal(trained_state[name], trainer.model.state_dict()[name])
    assert not torch.equal(content["model"][name], trained_state[name])
    weights = ("MODEL.WEIGHTS", output / "model_final.pth")
    cfg = options(small_sets, output, *weights)
    evaluated = Trainer.evaluate(cfg, resume=False)
    for task in ("bbox", "segm"):
        assert evaluated[task]["AP"] == pytest.approx(results[task]["AP"], nan_ok=True)

    resumed = Trainer(options(small_sets, output, "SOLVER.MAX_ITER", 4, "TEST.EVAL_PERIOD", 0))
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 3 and "Nothing is left" not in log.text
    for key, value in trainer.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value), key


def test_resume_says_where_nothing_is_left_to_train(trained, small_sets, tmp_path, log):
    output, *_ = trained
    for name in ("model_final.pth", "last_checkpoint"):
        shutil.copy(output / name, tmp_path)
    finished = Trainer(options(small_sets, tmp_path, "SOLVER.MAX_ITER", 2))
    finished.resume_or_load(resume=True)
    finished.train()
    assert "Nothing is left to train: 3 iterations are done, and the config asks for 2" in log.text


def test_a_model_of_one_channel_predicts(trained, tmp_path):
    output, *_ = trained
    predictor = Predictor(output / "model_final.pth", confidence_threshold=0, device="cpu")
    name = "backbone.bottom_up.res4.nl4.out.weight"
    averaged = torch.load(output / "model_final.pth", weights_only=True)["model"][name]
    assert torch.equal(predictor.model.state_dict()[name], averaged)
    image = np.random.default_rng(0).integers(0, 255, (80, 120, 3), np.uint8)
    grey = np.dstack([np.asarray(Image.fromarray(image[:, :, ::-1]).convert("L"))] * 3)
    colour, plain = predictor(image), predictor(grey)
    assert len(colour) > 0
    assert torch.equal(colour.scores, plain.scores)
    assert torch.equal(colour.pred_boxes.tensor, plain.pred_boxes.tensor)
    assert predictor.attention(image, [(30, 30)]).maps
    assert write_report(output, tmp_path / "report.html", num_images=1, device="cpu").exists()


def test_formats_and_channels_that_do_not_fit_are_refused(small_sets, tmp_path):
    for opts, message in (
        (("INPUT.FORMAT", "BGR"), r"MODEL.PIXEL_MEAN \[103.5\] must have 3 values"),
        (("MODEL.PIXEL_STD", "[1.0, 1.0, 1.0]"), r"MODEL.PIXEL_STD .* must have 1 values"),
        (("INPUT.FORMAT", "GREY"), "INPUT.FORMAT must be one of BGR, RGB, L, got 'GREY'"),
    ):
        with pytest.raises(UsageError, match=message):
            check_cfg(options(small_sets, tmp_path, *opts))


@pytest.fixture
def damaged(small_sets, tmp_path):
    """The name of a set whose second image has been cut, and the image."""
    source = MetadataCatalog.get(small_sets["shapes"])
    folder = tmp_path / "images"
    folder.mkdir()
    content = json.loads(Path(source.json_file).read_text())
    for record in content["images"]:
        data = (Path(source.image_root) / record["file_name"]).read_bytes()
        (folder / record["file_name"]).write_bytes(data)
    cut = folder / content["images"][1]["file_name"]
    cut.write_bytes(cut.read_bytes()[:-300])
    register_coco_instances("damaged", {}, source.json_file, str(folder))
    yield {"shapes": "damaged"}, cut
    DatasetCatalog.remove("damaged")
    MetadataCatalog.remove("damaged")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_ends_a_training_in_one_line(damaged, tmp_path, workers, caplog):
    sets, cut = damaged
    trainer = Trainer(options(sets, tmp_path / "out", "DATALOADER.NUM_WORKERS", workers))
    loop = "detectron2.engine.train_loop"
    with caplog.at_level("INFO", loop), pytest.raises(UsageError) as error:
        trainer.train()
    assert str(error.value).startswith(f"{cut} cannot be read: ")
    assert "\n" not in str(error.value)
    assert not [r for r in caplog.records if r.name == loop and r.exc_info]


def test_a_damaged_image_ends_an_evaluation_in_one_line(damaged, tmp_path):
    sets, cut = damaged
    cfg = options(sets, tmp_path / "out")
    with pytest.raises(UsageError, match=f"{cut.name} cannot be read: ") as error:
        Trainer.test(cfg, Trainer.build_model(cfg))
    assert "\n" not in str(error.value)


@pytest.mark.slow
@needs_two_cores
@pytest.mark.parametrize("processes", [1, 2])
def test_a_damaged_image_ends_the_script_with_exit_code_2(python, tmp_path, processes):
    images = generate(tmp_path / "nl_detectron/shapes_tiny", kind="shapes", num_images=8, seed=3)
    cut = sorted((images.parent / "images").iterdir())[2]
    cut.write_bytes(cut.read_bytes()[:-200])
    opts = ("DATASETS.TRAIN", "('shapes_tiny',)", "DATASETS.TEST", "('shapes_tiny',)")
    opts += ("SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", "9", "OUTPUT_DIR", tmp_path / "out")
    arguments = ("--config-file", QUICK, "--num-gpus", processes, "--dist-url", "auto", *opts)
    result = subprocess.run(
        [str(python), str(TOOLS / "train_net.py"), *map(str, arguments)],
        env={**os.environ, "DETECTRON2_DATASETS": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert f"error: {cut} cannot be read: " in result.stderr
    assert "Traceback" not in result.stderr + result.stdout
