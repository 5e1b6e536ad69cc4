"""Converted weights compute what they computed in the library that they come from."""

import json
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

from nl_detectron import NonLocalBlock, add_non_local_config
from nl_detectron.checkpoint import CheckpointError, NonLocalCheckpointer, read_config
from nl_detectron.checkpoint.converters import (
    convert_block,
    convert_file,
    convert_mask_rcnn,
    convert_rcnn,
    convert_resnet,
    convert_video_blocks,
)
from nl_detectron.layers import PAIRWISE_FUNCTIONS

import numpy as np
import pytest
import torch
import torchvision
from detectron2 import model_zoo
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_backbone, build_model
from safetensors.torch import load_file
from torch import nn

timm = pytest.importorskip("timm", reason="needs timm")
mmcv_non_local = pytest.importorskip("mmcv.cnn.bricks.non_local", reason="needs mmcv-lite")
mmcv_cnn = pytest.importorskip("mmcv.cnn", reason="needs mmcv-lite")

TOOL = Path(__file__).resolve().parents[2] / "tools/convert_checkpoint.py"
MASK = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
KEYPOINT = "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml"


def base_cfg(config: str | None = None) -> CfgNode:
    cfg = get_cfg()
    add_non_local_config(cfg)
    if config:
        cfg.merge_from_file(model_zoo.get_config_file(config))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    return cfg


def merged(cfg: CfgNode, overrides: dict) -> CfgNode:
    for key, value in overrides.items():
        cfg.merge_from_list([key, value])
    return cfg


def randomize(model: nn.Module) -> nn.Module:
    """Norms with statistics of their own, so that none can be confused with another."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if getattr(module, "running_var", None) is not None:
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
            module.weight.data += 1
            module.running_var.copy_(
                torch.rand(module.running_var.shape, generator=generator) + 0.5
            )
    return model.eval()


def stages(resnet: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """res2 to res5 of a ResNet of torchvision or timm."""
    relu = getattr(resnet, "relu", None) or resnet.act1
    x = resnet.maxpool(relu(resnet.bn1(resnet.conv1(x))))
    features = {}
    for stage in (1, 2, 3, 4):
        x = resnet.get_submodule(f"layer{stage}")(x)
        features[f"res{stage + 1}"] = x
    return features


def assert_same_features(found: dict, expected: dict) -> None:
    assert expected.keys() <= found.keys()
    for name, feature in expected.items():
        assert feature.std() > 0.01
        torch.testing.assert_close(found[name], feature, msg=name)


def load_backbone(path: Path, overrides: dict, name: str = "build_resnet_backbone") -> nn.Module:
    cfg = merged(base_cfg(), overrides)
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    backbone = build_backbone(cfg).eval()
    NonLocalCheckpointer(backbone, complete=True).load(str(path))
    return backbone.double()


RESNETS = [
    ("torchvision", "resnet18", ".safetensors"),
    ("torchvision", "resnet50", ".pth"),
    ("torchvision", "resnext50_32x4d", ".pth"),
    ("torchvision", "wide_resnet50_2", ".safetensors"),
    ("timm", "resnet34", ".pth"),
    ("timm", "resnet50", ".safetensors"),
    ("timm", "resnext50_32x4d", ".pth"),
]


@pytest.mark.parametrize(("library", "name", "suffix"), RESNETS)
def test_resnet(tmp_path, library, name, suffix):
    peer = (
        getattr(torchvision.models, name)() if library == "torchvision" else timm.create_model(name)
    )
    randomize(peer)
    source, target = tmp_path / "peer.pth", tmp_path / f"ours{suffix}"
    torch.save(peer.state_dict(), source)
    converted = convert_file(str(source), str(target), library=library)
    backbone = load_backbone(target, converted.overrides)
    image = torch.randn(1, 3, 96, 64, dtype=torch.float64)
    with torch.no_grad():
        assert_same_features(backbone(image), stages(peer.double(), image))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet50d", "conv1.0.weight"),  # a deep stem
        ("seresnet50", "se.fc1"),
        ("resnet50_gn", "running_var"),
        ("resnet26", "no ResNet of"),
        ("res2net50_26w_4s", "res2.0.convs"),
        ("resnetv2_50", "stem.conv"),
    ],
)
def test_resnets_that_detectron2_does_not_compute(name, message):
    with pytest.raises(CheckpointError, match=message):
        convert_resnet(timm.create_model(name).state_dict())


@pytest.mark.parametrize("name", ["resnet101", "resnet152", "resnext101_32x8d"])
def test_deeper_resnets_have_all_they_need(name):
    with torch.device("meta"):
        peer = getattr(torchvision.models, name)()
    weights = {n: torch.empty_like(w, device="cpu") for n, w in peer.state_dict().items()}
    converted = convert_resnet(weights)
    backbone = build_backbone(merged(base_cfg(), converted.overrides))
    shapes = {n: w.shape for n, w in backbone.state_dict().items() if "num_batches" not in n}
    built = {n: w.shape for n, w in converted.weights.items() if not n.startswith("res5")}
    assert built == shapes


def rcnn(name: str, **options) -> nn.Module:
    """torchvision's, with weights that find things and tell them apart."""
    torch.manual_seed(0)
    builder = getattr(torchvision.models.detection, name)
    model = builder(
        weights=None,
        weights_backbone=None,
        box_detections_per_img=20,
        min_size=256,
        max_size=320,
        box_score_thresh=0.0,
        **options,
    )
    randomize(model.backbone.body)
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)) and ".body." not in name:
            spread = {"cls_logits": 2, "bbox_pred": 0.3, "cls_score": 2, "mask_fcn_logits": 2}
            spread_to(layer, spread.get(name.rpartition(".")[2], 1))
    with torch.no_grad():
        model.eval()([random_image()])
    return model


