import copy

import detectron2.export.torchscript  # noqa: F401  # makes Detectron2's ResNet scriptable
import pytest
import torch
from detectron2.modeling import build_backbone
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from nl_detectron import NonLocalBlock, insert_non_local
from nl_detectron.modeling.insertion import resolve_placement

R50 = {"res2": 3, "res3": 4, "res4": 6, "res5": 3}


@pytest.fixture
def resnet(narrow_cfg):
    narrow_cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    narrow_cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    return build_backbone(narrow_cfg).eval()


def child_names(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_children()]


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (["res4.-2"], [("res4", 4)]),
        (["res4.4"], [("res4", 4)]),
        (["res2.0", "res5.-1"], [("res2", 0), ("res5", 2)]),
        ([], []),
    ],
)
def test_resolve_placement(after, expected):
    assert resolve_placement(after, R50) == expected


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (["res6.0"], "'res6.0'.*res4.0 to res4.5 \\(or res4.-6 to res4.-1\\)"),
        (["res4.6"], "'res4.6'.*res4.0 to res4.5"),
        (["res4.-7"], "'res4.-7'.*res4.0 to res4.5"),
        (["res6"], "\"stage.index\".*'res6'"),
        (["res4.x"], "'res4.x'"),
        ([4], "4"),
        (["res4.4", "res4.-2"], "'res4.-2' puts a second non-local block after res4.4"),
    ],
)
def test_placement_that_does_not_exist(after, message):
    with pytest.raises(ValueError, match=message):
        resolve_placement(after, R50)


def test_default_is_right_before_the_last_residual_block_of_res4(resnet):
    (block,) = insert_non_local(resnet)
    assert child_names(resnet.res4) == ["0", "1", "2", "3", "4", "nl4", "5"]
    assert resnet.res4.nl4 is block
    assert block.inner_channels == block.in_channels // 2 == 32


def test_all_names_stay_and_outputs_are_equal_bit_for_bit(resnet):
    x = torch.randn(2, 3, 96, 64)
    twin = copy.deepcopy(resnet)
    insert_non_local(twin, ["res2.0", "res3.1", "res3.-1", "res4.1", "res4.3", "res4.5"])
    before, after = resnet.state_dict(), twin.state_dict()
    added = [name for name in after if name not in before]
    assert [name for name in after if name in before] == list(before)
    assert len(added) == 6 * 8 and all(".nl" in name for name in added)
    expected = resnet(x)
    for name, features in twin(x).items():
        assert torch.equal(features, expected[name]), name


def test_the_block_is_in_the_data_flow(resnet):
    x = torch.randn(1, 3, 64, 64)
    before = resnet(x)
    insert_non_local(resnet, ["res4.-2"], zero_init=False)
    after = resnet(x)
    assert torch.equal(before["res3"], after["res3"])
    assert not torch.equal(before["res4"], after["res4"])
    # The block sees what residual block 4 gives, and residual block 5 what the block gives.
    partial = resnet.res4[:5](resnet.res3(resnet.res2(resnet.stem(x))))
    assert torch.equal(resnet.res4[6](resnet.res4.nl4(partial)), after["res4"])


def test_options_reach_the_block(resnet):
    options = {"pairwise": "concatenation", "sub_sample": False, "use_scale": False, "norm": "BN"}
    (block,) = insert_non_local(resnet, ["res2.0"], inner_ratio=0.25, **options)
    assert block.inner_channels == 4 and isinstance(block.norm, nn.BatchNorm2d)
    assert (block.pairwise, block.sub_sample, block.use_scale) == ("concatenation", False, False)


def test_a_second_insertion_counts_residual_blocks_only(resnet):
    insert_non_local(resnet, ["res4.0"])
    insert_non_local(resnet, ["res4.-2", "res4.1"])
    names = ["0", "nl0", "1", "nl1", "2", "3", "4", "nl4", "5"]
    assert child_names(resnet.res4) == names


