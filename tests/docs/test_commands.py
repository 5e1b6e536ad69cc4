"""Each command and each Python example of the pages runs, or says why it is not run.

A comment before a block is for these tests: ``not run: REASON``, or ``test: short`` for what takes
minutes, which is then given fewer iterations, and fewer or smaller images; ``test: own`` is that
of what names its own images.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torchvision
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from nl_detectron import Predictor, add_non_local_config
from nl_detectron.data import generate

from .pages import PAGES, ROOT, Block, all_blocks, blocks

# What shortens the scripts
SHORT = {
    "train_net.py": "SOLVER.MAX_ITER 2 SOLVER.IMS_PER_BATCH 2 TEST.DETECTIONS_PER_IMAGE 5 "
    """DATASETS.TRAIN '("shapes_tiny",)' DATASETS.TEST '("shapes_tiny",)'""",
    "analyze_model.py": "--size 64 96 MODEL.RPN.POST_NMS_TOPK_TEST 10 TEST.DETECTIONS_PER_IMAGE 5",
}
SHORT_OWN = "SOLVER.MAX_ITER 2 SOLVER.IMS_PER_BATCH 2 TEST.DETECTIONS_PER_IMAGE 5"
# What the blocks that are run in a shell leave, by words of theirs
WRITTEN = {
    "predict.py --weights output/demo": (
        "predictions/photo.jpg",
        "predictions/clip.mp4",
        "predictions/one.webp.jpg",
    ),
    "visualize_attention.py": ("attention/000007.png",),
    "check_dataset.py": ("output/check/pictures.png", "output/check/train.json"),
    "report.py output/demo": ("output/demo/people/report.html",),
    "convert_checkpoint.py": ("r50.safetensors",),
    "mask_rcnn_shapes_nl.yaml \\\n    OUTPUT_DIR": ("output/shapes/model_final.pth",),
    "SOLVER.ACCUMULATE": ("output/parts/model_final.pth",),
    "--eval-only MODEL.WEIGHTS output/demo": (
        "output/shapes/inference/coco_instances_results.json",
    ),
    "export_model.py": ("exported/model.torchscript",),
    "--dataset my_train": ("output/mine/model_final.pth",),
    "report.py output/mine": ("output/mine/report.html",),
}
# The same command may stand on several pages.
SCRIPTS = {block.text: block for block in reversed(all_blocks("bash"))}
WITH_PYTHON = [page for page in PAGES if any(block.page == page for block in all_blocks("python"))]


@pytest.fixture(scope="session")
def workspace(weights, tmp_path_factory) -> Path:
    """A folder like a clone after `make demo`, with small sets, and with a user's own files."""
    folder = tmp_path_factory.mktemp("workspace")
    for name in ("tools", "configs"):
        (folder / name).symlink_to(ROOT / name)
    sets = folder / "datasets/nl_detectron"
    sets.mkdir(parents=True)
    generate(sets / "people_val", kind="people", num_images=8, seed=2)
    truth = {
        kind: generate(sets / f"{kind}_tiny", kind=kind, num_images=4, seed=3)
        for kind in ("shapes", "people")
    }
    for kind, file in weights.items():
        run = folder / "output/demo" / kind
        run.mkdir(parents=True)
        (run / file.name).symlink_to(file)
        write_run(run, f"{kind}_tiny", truth[kind])
    (folder / "my").mkdir()
    (folder / "my/images").symlink_to(truth["shapes"].parent / "images")
    own = []
    for split in ("train", "val"):
        (folder / f"my/{split}.json").symlink_to(truth["shapes"])
        own.append([f"my_{split}", str(folder / f"my/{split}.json"), str(folder / "my/images")])
    write_other_formats(folder / "my", truth["shapes"])
    run = folder / "output/mine"
    run.mkdir()
    (run / "model_final.pth").symlink_to(weights["shapes"])
    write_run(run, "my_val", truth["shapes"], OWN=own, TRAIN=("my_train",))
    write_pictures(folder)
    torch.save(torchvision.models.resnet50(weights=None).state_dict(), folder / "resnet50.pth")
    return folder


