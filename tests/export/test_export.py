"""Whole detectors as files: they give what the model gives, or they are not written."""

import functools
import itertools
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2 import model_zoo
from detectron2.modeling import build_model

from nl_detectron import Predictor
from nl_detectron.checkpoint import NonLocalCheckpointer
from nl_detectron.errors import UsageError
from nl_detectron.export import Export, ExportedModel, export_model
from nl_detectron.export import export as export_module
from nl_detectron.export.parity import Difference, generated_images
from tests.fixtures import QUICK
from tests.models import ZOO, base_cfg, leave_zero_start, make_non_local, settle, zoo_cfg

from .formats import needs

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def exported(weights, tmp_path_factory) -> Export:
    """Of people, with masks and keypoints, and blocks in the backbone and in the keypoint head."""
    needs("onnx")
    return export_model(weights["people"], tmp_path_factory.mktemp("onnx"), format="onnx")


def test_a_file_gives_what_the_model_gives(exported):
    assert exported.passes and exported.path.is_file()
    assert len(exported.differences) == 7
    for found in exported.differences:
        assert found.counts[0] > 0
        assert found.boxes < 1e-3 and found.keypoints < 1e-3 and found.masks > 0.99


def test_the_file_alone_is_enough(exported, tmp_path):
    """Elsewhere, without the checkpoint and the config beside it."""
    path = shutil.copy(exported.path, tmp_path)
    metadata = ExportedModel(path).metadata
    assert metadata["class_names"] == ["person"]
    assert metadata["keypoint_names"][0] == "nose" and len(metadata["keypoint_names"]) == 17
    assert metadata["input"]["channel_order"] == "BGR"
    assert metadata["input"]["resize_shortest_edge_to"] == 128
    assert metadata["versions"]["torch"] == torch.__version__
    assert metadata["outputs"][0] == "pred_boxes"


def test_predictor_runs_it_as_a_checkpoint(exported, weights, picture):
    predictor = Predictor(exported.path, confidence_threshold=0.1)
    checkpoint = Predictor(weights["people"], confidence_threshold=0.1)
    found, expected = predictor(picture), checkpoint(picture)
    assert len(found) == len(expected) > 0
    assert found.get_fields().keys() == expected.get_fields().keys()
    torch.testing.assert_close(
        found.pred_boxes.tensor, expected.pred_boxes.tensor, atol=0.01, rtol=0
    )
    assert torch.equal(found.pred_masks, expected.pred_masks)
    assert predictor.class_names == checkpoint.class_names
    names = ("keypoint_names", "keypoint_connection_rules", "keypoint_flip_map")
    for name in names:
        one, other = getattr(predictor.metadata, name), getattr(checkpoint.metadata, name)
        assert list(one) == list(other)
    assert len(predictor.to_coco(found)) == len(found)
    (streamed,) = predictor.stream([picture])
    assert torch.equal(streamed.scores, found.scores)
    assert len(Predictor(exported.path, confidence_threshold=1.0)(picture)) == 0


def test_predict_takes_it(exported, picture, tool, tmp_path):
    arguments = ("--weights", exported.path, "--input", picture, "--output", tmp_path / "out")
    code, out, _ = tool("predict", *arguments, "--save-json", "--confidence-threshold", 0.1)
    assert code == 0 and "1 written" in out
    assert (tmp_path / "out" / picture.name).is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"confidence_threshold": 0.01}, "confidence_threshold 0.01 is below 0.05"),
        ({"device": "cuda"}, "device cuda: an exported file runs on the CPU"),
        ({"dtype": "bfloat16"}, "dtype bfloat16: an exported file"),
        ({"opts": ["TEST.DETECTIONS_PER_IMAGE", "3"]}, "do not change an exported file"),
    ],
)
def test_what_cannot_be_asked_of_a_file(exported, arguments, message):
    with pytest.raises(UsageError, match=message):
        Predictor(exported.path, **arguments)


def test_a_file_shows_no_attention(exported, picture):
    with pytest.raises(UsageError, match="non-local block"):
        Predictor(exported.path).attention(picture)


@pytest.fixture(scope="module")
def shapes(weights, tmp_path_factory):
    """The model of shapes as a file of a format, of which each is written once."""

    @functools.cache
    def export(format: str) -> Export:
        needs(format)
        folder, images = tmp_path_factory.mktemp(format), generated_images(people=False, count=1)
        return export_model(weights["shapes"], folder, format=format, images=images)

    return export


@pytest.mark.parametrize("format", ["torchscript", "openvino"])
def test_other_formats(format, shapes, weights, picture):
    result = shapes(format)
    assert result.passes and len(result.differences) == 4
    expected = Predictor(weights["shapes"], confidence_threshold=0.1)(picture)
    found = Predictor(result.path, confidence_threshold=0.1)(picture)
    assert len(found) == len(expected) > 0
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-4, rtol=0)


# Mask and Keypoint R-CNN with FPN: dev/tests/test_export_parity.py
ARCHITECTURES = ("c4", "dc5", "retinanet", "cascade")


