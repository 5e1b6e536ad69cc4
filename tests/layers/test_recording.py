"""What is recorded of a block holds for other sizes and numbers of samples than the example's."""

import io
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from nl_detectron import NonLocalBlock
from nl_detectron.export.pooling import pooling_for_openvino
from nl_detectron.layers import NON_LOCAL_BLOCK_REGISTRY, PAIRWISE_FUNCTIONS, BaseNonLocalBlock
from tests.models import SideBySide

CHANNELS = 8
EXAMPLE = {1: (9,), 2: (8, 7), 3: (2, 7, 6)}
# Smaller and larger, odd and even along each axis, and of one position along some
SIZES = {
    1: [(7,), (12,), (1,)],
    2: [(5, 6), (12, 13), (4, 1)],
    3: [(1, 5, 4), (3, 8, 9), (2, 1, 6)],
}
SAMPLES = (0, 1, 3)
FORMS = list(itertools.product(PAIRWISE_FUNCTIONS, (False, True), (1, 2, 3)))
pytestmark = pytest.mark.filterwarnings("ignore")  # each recorder has its own


def random_block(pairwise: str, sub_sample: bool, dimension: int, **options) -> NonLocalBlock:
    block = NonLocalBlock(
        CHANNELS, pairwise=pairwise, sub_sample=sub_sample, dimension=dimension, **options
    )
    return randomized(block)


def randomized(block: BaseNonLocalBlock) -> BaseNonLocalBlock:
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    return block.eval()


def example(dimension: int, samples: int = 1) -> Tensor:
    return torch.randn(samples, CHANNELS, *EXAMPLE[dimension])


def assert_right_for_all_sizes(
    recorded,
    block: BaseNonLocalBlock | SideBySide,
    *,
    smallest: int = 1,
    all_samples: tuple[int, ...] = SAMPLES,
) -> None:
    dimension = dimension_of(block)
    for samples, size in itertools.product(all_samples, SIZES[dimension]):
        if min(size[-2:]) < smallest:
            continue
        x = torch.randn(samples, CHANNELS, *size)
        with torch.no_grad():
            torch.testing.assert_close(recorded(x), block(x), rtol=1e-4, atol=1e-4)


def dimension_of(block: BaseNonLocalBlock | SideBySide) -> int:
    return next(m.dimension for m in block.modules() if isinstance(m, BaseNonLocalBlock))


def in_onnxruntime(file: io.BytesIO):
    onnxruntime = pytest.importorskip(
        "onnxruntime", reason="onnxruntime is not installed: pip install nl_detectron[onnx]"
    )
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def in_openvino(file: io.BytesIO):
    openvino = pytest.importorskip(
        "openvino", reason="openvino is not installed: pip install nl_detectron[openvino]"
    )
    model = openvino.Core().read_model(file)
    run = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda x: torch.from_numpy(run(x.numpy())[0])


def all_forms(dimension: int) -> SideBySide:
    forms = itertools.product(PAIRWISE_FUNCTIONS, (False, True))
    return SideBySide(random_block(*form, dimension) for form in forms).eval()


def all_kinds(dimension: int) -> SideBySide:
    kinds = [kind for _, kind in NON_LOCAL_BLOCK_REGISTRY if dimension in kind.DIMENSIONS]
    blocks = [kind(CHANNELS, dimension=dimension, zero_init=False) for kind in kinds]
    assert any(getattr(block, "sub_sample", False) for block in blocks)
    return SideBySide([*map(randomized, blocks), *all_forms(dimension).blocks]).eval()


def exported(blocks: SideBySide, dimension: int) -> torch.export.ExportedProgram:
    """Of two samples, as a single one would be bound to."""
    axes = {axis: Dim.DYNAMIC for axis in (0, *range(2, 2 + dimension))}
    x = example(dimension, samples=2)
    return torch.export.export(blocks, (x,), dynamic_shapes={"x": axes})


def onnx_file(block: BaseNonLocalBlock | SideBySide, samples: int = 1) -> io.BytesIO:
    """By the exporter that is based on TorchScript."""
    pytest.importorskip("onnx", reason="onnx is not installed: pip install nl_detectron[onnx]")
    file, dimension = io.BytesIO(), dimension_of(block)
    axes = {"x": [0, *range(2, 2 + dimension)]}
    torch.onnx.export(
        block,
        (example(dimension, samples),),
        file,
        dynamo=False,
        opset_version=17,
        input_names=["x"],
        dynamic_axes=axes,
    )
    return file


