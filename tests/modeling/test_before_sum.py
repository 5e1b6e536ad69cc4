"""Blocks inside of residual blocks, between their last norm and the sum with the shortcut."""

import copy
import pickle

import detectron2.export.torchscript  # noqa: F401  # makes Detectron2's ResNet scriptable
import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import Conv2d
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock, DeformBottleneckBlock
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from nl_detectron import insert_non_local
from nl_detectron.checkpoint import NonLocalCheckpointer
from nl_detectron.inference import optimize_for_inference
from nl_detectron.layers import non_local_blocks
from nl_detectron.layers.names import place_of, short_name, within_block
from nl_detectron.modeling import non_local_resnet

AFTER = ["res3.0", "res4.-2"]
BLOCKS = ["res3.0.conv3.activation.nl0", "res4.4.conv3.activation.nl4"]


@pytest.fixture
def plain(narrow_cfg) -> ResNet:
    narrow_cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    backbone = build_backbone(narrow_cfg)
    backbone.train()(torch.randn(4, 3, 64, 64))  # statistics with which activations stay finite
    return backbone.eval()


@pytest.fixture
def resnet(plain) -> ResNet:
    """With blocks that do something."""
    resnet = copy.deepcopy(plain)
    for block in insert_non_local(resnet, AFTER, position="before_sum"):
        nn.init.normal_(block.out.weight, std=0.3)
    return resnet


@pytest.mark.parametrize(("depth", "last"), [(18, "conv2"), (50, "conv3")])
def test_names_stay_and_outputs_are_equal_at_the_start(narrow_cfg, depth, last):
    narrow_cfg.MODEL.RESNETS.DEPTH = depth
    if depth < 50:  # Detectron2 allows no other width here
        narrow_cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    narrow_cfg.MODEL.NON_LOCAL.POSITION = "before_sum"
    narrow_cfg.MODEL.NON_LOCAL.AFTER = ["res3", "res4.-2"]
    twin = build_backbone(narrow_cfg).eval()
    narrow_cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    plain = build_backbone(narrow_cfg).eval()
    keys = twin.load_state_dict(plain.state_dict(), strict=False)
    assert not keys.unexpected_keys
    assert all(f".{last}.activation.nl" in key for key in keys.missing_keys)
    assert len(non_local_blocks(twin)) == (3 if depth == 18 else 5)
    x = torch.randn(2, 3, 64, 96)
    assert torch.equal(twin(x)["res4"], plain(x)["res4"])


def test_the_block_is_between_the_norm_and_the_sum(resnet):
    residual, x = resnet.res4[4], torch.randn(2, 64, 5, 7)
    before = F.relu(residual.conv2(F.relu(residual.conv1(x))))
    normed = residual.conv3.norm(F.conv2d(before, residual.conv3.weight))
    expected = F.relu(residual.conv3.activation.nl4(normed) + x)
    torch.testing.assert_close(residual(x), expected)
    assert not torch.equal(expected, F.relu(normed + x))


def test_copies_have_blocks_of_their_own(resnet):
    x = torch.randn(1, 3, 64, 64)
    expected = resnet(x)["res4"]
    for twin in (copy.deepcopy(resnet), pickle.loads(pickle.dumps(resnet))):
        assert list(non_local_blocks(twin)) == BLOCKS
        assert torch.equal(twin(x)["res4"], expected)
        nn.init.zeros_(twin.res4[4].conv3.activation.nl4.out.weight)
        assert not torch.equal(twin(x)["res4"], expected)
    assert torch.equal(resnet(x)["res4"], expected)