@pytest.fixture(scope="module")
def architecture(request, tmp_path_factory):
    """A checkpoint of Detectron2's zoo with blocks, from random weights with settled norms."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ZOO, "cascade", "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml")
        cfg = zoo_cfg(request.param)
    make_non_local(cfg)
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 160, 240
    torch.manual_seed(0)
    return saved(cfg, tmp_path_factory.mktemp(request.param)), cfg.MODEL.KEYPOINT_ON


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "format"),
    [
        *itertools.product(ARCHITECTURES, ("torchscript", "onnx")),
        ("retinanet", "torch-export"),  # which takes half a minute
    ],
    indirect=["architecture"],
)
def test_architectures(architecture, format, tmp_path):
    needs(format)
    weights, people = architecture
    images = generated_images(people=people, count=1)
    result = export_model(weights, tmp_path, format=format, images=images)
    # Random weights see nothing in a blank image, and its equal scores are in no order.
    for found in result.differences[:-1]:
        # Nor are their masks more than a few pixels, of which one may be at the threshold.
        assert found.masks is None or found.masks > 0.95
        assert replace(found, masks=None).passes and found.counts[0] > 0


def saved(cfg, folder, *, trained: bool = True):
    """A checkpoint of random weights with its config beside it."""
    model = settle(build_model(cfg))
    if trained:
        leave_zero_start(model)
    (folder / "config.yaml").write_text(cfg.dump())
    NonLocalCheckpointer(model, str(folder), cfg=cfg).save("model_final")
    return folder / "model_final.pth"


def test_a_file_that_differs_is_removed(weights, shapes, tmp_path, tool, monkeypatch):
    written = shapes("torchscript").path

    def write(self, format, folder, *_):
        return Path(shutil.copy(written, folder))

    monkeypatch.setattr(export_module.Recorder, "write", write)
    wrong = Difference("1, 8 x 8", (2, 2), same_classes=True, boxes=0.5, scores=0.0)
    monkeypatch.setattr(export_module, "compare", lambda *_: [wrong])
    arguments = ("--weights", weights["shapes"], "--output", tmp_path, "--format", "torchscript")
    code, out, err = tool("export_model", *arguments)
    assert code == 1 and "DIFFERS" in out and "was removed" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--format", "tflite"),
            "--format must be one of onnx, openvino, torchscript, torch-export, got 'tflite'",
        ),
        (("--weights", "gone.pth"), "--weights gone.pth does not exist"),
        (("--confidence-threshold", 2), "--confidence-threshold must be from 0 to 1, got 2"),
        (("--output", "/proc/none"), "--output /proc/none cannot be written"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message, weights, tmp_path, tool):
    basis = ("--weights", weights["shapes"], "--output", tmp_path, "--format", "torchscript")
    code, _, err = tool("export_model", *basis, *arguments)
    assert code == 2
    assert message in err and err.count("\n") == 1


def test_models_that_cannot_be_exported_are_named(tmp_path):
    cfg = base_cfg(QUICK["shapes"])
    path = saved(cfg, tmp_path, trained=False)
    with pytest.raises(UsageError, match=r"backbone.* has not been trained"):
        export_model(path, tmp_path)
    (tmp_path / "config.yaml").unlink()
    lone = tmp_path / "lone.pth"
    torch.save(torch.load(path, weights_only=True)["model"], lone)
    with pytest.raises(UsageError, match="which config are"):
        export_model(lone, tmp_path)
    panoptic = model_zoo.get_config_file("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml")
    with pytest.raises(UsageError, match="PanopticFPN model, which cannot be exported"):
        export_model(path, tmp_path, config=panoptic)


def test_files_that_are_none_of_ours(exported, tmp_path):
    onnx = pytest.importorskip("onnx")
    cut = tmp_path / "cut.onnx"
    data = exported.path.read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(UsageError, match="damaged, or cut off"):
        Predictor(cut)
    model = onnx.load(str(exported.path))
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / "other.onnx"))
    with pytest.raises(UsageError, match="was not written by this version of tools/export_model"):
        Predictor(tmp_path / "other.onnx")


@pytest.mark.parametrize("name", ["model.torchscript", "model.pt2"])
def test_files_cut_in_half_are_one_line(name, picture, tmp_path, tool):
    path, model, image = tmp_path / name, torch.nn.ReLU(), torch.zeros(3, 8, 8)
    if path.suffix == ".pt2":
        torch.export.save(torch.export.export(model, (image,)), path)
    else:
        torch.jit.trace(model, (image,)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    arguments = ("--weights", path, "--input", picture, "--output", tmp_path / "out")
    code, _, err = tool("predict", *arguments)
    assert code == 2 and err.count("\n") == 1
    assert f"--weights {path} cannot be read by PyTorch: it is damaged, or cut off" in err


@pytest.mark.parametrize("cut", ["model.xml", "model.bin"])
def test_openvino_files_cut_in_half(cut, shapes, tmp_path):
    path = shapes("openvino").path
    shutil.copy(path.with_suffix(".bin"), tmp_path)
    path = Path(shutil.copy(path, tmp_path))
    data = (tmp_path / cut).read_bytes()
    (tmp_path / cut).write_bytes(data[: len(data) // 2])
    with pytest.raises(UsageError, match="damaged, or cut off"):
        Predictor(path)


@pytest.mark.parametrize(
    ("name", "package"), [("model.onnx", "onnxruntime"), ("model.xml", "openvino")]
)
def test_a_missing_runtime_is_named_with_its_extra(name, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).touch()
    with pytest.raises(UsageError, match=rf"needs {package}.*pip install nl_detectron\["):
        Predictor(tmp_path / name)


def test_a_missing_writer_is_named_with_its_extra(weights, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UsageError, match=r"needs onnx, .*pip install nl_detectron\[onnx\]"):
        export_model(weights["shapes"], tmp_path, format="onnx")


def test_an_image_of_nothing_is_refused(exported):
    with pytest.raises(UsageError, match="too thin"):
        Predictor(exported.path)(np.zeros((0, 4, 3), np.uint8))
