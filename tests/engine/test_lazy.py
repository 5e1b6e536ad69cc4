import subprocess
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetMapper
from omegaconf import DictConfig

from dev.soak.kills import NARROW_LAZY
from nl_detectron.checkpoint import CheckpointError
from nl_detectron.data import ImageMapper
from nl_detectron.engine import build_model_of, check_lazy_cfg, lazy, load_lazy_cfg
from nl_detectron.engine.config import resolve_config_file
from nl_detectron.engine.lazy import _loader, evaluate_weights, train
from nl_detectron.engine.loop import AccumulatingTrainer
from nl_detectron.errors import UsageError
from nl_detectron.visualization.curves import read_metrics
from tests.places import TOOLS

from .conftest import needs_two_cores

ZOO = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_nl_1x.py"
CONFIG = f"""{NARROW_LAZY}
dataloader.train.dataset.names = dataloader.test.dataset.names = "small_shapes"
dataloader.train.total_batch_size = 2
model.roi_heads.num_classes = 4
model.roi_heads.box_predictor.test_topk_per_image = 5
train.max_iter = 2
"""


@pytest.fixture
def config(tmp_path, small_sets) -> str:
    file = tmp_path / "config.py"
    file.write_text(CONFIG)
    return str(file)


def load(config: str, output: Path, *opts: str) -> DictConfig:
    return load_lazy_cfg(config, [f"train.output_dir={output}", "train.device=cpu", *opts])


def last_metrics(output: Path) -> dict[str, float]:
    return read_metrics(output / "metrics.json")[-1]


@pytest.mark.slow
def test_trains_evaluates_and_resumes(config, tmp_path, log):
    output = tmp_path / "output"
    output.mkdir()
    trainer = train(load(config, output), resume=False)
    assert "Starting on cpu at iteration 0 from random weights" in log.text
    block = trainer.model.backbone.bottom_up.res4.nl4
    assert block.out.weight.abs().max() > 0  # the zero start is left
    assert {"bbox/AP", "segm/AP"} <= last_metrics(output).keys()

    resumed = train(load(config, output, "train.max_iter=3"), resume=True)
    assert "Resumed on cpu at iteration 2" in log.text and resumed.iter == 3

    weights = f"train.init_checkpoint={output / 'model_final.pth'}"
    results = evaluate_weights(load(config, output, weights))
    logged = last_metrics(output)["bbox/AP"]  # NaN where random weights have found nothing
    assert results["bbox"]["AP"] == pytest.approx(logged, rel=0, abs=0, nan_ok=True)

    # weights without the block: fine to start from, not to be evaluated as if they had it
    content = torch.load(output / "model_final.pth", weights_only=True)
    stock = {name: w for name, w in content["model"].items() if ".nl" not in name}
    torch.save({"model": stock}, output / "stock.pth")
    weights = f"train.init_checkpoint={output / 'stock.pth'}"
    with pytest.raises(CheckpointError, match="non-local tensors are missing"):
        evaluate_weights(load(config, output, weights))
    train(load(config, output, weights, "train.max_iter=1"), resume=False)
    del stock["backbone.fpn_lateral2.weight"]
    torch.save({"model": stock}, output / "stock.pth")
    with pytest.raises(CheckpointError, match=r"1 tensors are missing \(backbone.fpn_lateral2"):
        train(load(config, output, weights, "train.max_iter=1"), resume=False)


@pytest.mark.slow
def test_parts_of_a_batch_and_averaged_weights(config, tmp_path, log):
    output = tmp_path / "output"
    output.mkdir()
    opts = ("train.accumulate=2", "train.model_ema.enabled=True", "train.model_ema.decay=0.5")
    cfg = load(config, output, *opts)
    check_lazy_cfg(cfg)
    trainer = train(cfg, resume=False)
    assert isinstance(trainer, AccumulatingTrainer) and trainer.data_loader.batch_size == 1
    content = torch.load(output / "model_final.pth", weights_only=True)
    trained = content["trainer"]["hooks"]["WeightAveraging"]["trained"]
    name = "backbone.bottom_up.res4.nl4.out.weight"
    assert torch.equal(trained[name], trainer.model.state_dict()[name])
    assert not torch.equal(content["model"][name], trained[name])
    results = evaluate_weights(
        load(config, output, f"train.init_checkpoint={output / 'model_final.pth'}")
    )
    logged = last_metrics(output)["bbox/AP"]  # NaN where random weights have found nothing
    assert results["bbox"]["AP"] == pytest.approx(logged, rel=0, abs=0, nan_ok=True)
    train(load(config, output, *opts, "train.max_iter=1"), resume=True)
    assert "Nothing is left to train: 2 iterations are done" in log.text