@pytest.mark.parametrize("how", ["trace", "export", "script"])
def test_what_is_recorded_holds_for_other_sizes(resnet, how):
    residual, x = resnet.res4[4], torch.randn(2, 64, 5, 8)
    with torch.no_grad():
        if how == "trace":
            recorded = torch.jit.trace(residual, x, check_trace=False)
        elif how == "script":
            recorded = torch.jit.script(residual)
        else:
            sizes = {axis: torch.export.Dim.DYNAMIC for axis in (0, 2, 3)}
            recorded = torch.export.export(residual, (x,), dynamic_shapes={"x": sizes}).module()
        for shape in ((2, 64, 5, 8), (3, 64, 9, 11)):
            x = torch.randn(shape)
            torch.testing.assert_close(recorded(x), residual(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_optimizing_folds_the_norm_before_the_block(resnet, dtype):
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = resnet(x)["res4"]
        weights = {name: tensor.clone() for name, tensor in resnet.state_dict().items()}
        optimize_for_inference(resnet, dtype)
        convolution = resnet.res4[4].conv3
        assert convolution.norm is None and convolution.weight.dtype == dtype
        for name, tensor in convolution.activation.state_dict(prefix=BLOCKS[1][:-3]).items():
            assert torch.equal(tensor, weights[name]) and tensor.dtype == torch.float32, name
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            found = resnet(x)["res4"].float()
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    assert (found - expected).norm() < tolerance * expected.norm()


def test_blocks_are_frozen_with_their_residual_block(narrow_cfg, log):
    narrow_cfg.MODEL.BACKBONE.FREEZE_AT = 3
    narrow_cfg.MODEL.NON_LOCAL.AFTER = AFTER
    narrow_cfg.MODEL.NON_LOCAL.POSITION = "before_sum"
    resnet = build_backbone(narrow_cfg)
    frozen, trained = non_local_blocks(resnet).values()
    assert not any(p.requires_grad for p in frozen.parameters())
    assert all(p.requires_grad for p in trained.parameters())
    assert "block nl0 (32 channels) is frozen" in log.text and "nl4" not in log.text
    resnet.freeze(4)
    assert not any(p.requires_grad for p in trained.parameters())


def test_dtype_mode_and_gradients(plain):
    resnet = copy.deepcopy(plain).double().train()
    for block in insert_non_local(resnet, ["res4"], position="before_sum", norm="BN"):
        assert block.g.weight.dtype == torch.float64 and block.norm.training
        nn.init.ones_(block.norm.weight)
    resnet(torch.randn(2, 3, 64, 64, dtype=torch.float64))["res4"].sum().backward()
    assert all(p.grad is not None for p in resnet.parameters())


def test_sharded_by_residual_block(resnet, tmp_path):
    x = torch.randn(1, 3, 64, 64)
    expected = resnet(x)["res4"].detach()
    distributed.init_process_group("gloo", f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for residual in resnet.res4:
            fully_shard(residual, mesh=mesh)
        fully_shard(resnet, mesh=mesh)
        found = resnet(x)["res4"]
        found.sum().backward()
        torch.testing.assert_close(found.detach(), expected)
        assert resnet.res4[4].conv3.activation.nl4.out.weight.grad is not None
    finally:
        distributed.destroy_process_group()


def test_checkpoints_load_in_both_directions(plain, resnet, tmp_path):
    NonLocalCheckpointer(plain, str(tmp_path)).save("plain")
    NonLocalCheckpointer(resnet, str(tmp_path)).save("trained")
    twin = copy.deepcopy(plain)
    blocks = insert_non_local(twin, AFTER, position="before_sum")
    checkpointer = NonLocalCheckpointer(twin)
    checkpointer.load(str(tmp_path / "plain.pth"))
    report = checkpointer.report
    assert len(report.new_non_local) == sum(len(block.state_dict()) for block in blocks)
    assert {name[: len(BLOCKS[0])] for name in report.new_non_local} == {*BLOCKS}
    assert not report.missing and not report.unexpected
    NonLocalCheckpointer(twin, complete=True).load(str(tmp_path / "trained.pth"))
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(twin(x)["res4"], resnet(x)["res4"])


def test_names():
    name = f"module.backbone.bottom_up.{BLOCKS[1]}"
    assert place_of(BLOCKS[1]) == "res4.4" and place_of("res4.nl4") == "res4.4"
    assert short_name(name) == "res4.4.nl4"
    assert within_block(f"{name}.theta.weight") == "theta.weight"
    assert within_block("res4.4.conv3.norm.weight") is None


def test_both_positions_in_one_stage(resnet):
    insert_non_local(resnet, ["res4"])
    assert len(non_local_blocks(resnet)) == 2 + 6
    with pytest.raises(ValueError, match="already a non-local block before the sum of res4.4"):
        insert_non_local(resnet, ["res4"], position="before_sum")
    assert len(non_local_blocks(resnet)) == 2 + 6


class OtherBlock(BottleneckBlock):
    pass


class NotDeformed(Conv2d):
    """In the place of DeformConv, which needs Detectron2's compiled part."""

    def __init__(self, *args, deformable_groups, **kwargs):
        super().__init__(*args, **kwargs)

    def forward(self, x, offset):
        return super().forward(x)


def test_residual_blocks_that_are_not_known(monkeypatch):
    monkeypatch.setattr("detectron2.modeling.backbone.resnet.DeformConv", NotDeformed)
    stem = BasicStem(out_channels=8, norm="")
    make = {"in_channels": 8, "out_channels": 8, "bottleneck_channels": 4, "norm": ""}
    known = non_local_resnet(
        stem=stem,
        stages=[ResNet.make_stage(DeformBottleneckBlock, 1, **make)],
        non_local_after=["res2"],
        non_local_position="before_sum",
    )
    assert list(non_local_blocks(known)) == ["res2.0.conv3.activation.nl0"]
    assert known(torch.randn(1, 3, 16, 16))["res2"].shape == (1, 8, 4, 4)
    other = ResNet(stem, [ResNet.make_stage(OtherBlock, 1, **make)])
    with pytest.raises(ValueError, match="residual blocks .*BottleneckBlock.*got a OtherBlock"):
        insert_non_local(other, ["res2"], position="before_sum")
    [block] = ResNet.make_stage(BottleneckBlock, 1, **make)
    block.conv3.activation = nn.ReLU()
    with pytest.raises(ValueError, match="conv3 without an activation, got one with ReLU"):
        insert_non_local(ResNet(stem, [[block]]), ["res2"], position="before_sum")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("POSITION", "inside", r"MODEL.NON_LOCAL: position must be one of .*got 'inside'"),
        ("MASK_PADDING", True, "mask_padding=True needs position='after_block'"),
        ("AFTER", ["res5"], r"MODEL.NON_LOCAL.AFTER = \['res5'\].*whole stages"),
    ],
)
def test_what_cannot_be_is_said(narrow_cfg: CfgNode, key, value, message):
    narrow_cfg.MODEL.NON_LOCAL.POSITION = "before_sum"
    narrow_cfg.MODEL.NON_LOCAL[key] = value
    with pytest.raises(ValueError, match=message) as error:
        build_backbone(narrow_cfg)
    assert "\n" not in str(error.value)
