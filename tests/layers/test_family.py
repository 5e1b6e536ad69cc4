"""Each block of the family against its equations, and what all of them have in common."""

import inspect
import math

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from nl_detectron import BlockOptions
from nl_detectron.analysis import count_flops
from nl_detectron.layers import (
    NON_LOCAL_BLOCK_REGISTRY,
    AsymmetricNonLocalBlock,
    BaseNonLocalBlock,
    CrissCrossBlock,
    DisentangledNonLocalBlock,
    EfficientAttentionBlock,
    EMABlock,
    GlobalContextBlock,
    LatentGNNBlock,
    SimplifiedNonLocalBlock,
    block_kind,
    build_block,
    tiled,
)
from nl_detectron.layers.options import CONFIG_OPTIONS
from tests.gpus import needs_gpu

from .family_reference import REFERENCES, reference

CHANNELS = 6
KINDS = dict(NON_LOCAL_BLOCK_REGISTRY)
FAMILY = list(REFERENCES)
# Kind, number of axes, options; what else there is of each is a matter of these
FORMS = [
    ("SimplifiedNonLocalBlock", 1, {}),
    ("SimplifiedNonLocalBlock", 3, {}),
    ("GlobalContextBlock", 2, {"inner_ratio": 0.5}),
    ("GlobalContextBlock", 3, {"inner_ratio": 2.0}),
    ("DisentangledNonLocalBlock", 1, {"sub_sample": False, "use_scale": False}),
    ("DisentangledNonLocalBlock", 2, {"sub_sample": True, "temperature": 0.3}),
    ("DisentangledNonLocalBlock", 3, {"sub_sample": True, "pairwise_gate": True}),
    ("CrissCrossBlock", 2, {"recurrence": 1, "use_scale": False, "inner_ratio": 0.125}),
    ("CrissCrossBlock", 2, {"recurrence": 3}),
    ("EfficientAttentionBlock", 1, {}),
    ("EfficientAttentionBlock", 2, {"inner_ratio": 1.0}),
    ("EfficientAttentionBlock", 3, {}),
    ("AsymmetricNonLocalBlock", 2, {}),
    ("AsymmetricNonLocalBlock", 2, {"use_scale": False, "inner_ratio": 0.25}),
    ("EMABlock", 1, {"nodes": 1}),
    ("EMABlock", 2, {"nodes": 5, "inner_ratio": 1.0}),
    ("EMABlock", 3, {"nodes": 3, "iterations": 1}),
    ("LatentGNNBlock", 1, {"nodes": 1}),
    ("LatentGNNBlock", 2, {"nodes": 5, "inner_ratio": 1.0}),
    ("LatentGNNBlock", 3, {"nodes": 3}),
]
RESCALED = ("EMABlock", "LatentGNNBlock")  # rows of whose affinity are scaled to sum to 1
# torch.export takes seconds for some; CI has all
QUICK = ("GlobalContextBlock", "EfficientAttentionBlock")
EXPORTED = [pytest.param(k, marks=() if k in QUICK else pytest.mark.slow) for k in FAMILY]
SIZES = {1: (7,), 2: (5, 3), 3: (2, 3, 5)}


def random_block(kind: str, dimension: int = 2, std: float = 0.5, **changes) -> BaseNonLocalBlock:
    block = KINDS[kind](CHANNELS, dimension=dimension, **changes)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=std)
    return block.eval()


def random_map(dimension: int, samples: int = 2, size: tuple[int, ...] | None = None) -> Tensor:
    return torch.randn(samples, CHANNELS, *(size or SIZES[dimension]))


def first_dimension(kind: str) -> int:
    return 2 if 2 in KINDS[kind].DIMENSIONS else KINDS[kind].DIMENSIONS[0]


def test_every_block_has_a_reference():
    assert {*FAMILY, "NonLocalBlock"} == set(KINDS)
    assert {kind for kind, _, _ in FORMS} == set(FAMILY)