@pytest.mark.parametrize(("pairwise", "sub_sample", "dimension"), FORMS)
def test_in_a_trace(pairwise, sub_sample, dimension):
    block = random_block(pairwise, sub_sample, dimension)
    assert_right_for_all_sizes(torch.jit.trace(block, example(dimension)), block)


@pytest.mark.parametrize(("pairwise", "sub_sample", "dimension"), FORMS)
def test_in_onnx_by_torchscript(pairwise, sub_sample, dimension):
    block = random_block(pairwise, sub_sample, dimension)
    assert_right_for_all_sizes(in_onnxruntime(onnx_file(block)), block)


@pytest.mark.parametrize("runtime", [in_onnxruntime, in_openvino])
@pytest.mark.parametrize("dimension", (1, 2, 3))
def test_what_is_recorded_for_openvino(dimension, runtime):
    blocks = all_kinds(dimension)
    with pooling_for_openvino():
        file = onnx_file(blocks)
    assert_right_for_all_sizes(runtime(file), blocks)


@pytest.mark.parametrize(
    ("samples", "options"),
    [(3, {}), (1, {"norm": "BN"}), (1, {"grad_checkpoint": True})],
)
def test_in_onnx_by_torchscript_with_other_options_and_examples(samples, options):
    block = random_block("embedded_gaussian", True, 2, **options)
    assert_right_for_all_sizes(in_onnxruntime(onnx_file(block, samples)), block)


def test_in_onnx_by_torchscript_with_group_norm():
    """Not of no samples: PyTorch's exporter of that norm has a size inferred."""
    block = random_block("gaussian", True, 2, norm=lambda channels: nn.GroupNorm(2, channels))
    recorded = in_onnxruntime(onnx_file(block))
    assert_right_for_all_sizes(recorded, block, all_samples=(1, 3))


def test_of_a_channels_last_example():
    block = random_block("dot_product", True, 2)
    x = example(2).contiguous(memory_format=torch.channels_last)
    assert_right_for_all_sizes(torch.jit.trace(block, x), block)


@pytest.mark.slow
@pytest.mark.parametrize("dimension", (1, 2, 3))
def test_in_an_exported_program_and_onnx_of_it(dimension):
    """torch.export itself refuses, by a guard, maps whose pooled size is 1."""
    blocks = all_forms(dimension)
    program = exported(blocks, dimension)
    assert_right_for_all_sizes(program.module(), blocks, smallest=3)
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    file = io.BytesIO()
    torch.onnx.export(program, (), file, dynamo=True, verbose=False)
    assert_right_for_all_sizes(in_onnxruntime(file), blocks, smallest=3)


@pytest.mark.slow
@pytest.mark.parametrize("dimension", (1, 2, 3))
def test_compiled_for_all_sizes(dimension):
    blocks = all_forms(dimension)
    torch._dynamo.reset()
    compiled = torch.compile(blocks, backend="eager", dynamic=True, fullgraph=True)
    for samples, size in zip((3, 2, 0), SIZES[dimension], strict=True):
        x = torch.randn(samples, CHANNELS, *size)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), blocks(x), rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()


@pytest.mark.parametrize("pairwise", PAIRWISE_FUNCTIONS)
def test_no_number_of_the_example_is_in_the_file(pairwise):
    """Two examples of different sizes and numbers of samples give the same file."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: nl_detectron[onnx]")
    block = random_block(pairwise, True, 2)

    def record(*size: int) -> list[tuple]:
        file = io.BytesIO()
        torch.onnx.export(
            block,
            (torch.randn(size[0], CHANNELS, *size[1:]),),
            file,
            dynamo=False,
            opset_version=17,
            input_names=["x"],
            dynamic_axes={"x": [0, 2, 3]},
        )
        nodes = onnx.load_from_string(file.getvalue()).graph.node
        return [(node.op_type, [a.SerializeToString() for a in node.attribute]) for node in nodes]

    assert record(1, 6, 9) == record(3, 17, 4)