def spread_to(layer: nn.Module, deviation: float) -> None:
    """Scales a layer, when it is first used, so that its outputs have a standard deviation."""

    def scale(_, inputs, output):
        handle.remove()
        factor = deviation / output.std()
        layer.weight.data *= factor
        layer.bias.data *= factor
        return output * factor

    handle = layer.register_forward_hook(scale)


def random_image() -> torch.Tensor:
    return torch.rand(3, 256, 320, generator=torch.Generator().manual_seed(3))


def published(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Under the names of the files that torchvision publishes."""
    old = {}
    for name, tensor in weights.items():
        parts = name.split(".")
        if name.startswith("backbone.fpn."):
            del parts[4]
        elif name.startswith("rpn.head.conv."):
            del parts[3:5]
        elif name.startswith("roi_heads.mask_head."):
            parts = [*parts[:2], f"mask_fcn{int(parts[2]) + 1}", parts[4]]
        if "num_batches_tracked" not in name:
            old[".".join(parts)] = tensor
    return old


def ours(peer: nn.Module, tmp_path: Path, config: str, weights: dict | None = None, **options):
    source, target = tmp_path / "peer.pth", tmp_path / "ours.safetensors"
    torch.save(weights or peer.state_dict(), source)
    cfg = base_cfg(config)
    cfg.MODEL.BACKBONE.NAME = "build_non_local_resnet_fpn_backbone"
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.TEST.DETECTIONS_PER_IMAGE = 20
    convert_file(str(source), str(target), library="torchvision", cfg=cfg, **options)
    stored = base_cfg()
    stored.merge_from_other_cfg(CfgNode.load_cfg(read_config(str(target))))
    stored.MODEL.DEVICE = "cpu"
    model = build_model(stored).eval()
    NonLocalCheckpointer(model).load(str(target))
    return model


def detections(model: nn.Module, peer: nn.Module) -> tuple[dict, dict]:
    """Of both for one image, with the peer's mask probabilities before they are pasted."""
    image = random_image()
    inputs = [{"image": image * 255, "height": 256, "width": 320}]
    with torch.no_grad():
        found = model.inference(inputs, do_postprocess=False)[0]
        images, _ = peer.transform([image])
        features = peer.backbone(images.tensors)
        proposals, _ = peer.rpn(images, features)
        expected, _ = peer.roi_heads(features, proposals, images.image_sizes)
    return found.get_fields(), expected[0]


def assert_same_boxes(found: dict, expected: dict) -> None:
    assert len(expected["scores"]) == 20
    assert expected["scores"].std() > 0.01
    torch.testing.assert_close(found["scores"], expected["scores"], rtol=1e-3, atol=1e-4)
    assert torch.equal(found["pred_classes"], expected["labels"] - 1)
    torch.testing.assert_close(found["pred_boxes"].tensor, expected["boxes"], rtol=1e-3, atol=0.05)


@pytest.mark.parametrize("names", ["built", "published"])
def test_torchvision_mask_rcnn(tmp_path, names):
    peer = rcnn("maskrcnn_resnet50_fpn")
    weights = published(peer.state_dict()) if names == "published" else None
    model = ours(peer, tmp_path, MASK, weights)
    found, expected = detections(model, peer)
    assert_same_boxes(found, expected)
    assert expected["masks"].std() > 0.01
    torch.testing.assert_close(found["pred_masks"], expected["masks"], rtol=1e-3, atol=1e-3)


def test_torchvision_mask_rcnn_with_80_classes(tmp_path):
    """Equal to a torchvision model whose other 10 classes are impossible."""
    peer = rcnn("maskrcnn_resnet50_fpn")
    ids = MetadataCatalog.get("coco_2017_val").thing_dataset_id_to_contiguous_id
    unused = [label for label in range(1, 91) if label not in ids]
    assert len(unused) == 10
    model = ours(peer, tmp_path, MASK, coco_80=True)
    with torch.no_grad():
        peer.roi_heads.box_predictor.cls_score.weight[unused] = 0
        peer.roi_heads.box_predictor.cls_score.bias[unused] = -1e4
    found, expected = detections(model, peer)
    by_label = torch.tensor([ids.get(label, -1) for label in range(91)])
    assert_same_boxes(found, {**expected, "labels": by_label[expected["labels"]] + 1})


def test_torchvision_keypoint_rcnn(tmp_path):
    peer = rcnn("keypointrcnn_resnet50_fpn")
    model = ours(peer, tmp_path, KEYPOINT)
    found, expected = detections(model, peer)
    assert_same_boxes(found, expected)
    positions = found["pred_keypoints"][..., :2]
    # where two cells of a heatmap are equally high, either may win
    distance = (positions - expected["keypoints"][..., :2]).norm(dim=-1)
    assert (distance < 0.1).float().mean() > 0.99


def test_torchvision_models_that_are_not_converted():
    with torch.device("meta"):
        detection = torchvision.models.detection
        for name in ("maskrcnn_resnet50_fpn_v2", "retinanet_resnet50_fpn"):
            peer = getattr(detection, name)(weights=None, weights_backbone=None)
            with pytest.raises(CheckpointError, match="have no place in Detectron2's model"):
                convert_rcnn(peer.state_dict())
        faster = detection.fasterrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=5
        )
    weights = {n: torch.empty_like(w, device="cpu") for n, w in faster.state_dict().items()}
    converted = convert_rcnn(weights)
    assert converted.overrides["MODEL.MASK_ON"] is False
    assert converted.overrides["MODEL.ROI_HEADS.NUM_CLASSES"] == 4
    with pytest.raises(CheckpointError, match="4 classes are not COCO's 90"):
        convert_rcnn(weights, coco_80=True)


