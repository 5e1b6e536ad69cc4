"""The bases of an EMA block: what moves them and what does not, and how they are learned from."""

import copy

import pytest
import torch
from detectron2.utils import comm
from torch import Tensor, distributed, nn

from nl_detectron.layers import EMABlock

from .family_reference import each, softmax, unit


def block(**options) -> EMABlock:
    return EMABlock(4, nodes=3, zero_init=False, **options).double().train()


def maps(samples: int = 3) -> Tensor:
    return torch.randn(samples, 4, 5, 3, dtype=torch.float64)


def found(block: EMABlock, x: Tensor) -> Tensor:
    """The mean of the bases of each map, (K, D), by the equations."""
    means = []
    for sample in x:
        q, bases = each(sample.flatten(1).T, block.theta), list(block.bases)
        for _ in range(block.iterations):
            shares = torch.stack([softmax([(row * base).sum() for base in bases]) for row in q])
            bases = [unit(row @ q) for row in shares.T]
        means.append(torch.stack(bases))
    return torch.stack(means).mean(0)


@torch.no_grad()
def test_bases_start_at_unit_length_and_follow_what_was_found():
    ema, x = block(momentum=0.75), maps()
    torch.testing.assert_close(ema.bases.norm(dim=1), torch.ones(3).double(), rtol=1e-6, atol=0)
    for _ in range(2):
        expected = 0.75 * ema.bases + 0.25 * found(ema, x)
        ema(x)
        torch.testing.assert_close(ema.bases, expected, rtol=1e-12, atol=1e-12)
    assert list(dict(ema.named_buffers())) == ["bases"]  # of checkpoints, too
    again = block()
    again.load_state_dict(ema.state_dict())
    assert torch.equal(again.eval()(x), ema.eval()(x))


def test_nothing_else_moves_them():
    ema = block()
    start = ema.bases.clone()
    ema(maps(0))
    ema(torch.full((1, 4, 2, 2), torch.nan).double())
    ema.affinity(maps())
    ema.eval()(maps())
    ema.train().freeze()(maps())
    assert torch.equal(ema.bases, start)
    fixed = block(momentum=1.0)
    start = fixed.bases.clone()
    fixed(maps())
    assert torch.equal(fixed.bases, start)


@pytest.mark.parametrize("norm", ["", "BN"])
def test_recomputation_moves_them_once_and_gives_the_same_gradients(norm):
    plain = block(momentum=0.0, norm=norm)
    recomputing = copy.deepcopy(plain)
    recomputing.grad_checkpoint = True
    x = maps()
    results = []
    for ema in (plain, recomputing):
        for _ in range(2):
            given = x.clone().requires_grad_()
            z = ema(given)
            z.square().sum().backward()
        results.append([z, given.grad, *(p.grad for p in ema.parameters()), *ema.buffers()])
    for expected, actual in zip(*results, strict=True):
        assert torch.equal(actual, expected)


def test_samples_count_alike_on_all_processes(monkeypatch):
    """With one process's maps being another number than the other's."""
    one, x = block(), maps(3)
    whole = copy.deepcopy(one)
    totals: list[Tensor] = []
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce", totals.append)
    copy.deepcopy(one)(x[:1])
    [other] = totals
    assert torch.equal(block().bases, block().bases)  # by processes of seeds of their own
    monkeypatch.setattr(distributed, "all_reduce", lambda total: total.add_(other))
    one(x[1:])
    monkeypatch.undo()
    whole(x)
    torch.testing.assert_close(one.bases, whole.bases, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_the_last_iteration():
    three, x = block(momentum=1.0), maps(1)
    last = copy.deepcopy(three)
    last.iterations = 1
    with torch.no_grad():
        for _ in range(2):
            _, sums = last._find(last._embed(x), last.bases)
            last.bases = nn.functional.normalize(sums[0], dim=1)
    for ema in (three, last):
        ema(x).square().sum().backward()
    for expected, actual in zip(three.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad)
        assert expected.grad.any()
