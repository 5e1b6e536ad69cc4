import copy
import itertools

import pytest
import torch
from torch import nn
from torch.export import Dim, export

from nl_detectron import NonLocalBlock
from nl_detectron.layers import PAIRWISE_FUNCTIONS, pairwise
from nl_detectron.layers.pairwise import non_local
from tests.gpus import needs_gpu

from .reference import non_local_block

SIZES = {1: (7,), 2: (5, 4), 3: (3, 4, 5)}
all_pairwise = pytest.mark.parametrize("pairwise", PAIRWISE_FUNCTIONS)
both_sub_sample = pytest.mark.parametrize("sub_sample", [False, True])


def random_block(channels=6, **options) -> NonLocalBlock:
    """A float64 block with parameters of magnitude 1, so that no term is negligible."""
    block = NonLocalBlock(channels, **options).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.7)
    return block


@all_pairwise
@both_sub_sample
@pytest.mark.parametrize("dimension", [1, 2, 3])
@pytest.mark.parametrize("use_scale", [False, True])
def test_matches_the_papers_equations(pairwise, sub_sample, dimension, use_scale):
    block = random_block(
        pairwise=pairwise, sub_sample=sub_sample, dimension=dimension, use_scale=use_scale
    )
    x = torch.randn(2, 6, *SIZES[dimension], dtype=torch.float64)
    expected, expected_affinity = non_local_block(block, x)
    torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(block.affinity(x), expected_affinity, rtol=1e-10, atol=1e-10)


@all_pairwise
@both_sub_sample
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients(pairwise, sub_sample, batch, channels_last):
    block = random_block(channels=4, pairwise=pairwise, sub_sample=sub_sample)
    x = torch.randn(batch, 4, 3, 4, dtype=torch.float64)
    if channels_last:  # which has no convolution, but matrix products
        x = x.to(memory_format=torch.channels_last)
    x.requires_grad_()
    names, parameters = zip(*block.named_parameters(), strict=True)

    def run(x, *parameters):
        return torch.func.functional_call(block, dict(zip(names, parameters, strict=True)), x)

    assert torch.autograd.gradcheck(run, (x, *parameters))


@all_pairwise
@both_sub_sample
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (3, 3), (13, 17)])
@pytest.mark.parametrize("inner_channels", [1, 8, 40])
def test_fast_kernels_equal_the_full_matrix(pairwise, sub_sample, size, inner_channels):
    block = random_block(
        channels=16, inner_channels=inner_channels, pairwise=pairwise, sub_sample=sub_sample
    ).requires_grad_(False)
    x = torch.randn(2, 16, *size, dtype=torch.float64)
    _, _, g = block._embed(x)
    y = block.affinity(x) @ g
    z = block.out(y.transpose(1, 2).reshape(2, inner_channels, *size))
    torch.testing.assert_close(block(x), x + z, rtol=1e-9, atol=1e-9)
    # Parameters of one magnitude make outputs of many: single precision is relative to the largest.
    single = copy.deepcopy(block).float()(x.float()).double()
    assert (single - block(x)).abs().max() <= 1e-4 * block(x).abs().max()


@all_pairwise
@pytest.mark.parametrize("num_keys", [5, 30, 90])
def test_operands_stored_channels_first_give_the_same_operation(pairwise, num_keys):
    channels = 1 if pairwise == "concatenation" else 16
    theta = torch.randn(2, 90, channels, dtype=torch.float64)
    phi, g = theta[:, :num_keys], torch.randn(2, num_keys, 16, dtype=torch.float64)
    expected = non_local(pairwise, theta, phi, g, 0.3)
    theta, phi, g = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (theta, phi, g))
    y = non_local(pairwise, theta, phi, g, 0.3)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)


@all_pairwise
@both_sub_sample
@pytest.mark.parametrize("training", [False, True])
def test_either_layout_gives_the_same_block(pairwise, sub_sample, training):
    block = random_block(channels=16, pairwise=pairwise, sub_sample=sub_sample)
    x = torch.randn(2, 16, 9, 6, dtype=torch.float64)
    with torch.set_grad_enabled(training):
        outputs = [block(x), block(x.to(memory_format=torch.channels_last))]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dot_product_first", [False, True])
def test_dot_product_in_either_order(dot_product_first):
    length, channels = (3, 32) if dot_product_first else (40, 4)
    theta, phi, g = torch.randn(3, 2, length, channels, dtype=torch.float64)
    expected = theta @ phi.transpose(1, 2) @ g / length
    torch.testing.assert_close(pairwise.dot_product(theta, phi, g), expected)