@pytest.mark.parametrize(("kind", "dimension", "options"), FORMS)
def test_equals_the_equation(kind, dimension, options):
    block = random_block(kind, dimension, **options).double()
    x = random_map(dimension).double()
    with torch.no_grad():
        torch.testing.assert_close(block(x), reference(block, x), rtol=1e-12, atol=1e-12)
        last = x.contiguous(memory_format=torch.channels_last) if dimension == 2 else x
        torch.testing.assert_close(block(last), reference(block, x), rtol=1e-12, atol=1e-12)
        one = x[:, :, :1, :1] if dimension == 2 else x[:, :, :1]
        torch.testing.assert_close(block(one), reference(block, one), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kind", "dimension", "options"), FORMS)
def test_starts_as_the_identity_and_learns(kind, dimension, options):
    x = random_map(dimension)
    gated = options.get("pairwise_gate", False)
    for norm in ("", "GN") if "norm" in KINDS[kind].USES and not gated else ("",):
        norm = (lambda channels: nn.GroupNorm(1, channels)) if norm else ""
        changes = {"norm": norm} if norm else {}
        block = KINDS[kind](CHANNELS, dimension=dimension, **options, **changes)
        z = block(x)
        assert torch.equal(z, x) != gated
        assert bool(block.last_weight().any()) == gated
        z.square().sum().backward()
        if not gated:
            assert block.last_weight().grad.any()
    drawn = KINDS[kind](CHANNELS, dimension=dimension, zero_init=False, **options)
    assert not torch.equal(drawn(x), x)


def test_the_gate_alone_opens_the_pairwise_term():
    block = DisentangledNonLocalBlock(CHANNELS, pairwise_gate=True, sub_sample=False).double()
    x = random_map(2).double()
    added = block(x) - x
    assert added.any() and torch.allclose(added, added[:, :, :1, :1].expand_as(added), atol=1e-12)
    nn.init.ones_(block.gamma)
    plain = DisentangledNonLocalBlock(CHANNELS, zero_init=False, sub_sample=False).double()
    plain.load_state_dict({k: v for k, v in block.state_dict().items() if k != "gamma"})
    torch.testing.assert_close(block(x), plain(x))


@pytest.mark.parametrize(("kind", "dimension", "options"), FORMS)
def test_gradients(kind, dimension, options):
    if kind == "EMABlock":  # one that takes its bases as given has the gradients of its outputs
        options = {**options, "iterations": 1}
    block = random_block(kind, dimension, **options).double()
    x = random_map(dimension, 1).double()[..., :2].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, *_: block(x), (x, *block.parameters()), fast_mode=True
    )


@pytest.mark.parametrize(("kind", "dimension", "options"), FORMS)
def test_affinity_is_what_y_draws(kind, dimension, options):
    """With x in the place of values: through layers that are the identity."""
    options = {**options, "inner_ratio": 1.0} if "inner_ratio" in options else options
    block = random_block(kind, dimension, **options).double()
    x = random_map(dimension).double()
    queries = torch.tensor([0, 4, 2])
    with torch.no_grad():
        rows = block.affinity(x)
        torch.testing.assert_close(block.affinity(x, queries), rows[:, queries])
        if block.is_distribution:
            assert rows.min() >= 0
            torch.testing.assert_close(rows.sum(-1), torch.ones_like(rows[..., 0]))
        if kind == "GlobalContextBlock":
            block.__class__ = SimplifiedNonLocalBlock  # the context before the bottleneck
        values = x.flatten(2).transpose(1, 2)
        if hasattr(block, "g"):
            values = block._embed(x)[2] if kind.startswith("Dis") else values_of(block, x)
        share = 2 if kind.startswith("Dis") and block.gamma is None else 1
        if kind in RESCALED:
            values, y = drawn(block, x)
            rows = rows * ((rows @ values) * y).sum(2, keepdim=True)
            rows = rows / (block.affinity(x) @ values).square().sum(2, keepdim=True)
            return torch.testing.assert_close(rows @ values, y)
        y = block._aggregate(x).expand(-1, rows.shape[1], -1)
        torch.testing.assert_close(share * (rows @ values), y)