def mmcv_block(channels: int, **options) -> nn.Module:
    peer = mmcv_non_local.NonLocal2d(channels, **options)
    for parameter in peer.parameters():
        nn.init.normal_(parameter, std=0.4)
    return randomize(peer)


@pytest.mark.parametrize("mode", PAIRWISE_FUNCTIONS)
@pytest.mark.parametrize("sub_sample", [False, True])
@pytest.mark.parametrize("norm", [None, "BN", "GN"])
@pytest.mark.parametrize("use_scale", [False, True])
def test_mmcv_block(mode, sub_sample, norm, use_scale):
    norm_cfg = {"type": norm, **({"num_groups": 32} if norm == "GN" else {})} if norm else None
    options = {"mode": mode, "use_scale": use_scale, "sub_sample": sub_sample}
    peer = mmcv_block(32, norm_cfg=norm_cfg, reduction=4, **options).double()
    weights, found = convert_block(
        peer.state_dict(), pairwise=mode if mode == "dot_product" else None, use_scale=use_scale
    )
    assert found["pairwise"] == mode and found["norm"] == (norm or "")
    block = NonLocalBlock(32, **found).double().eval()
    keys = block.load_state_dict(weights, strict=False)
    assert not keys.unexpected_keys and all("num_batches" in key for key in keys.missing_keys)
    x = torch.randn(2, 32, 8, 6, dtype=torch.float64)
    with torch.no_grad():
        expected = peer(x)
        assert (expected - x).std() > 0.01
        torch.testing.assert_close(block(x), expected)


def test_mmcv_blocks_that_are_not_what_is_asked_for():
    peer = mmcv_non_local.NonLocal2d(8, mode="gaussian")
    with pytest.raises(CheckpointError, match="no block of pairwise function dot_product"):
        convert_block(peer.state_dict(), pairwise="dot_product")
    with pytest.raises(CheckpointError, match="has no g.weight"):
        convert_block({})


