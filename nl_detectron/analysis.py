"""What a model costs: parameters, FLOPs and activations, the non-local operation's in full.

As in fvcore and in the papers of this field, one multiply-add counts as one FLOP.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.export.flatten import TracingAdapter
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from fvcore.nn import (
    ActivationCountAnalysis,
    FlopCountAnalysis,
    flop_count_table,
    parameter_count_table,
)
from fvcore.nn.jit_analysis import JitModelAnalysis
from fvcore.nn.jit_handles import generic_activation_jit, get_shape
from tabulate import tabulate
from torch import nn

from .layers import non_local_blocks

TASKS = ("flop", "activation", "parameter", "structure")
SIZE = (800, 1333)  # pixels: the height and width that Detectron2 tests most of COCO's images at


def _attention_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """Queries (N, heads, L, D), keys (N, heads, M, D), values (N, heads, M, E): L M (D + E)."""
    query, key, value = (get_shape(x) for x in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _product_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """A bias, then matrices (N, I, K) and (N, K, J): N I J K."""
    left, right = (get_shape(x) for x in inputs[1:3])
    return math.prod(left) * right[-1]


def _one_flop_per_element(inputs: list[Any], outputs: list[Any]) -> int:
    return math.prod(get_shape(outputs[0]))


# The operators of the four kernels that fvcore counts as nothing. A prefix sum adds once for each
# element; the two products of the concatenation form are multiply-adds by element.
FLOP_HANDLES = {
    "aten::scaled_dot_product_attention": _attention_flops,
    "aten::baddbmm": _product_flops,
    "aten::cumsum": _one_flop_per_element,
    "aten::addcmul": _one_flop_per_element,
}


def count_flops(model: nn.Module, inputs: Any) -> FlopCountAnalysis:
    """FLOPs of ``model(inputs)``, by operator and by module.

    Args:
        model: any module; a detector, in evaluation mode, takes what :func:`largest_input` gives.
        inputs: its only argument.
    """
    return _analysis(FlopCountAnalysis, model, inputs, FLOP_HANDLES)


def count_activations(model: nn.Module, inputs: Any) -> ActivationCountAnalysis:
    """Elements that convolutions, matrix products and attention write in ``model(inputs)``."""
    handles = {
        "aten::scaled_dot_product_attention": generic_activation_jit("attention"),
        "aten::baddbmm": generic_activation_jit("baddbmm"),
    }
    return _analysis(ActivationCountAnalysis, model, inputs, handles)


def count_parameters(model: nn.Module) -> int:
    """Parameters, frozen ones included. FrozenBN has none: its affine map is in buffers."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_non_local_flops(model: nn.Module, flops: FlopCountAnalysis) -> int:
    """The part of :func:`count_flops` that is spent in the non-local blocks of ``model``."""
    by_module = flops.by_module()
    return sum(by_module[f"model.{name}"] for name in non_local_blocks(model))


def largest_input(model: Any, size: Sequence[int] = SIZE) -> list[dict[str, Any]]:
    """An input for which a detector does the most work that its config allows, and sets it to that.

    FLOPs depend on the image only through the number of proposals and detections. So that the
    figures are those of the model, not of some image or weights, nothing is suppressed: RoI heads
    get as many proposals and detections as the config admits.

    Args:
        model: a detector of Detectron2; thresholds of its NMS and scores are changed.
        size: height and width of the image, in pixels.
    """
    for module in model.modules():
        if isinstance(module, FastRCNNOutputLayers):
            module.test_score_thresh, module.test_nms_thresh = 0.0, 1.0
    if hasattr(model, "proposal_generator"):
        model.proposal_generator.nms_thresh = 1.0
    # With an image of the mean colour all features are zero even with random weights, so that
    # proposals are the anchors; others could be empty and drop out.
    height, width = size
    image = model.pixel_mean.expand(-1, height, width).clone()
    return [{"image": image, "height": height, "width": width}]


def describe(model: nn.Module, tasks: Sequence[str], size: Sequence[int] = SIZE) -> str:
    """What Detectron2's ``tools/analyze_model.py`` tells of a model, as text.

    Args:
        model: a detector.
        tasks: any of :data:`TASKS`.
        size: height and width of the image, in pixels.
    """
    inputs = largest_input(model.eval(), size)
    parts = []
    for task in tasks:
        if task == "structure":
            parts.append(f"Structure:\n{model}")
        elif task == "parameter":
            parts.append(f"Parameters:\n{parameter_count_table(model, max_depth=5)}")
        elif task == "activation":
            parts.append(f"Activations (M), {_by_operator(count_activations(model, inputs), 1e6)}")
        elif task == "flop":
            flops = count_flops(model, inputs)
            non_local = count_non_local_flops(model, flops) / 1e9
            parts.append(f"FLOPs:\n{flop_count_table(flops)}")
            parts.append(f"GFLOPs, {_by_operator(flops, 1e9)}")
            parts.append(f"GFLOPs in non-local blocks: {non_local:.2f}")
    return "\n\n".join(parts)


def compare(model: nn.Module, baseline: nn.Module, size: Sequence[int] = SIZE) -> str:
    """A table of what ``model`` costs beside ``baseline``: parameters, FLOPs, activations."""
    rows = []
    counts: tuple[tuple[str, float, Callable[[nn.Module], int]], ...] = (
        ("parameters (M)", 1e6, count_parameters),
        ("GFLOPs", 1e9, lambda m: count_flops(m, largest_input(m, size)).total()),
        ("activations (M)", 1e6, lambda m: count_activations(m, largest_input(m, size)).total()),
    )
    for name, unit, count in counts:
        ours, theirs = count(model.eval()), count(baseline.eval())
        added = ours - theirs
        rows.append((name, theirs / unit, ours / unit, added / unit, f"{added / theirs:+.2%}"))
    return tabulate(rows, headers=("", "baseline", "model", "added", "added %"), floatfmt=".2f")


def _by_operator(analysis: JitModelAnalysis, unit: float) -> str:
    counts = analysis.by_operator().most_common()
    listed = ", ".join(f"{operator} {count / unit:.2f}" for operator, count in counts)
    return f"total {analysis.total() / unit:.2f}: {listed}"


def _analysis(
    kind: type[JitModelAnalysis], model: nn.Module, inputs: Any, handles: dict[str, Callable]
) -> Any:
    adapter = TracingAdapter(model, inputs, allow_non_tensor=True)
    analysis = kind(adapter, adapter.flattened_inputs)
    # What is left out are operators without products, such as pooling and NMS.
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.tracer_warnings("none").set_op_handle(**handles)
    with torch.no_grad():
        analysis.total()  # which is kept
    return analysis
