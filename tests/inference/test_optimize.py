"""Detections and attention are the same before and after; only the time is another one."""

import copy

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, FrozenBatchNorm2d, ROIAlign, get_norm
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import nn

from nl_detectron import NonLocalBlock, Predictor
from nl_detectron.inference import optimize, optimize_for_inference
from nl_detectron.inference.optimize import InferenceConv2d, InferenceROIAlign
from tests.models import base_cfg, make_narrow

SIZES = [(64, 64), (97, 131), (33, 160)]  # of images, most of them odd


def small_cfg(name: str, norm: str) -> CfgNode:
    """Narrow models with blocks, whose heads are as in the base configs but for their width."""
    cfg = make_narrow(base_cfg(), stem=8, res2=32, width=8)
    cfg.MODEL.RESNETS.NORM = norm
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.NON_LOCAL.NORM = "BN"
    if name == "c4":
        cfg.MODEL.BACKBONE.NAME = "build_non_local_resnet_backbone"
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16, 32]]
    else:
        cfg.MODEL.BACKBONE.NAME = "build_non_local_resnet_fpn_backbone"
        cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
        cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
        cfg.MODEL.FPN.OUT_CHANNELS = 16
        cfg.MODEL.FPN.NORM = norm
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
        cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
        cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
        cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
        cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
        cfg.MODEL.ROI_BOX_HEAD.NUM_FC, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 2, 32
        cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
        cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
        cfg.MODEL.ROI_MASK_HEAD.NUM_CONV, cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 2, 16
        cfg.MODEL.ROI_MASK_HEAD.NORM = norm
        cfg.MODEL.MASK_ON = True
        cfg.MODEL.KEYPOINT_ON = name == "keypoint"
        cfg.MODEL.ROI_KEYPOINT_HEAD.NAME = "NonLocalKeypointHead"
        cfg.MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS = (16, 16)
        cfg.MODEL.ROI_KEYPOINT_HEAD.NON_LOCAL.AFTER = [1, 2]
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 50
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.TEST.DETECTIONS_PER_IMAGE = 20
    return cfg


def randomized(model: nn.Module) -> nn.Module:
    """The model in evaluation mode, its norms, blocks and scores with something to get wrong."""
    for module in model.modules():
        if isinstance(module, NonLocalBlock):
            module.reset_parameters(zero_init=False)
    for module in model.modules():
        if isinstance(module, (FrozenBatchNorm2d, nn.modules.batchnorm._BatchNorm)):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.2, 0.6)  # more would let the residual sums grow
            module.bias.data.normal_(std=0.3)
    for name, parameter in model.named_parameters():
        if "cls_score.weight" in name or "bbox_pred.weight" in name:
            parameter.data.normal_(std=0.05)
    return model.eval()


def predict(model: nn.Module, size: tuple[int, int]) -> Instances:
    rng = np.random.default_rng(size[0])
    image = cv2.resize(rng.integers(0, 255, (7, 9, 3), np.uint8), size[::-1])
    image = torch.from_numpy(image.transpose(2, 0, 1).copy())
    with torch.inference_mode():
        return model([{"image": image, "height": 2 * size[0] + 1, "width": 2 * size[1] + 1}])[0][
            "instances"
        ]


@pytest.mark.parametrize("norm", ["FrozenBN", "BN", "SyncBN"])
@pytest.mark.parametrize("name", ["mask", "keypoint", "c4"])
def test_the_same_detections(name, norm):
    model = randomized(build_model(small_cfg(name, norm)))
    optimized = optimize_for_inference(copy.deepcopy(model))
    left = [module for module in optimized.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert left == [] and any(isinstance(m, InferenceConv2d) for m in optimized.modules())
    for size in SIZES:
        expected, actual = predict(model, size), predict(optimized, size)
        assert len(actual) == len(expected) == 20
        assert torch.equal(actual.pred_classes, expected.pred_classes)
        boxes = actual.pred_boxes.tensor - expected.pred_boxes.tensor
        assert boxes.abs().max() < 0.01
        assert (actual.scores - expected.scores).abs().max() < 1e-4
        if name != "c4":
            assert (actual.pred_masks != expected.pred_masks).float().mean() < 1e-4
        if name == "keypoint":
            # The peak of a heat map is a pixel, which two equal ones may change.
            moved = (actual.pred_keypoints - expected.pred_keypoints).abs().amax(2) > 0.01
            assert moved.float().mean() < 0.02


def test_what_is_not_a_detectron2_layer_is_left_alone():
    """Neither the block's layers nor a subclass that computes something else."""

    class Halved(Conv2d):
        def forward(self, x):
            return super().forward(x) / 2

    block = NonLocalBlock(8, norm="BN", zero_init=False)
    model = nn.Sequential(Halved(3, 8, 3, padding=1), block, nn.Conv2d(8, 8, 3)).eval()
    # Channels last, as convolutions are made: the block has another kernel for either layout.
    before = copy.deepcopy(model).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 9, 11)
    optimize_for_inference(model)
    assert torch.equal(model(x), before(x))
    assert model.state_dict().keys() == before.state_dict().keys()
    optimize_for_inference(model, torch.bfloat16)
    assert {p.dtype for p in block.parameters()} == {torch.float32}


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match="training mode"):
        optimize_for_inference(nn.Sequential(Conv2d(3, 3, 1)))