@pytest.mark.parametrize(
    ("after", "options", "message"),
    [
        (["res3.0", "res4.-2"], {}, "already a non-local block after res4.4"),
        (["res3.0", "res4.9"], {}, "res4.9"),
        (["res3.0"], {"pairwise": "x"}, "pairwise"),
        (["res3.0"], {"inner_ratio": 0}, "inner_ratio must be above 0, got 0"),
    ],
)
def test_a_refusal_leaves_the_model_unchanged(resnet, after, options, message):
    insert_non_local(resnet)
    before = list(resnet.state_dict())
    with pytest.raises(ValueError, match=message):
        insert_non_local(resnet, after, **options)
    assert list(resnet.state_dict()) == before


def test_a_model_needs_one_resnet(resnet):
    class Detector(nn.Module):
        def __init__(self, *backbones):
            super().__init__()
            self.backbones = nn.ModuleList(backbones)

    (block,) = insert_non_local(Detector(resnet))
    assert resnet.res4.nl4 is block
    with pytest.raises(ValueError, match="Detector has 0"):
        insert_non_local(Detector())
    with pytest.raises(ValueError, match="Detector has 2"):
        insert_non_local(Detector(resnet, copy.deepcopy(resnet)))


def test_takes_over_dtype_and_mode(resnet):
    for training in (False, True):
        model = copy.deepcopy(resnet).double().train(training)
        (block,) = insert_non_local(model, norm="BN")
        assert block.g.weight.dtype == torch.float64
        assert block.training == block.norm.training == training


def test_a_block_in_a_frozen_stage_is_frozen(resnet, log):
    resnet.freeze(4)
    frozen, trainable = insert_non_local(resnet, ["res4.-2", "res5.0"], norm="BN")
    assert not any(p.requires_grad for p in frozen.parameters())
    assert all(p.requires_grad for p in trainable.parameters())
    assert "block nl4 (64 channels) is frozen" in log.text and "nl0" not in log.text


def test_freezing_the_resnet_later_reaches_the_block(resnet):
    (block,) = insert_non_local(resnet)
    resnet.freeze(4)
    assert not any(p.requires_grad for p in block.parameters())


def test_scripting(resnet):
    insert_non_local(resnet, ["res3.0", "res4.-2"], zero_init=False)
    x = torch.randn(1, 3, 64, 64)
    expected = resnet(x)
    for name, features in torch.jit.script(resnet)(x).items():
        torch.testing.assert_close(features, expected[name])


def test_checkpoints_load_in_both_directions(resnet):
    """Weights of a plain model load whole; those of a non-local model load whole too."""
    twin = copy.deepcopy(resnet)
    (block,) = insert_non_local(twin)
    keys = twin.load_state_dict(resnet.state_dict(), strict=False)
    assert not keys.unexpected_keys
    assert set(keys.missing_keys) == {f"res4.nl4.{name}" for name in block.state_dict()}
    assert isinstance(twin.res4.nl4, NonLocalBlock)
    twin.load_state_dict(copy.deepcopy(twin).state_dict(), strict=True)


@pytest.mark.parametrize("wrapper", ["DistributedDataParallel", "DataParallel", "FSDPModule"])
def test_a_wrapped_model_is_refused_and_stays_as_it_is(resnet, wrapper, tmp_path):
    distributed.init_process_group("gloo", f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        if wrapper == "FSDPModule":
            model = fully_shard(resnet, mesh=init_device_mesh("cpu", (1,)))
        elif wrapper == "DataParallel":
            model = nn.Sequential(nn.DataParallel(resnet))  # somewhere inside
        else:
            model = nn.parallel.DistributedDataParallel(resnet)
        names = [name for name, _ in model.named_parameters()]
        with pytest.raises(ValueError, match=f"wrapped in {wrapper}.*Insert blocks first") as error:
            insert_non_local(model)
        assert "\n" not in str(error.value)
        assert [name for name, _ in model.named_parameters()] == names
    finally:
        distributed.destroy_process_group()
