"""Blocks of mmcv and a Mask R-CNN of mmdetection, converted, compute what they computed there."""

import functools

import pytest
import torch
import torchvision
from detectron2.modeling import build_model
from torch import nn

from dev.benchmark.family_peers import criss_cross_attention
from nl_detectron import BlockOptions, NonLocalBlock
from nl_detectron.checkpoint import CheckpointError, NonLocalCheckpointer
from nl_detectron.checkpoint.converters import convert_block, convert_file, convert_mask_rcnn
from nl_detectron.checkpoint.converters.mmcv import convert_module
from nl_detectron.config import block_options
from nl_detectron.layers import PAIRWISE_FUNCTIONS, build_block

from .models import (
    MASK,
    assert_same_features,
    base_cfg,
    load_backbone,
    merged,
    randomize,
    stages,
)

mmcv_non_local = pytest.importorskip("mmcv.cnn.bricks.non_local", reason="needs mmcv-lite")
mmcv_cnn = pytest.importorskip("mmcv.cnn", reason="needs mmcv-lite")


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


class Disentangled(mmcv_non_local.NonLocal2d):
    """mmsegmentation's names for the equation of DNL, whose last layer is of each term."""

    temperature = 0.05

    def __init__(self, channels: int, **options):
        super().__init__(channels, **options)
        self.conv_mask = nn.Conv2d(channels, 1, 1)

    def forward(self, x):
        def rows(layer: nn.Module) -> torch.Tensor:
            return layer(x).flatten(2).transpose(1, 2)

        def out(y: torch.Tensor) -> torch.Tensor:
            return self.conv_out(y.transpose(1, 2).reshape(len(x), -1, *x.shape[2:]))

        q, k, v = rows(self.theta), rows(self.phi), rows(self.g)
        logits = (q - q.mean(1, keepdim=True)) @ (k - k.mean(1, keepdim=True)).transpose(1, 2)
        scale = q.shape[2] ** -0.5 if self.use_scale else 1.0
        unary = rows(self.conv_mask).softmax(1).transpose(1, 2) @ v
        return x + out((logits * scale / self.temperature).softmax(2) @ v) + out(unary.expand_as(v))


GN = {"type": "GN", "num_groups": 32}


class PluginBottleneck(torchvision.models.resnet.Bottleneck):
    """mmdetection's: plugins after the norm of conv3, before the sum."""

    plugin: str

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.get_submodule(self.plugin)(self.bn3(self.conv3(x))) + identity)


def body_with_plugins(name: str, make, layers: tuple[str, ...], device="meta") -> nn.Module:
    """A ResNet-50 under mmdetection's names, a plugin in each residual block of some layers."""
    with torch.device(device):
        body = torchvision.models.resnet50()
    del body.fc
    for layer in layers:
        for residual in body.get_submodule(layer):
            plugin = make(residual.conv3.out_channels)
            for parameter in plugin.parameters():
                nn.init.normal_(parameter, std=0.1)
            residual.add_module(name, plugin)
            residual.__class__, residual.plugin = PluginBottleneck, name
    return body


def with_prefix(body: nn.Module) -> dict[str, torch.Tensor]:
    return {f"backbone.{name}": tensor for name, tensor in body.state_dict().items()}


def test_mmdetection_gcnet_computes_the_same(tmp_path):
    layers = ("layer2", "layer3", "layer4")
    make = functools.partial(mmcv_cnn.ContextBlock, ratio=1 / 16)
    peer = randomize(body_with_plugins("context_block", make, layers, device="cpu"))
    source, target = tmp_path / "mmdet.pth", tmp_path / "ours.safetensors"
    torch.save({"state_dict": with_prefix(peer)}, source)
    overrides = convert_file(str(source), str(target), library="mmdetection").overrides
    found = {key.rpartition(".")[2]: value for key, value in overrides.items()}
    assert (found["BLOCK"], found["POSITION"]) == ("GlobalContextBlock", "before_sum")
    assert (len(found["AFTER"]), found["INNER_RATIO"]) == (13, 1 / 16)
    ours = load_backbone(target, overrides, "build_non_local_resnet_backbone")
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = stages(peer.double(), x)
        assert_same_features(ours(x), expected)
        for residual in peer.layer2:
            residual.context_block = nn.Identity()
        assert not torch.allclose(stages(peer, x)["res3"], expected["res3"], rtol=1e-2)