def drawn(block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the blocks draw from, (N, L, D), and what they draw, before the ReLU."""
    if isinstance(block, EMABlock):
        values = block._embed(x)
        shares, sums = block._find(values, block.bases)
        return values, shares @ nn.functional.normalize(sums, dim=2)
    values, _, spread, nodes, links = block._graph(x)
    return values.mT, spread.mT @ links @ nodes


def values_of(block: nn.Module, x: Tensor) -> Tensor:
    return nn.functional.linear(
        x.flatten(2).transpose(1, 2), block.g.weight.flatten(1), block.g.bias
    )


def test_criss_cross_sees_its_cross_and_in_two_passes_all():
    block = random_block("CrissCrossBlock", recurrence=1)
    row = block.affinity(random_map(2, 1), torch.tensor([4]))[0, 0].reshape(5, 3)  # of (1, 1)
    assert (row[1] > 0).all() and (row[:, 1] > 0).all()
    assert int((row > 0).sum()) == 7
    x = random_map(2, 1).requires_grad_()
    for recurrence, seen in ((1, 7), (2, 15)):
        block.recurrence = recurrence
        [gradient] = torch.autograd.grad(block(x)[0, :, 1, 1].sum(), x)
        assert int(gradient[0].abs().sum(0).gt(0).sum()) == seen


@pytest.mark.parametrize("kind", FAMILY)
def test_no_samples_autocast_and_memory_formats(kind):
    block = random_block(kind)
    assert block(random_map(2, 0)).shape == (0, CHANNELS, 5, 3)
    assert block.affinity(random_map(2, 0)).shape[0] == 0
    x = random_map(2).to(memory_format=torch.channels_last)
    expected = reference(block, x).float()
    with torch.no_grad():
        assert block(x).is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        z = block(x.requires_grad_())
    assert z.dtype == torch.float32
    assert float((z - expected).norm() / expected.norm()) < 0.03
    z.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())


def output_and_gradients(block: nn.Module, x: Tensor, **autocast) -> list[Tensor]:
    """z, the gradient of x and that of all parameters."""
    x = x.clone().requires_grad_()
    with torch.autocast(x.device.type, **autocast):
        z = block(x)
    # Of size 1, for float16's range
    dz = torch.linspace(-1, 1, z.numel(), dtype=z.dtype).reshape(z.shape).cos().to(z.device)
    dx, *others = torch.autograd.grad(z, [x, *block.parameters()], dz)
    parts = (z, dx, torch.cat([gradient.flatten() for gradient in others]))
    return [part.detach().cpu().double() for part in parts]


@needs_gpu
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("samples", [0, 2])
@pytest.mark.parametrize("width", [16, 640])  # flash attention takes half of 16, not of 640
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_as_on_a_cpu(kind, width, samples, memory_format):
    """In double precision exactly, in single and half to what these hold."""
    block = build_block(width, options=BlockOptions(block=kind, zero_init=False)).double().eval()
    for parameter in block.parameters():  # of the size of trained ones
        nn.init.normal_(parameter, std=max(parameter[0].numel(), 1) ** -0.5)
    x = torch.randn(samples, width, 9, 7, dtype=torch.float64)
    x = x.to(memory_format=memory_format)
    expected = output_and_gradients(block, x, enabled=False)
    block, x = block.cuda(), x.cuda()
    actual = output_and_gradients(block, x, enabled=False)
    torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-9)
    for bound, autocast in (
        (1e-4, {"enabled": False}),
        (0.25, {"dtype": torch.bfloat16}),
        (0.05, {"dtype": torch.float16}),
    ):
        block, x = block.float(), x.float()
        with torch.backends.cudnn.flags(allow_tf32=False):
            actual = output_and_gradients(block, x, **autocast)
        for ours, theirs in zip(actual, expected, strict=True):
            assert (ours - theirs).norm() <= bound * theirs.norm()


@pytest.mark.parametrize("kind", FAMILY)
def test_recomputation_gives_the_same_gradients(kind):
    block = random_block(kind)
    gradients = []
    for block.grad_checkpoint in (False, True):
        x = torch.linspace(-1, 1, CHANNELS * 15).reshape(1, CHANNELS, 5, 3).requires_grad_()
        block(x).square().sum().backward()
        gradients.append([x.grad, *(p.grad.clone() for p in block.parameters())])
        block.zero_grad()
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FAMILY)
def test_a_trace_holds_for_other_sizes(kind):
    block = random_block(kind)
    traced = torch.jit.trace(block, random_map(2, 1, (8, 7)))
    for samples, size in ((0, (5, 6)), (1, (12, 13)), (3, (9, 3)), (1, (4, 1))):
        x = random_map(2, samples, size)
        with torch.no_grad():
            torch.testing.assert_close(traced(x), block(x), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", EXPORTED)
def test_an_exported_program_holds_for_other_sizes(kind):
    block = random_block(kind)
    axes = {axis: Dim.DYNAMIC for axis in (0, 2, 3)}
    example = random_map(2, 2, (8, 7))
    exported = torch.export.export(block, (example,), dynamic_shapes={"x": axes}).module()
    for samples, size in (
        (0, (5, 6)),
        (1, (12, 13)),
        (3, (9, 3)),
    ):  # 3 is the least that torch.export binds pooling to
        x = random_map(2, samples, size)
        with torch.no_grad():
            torch.testing.assert_close(exported(x), block(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", FAMILY)
def test_no_more_is_held_than_is_linear_in_positions(kind, monkeypatch):
    """No tensor of the operators' has more than a few maps' elements, in either pass."""
    monkeypatch.setattr(tiled, "TILE_ELEMENTS", 1)
    monkeypatch.setattr(tiled, "TILE_ROWS", 8)
    block = random_block(kind)
    x = random_map(2, 1, (40, 40)).requires_grad_()
    largest = 0

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.untyped_storage().nbytes() // 4)
            return out

    with Sizes():
        block(x).sum().backward()
    # Of the criss-cross H + W weights; of the asymmetric one those of 110 keys, in a bounded tile
    # and of the last two those of 64 nodes
    per_position = {"CrissCrossBlock": 80, "EMABlock": 64, "LatentGNNBlock": 64}
    per_position = per_position.get(kind, 3 * CHANNELS)
    assert largest <= per_position * 40 * 40


def test_flops_are_the_closed_forms():
    channels, height, width = 32, 6, 10
    positions, inner = height * width, 8
    products = channels * inner * positions  # of a 1x1 convolution C -> D
    cross = positions * (height + width) * (inner + channels)
    expected = {
        # Logits, the sum over positions, W_v
        "SimplifiedNonLocalBlock": 2 * positions * channels + channels**2,
        # and the layer norm's 5 an element, as fvcore counts them
        "GlobalContextBlock": 2 * positions * channels + 2 * channels * inner + 5 * inner,
        # The paper's block, the unary term's logits and sum
        "DisentangledNonLocalBlock": 4 * products
        + 2 * positions**2 * inner
        + positions * (channels + inner),
        "CrissCrossBlock": 2 * (2 * products + cross + positions * channels**2),
        # Means along rows, then columns; the embeddings of 110 keys; the products with these
        "AsymmetricNonLocalBlock": channels * (18 * positions + 18**2 * height)
        + 2 * products
        + 2 * 110 * channels * inner
        + 2 * 110 * positions * inner,
        "EfficientAttentionBlock": 4 * products + 2 * positions * inner**2,
        # Three iterations of two products, and one with the bases found
        "EMABlock": 2 * products + 7 * positions * inner * 64,
        # Weights of the nodes, gathering and spreading; what nodes draw from each other; W
        "LatentGNNBlock": 3 * products
        + 4 * positions * inner * 64
        + 2 * 64**2 * inner
        + positions * inner**2,
    }
    for kind in FAMILY:
        changes = {"sub_sample": False, "inner_ratio": 0.25}
        changes = {k: v for k, v in changes.items() if k in KINDS[kind].USES}
        block = KINDS[kind](channels, **changes).eval()
        flops = count_flops(block, torch.randn(1, channels, height, width))
        assert flops.total() == expected[kind], kind


@pytest.mark.parametrize("kind", KINDS)
def test_common_options_and_errors(kind):
    known = {parameter.name.lower() for parameter in CONFIG_OPTIONS.values()} | {"zero_init"}
    uses = KINDS[kind].USES
    assert set(uses) <= known and len(set(uses)) == len(uses)
    assert inspect.getdoc(KINDS[kind]) and build_block(4, options=BlockOptions(block=kind)).label
    other = next(name for name in ("recurrence", "pairwise") if name not in uses)
    with pytest.raises(TypeError, match=f"{kind} does not use {other}"):
        KINDS[kind](4, **{other: BlockOptions.__dataclass_fields__[other].default})
    with pytest.raises(ValueError, match="expected 4 axes"):
        KINDS[kind](4)(torch.zeros(1, 4, 5))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        KINDS[kind](0)


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="GlobalContexBlock'; did you mean GlobalContextBlock"):
        build_block(4, options=BlockOptions(block="GlobalContexBlock"))
    with pytest.raises(ValueError, match="dimension must be 2, got 1 .Asymm"):
        AsymmetricNonLocalBlock(4, dimension=1)
    for dimension in (1, 3):
        with pytest.raises(ValueError, match=f"dimension must be 2, got {dimension} .Criss"):
            CrissCrossBlock(4, dimension=dimension)
    for changes in (
        {"recurrence": 0},
        {"recurrence": 1.5},
        {"temperature": 0.0},
        {"temperature": math.nan},
        {"nodes": 0},
        {"iterations": 2.0},
        {"momentum": 1.1},
    ):
        [(name, value)] = changes.items()
        with pytest.raises(ValueError, match=f"{name} must be .*, got {value}"):
            BlockOptions(**changes)
    with pytest.raises(ValueError, match="pairwise_gate must be True or False, got 1"):
        BlockOptions(pairwise_gate=1)
    with pytest.raises(ValueError, match="inner_ratio must be above 0"):
        GlobalContextBlock(4, inner_ratio=-1.0)
    with pytest.raises(ValueError, match="mask_padding"):
        EfficientAttentionBlock(4, norm="BN", mask_padding=True)
    with pytest.raises(ValueError, match="mask_padding=True .*one image at a time"):
        EMABlock(4, mask_padding=True)
    with pytest.raises(ValueError, match="norm='BN' .*grad_checkpoint=True would count twice"):
        LatentGNNBlock(4, norm="BN", grad_checkpoint=True)
    with pytest.raises(ValueError, match="norm='XN' is none"):
        LatentGNNBlock(4, norm="XN")


@pytest.mark.parametrize("kind", FAMILY)
def test_similarity_starts_with_queries_like_keys(kind):
    if "init" not in KINDS[kind].USES:
        pytest.skip("there is nothing to compare, or no start but its own")
    block = KINDS[kind](64, init="similarity")
    assert torch.equal(block.theta.weight, block.phi.weight)
    assert float(block.theta.weight.std()) == pytest.approx(0.5 / 8, rel=0.1)
    assert not block.out.weight.any()


def test_classes_are_found_by_name():
    assert block_kind("NonLocalBlock") is KINDS["NonLocalBlock"]


@pytest.mark.parametrize("kind", FAMILY)
def test_gradients_at_positions_of_zeros_are_no_larger_than_elsewhere(kind):
    """As features after a ReLU are, where vectors have no length to be divided by."""
    block = random_block(kind)
    x = random_map(2)
    x[:, :, 2:] = 0
    block(x.requires_grad_()).sum().backward()
    assert float(x.grad.abs().max()) < 1e3
    assert all(float(p.grad.abs().max()) < 1e4 for p in block.parameters())
