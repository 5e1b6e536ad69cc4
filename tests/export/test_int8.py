"""Files in 8-bit integers: which of the model stays in float, and what is asked for."""

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import cv2
import pytest
import torch
from detectron2.modeling import build_model

from nl_detectron import Predictor
from nl_detectron.checkpoint import NonLocalCheckpointer
from nl_detectron.errors import UsageError
from nl_detectron.export import ExportedModel, agreement, export_model
from nl_detectron.export import export as export_module
from nl_detectron.export.agreement import Agreement
from nl_detectron.export.parity import generated_images
from nl_detectron.export.quantize import FLOAT, prefer_convolutions
from nl_detectron.inference.optimize import OUTPUT_LAYERS
from tests.fixtures import QUICK
from tests.models import base_cfg, leave_zero_start, settle

from .formats import needs

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


@pytest.mark.parametrize("layer", ["backbone/bottom_up/res4/nl4/MatMul", "keypoint_head/nl2/Add"])
def test_blocks_stay_in_float(layer):
    assert any(re.match(pattern, f"/model/{layer}") for pattern in FLOAT)


def test_output_layers_stay_in_float_and_others_do_not():
    for layer in OUTPUT_LAYERS:
        assert any(re.match(pattern, f"/model/head/{layer}/Conv") for pattern in FLOAT)
    for layer in ("backbone/bottom_up/res4/res4.1/conv1/Conv", "box_head/fc1/Gemm"):
        assert not any(re.match(pattern, f"/model/{layer}") for pattern in FLOAT)


BOXES = [
    "/Div",
    "/proposal_generator/Add_3",
    "/proposal_generator/anchor_generator/Add",
    "/roi_heads/Mul_44",
    "/roi_heads/box_pooler/Sub_1",
    "/roi_heads/mask_pooler/level_poolers.0/RoiAlign",
]
FEATURES = [
    "/backbone/Add_1",
    "/backbone/bottom_up/res3/res3.1/Add",
    "/head/cls_subnet/cls_subnet.0/Conv",
    "/proposal_generator/rpn_head/conv/Conv",
    "/roi_heads/mask_head/mask_fcn1/Conv",
    "/roi_heads/res5/res5.0/conv1/Conv",
]


@pytest.mark.parametrize(("names", "in_float"), [(BOXES, True), (FEATURES, False)])
def test_coordinates_stay_in_float_and_features_do_not(names, in_float):
    for name in names:
        assert any(re.match(pattern, name) for pattern in FLOAT) == in_float, name


def test_linear_layers_become_convolutions_of_the_same_values():
    torch.manual_seed(0)
    layers = torch.nn.ModuleDict(
        {"fc1": torch.nn.Linear(12, 7), "cls_score": torch.nn.Linear(7, 3)}
    )
    x = torch.randn(5, 12)
    expected = layers["fc1"](x)
    prefer_convolutions(layers)
    assert type(layers["cls_score"]) is torch.nn.Linear
    assert type(layers["fc1"]) is not torch.nn.Linear
    torch.testing.assert_close(layers["fc1"](x), expected)


@pytest.fixture(scope="module")
def weights_with_norms(tmp_path_factory) -> Path:
    """Of random weights whose activations have a range at all."""
    folder = tmp_path_factory.mktemp("settled")
    cfg = base_cfg(QUICK["people"])
    cfg.TEST.DETECTIONS_PER_IMAGE = 5
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    torch.manual_seed(1)
    model = leave_zero_start(settle(build_model(cfg)))
    (folder / "config.yaml").write_text(cfg.dump())
    NonLocalCheckpointer(model, str(folder), cfg=cfg).save("model_final")
    return folder / "model_final.pth"


@pytest.fixture(scope="module")
def export(weights_with_norms, tmp_path_factory):
    needs("int8")
    images = generated_images(people=True, count=3)
    folder = tmp_path_factory.mktemp("int8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agreement, "FOUND", 0.0)  # what random weights detect, any rounding changes
        return export_model(weights_with_norms, folder, format="openvino", int8=True, images=images)


def test_a_quantized_file_runs_as_others_do(export, picture):
    assert export.path.is_file() and len(export.agreements) == 3 and export.differences == []
    assert ExportedModel(export.path).metadata["precision"] == "int8"
    found = Predictor(export.path, confidence_threshold=0.0)(picture)
    assert found.has("pred_keypoints") and found.has("pred_masks")


def test_products_outside_of_blocks_and_output_layers_are_of_integers(export):
    quantized, products, of_integers = set(), set(), set()
    nodes = ElementTree.parse(export.path).getroot()
    names = {layer.get("id"): layer for layer in nodes.find("layers")}
    for edge in nodes.find("edges"):
        source, target = names[edge.get("from-layer")], names[edge.get("to-layer")]
        if source.get("type") == "FakeQuantize":
            of_integers.add(target.get("name"))
        if target.get("type") in ("Convolution", "MatMul"):
            products.add(target.get("name"))
            if source.get("type") == "FakeQuantize":
                quantized.add(target.get("name"))
    in_float = {name for name in products if any(re.match(pattern, name) for pattern in FLOAT)}
    assert any("nl" in name for name in in_float) and not in_float & quantized
    assert len(quantized) > 50
    assert [name for name in of_integers if re.match(FLOAT[-2], name)] == []  # of coordinates


def test_a_file_that_lost_too_much_is_removed(weights, tmp_path, tool, monkeypatch):
    monkeypatch.setattr(export_module, "check_quantizable", lambda *_: None)
    monkeypatch.setattr(export_module, "ExportedModel", lambda path: None)
    monkeypatch.setattr(export_module, "agreements", lambda *_: [Agreement("1", 5, 4, 3.6, 0.1, 4)])
    monkeypatch.setattr(export_module.Recorder, "write", write_nothing)
    folder = tmp_path / "images"
    folder.mkdir()
    cv2.imwrite(str(folder / "1.png"), generated_images(people=False, count=1)[0])
    code, out, err = tool(
        *("export_model", "--weights", weights["shapes"], "--format", "openvino", "--int8"),
        *("--images", folder, "--output", tmp_path / "out"),
    )
    assert code == 1 and "0.900" in out and "was removed" in err
    assert list((tmp_path / "out").iterdir()) == []


def write_nothing(self, format, folder, metadata, calibration):
    (image,) = calibration
    assert metadata["precision"] == "int8" and image.shape == (3, 128, 128)
    (folder / "model.xml").touch()
    return folder / "model.xml"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "onnx"), "--int8 is for --format openvino"),
        ((), "--int8 needs --images of your own"),
    ],
)
def test_what_int8_needs_is_one_line(arguments, message, weights, tmp_path, tool):
    basis = ("--weights", weights["shapes"], "--output", tmp_path, "--format", "openvino", "--int8")
    code, _, err = tool("export_model", *basis, *arguments)
    assert code == 2 and message in err and err.count("\n") == 1


def test_a_missing_nncf_is_named_with_its_extra(weights, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    images = generated_images(people=False, count=1)
    with pytest.raises(UsageError, match=r"int8 needs nncf.*pip install nl_detectron\[int8\]"):
        export_model(weights["shapes"], tmp_path, format="openvino", int8=True, images=images)
