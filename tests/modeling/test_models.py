"""Whole detectors: with zero start they are Detectron2's own, bit for bit."""

import pickle

import numpy as np
import pytest
import torch
from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model

from nl_detectron import NonLocalBlock, insert_non_local
from tests.models import (
    ZOO,
    assert_same_losses,
    assert_same_predictions,
    make_non_local,
    settle,
    zoo_cfg,
)

FPN = "build_resnet_fpn_backbone"


@pytest.mark.parametrize("name", ZOO)
def test_equals_the_stock_model(name):
    cfg = zoo_cfg(name)
    model = settle(build_model(cfg))
    make_non_local(cfg)
    twin = settle(build_model(cfg))
    keys = twin.load_state_dict(model.state_dict(), strict=False)
    assert not keys.unexpected_keys
    blocks = {n for n, m in twin.named_modules() if isinstance(m, NonLocalBlock)}
    assert {key.rpartition(".")[0].rpartition(".")[0] for key in keys.missing_keys} == blocks
    assert len(blocks) == (5 if name == "keypoint" else 1)
    assert_same_predictions(model, twin)
    assert_same_losses(model, twin)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mask", "keypoint"])
def test_equals_the_stock_model_at_full_width(name):
    cfg = zoo_cfg(name, narrow=False)
    model = settle(build_model(cfg))
    make_non_local(cfg)
    twin = settle(build_model(cfg))
    twin.load_state_dict(model.state_dict(), strict=False)
    assert_same_predictions(model, twin)


@pytest.mark.parametrize("name", ZOO)
def test_any_config_of_the_zoo_in_two_lines(name):
    """As the README says: the backbone's name, and what is wanted of MODEL.NON_LOCAL."""
    cfg = zoo_cfg(name)
    cfg.MODEL.BACKBONE.NAME = cfg.MODEL.BACKBONE.NAME.replace("build_", "build_non_local_")
    cfg.MODEL.NON_LOCAL.AFTER = ["res3.1", "res4.-1"]
    names = {n for n, m in build_model(cfg).named_modules() if isinstance(m, NonLocalBlock)}
    assert {n.rpartition("res")[2] for n in names} == {"3.nl1", "4.nl5"}


def test_pretrained_weights_load_whole(tmp_path):
    """From a file as Detectron2's zoo has them, by names or by its matching heuristics."""
    cfg = zoo_cfg("keypoint")
    model = settle(build_model(cfg))
    make_non_local(cfg)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    for suffix in ("", "?matching_heuristics=True"):
        with open(tmp_path / "weights.pkl", "wb") as file:
            pickle.dump({"model": weights, "__author__": "a zoo"}, file)
        twin = build_model(cfg)
        DetectionCheckpointer(twin).load(f"{tmp_path}/weights.pkl{suffix}")
        for name, value in twin.state_dict().items():
            if ".nl" not in name:
                assert torch.equal(value, model.state_dict()[name]), name
        assert_same_predictions(model, twin)


def test_insertion_into_a_detector_that_is_already_built():
    model = settle(build_model(zoo_cfg("mask")))
    twin = build_model(zoo_cfg("mask"))
    twin.load_state_dict(model.state_dict())
    (block,) = insert_non_local(twin)
    assert twin.backbone.bottom_up.res4.nl4 is block
    assert_same_predictions(model, twin)


def test_insertion_into_the_model_of_a_predictor():
    cfg = zoo_cfg("mask")
    cfg.INPUT.MIN_SIZE_TEST = 96
    predictor, image = DefaultPredictor(cfg), np.zeros((96, 128, 3), np.uint8)
    settle(predictor.model).eval()
    before = predictor(image)["instances"]
    insert_non_local(predictor.model, ["res3.-1", "res4.-2"])
    after = predictor(image)["instances"]
    assert len(before) > 0
    assert torch.equal(after.pred_boxes.tensor, before.pred_boxes.tensor)
    assert torch.equal(after.pred_masks, before.pred_masks)


def test_insertion_into_the_model_of_a_lazy_config():
    cfg = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py")
    model = instantiate(cfg.model)
    (block,) = insert_non_local(model, pairwise="dot_product", norm="BN")
    assert model.backbone.bottom_up.res4.nl4 is block and block.norm is not None