class MMDetection(nn.Module):
    """A Mask R-CNN under mmdetection's names, of torchvision's and mmcv's modules, with a block."""

    def __init__(self):
        super().__init__()
        self.backbone = torchvision.models.resnet50()
        del self.backbone.fc
        block = mmcv_block(1024, sub_sample=True, reduction=8)
        nn.init.normal_(block.conv_out.conv.weight, std=0.05)
        layers = list(self.backbone.layer3)
        self.backbone.layer3 = nn.Sequential(*layers[:-1], block, layers[-1])
        self.neck = nn.Module()
        channels = (256, 512, 1024, 2048)
        self.neck.lateral_convs = nn.ModuleList(
            mmcv_cnn.ConvModule(c, 16, 1, act_cfg=None) for c in channels
        )
        self.neck.fpn_convs = nn.ModuleList(
            mmcv_cnn.ConvModule(16, 16, 3, padding=1, act_cfg=None) for _ in channels
        )
        self.rpn_head = nn.Module()
        self.rpn_head.rpn_conv = nn.Conv2d(16, 16, 3, padding=1)
        self.rpn_head.rpn_cls, self.rpn_head.rpn_reg = nn.Conv2d(16, 3, 1), nn.Conv2d(16, 12, 1)
        self.roi_head = nn.Module()
        box, mask = nn.Module(), nn.Module()
        box.shared_fcs = nn.ModuleList([nn.Linear(16 * 49, 24), nn.Linear(24, 24)])
        box.fc_cls, box.fc_reg = nn.Linear(24, 6), nn.Linear(24, 20)
        mask.convs = nn.ModuleList(mmcv_cnn.ConvModule(16, 16, 3, padding=1) for _ in range(4))
        mask.upsample, mask.conv_logits = nn.ConvTranspose2d(16, 16, 2, 2), nn.Conv2d(16, 5, 1)
        self.roi_head.bbox_head, self.roi_head.mask_head = box, mask

    def features(self, x):
        maps = list(stages(self.backbone, x).values())
        laterals = [conv(m) for conv, m in zip(self.neck.lateral_convs, maps, strict=True)]
        for i in (3, 2, 1):
            laterals[i - 1] = laterals[i - 1] + nn.functional.interpolate(
                laterals[i], scale_factor=2
            )
        maps = [conv(m) for conv, m in zip(self.neck.fpn_convs, laterals, strict=True)]
        return [*maps, nn.functional.max_pool2d(maps[-1], 1, stride=2)]

    def rpn(self, maps):
        hidden = [self.rpn_head.rpn_conv(m).relu() for m in maps]
        return [self.rpn_head.rpn_cls(h) for h in hidden], [
            self.rpn_head.rpn_reg(h) for h in hidden
        ]

    def boxes(self, x):
        x = x.flatten(1)
        for fc in self.roi_head.bbox_head.shared_fcs:
            x = fc(x).relu()
        return self.roi_head.bbox_head.fc_cls(x), self.roi_head.bbox_head.fc_reg(x)

    def masks(self, x):
        for conv in self.roi_head.mask_head.convs:
            x = conv(x)
        return self.roi_head.mask_head.conv_logits(self.roi_head.mask_head.upsample(x).relu())


def test_mmdetection_mask_rcnn_with_a_block(tmp_path):
    peer = randomize(MMDetection())
    source, target = tmp_path / "mmdet.pth", tmp_path / "ours.pth"
    torch.save({"meta": {"epoch": 12}, "state_dict": peer.state_dict()}, source)
    cfg = base_cfg(MASK)
    cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 24
    converted = convert_file(str(source), str(target), library="mmdetection", cfg=cfg)
    assert converted.overrides["MODEL.NON_LOCAL.AFTER"] == ["res4.4"]
    assert converted.overrides["MODEL.NON_LOCAL.INNER_RATIO"] == 1 / 8
    assert converted.overrides["MODEL.ROI_HEADS.NUM_CLASSES"] == 5
    model = build_model(merged(cfg, converted.overrides)).eval()
    NonLocalCheckpointer(model, complete=True).load(str(target))
    model, peer = model.double(), peer.double()
    image = torch.randn(1, 3, 96, 64, dtype=torch.float64)
    roi = torch.randn(2, 16, 7, 7, dtype=torch.float64)
    with torch.no_grad():
        maps = peer.features(image)
        found = list(model.backbone(image).values())
        torch.testing.assert_close(found, maps)
        logits, deltas = model.proposal_generator.rpn_head(found)
        torch.testing.assert_close((logits, deltas), peer.rpn(maps))
        heads = model.roi_heads
        torch.testing.assert_close(heads.box_predictor(heads.box_head(roi)), peer.boxes(roi))
        torch.testing.assert_close(heads.mask_head.layers(roi), peer.masks(roi))