def test_concatenation_where_relu_has_kinks_and_ties():
    theta = torch.tensor([[[-2.0], [-1.0], [0.0], [5.0], [-9.0]]], dtype=torch.float64)
    phi = torch.tensor([[[1.0], [2.0], [1.0], [-5.0]]], dtype=torch.float64)
    g = torch.tensor([[[1.0], [10.0], [100.0], [1000.0]]], dtype=torch.float64)
    y = pairwise.concatenation(theta, phi, g).flatten().tolist()
    # theta = 0, say: ReLU gives 1, 2, 1 and 0, so y = (1 + 20 + 100) / 4.
    assert y == [0.0, 10 / 4, 121 / 4, (6 + 70 + 600) / 4, 0.0]


def test_concatenation_keeps_its_precision_far_from_zero():
    """theta + phi is what counts, however large the two are."""
    theta, phi = torch.randn(2, 1, 500, 1)
    g = torch.randn(1, 500, 8)
    expected = pairwise.concatenation(theta.double(), phi.double(), g.double())
    # Powers of two add without rounding away more than the last bits of theta and phi.
    y = pairwise.concatenation(theta - 64, phi + 64, g)
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(8, 6), (7, 5), (1, 1), (1, 4)])
def test_sub_sampling_is_max_pooling_that_loses_no_position(size, training):
    block = NonLocalBlock(6)
    x = torch.randn(2, 6, *size)
    with torch.set_grad_enabled(training):
        _, phi, g = block._embed(x)
    for keys, conv in ((phi, block.phi), (g, block.g)):
        expected = nn.functional.max_pool2d(conv(x), 2, 2, ceil_mode=True)
        torch.testing.assert_close(keys.transpose(1, 2).reshape(expected.shape), expected)


@pytest.mark.parametrize("training", [False, True])
def test_sub_sampling_never_pools_time(training):
    block = NonLocalBlock(6, dimension=3)
    with torch.set_grad_enabled(training):
        _, phi, _ = block._embed(torch.randn(1, 6, 5, 4, 6))
    assert phi.shape == (1, 5 * 2 * 3, 3)


@all_pairwise
@pytest.mark.parametrize("norm", ["", "BN", "GN"])
@pytest.mark.parametrize("training", [False, True])
def test_starts_as_the_identity(pairwise, norm, training):
    block = NonLocalBlock(32, pairwise=pairwise, norm=norm).train(training)
    x = torch.randn(2, 32, 7, 6)
    assert torch.equal(block(x), x)


def test_zero_start_can_be_left():
    for norm in ("", "BN"):
        block = NonLocalBlock(32, norm=norm)
        block(torch.randn(2, 32, 5, 4)).square().sum().backward()
        gradient = block.out.weight.grad if norm == "" else block.norm.weight.grad
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("dimension", [1, 2, 3])
@pytest.mark.parametrize("pairwise", PAIRWISE_FUNCTIONS)
def test_similarity_init(pairwise, dimension):
    torch.manual_seed(0)
    options = {"pairwise": pairwise, "dimension": dimension, "sub_sample": False}
    block = NonLocalBlock(256, init="similarity", **options)
    x = torch.randn(2, 256, *(3,) * dimension)
    assert torch.equal(block(x), x)  # the identity all the same
    assert block.g.weight.square().mean().sqrt().item() == pytest.approx(1 / 16, rel=0.02)
    if pairwise == "gaussian":
        return  # nothing to embed
    for layer in (block.theta, block.phi):
        assert layer.weight.square().mean().sqrt().item() == pytest.approx(1 / 32, rel=0.02)
        assert not layer.bias.any()
    assert torch.equal(block.theta.weight, block.phi.weight)
    assert block.theta.weight.data_ptr() != block.phi.weight.data_ptr()
    if pairwise == "concatenation":
        assert block.affinity(x.relu()).min() > 0  # all alive where features are after a ReLU
        return
    # Each position relates most to itself among random ones.
    weights = block.affinity(x)
    assert (weights.argmax(dim=-1) == torch.arange(weights.shape[1])).all()
    normal = NonLocalBlock(256, **options)
    for layer in (normal.theta, normal.phi, normal.g):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not torch.equal(normal.theta.weight, normal.phi.weight)


def test_unknown_init():
    with pytest.raises(ValueError, match="init must be one of .*'similarity'.*, got 'kaiming'"):
        NonLocalBlock(8, init="kaiming")


def test_without_zero_init_is_not_the_identity():
    x = torch.randn(2, 32, 7, 6)
    assert not torch.equal(NonLocalBlock(32, zero_init=False)(x), x)
    assert not torch.equal(NonLocalBlock(32, zero_init=False, norm="FrozenBN")(x), x)