@pytest.mark.parametrize("shape", [(0, 8, 5, 5), (1, 8, 1, 1), (1, 8, 2, 37), (3, 8, 31, 17)])
@pytest.mark.parametrize("padding", [1, 2])
@pytest.mark.parametrize("threads", [1, 2])
def test_convolutions(shape, padding, threads, with_threads, monkeypatch):
    """Winograd's sums, those of one thread, have some more rounding."""
    with_threads(threads)
    monkeypatch.setattr(optimize, "_gains_from_winograd", lambda x: x.numel() > 0)
    conv = Conv2d(8, 12, 3, padding=padding, norm=get_norm("BN", 12), activation=F.relu).eval()
    randomized(conv)
    expected = copy.deepcopy(conv).double()
    x = torch.randn(shape)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        with torch.inference_mode():
            y = optimize_for_inference(copy.deepcopy(conv))(x.to(memory_format=memory_format))
            reference = expected(x.double())
        assert y.shape == reference.shape
        assert torch.allclose(y.double(), reference, atol=2e-4)


@pytest.mark.parametrize(
    ("shape", "gains"),
    [
        ((1, 256, 32, 32), True),
        ((1, 256, 31, 32), False),
        ((1, 64, 200, 200), False),
        ((20, 256, 14, 14), False),
        ((30, 256, 14, 14), True),
        ((0, 256, 14, 14), False),
    ],
)
def test_winograd_is_for_large_maps_of_many_channels(shape, gains):
    assert optimize._gains_from_winograd(torch.empty(shape, device="meta")) is gains


def test_roi_align_of_a_small_map_is_torchvisions():
    x, rois = torch.randn(1, 4, 9, 9), torch.tensor([[0, 1.0, 2, 50, 60]])
    stock = ROIAlign((7, 7), 1 / 8, 0, True)
    fast = optimize_for_inference(nn.Sequential(copy.deepcopy(stock)).eval())[0]
    assert torch.equal(fast(x, rois), stock(x, rois))


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("channels_last", [False, True])
def test_roi_align(aligned, sampling_ratio, channels_last, monkeypatch):
    """Regions inside, across and outside the map, thin, empty and turned inside out."""
    monkeypatch.setattr(optimize, "SMALL_MAP", 0)
    x = torch.randn(3, 5, 19, 26)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    corners = torch.rand(200, 2) * torch.tensor([30 * 8.0, 22 * 8.0]) - 20
    sizes = torch.rand(200, 2) ** 3 * 250
    sizes[:5] = 0
    sizes[5, 0] = sizes[6, 1] = 0
    sizes[7] = -9
    corners[8], sizes[8] = 1000, 50
    rois = torch.cat([torch.randint(3, (200, 1)), corners, corners + sizes], dim=1)
    stock = ROIAlign((7, 5), 1 / 8, sampling_ratio, aligned)
    fast = optimize_for_inference(nn.Sequential(nn.Linear(1, 1), copy.deepcopy(stock)).eval())[1]
    assert type(fast) is InferenceROIAlign
    y = fast(x, rois)
    assert y.shape == (200, 5, 7, 5)
    assert torch.allclose(y, stock(x, rois), atol=1e-4)
    assert fast(x, rois[:0]).shape == (0, 5, 7, 5)
    assert torch.allclose(fast(x[:, :, :1, :1], rois), stock(x[:, :, :1, :1], rois), atol=1e-4)
    # Boxes keep their precision where features do not.
    half = fast(x.bfloat16(), rois)
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), stock(x.bfloat16().float(), rois), atol=0.05)


def attention_of(predictor: Predictor, image: np.ndarray) -> list:
    return predictor.attention(image, [(3, 4), (60, 40), (100, 70)]).maps


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_is_the_same(weights, picture, dtype):
    image = cv2.imread(str(picture))
    options = {"confidence_threshold": 0, "device": "cpu"}
    optimized = Predictor(weights["people"], dtype=dtype, **options)
    stock = Predictor(weights["people"], **options)
    stock.model = build_model(stock.cfg).eval()
    state = torch.load(weights["people"], weights_only=True)["model"]
    stock.model.load_state_dict(state)
    expected, actual = attention_of(stock, image), attention_of(optimized, image)
    backbone = [found for found in expected if "backbone" in found.block]
    assert len(backbone) == 3 and any("keypoint_head" in found.block for found in expected)
    tolerance = {"float32": 1e-5, "bfloat16": 0.15}[dtype]
    for one, other in zip(backbone, actual, strict=False):
        assert (one.block, one.query) == (other.block, other.query)
        assert other.weights.dtype == np.float32
        assert np.allclose(one.weights, other.weights, atol=tolerance * one.weights.max())
        assert np.array_equal(one.x_edges, other.x_edges)
    if dtype == "float32":
        assert len(expected) == len(actual)
        for one, other in zip(expected, actual, strict=True):
            assert np.allclose(one.weights, other.weights, atol=1e-4 * one.weights.max())
