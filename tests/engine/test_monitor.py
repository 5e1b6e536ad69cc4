import logging
import math

import pytest
import torch
from detectron2.engine import SimpleTrainer
from torch import nn

from nl_detectron import NonLocalBlock
from nl_detectron.engine.monitor import NonLocalMonitor, attention_entropy
from nl_detectron.layers import NON_LOCAL_BLOCK_REGISTRY, BlockOptions, build_block

C = 8


class Model(nn.Module):
    """A loss from one block on given maps, one for each iteration."""

    def __init__(self, **options):
        super().__init__()
        self.backbone = nn.Sequential()
        self.backbone.add_module("nl4", NonLocalBlock(C, **options))

    def forward(self, x):
        return {"loss": self.backbone(x).square().sum() / max(x.numel(), 1)}


def train(model, num_iters=4, *, monitor=True, size=(5, 7), n=2, **options):
    torch.manual_seed(1)
    maps = [torch.randn(n, C, *size) for _ in range(num_iters)]
    trainer = SimpleTrainer(model, maps, torch.optim.SGD(model.parameters(), lr=0.1))
    recorded = {}

    hook = NonLocalMonitor(model, **options) if monitor else None
    trainer.register_hooks([hook])
    after_train = trainer.after_train

    def keep():
        histories = trainer.storage.histories()
        recorded.update({name: h.values() for name, h in histories.items() if "non_local" in name})
        after_train()

    trainer.after_train = keep
    trainer.train(0, num_iters)
    return recorded


def test_entropy_in_closed_form():
    uniform = torch.full((2, 3, 16), 1 / 16)
    assert attention_entropy(uniform) == pytest.approx(1)
    one_key = torch.eye(16)[None]
    assert attention_entropy(one_key) == 0
    two_of_16 = torch.zeros(1, 4, 16)
    two_of_16[..., 3:5] = 0.5
    assert attention_entropy(two_of_16) == pytest.approx(math.log(2) / math.log(16))


@pytest.mark.parametrize("sub_sample", [False, True])
def test_scalars(sub_sample):
    model = Model(sub_sample=sub_sample)
    with torch.no_grad():
        model.backbone.nl4.theta.weight.zero_()
    recorded = train(model, 1, period=1)
    assert set(recorded) == {"non_local/nl4/entropy", "non_local/nl4/output_ratio"}
    [(entropy, iteration)] = recorded["non_local/nl4/entropy"]
    assert entropy == pytest.approx(1, abs=1e-6) and iteration == 0  # logits are all zero
    assert recorded["non_local/nl4/output_ratio"][0][0] == 0  # the zero start


@pytest.mark.parametrize("kind", [name for name, _ in NON_LOCAL_BLOCK_REGISTRY])
def test_scalars_of_each_kind_of_block(kind, log):
    model = Model()
    model.backbone.nl4 = build_block(C, options=BlockOptions(block=kind))
    recorded = train(model, 1, period=1)
    [(entropy, _)] = recorded["non_local/nl4/entropy"]
    # Weights are near 0: attention is even, over the 11 of 35 keys of a cross, or over all
    expected = math.log(11) / math.log(35) if kind == "CrissCrossBlock" else 1
    # The parts of an asymmetric block's pyramid overlap where they do not divide the map
    tolerance = 1e-2 if kind == "AsymmetricNonLocalBlock" else 1e-3
    if kind in ("EMABlock", "LatentGNNBlock"):  # whose logits are of vectors of unit length
        expected, tolerance = 0.9, 0.1 - 1e-6
    assert entropy == pytest.approx(expected, abs=tolerance)
    assert recorded["non_local/nl4/output_ratio"][0][0] == 0
    assert "collapsed" not in log.text


def test_the_output_ratio():
    model = Model(pairwise="dot_product")
    block = model.backbone.nl4
    with torch.no_grad():
        block.out.bias.fill_(2.0)  # the weight is zero: z = x + 2
    recorded = train(model, 1, period=1)
    assert set(recorded) == {"non_local/nl4/output_ratio"}  # no distribution, no entropy
    torch.manual_seed(1)
    x = torch.randn(2, C, 5, 7)[0]
    expected = 2 * math.sqrt(x.numel()) / x.norm().item()
    assert recorded["non_local/nl4/output_ratio"][0][0] == pytest.approx(expected, rel=1e-5)


def test_period():
    recorded = train(Model(), 7, period=3)
    assert [i for _, i in recorded["non_local/nl4/entropy"]] == [2, 5]


@pytest.mark.parametrize("pairwise", ["gaussian", "dot_product"])
def test_training_is_bitwise_the_same(pairwise):
    weights = []
    for monitor in (False, True):
        torch.manual_seed(0)
        model = Model(pairwise=pairwise, norm="BN")
        train(model, 4, monitor=monitor, period=1)
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(("n", "size"), [(0, (5, 7)), (2, (1, 1)), (1, (1, 2))])
def test_without_instances_or_with_one_key(n, size):
    model = Model()
    recorded = train(model, 1, period=1, n=n, size=size)
    assert "non_local/nl4/entropy" not in recorded
    assert ("non_local/nl4/output_ratio" in recorded) == (n > 0)


def test_a_collapse_is_warned_of_once(log):
    torch.manual_seed(0)
    model = Model(sub_sample=False, use_scale=False)
    with torch.no_grad():
        model.backbone.nl4.theta.bias.fill_(1e5)  # all look where the sum of phi is largest
    train(model, 3, period=1)
    [warning] = {r.message for r in log.records if r.levelno == logging.WARNING}
    assert "non-local block nl4 has collapsed: at iteration 0" in warning
    assert "SOLVER.NON_LOCAL_PAIRWISE_LR_FACTOR" in warning
    log.clear()
    train(model, 3, period=1, warn_until=-1)
    assert not [r for r in log.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize("std", [0.01, 10.0])  # attention to all keys, and to one each
def test_no_warning_without_a_collapse(log, std):
    model = Model(sub_sample=False)
    with torch.no_grad():
        model.backbone.nl4.theta.weight.normal_(std=std)
        model.backbone.nl4.phi.weight.copy_(model.backbone.nl4.theta.weight)
    train(model, 3, period=1)
    assert not [r for r in log.records if r.levelno == logging.WARNING]


@pytest.mark.parametrize("option", ["period", "num_queries"])
def test_errors(option):
    with pytest.raises(ValueError, match="must be at least 1"):
        NonLocalMonitor(Model(), **{option: 0})