@both_sub_sample
def test_norm_is_applied_to_each_channel_over_all_positions(sub_sample):
    for dimension, size in SIZES.items():
        block = NonLocalBlock(
            8, dimension=dimension, norm="BN", zero_init=False, sub_sample=sub_sample
        ).double()
        x = torch.randn(2, 8, *size, dtype=torch.float64)
        bare, _ = non_local_block(block.requires_grad_(False), x)
        z = bare - x
        axes = (0, *range(2, z.dim()))
        mean = z.mean(axes, keepdim=True)
        variance = z.var(axes, unbiased=False, keepdim=True)
        torch.testing.assert_close(block(x), x + (z - mean) / (variance + 1e-5).sqrt())


def test_children_and_keys():
    keys = {name: set(NonLocalBlock(8, pairwise=name).state_dict()) for name in PAIRWISE_FUNCTIONS}
    convs = {f"{c}.{p}" for c in ("theta", "phi", "g", "out") for p in ("weight", "bias")}
    assert keys["embedded_gaussian"] == keys["dot_product"] == convs
    assert keys["concatenation"] == convs | {"w_f"}
    assert keys["gaussian"] == {"g.weight", "g.bias", "out.weight", "out.bias"}
    assert set(dict(NonLocalBlock(8, norm="BN").named_children())) == {
        *("theta", "phi", "g", "out", "norm")
    }
    assert set(NonLocalBlock(8, sub_sample=False).state_dict()) == convs


def test_inner_channels_default_to_half():
    assert NonLocalBlock(9).theta.weight.shape == (4, 9, 1, 1)
    assert NonLocalBlock(1).theta.weight.shape == (1, 1, 1, 1)


@pytest.mark.parametrize("pairwise", ["dot_product", "concatenation"])
def test_use_scale_touches_only_the_exponential_forms(pairwise):
    block = random_block(pairwise=pairwise, use_scale=True)
    unscaled = random_block(pairwise=pairwise, use_scale=False)
    unscaled.load_state_dict(block.state_dict())
    x = torch.randn(2, 6, 4, 4, dtype=torch.float64)
    assert torch.equal(block(x), unscaled(x))


@all_pairwise
@both_sub_sample
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm", ["", "BN"])
def test_empty_batch(pairwise, sub_sample, training, norm):
    block = NonLocalBlock(8, pairwise=pairwise, sub_sample=sub_sample, norm=norm).train(training)
    before = copy.deepcopy(block.state_dict())
    x = torch.zeros(0, 8, 5, 4, requires_grad=True)
    y = block(x)
    assert y.shape == x.shape
    y.sum().backward()
    # DistributedDataParallel waits for the gradient of every parameter.
    assert all(parameter.grad is not None for parameter in block.parameters())
    assert block.affinity(x).shape[0] == 0
    for name, value in block.state_dict().items():
        assert torch.equal(value, before[name]) or name == "norm.num_batches_tracked", name


@all_pairwise
def test_keeps_channels_last(pairwise):
    block = random_block(channels=8, pairwise=pairwise)
    x = torch.randn(2, 8, 6, 5, dtype=torch.float64)
    y = block(x.to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert block(x).is_contiguous()
    torch.testing.assert_close(y, block(x))


@all_pairwise
@both_sub_sample
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(pairwise, sub_sample, dtype):
    block = NonLocalBlock(16, pairwise=pairwise, sub_sample=sub_sample, zero_init=False)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 16, 6, 5, requires_grad=True)
    expected = block(x)
    with torch.autocast("cpu", dtype=dtype):
        y = block(x)
    assert y.dtype == torch.float32  # the residual connection stays in x's precision
    torch.testing.assert_close(y, expected, rtol=0.05, atol=0.05 * expected.abs().max().item())
    y.sum().backward()
    assert x.grad.isfinite().all()


@all_pairwise
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parameters(pairwise, dtype):
    block = NonLocalBlock(16, pairwise=pairwise, zero_init=False)
    x = torch.randn(2, 16, 6, 5)
    y = copy.deepcopy(block).to(dtype)(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), block(x), rtol=0.02, atol=0.02)