def write_other_formats(folder: Path, json_file: Path) -> None:
    """The same set as YOLO, Pascal VOC and labelme have it."""
    supervision = pytest.importorskip("supervision", reason="needs supervision, of the extra dev")
    images = str(folder / "images")
    read = supervision.DetectionDataset.from_coco(images, str(json_file), force_masks=True)
    read.as_yolo(
        str(folder / "yolo/images"), str(folder / "yolo/labels"), str(folder / "yolo/data.yaml")
    )
    read.as_pascal_voc(str(folder / "voc/images"), str(folder / "voc/labels"))
    read.as_labelme(str(folder / "labelme/images"), str(folder / "labelme/labels"))


def write_run(run: Path, dataset: str, json_file: Path, **datasets: object) -> None:
    """What a training leaves beside its weights, with these keys of DATASETS."""
    cfg = yaml.safe_load((run / "model_final.pth").resolve().with_name("config.yaml").read_text())
    cfg["DATASETS"] |= {"TEST": (dataset,), **datasets}
    (run / "config.yaml").write_text(CfgNode(cfg).dump())
    lines = [{"iteration": i, "total_loss": 3 - 0.1 * i, "lr": 0.001} for i in range(0, 20, 5)]
    (run / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    predictor = Predictor(run / "model_final.pth", device="cpu", confidence_threshold=0)
    results = []
    for image in json.loads(json_file.read_text())["images"]:
        found = predictor(json_file.parent / "images" / image["file_name"])
        results += predictor.to_coco(found, image["id"])
    (run / "inference").mkdir()
    (run / "inference/coco_instances_results.json").write_text(json.dumps(results))


def write_pictures(folder: Path) -> None:
    image = cv2.resize(np.random.default_rng(0).integers(0, 255, (8, 12, 3), np.uint8), (120, 80))
    for name in ("photos/photo.jpg", "more/one.webp"):
        (folder / name).parent.mkdir()
        cv2.imwrite(str(folder / name), image)
    video = cv2.VideoWriter(str(folder / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 5, (120, 80))
    for _ in range(3):
        video.write(image)
    video.release()


def test_each_block_has_a_language_and_each_exemption_a_reason():
    for block in itertools.chain.from_iterable(map(blocks, PAGES)):
        assert block.language in ("bash", "python", "yaml", "text", "bibtex"), block.where
        if block.note:
            assert block.note in ("test: short", "test: own") or len(block.note) > len(
                "not run: because"
            ), block.where


@pytest.mark.slow
@pytest.mark.parametrize("block", SCRIPTS.values(), ids=lambda block: block.where)
def test_commands_run(block, workspace, python):
    script = block.text.rstrip("\n")
    if block.note == "test: short":
        [options] = [options for name, options in SHORT.items() if name in script]
        script += f" {options}"
    if block.note == "test: own" and "train_net.py" in script and "--eval-only" not in script:
        script += f" {SHORT_OWN}"
    environment = {
        **os.environ,
        "PATH": os.pathsep.join(
            map(str, (python.parent, Path(sys.executable).parent, os.environ["PATH"]))
        ),
        "DETECTRON2_DATASETS": "datasets",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=workspace,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    for words, files in WRITTEN.items():
        if words in script:
            for file in files:
                assert (workspace / file).is_file(), (file, done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_runs_from_the_top_of_a_page_to_its_end(page, workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    namespace: dict[str, object] = {"__name__": "example"}
    known = set(DatasetCatalog)
    try:
        for block in blocks(page):
            if block.language == "python" and block.is_run:
                exec(compiled(block), namespace)
    finally:
        for name in set(DatasetCatalog) - known:
            DatasetCatalog.remove(name)
            MetadataCatalog.pop(name, None)


def compiled(block: Block):
    """The block's code, which a traceback finds in the page."""
    return compile("\n" * (block.line - 1) + block.text, ROOT / block.page, "exec")


@pytest.mark.parametrize("block", all_blocks("yaml"), ids=lambda block: block.where)
def test_config_keys_exist(block):
    cfg = get_cfg()
    add_non_local_config(cfg)
    cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(block.text)))
