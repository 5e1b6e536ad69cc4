"""No kernel may hold the matrix of all pairs of positions."""

import pytest
import torch

from dev.benchmark.measure import peak_memory
from nl_detectron import NonLocalBlock
from nl_detectron.layers import PAIRWISE_FUNCTIONS, CrissCrossBlock, base, criss_cross, projection

HEIGHT, WIDTH, CHANNELS = 50, 84, 64
NUM_POSITIONS = HEIGHT * WIDTH
MATRIX_BYTES = NUM_POSITIONS**2 * 4  # 70.6 MB, all pairs in single precision


def step(block: NonLocalBlock, x: torch.Tensor, training: bool) -> None:
    x = x.clone().requires_grad_(training)
    with torch.set_grad_enabled(training):
        y = block(x)
        if training:
            y.sum().backward()


def test_the_measure_sees_a_full_matrix():
    block = NonLocalBlock(CHANNELS, sub_sample=False)
    x = torch.randn(1, CHANNELS, HEIGHT, WIDTH)
    assert peak_memory(lambda: block.affinity(x)) >= MATRIX_BYTES


@pytest.mark.parametrize("pairwise", PAIRWISE_FUNCTIONS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_peak_memory_is_a_few_maps(pairwise, training, channels_last):
    block = NonLocalBlock(CHANNELS, pairwise=pairwise, sub_sample=False, zero_init=False)
    x = torch.randn(1, CHANNELS, HEIGHT, WIDTH)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    peak = peak_memory(lambda: step(block, x, training))
    assert peak < MATRIX_BYTES / 4
    # In maps of the input's size; the rest of the allowance is the kernels' own bounded tiles.
    assert peak < (20 if training else 8) * x.nbytes + 4e6


def test_peak_memory_of_the_res4_of_r50():
    """1024 channels at 800x1333 pixels: the Gaussian's operands differ in width there."""
    x = torch.randn(1, 1024, HEIGHT, WIDTH)
    for pairwise in ("gaussian", "embedded_gaussian"):
        block = NonLocalBlock(1024, pairwise=pairwise, sub_sample=False)
        assert peak_memory(lambda block=block: step(block, x, False)) < 7 * x.nbytes


@pytest.mark.parametrize(
    ("pairwise", "maps", "convolving"),
    [
        ("dot_product", 5.1, False),
        ("embedded_gaussian", 6.2, False),
        # With what oneDNN copies for itself in a convolution's backward pass
        ("dot_product", 5.4, True),
        ("embedded_gaussian", 5.9, True),
    ],
)
def test_training_holds_nothing_twice(pairwise, maps, convolving, monkeypatch):
    """Neither g divided by the number of keys nor a second layout of y's gradient."""
    if not convolving:
        for module in (base, projection):
            monkeypatch.setattr(module, "convolves", lambda x: False)
    block = NonLocalBlock(1024, pairwise=pairwise, sub_sample=False)
    x = torch.randn(1, 1024, HEIGHT, WIDTH, requires_grad=True)
    gradient = torch.randn_like(x)
    parameters = sum(p.nbytes for p in block.parameters())
    assert peak_memory(lambda: block(x).backward(gradient)) < maps * x.nbytes + parameters


def test_autocast_casts_the_input_once():
    """Channels last, which the embeddings read as one product and not three."""
    block = NonLocalBlock(256, pairwise="dot_product", sub_sample=False)
    x = torch.randn(1, 256, HEIGHT, WIDTH).to(memory_format=torch.channels_last)
    x.requires_grad_()
    held = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16),
    ):
        block(x)
    copies = {t.data_ptr() for t in held if t.numel() == x.numel() and t.dtype == torch.bfloat16}
    assert len(copies) == 1


@pytest.mark.parametrize(("maps", "convolving"), [(4.9, False), (5.6, True)])
def test_a_criss_cross_adds_up_rows_and_columns_in_one_map(maps, convolving, monkeypatch):
    if not convolving:
        for module in (base, criss_cross, projection):
            monkeypatch.setattr(module, "convolves", lambda x: False)
    block = CrissCrossBlock(256, inner_ratio=1 / 8, recurrence=1, zero_init=False)
    x = torch.randn(1, 256, 24, 24, requires_grad=True)
    gradient = torch.randn_like(x)
    parameters = sum(p.nbytes for p in block.parameters())
    # x by rows, z, and the gradients of y and of x; weights and queries are a fraction of a map
    assert peak_memory(lambda: block(x).backward(gradient)) < maps * x.nbytes + parameters