@needs_gpu
@all_pairwise
@both_sub_sample
def test_cuda_equals_cpu(pairwise, sub_sample):
    block = random_block(channels=32, pairwise=pairwise, sub_sample=sub_sample)
    x = torch.randn(2, 32, 13, 9, dtype=torch.float64)
    expected = block(x)
    y = block.cuda()(x.cuda())
    torch.testing.assert_close(y.cpu(), expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(
        block.float()(x.float().cuda()).double().cpu(), expected, rtol=1e-2, atol=1e-2
    )


@all_pairwise
@both_sub_sample
@pytest.mark.parametrize("norm", ["", "BN"])
def test_scripting(pairwise, sub_sample, norm):
    block = random_block(channels=8, pairwise=pairwise, sub_sample=sub_sample, norm=norm).eval()
    scripted = torch.jit.script(block)
    for size in itertools.product((0, 2), (5, 6), (4, 1)):
        x = torch.randn(size[0], 8, *size[1:], dtype=torch.float64)
        torch.testing.assert_close(scripted(x), block(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@all_pairwise
@both_sub_sample
def test_a_trace_holds_for_other_sizes(pairwise, sub_sample):
    block = random_block(channels=8, pairwise=pairwise, sub_sample=sub_sample)
    traced = torch.jit.trace(block, torch.randn(1, 8, 4, 6, dtype=torch.float64))
    for size in ((2, 8, 5, 3), (1, 8, 20, 21)):
        x = torch.randn(size, dtype=torch.float64)
        torch.testing.assert_close(traced(x), block(x))


@all_pairwise
@both_sub_sample
def test_exports_for_odd_and_even_sizes_at_once(pairwise, sub_sample):
    block = random_block(channels=8, pairwise=pairwise, sub_sample=sub_sample).eval()
    sizes = {0: Dim("n", max=8), 2: Dim("h", min=3, max=64), 3: Dim("w", min=3, max=64)}
    x = torch.randn(2, 8, 6, 5, dtype=torch.float64)
    program = export(block, (x,), dynamic_shapes={"x": sizes}).module()
    for size in ((2, 8, 6, 5), (3, 8, 5, 6), (1, 8, 20, 21)):
        x = torch.randn(size, dtype=torch.float64)
        torch.testing.assert_close(program(x), block(x))


def test_deep_copy_is_independent():
    block = random_block()
    twin = copy.deepcopy(block)
    x = torch.randn(1, 6, 3, 3, dtype=torch.float64)
    assert torch.equal(block(x), twin(x))
    nn.init.zeros_(twin.out.weight)
    assert not torch.equal(block(x), twin(x))


def test_freeze():
    block = random_block(channels=8, norm="BN", zero_init=False)
    block(torch.randn(4, 8, 3, 3, dtype=torch.float64))  # gives the norm statistics
    x = torch.randn(1, 8, 3, 3, dtype=torch.float64)
    expected = block.eval()(x)
    block.train().freeze()
    assert not any(parameter.requires_grad for parameter in block.parameters())
    torch.testing.assert_close(block(x), expected)  # those statistics, though in training
    assert not torch.equal(expected, x)


@all_pairwise
def test_affinity_of_chosen_queries(pairwise):
    block = random_block(pairwise=pairwise)
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    queries = torch.tensor([3, 0, 19])
    torch.testing.assert_close(block.affinity(x, queries), block.affinity(x)[:, queries])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairwise": "gausian"}, "embedded_gaussian.*gausian"),
        ({"dimension": 4}, "1, 2 or 3, got 4"),
        ({"inner_channels": 0}, "at least 1"),
        ({"norm": "FrozenBN"}, "FrozenBN.*never leaves its zero start"),
        ({"norm": "XN"}, "norm='XN' is none of Detectron2's norms"),
    ],
)
def test_refuses_what_cannot_work(options, message):
    with pytest.raises(ValueError, match=message):
        NonLocalBlock(8, **options)


def test_refuses_inputs_of_other_dimensions():
    with pytest.raises(ValueError, match=r"expected 5 axes.*\[1, 8, 4, 4\]"):
        NonLocalBlock(8, dimension=3)(torch.zeros(1, 8, 4, 4))


@all_pairwise
@both_sub_sample
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_large_activations_do_not_overflow_under_autocast(pairwise, sub_sample, dtype):
    """Of magnitude 1e3, whose products leave float16's range."""
    block = NonLocalBlock(64, pairwise=pairwise, sub_sample=sub_sample, zero_init=False)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.1)
    # One direction in all positions: sums over positions do not cancel.
    x = 1e3 * (torch.randn(1, 64, 1, 1) + 0.1 * torch.randn(1, 64, 12, 10))
    x.requires_grad_()
    expected = block(x)
    with torch.autocast("cpu", dtype=dtype):
        z = block(x)
    assert z.dtype == torch.float32
    (1e-6 * z).sum().backward()
    assert z.isfinite().all() and x.grad.isfinite().all()
    if pairwise in ("dot_product", "concatenation"):  # smooth in their operands
        error = (z - expected).abs().max() / expected.abs().max()
        assert error <= (0.05 if dtype == torch.bfloat16 else 0.01)


def test_float16_dot_product_of_many_positions():
    """The sum over 4,800 of them, 307,200, would leave its range; a scripted block makes it so."""
    theta, phi, g = torch.full((3, 1, 4800, 16), 8.0, dtype=torch.float16)
    y = pairwise.dot_product(theta / 64, phi, g)
    torch.testing.assert_close(y, torch.full_like(g, 0.125 * 8 * 8 * 16), rtol=5e-3, atol=0)