def test_images_are_read_as_in_prediction(config, tmp_path, small_sets):
    """Where a config has Detectron2's mapper, as a class or by its name; another one stays."""
    cfg = load(config, tmp_path)
    name = "detectron2.data.dataset_mapper.DatasetMapper"
    for target in (cfg.dataloader.test.mapper._target_, name):
        cfg.dataloader.test.mapper._target_ = target
        assert isinstance(_loader(cfg.dataloader.test).dataset._map_func._obj, ImageMapper)
    cfg.dataloader.test.mapper._target_ = Other
    assert type(_loader(cfg.dataloader.test).dataset._map_func._obj) is Other


class Other(DatasetMapper):
    pass


@pytest.mark.slow
@needs_two_cores
def test_the_script_in_two_processes_on_the_cpu(python, tmp_path, generated_sets):
    file = tmp_path / "config.py"
    file.write_text(CONFIG.replace("small_shapes", "shapes_tiny"))
    command = [str(python), str(TOOLS / "lazyconfig_train_net.py"), "--config-file", str(file)]
    output = tmp_path / "output"
    result = subprocess.run(
        [*command, "--num-gpus", "2", f"train.output_dir={output}"],
        env=generated_sets,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert (output / "model_final.pth").exists()
    assert "Rank of current process: 1" in (output / "log.txt.rank1").read_text()


def test_the_device_is_the_cpu_where_there_is_no_cuda(config):
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert load_lazy_cfg(config).train.device == expected
    assert load_lazy_cfg(config, ["train.device=meta"]).train.device == "meta"


def test_overrides(config):
    opts = ("train.max_iter=7", "train.seed=3", "model.roi_heads.box_predictor.loss_weight=2")
    cfg = load_lazy_cfg(config, opts)
    assert (cfg.train.max_iter, cfg.train.seed) == (7, 3)
    assert cfg.model.roi_heads.box_predictor.loss_weight == 2


@pytest.mark.parametrize(
    ("opt", "message"),
    [
        ("train.max_itre=7", "no key train.max_itre; did you mean max_iter"),
        ("trian.max_iter=7", "no key trian.max_iter; did you mean train"),
        ("train.ddp.fp16=True", "no key train.ddp.fp16"),
        ("train.max_iter", "cannot read the config"),
    ],
)
def test_refuses_overrides_that_nothing_reads(config, opt, message):
    with pytest.raises(UsageError, match=message):
        load_lazy_cfg(config, [opt])


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            ("train.init_checkpoint=nowhere.pth",),
            "train.init_checkpoint nowhere.pth does not exist",
        ),
        (("dataloader.train.dataset.names=smal_shapes",), "did you mean small_shapes"),
        (("train.output_dir=/proc/nowhere",), "train.output_dir /proc/nowhere cannot be written"),
    ],
)
def test_refuses_what_cannot_run(config, opts, message, tmp_path):
    cfg = load_lazy_cfg(config, [f"train.output_dir={tmp_path}", *opts])
    with pytest.raises(UsageError, match=message):
        check_lazy_cfg(cfg)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.yaml", "MODEL: {}", "is no LazyConfig"),
        ("config.py", "import nowhere_to_be_found", "No module named 'nowhere_to_be_found'"),
        ("config.py", "model = dict()", "does not define dataloader, train"),
    ],
)
def test_refuses_files_that_are_no_lazy_config(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=message):
        load_lazy_cfg(tmp_path / name)


def test_refuses_places_that_the_model_does_not_have():
    place = "model.backbone.bottom_up.non_local_after=[res4.6]"
    with pytest.raises(UsageError, match="no residual block 'res4.6'.*res4.0 to res4.5"):
        build_model_of(ZOO, [place])


def test_names_of_the_zoo_and_their_models():
    lazy = build_model_of(ZOO)
    assert Path(resolve_config_file(ZOO)).is_file()
    yaml = build_model_of(ZOO.replace(".py", ".yaml"))
    assert lazy.state_dict().keys() == yaml.state_dict().keys()
    with pytest.raises(UsageError, match="the closest are"):
        load_lazy_cfg("mask_rcnn_R_50_nl.py")


def test_the_best_checkpoint_and_an_early_end(config, tmp_path, log, monkeypatch):
    figures = iter([{"bbox": {"AP": ap}} for ap in (5.0, 9.0, 8.0, 7.0)])
    monkeypatch.setattr(lazy, "evaluate", lambda cfg, model: next(figures))
    options = ("train.max_iter=9", "train.eval_period=1", "train.early_stopping_patience=1")
    output = tmp_path / "output"
    train(load(config, output, *options, "train.best_metric=bbox/AP"), resume=False)
    assert "Early stopping at iteration 3 of 9" in log.text
    assert f"Best: bbox/AP 9.00 at iteration 2, in {output / 'model_best.pth'}" in log.text
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    with pytest.raises(UsageError, match="train.best_metric 'AP' is no figure"):
        check_lazy_cfg(load(config, output, "train.best_metric=AP"))