def test_mmdetection_plugins_inside_of_residual_blocks_are_refused():
    """mmdetection names a plugin nonlocal_block, a child of the residual block that it is in."""
    body = torchvision.models.resnet50()
    body.layer3[2].add_module("nonlocal_block", mmcv_non_local.NonLocal2d(1024))
    weights = {f"backbone.{name}": tensor for name, tensor in body.state_dict().items()}
    message = r"layer3.2.nonlocal_block\S+ is of .* inside of a residual block, before its addition"
    with pytest.raises(CheckpointError, match=message):
        convert_mask_rcnn(weights)


@pytest.mark.parametrize("layers", ["block first", "two blocks", "blocks that differ"])
def test_mmdetection_blocks_in_places_that_do_not_exist(layers):
    body = torchvision.models.resnet50()
    residual = list(body.layer3)
    blocks = [mmcv_non_local.NonLocal2d(1024) for _ in range(2)]
    if layers == "block first":
        body.layer3 = nn.Sequential(blocks[0], *residual)
    elif layers == "two blocks":
        body.layer3 = nn.Sequential(residual[0], *blocks, *residual[1:])
    else:
        other = mmcv_non_local.NonLocal2d(1024, sub_sample=True)
        body.layer3 = nn.Sequential(residual[0], other, residual[1], blocks[0], *residual[2:])
    weights = {f"backbone.{name}": tensor for name, tensor in body.state_dict().items()}
    with pytest.raises(CheckpointError, match="does not come after|blocks differ"):
        convert_mask_rcnn(weights)


def test_mmdetection_of_other_models_is_refused():
    weights = {f"backbone.{n}": w for n, w in torchvision.models.resnet50().state_dict().items()}
    weights["neck.lateral_convs.0.bn.weight"] = torch.ones(256)
    with pytest.raises(CheckpointError, match="neck.lateral_convs.0.bn.weight have no place"):
        convert_mask_rcnn(weights)


class VideoBlock(nn.Module):
    """spacetime_nonlocal of video-nonlocal-net without max-pooling, by its blobs' names."""

    def __init__(self, channels: int, inner: int):
        super().__init__()
        self.theta, self.phi, self.g = (nn.Conv3d(channels, inner, 1) for _ in range(3))
        self.out = nn.Conv3d(inner, channels, 1)
        self.bn = nn.BatchNorm3d(channels, eps=1.0000001e-5)
        self.inner = inner

    def forward(self, x):
        theta, phi, g = (layer(x).flatten(2) for layer in (self.theta, self.phi, self.g))
        p = torch.softmax(theta.transpose(1, 2) @ phi * self.inner**-0.5, dim=2)
        y = (g @ p.transpose(1, 2)).reshape(len(x), self.inner, *x.shape[2:])
        return x + self.bn(self.out(y))

    def blobs(self, prefix: str, kind: str) -> dict[str, np.ndarray]:
        found = {}
        for layer in ("theta", "phi", "g", "out"):
            conv = self.get_submodule(layer)
            found[f"{layer}_w"], found[f"{layer}_b"] = conv.weight, conv.bias
        scale, shift = self.bn.weight, self.bn.bias
        if kind == "affine":  # the norm folded, as in the files that training starts from
            deviation = (self.bn.running_var + self.bn.eps).sqrt()
            shift = shift - self.bn.running_mean * scale / deviation
            scale = scale / deviation
        else:
            found |= {"bn_rm": self.bn.running_mean, "bn_riv": self.bn.running_var}
        found |= {"bn_s": scale, "bn_b": shift}
        return {f"{prefix}_{name}": blob.detach().numpy() for name, blob in found.items()}


