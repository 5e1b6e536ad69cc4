import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from omegaconf import DictConfig
from torch import nn

from nl_detectron import NonLocalBlock, model_zoo
from tests.places import ROOT

ROW = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_nl_1x.yaml"


def test_lists_all_configs_but_the_bases():
    names = model_zoo.list_configs()
    files = {
        path.relative_to(ROOT / "configs").as_posix()
        for pattern in ("*/*.yaml", "*/*.py")
        for path in (ROOT / "configs").glob(pattern)
    }
    assert set(names) == {file for file in files if "/Base-" not in file}
    assert names == sorted(names) and ROW in names
    assert all(Path(model_zoo.get_config_file(name)).is_file() for name in names)


@pytest.mark.parametrize(
    ("name", "closest"),
    [
        ("COCO-InstanceSegmentation/mask_rcnn_R50_FPN_nl_1x.yaml", ROW),
        ("mask_rcnn_R_50_nl_1x.yaml", "COCO-InstanceSegmentation/mask_rcnn_R_50_"),
        (
            "keypoint_rcnn_R_101_FPN_nl_heads_3x",
            "COCO-Keypoints/keypoint_rcnn_R_101_FPN_nl_head_3x",
        ),
        ("Misc", "did"),
    ],
)
def test_suggests_the_closest_of_an_unknown_name(name, closest):
    with pytest.raises(RuntimeError, match="not in the model zoo of nl_detectron") as error:
        model_zoo.get_config(name)
    first = str(error.value).partition("closest are ")[2].partition(",")[0]
    assert first in model_zoo.list_configs()
    assert name == "Misc" or closest in first


def test_gets_yaml_and_lazy_configs():
    cfg = model_zoo.get_config(ROW)
    assert isinstance(cfg, CfgNode) and cfg.MODEL.NON_LOCAL.AFTER == ["res4.-2"]
    lazy = model_zoo.get_config(ROW.replace(".yaml", ".py"))
    assert isinstance(lazy, DictConfig) and "model" in lazy


def test_trained_weights_are_those_of_detectron2_where_the_config_is():
    baseline = ROW.replace("_nl_", "_")
    url = model_zoo.get_config(baseline, trained=True).MODEL.WEIGHTS
    assert url.endswith("mask_rcnn_R_50_FPN_1x/137260431/model_final_a54504.pkl")
    lazy = model_zoo.get_config(baseline.replace(".yaml", ".py"), trained=True)
    assert lazy.train.init_checkpoint == url
    with pytest.raises(RuntimeError, match="not available"):
        model_zoo.get_config(ROW, trained=True)


def test_gets_a_model_with_the_weights_of_its_config(monkeypatch):
    loaded = []
    monkeypatch.setattr(
        "nl_detectron.model_zoo.catalog.NonLocalCheckpointer.load",
        lambda self, path: loaded.append((self.model, path)),
    )
    for name in (ROW, ROW.replace(".yaml", ".py")):
        model = model_zoo.get(name, device="cpu")
        assert model.training and model.device == torch.device("cpu")
        assert isinstance(model.backbone.bottom_up.res4.nl4, NonLocalBlock)
        assert loaded.pop() == (model, "detectron2://ImageNetPretrained/MSRA/R-50.pkl")


def test_a_model_from_random_weights():
    model = model_zoo.get("quick_schedules/mask_rcnn_shapes_nl.yaml")
    assert isinstance(model, nn.Module) and model.device.type in ("cpu", "cuda")


@pytest.mark.slow
def test_works_from_a_wheel_in_an_empty_folder(python, tmp_path):
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    # A copy, so that nothing is left in the sources
    source = tmp_path / "source"
    clone = ["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(source)]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(source)]
    for command in (clone, build):
        subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    site, empty = tmp_path / "site", tmp_path / "empty"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    empty.mkdir()

    def run(*arguments: str) -> str:
        environment = {"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        command = [str(python), *arguments]
        result = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-2000:]
        return result.stdout

    code = (
        "from nl_detectron import model_zoo as zoo; print(zoo.__file__);print(*zoo.list_configs());"
        f"print(len(zoo.get_config('{ROW}').MODEL.NON_LOCAL.AFTER));"
        f"print(*zoo.get_config('{ROW.replace('.yaml', '.py')}').keys())"
    )
    file, names, blocks, nodes = run("-c", code).splitlines()
    assert (
        file.startswith(str(site)) and names.split() == model_zoo.list_configs() and blocks == "1"
    )
    assert "model" in nodes.split()
    small = ("SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "1", "TEST.EXPECTED_RESULTS", "[]")
    config = ("--config-file", "quick_schedules/mask_rcnn_shapes_nl_training_acc_test.yaml")
    run("-m", "nl_detectron.tools.train_net", *config, *small)
    assert (empty / "output/model_final.pth").exists()
    size = ("--size", "64", "64", "--tasks", "parameter")
    out = run("-m", "nl_detectron.tools.analyze_model", *config, *size)
    assert "backbone" in out