@pytest.mark.parametrize(
    ("name", "make", "expected"),
    [
        (
            "context_block2",
            lambda c: mmcv_cnn.ContextBlock(c, 1 / 4),
            ("GlobalContextBlock", 1 / 4),
        ),
        (
            "nonlocal_block",
            lambda c: mmcv_non_local.NonLocal2d(c, reduction=4),
            ("NonLocalBlock", 1 / 4),
        ),
        (
            "criss_cross_attention",
            lambda c: criss_cross_attention(c)[0],
            ("CrissCrossBlock", 1 / 8),
        ),
        (
            "nonlocal_block",
            lambda c: Disentangled(c, reduction=4),
            ("DisentangledNonLocalBlock", 1 / 4),
        ),
    ],
)
def test_mmdetection_plugins_after_conv3_become_blocks_before_the_sum(name, make, expected):
    body = body_with_plugins(name, make, ("layer3",)).double()
    converted = convert_mask_rcnn(with_prefix(body))
    cfg = base_cfg()
    merged(cfg, converted.overrides)
    node = cfg.MODEL.NON_LOCAL
    assert (*expected, "before_sum") == (node.BLOCK, node.INNER_RATIO, node.POSITION)
    assert [f"res4.{i}" for i in range(6)] == node.AFTER
    block = build_block(1024, options=block_options(node)).double()
    prefix = "res4.5.conv3.activation.nl5."
    tensors = {n.removeprefix(prefix): t for n, t in converted.weights.items() if prefix in n}
    block.load_state_dict(tensors)
    x = torch.randn(1, 1024, 4, 3, dtype=torch.float64)
    with torch.no_grad():
        wanted = body.layer3[5].get_submodule(name)(x)
        assert (wanted - x).std() > 0.01
        torch.testing.assert_close(block(x), wanted)


@pytest.mark.parametrize("use_scale", [False, True])
def test_mmsegmentation_disentangled_block_with_a_norm(use_scale):
    """Which it applies to each of its two terms."""
    peer = Disentangled(32, reduction=4, norm_cfg={"type": "BN"}, use_scale=use_scale)
    for parameter in peer.parameters():
        nn.init.normal_(parameter, std=0.4)
    peer = randomize(peer).double().eval()
    weights, options = convert_module(peer.state_dict(), use_scale=use_scale)
    assert options.pop("temperature") == peer.temperature
    block = build_block(32, options=BlockOptions(temperature=0.05, **options)).double().eval()
    block.load_state_dict(weights)
    x = torch.randn(2, 32, 5, 6, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(block(x), peer(x))
    for options in ({"sub_sample": True}, {"mode": "gaussian"}, {"norm_cfg": GN}):
        peer = Disentangled(32, **options)
        with pytest.raises(CheckpointError, match="without sub_sample and with no norm or BN"):
            convert_module(peer.state_dict())


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        (
            "context_block",
            lambda c: mmcv_cnn.ContextBlock(c, 1 / 16, fusion_types=("channel_mul",)),
            "channel_mul_conv.0.weight",
        ),
        (
            "context_block",
            lambda c: mmcv_cnn.ContextBlock(c, 1 / 16, pooling_type="avg"),
            "has no conv_mask.weight",
        ),
        (
            "gen_attention_block",
            lambda c: mmcv_cnn.GeneralizedAttention(c, num_heads=1),
            "layer4.0.gen_attention_block.* is of a GeneralizedAttention",
        ),
    ],
)
def test_mmdetection_plugins_that_no_block_is_are_refused(name, make, message):
    with pytest.raises(CheckpointError, match=message):
        convert_mask_rcnn(with_prefix(body_with_plugins(name, make, ("layer4",))))


def test_mmdetection_plugins_of_several_kinds_or_places_are_refused():
    gcnet = functools.partial(mmcv_cnn.ContextBlock, ratio=1 / 16)
    body = body_with_plugins("context_block", gcnet, ("layer4",))
    body.layer4[0].add_module("nonlocal_block", mmcv_non_local.NonLocal2d(2048))
    with pytest.raises(CheckpointError, match="layer4.0 has more than one plugin"):
        convert_mask_rcnn(with_prefix(body))
    body = body_with_plugins("context_block", gcnet, ("layer4",))
    body.layer3 = nn.Sequential(*body.layer3, mmcv_non_local.NonLocal2d(1024))
    with pytest.raises(CheckpointError, match="between residual blocks and inside of them"):
        convert_mask_rcnn(with_prefix(body))


def test_mmdetection_plugins_elsewhere_in_residual_blocks_are_refused():
    """mmdetection names a plugin nonlocal_block, a child of the residual block that it is in."""
    body = torchvision.models.resnet50()
    body.layer3[2].add_module("nonlocal_block", mmcv_non_local.NonLocal2d(256))  # after conv2
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