@pytest.mark.parametrize("kind", ["bn", "affine", "no bias"])
def test_video_blocks(kind):
    peer = VideoBlock(16, 8).double()
    for parameter in peer.parameters():
        nn.init.normal_(parameter, std=0.4)
    randomize(peer)
    blobs = peer.blobs("nonlocal_conv4_3", kind)
    if kind == "no bias":
        for layer in ("theta", "phi", "g", "out"):
            nn.init.zeros_(peer.get_submodule(layer).bias)
            del blobs[f"nonlocal_conv4_3_{layer}_b"]
    others = {"conv1_w": np.zeros((64, 3, 5, 7, 7)), "nonlocal_conv4_3_g_w_momentum": np.zeros(1)}
    converted = convert_video_blocks({**blobs, **others})
    assert converted.overrides["MODEL.NON_LOCAL.AFTER"] == ["res4.3"]
    block = NonLocalBlock(16, sub_sample=False).double()
    block.load_state_dict({n.removeprefix("res4.nl3."): w for n, w in converted.weights.items()})
    x = torch.randn(2, 16, 6, 5, dtype=torch.float64)
    with torch.no_grad():
        expected = peer(x.unsqueeze(2)).squeeze(2)
        assert (expected - x).std() > 0.01
        torch.testing.assert_close(block(x), expected)


def test_video_blocks_added_to_a_resnet(tmp_path):
    """As saved by Python 2's pickle with counters beside the blobs; the result loads whole."""
    blobs = {"model_iter": 5, "lr": np.float32(0.1)}
    for place, channels in (("conv3_1", 512), ("conv4_5", 1024)):
        blobs |= VideoBlock(channels, channels // 2).blobs(f"nonlocal_{place}", "bn")
    (tmp_path / "video.pkl").write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    torch.save(torchvision.models.resnet50().state_dict(), tmp_path / "r50.pth")
    resnet = convert_file(
        str(tmp_path / "r50.pth"), str(tmp_path / "base.pth"), library="torchvision"
    )
    converted = convert_file(
        str(tmp_path / "video.pkl"),
        str(tmp_path / "out.safetensors"),
        library="video-nonlocal-net",
        base=str(tmp_path / "base.pth"),
    )
    assert converted.overrides["MODEL.NON_LOCAL.AFTER"] == ["res3.1", "res4.5"]
    overrides = {**resnet.overrides, **converted.overrides}
    name = "build_non_local_resnet_backbone"
    backbone = load_backbone(tmp_path / "out.safetensors", overrides, name)
    weight = torch.as_tensor(blobs["nonlocal_conv4_5_theta_w"]).double()
    assert torch.equal(backbone.res4.nl5.theta.weight.data, weight.flatten(2).unsqueeze(-1))
    with pytest.raises(CheckpointError, match="no block"):
        convert_video_blocks({"conv1_w": np.zeros(1)})
    del blobs["nonlocal_conv3_1_out_w"]
    with pytest.raises(CheckpointError, match="res3.nl1: out_w"):
        convert_video_blocks(blobs)


def test_to_safetensors_and_back(tmp_path):
    model = nn.Sequential(OrderedDict(a=nn.Linear(3, 4), b=nn.BatchNorm1d(4)))
    saver = NonLocalCheckpointer(model, str(tmp_path), cfg=base_cfg(), optimizer=nn.Linear(1, 1))
    saver.save("model_final")
    there, back = tmp_path / "there.safetensors", tmp_path / "back.pth"
    converted = convert_file(str(tmp_path / "model_final.pth"), str(there))
    assert "optimizer" in converted.notes[0]
    convert_file(str(there), str(back))
    for name, tensor in model.state_dict().items():
        assert torch.equal(load_file(there)[name], tensor)
        read = torch.load(back, weights_only=True)["model"][name]
        assert torch.equal(read, tensor) and read.dtype == tensor.dtype
    assert read_config(str(there)) == read_config(str(back)) == base_cfg().dump()
    with pytest.raises(CheckpointError, match="formats to convert to"):
        convert_file(str(back), str(tmp_path / "x.pkl"))


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_script(tmp_path):
    source, target = tmp_path / "r18.pth", tmp_path / "ours.safetensors"
    torch.save(torchvision.models.resnet18().state_dict(), source)
    result = run(source, target, "--from", "torchvision")
    assert result.returncode == 0, result.stderr[-2000:]
    assert 'MODEL.RESNETS.DEPTH "18"' in result.stdout
    with open(target, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert "torch" in json.loads(header["__metadata__"]["versions"])
    refused = run(source, target, "--from", "mmdetection", "--pairwise", "gaussian")
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith("error: not converted: ")
