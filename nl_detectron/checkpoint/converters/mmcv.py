"""mmcv's blocks in files of mmdetection: between residual blocks, or plugins inside of them."""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..reading import CheckpointError
from .converted import Rule, need, rename_all
from .resnet import NORM

PARAMETER = "(weight|bias)"
MASK_RULE: Rule = (rf"conv_mask\.{PARAMETER}", r"conv_mask.\1")
# Pooling turns g and phi into g.0 and phi.0.
BLOCK_RULES: tuple[Rule, ...] = (
    (rf"(theta|phi|g)(?:\.0)?\.conv\.{PARAMETER}", r"\1.\2"),
    (rf"conv_out\.conv\.{PARAMETER}", r"out.\1"),
    (rf"conv_out\.(?:bn|gn)\.{NORM}", r"norm.\1"),
    (r"concat_project\.conv\.weight", "w_f"),
    (r".*num_batches_tracked", ""),
)
CONTEXT_RULES: tuple[Rule, ...] = (
    MASK_RULE,
    (rf"channel_add_conv\.0\.{PARAMETER}", r"transform.\1"),
    (rf"channel_add_conv\.1\.{PARAMETER}", r"transform_norm.\1"),
    (rf"channel_add_conv\.3\.{PARAMETER}", r"out.\1"),
)
CRISS_CROSS_RULES: tuple[Rule, ...] = (
    (rf"query_conv\.{PARAMETER}", r"theta.\1"),
    (rf"key_conv\.{PARAMETER}", r"phi.\1"),
    (rf"value_conv\.{PARAMETER}", r"out.\1"),
    (r"gamma(?:\.scale)?", "gamma"),
)
# What DNLHead of mmsegmentation has, and no file shows
DISENTANGLED_TEMPERATURE = 0.05
# Between residual blocks, and inside of one; a plugin's name may have a postfix
BETWEEN = "conv_out."
PLUGIN = re.compile(
    r"(context_block|nonlocal_block|criss_cross_attention|gen_attention_block)\w*\."
)
# A module's place: its stage and the residual block that it follows or is in
Place = tuple[str, int]


def convert_block(
    weights: Mapping[str, Tensor], *, pairwise: str | None = None, use_scale: bool = True
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """mmcv's ``NonLocal2d``, as the tensors and the options of a :class:`NonLocalBlock`.

    Args:
        weights: the module's state dict.
        pairwise: its ``mode``. Only ``gaussian`` and ``concatenation`` can be told from a file;
            otherwise the default is mmcv's, ``embedded_gaussian``.
        use_scale: its ``use_scale``, which no file shows; mmcv scales the embedded Gaussian only.

    Returns:
        the block's state dict, and ``inner_channels``, ``pairwise``, ``sub_sample``, ``use_scale``
        and ``norm`` for its constructor. With ``sub_sample``, outputs are equal on maps of even
        height and width; mmcv's pooling leaves out the last row and column of odd ones.

    Raises:
        CheckpointError: if it is none, or not of the ``pairwise`` that is asked for.
    """
    block = rename_all(weights, BLOCK_RULES, "a non-local block")
    need(block, "g.weight", "g.bias", "out.weight")
    told = None if "theta.weight" in block else "gaussian"
    if "w_f" in block:
        told = "concatenation"
        block["w_f"] = block["w_f"].flatten()
    if told is None and pairwise in (None, "embedded_gaussian", "dot_product"):
        told = pairwise or "embedded_gaussian"
    if told is None or pairwise not in (None, told):
        raise CheckpointError(
            f"not converted: its tensors are {', '.join(sorted(block))}, which is no block of "
            f"pairwise function {pairwise}"
        )
    norm = ""
    if "norm.weight" in block:
        norm = "BN" if "norm.running_var" in block else "GN"
    return block, {
        "inner_channels": block["g.weight"].shape[0],
        "pairwise": told,
        "sub_sample": any(name.startswith("g.0.") for name in weights),
        "use_scale": use_scale and told == "embedded_gaussian",
        "norm": norm,
    }


def convert_module(
    weights: Mapping[str, Tensor], *, pairwise: str | None = None, use_scale: bool = True
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Any of mmcv's blocks, as the tensors of a block here and the options for it.

    Args:
        weights: the state dict of a ``NonLocal2d``, ``ContextBlock``, ``CrissCrossAttention`` or
            mmsegmentation's ``DisentangledNonLocal2d``.
        pairwise, use_scale: of a ``NonLocal2d``, see :func:`convert_block`.

    Raises:
        CheckpointError: if it is none of these, a ``ContextBlock`` that multiplies or has average
            pooling, or a ``DisentangledNonLocal2d`` that no block here is.
    """
    if {"conv_mask.weight", "conv_out.conv.weight"} <= weights.keys():
        return _convert_disentangled(weights, pairwise=pairwise, use_scale=use_scale)
    if "query_conv.weight" in weights:
        block = rename_all(weights, CRISS_CROSS_RULES, "a CrissCrossAttention")
        need(block, "theta.weight", "phi.weight", "out.weight", "out.bias", "gamma")
        gamma = block.pop("gamma")
        block |= {name: gamma * block[name] for name in ("out.weight", "out.bias")}
        options = {"block": "CrissCrossBlock", "use_scale": False, "recurrence": 1}
        return block, {**options, "inner_ratio": _ratio(block["theta.weight"])}
    if any(name.startswith(("channel_add_conv.", "channel_mul_conv.")) for name in weights):
        block = rename_all(weights, CONTEXT_RULES, "a ContextBlock of fusion channel_add")
        need(block, "conv_mask.weight", "transform.weight", "transform_norm.weight", "out.weight")
        for name in ("transform_norm.weight", "transform_norm.bias"):
            block[name] = block[name].flatten()  # of [D, 1, 1]
        ratio = _ratio(block["transform.weight"])
        return block, {"block": "GlobalContextBlock", "inner_ratio": ratio}
    block, found = convert_block(weights, pairwise=pairwise, use_scale=use_scale)
    del found["inner_channels"]
    return block, {**found, "inner_ratio": _ratio(block["g.weight"])}


def _convert_disentangled(
    weights: Mapping[str, Tensor], *, pairwise: str | None, use_scale: bool
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Its last layer takes the two terms one by one, so what it adds to each counts twice."""
    mask = {name: tensor for name, tensor in weights.items() if name.startswith("conv_mask.")}
    others = {name: tensor for name, tensor in weights.items() if name not in mask}
    block, found = convert_block(others, pairwise=pairwise, use_scale=use_scale)
    if found["pairwise"] != "embedded_gaussian" or found["sub_sample"] or found["norm"] == "GN":
        raise CheckpointError(
            "not converted: a DisentangledNonLocal2d of mode embedded_gaussian, without sub_sample "
            f"and with no norm or BN is a block here, not one of mode {found['pairwise']}, "
            f"sub_sample {found['sub_sample']} and norm {found['norm'] or None}"
        )
    block |= rename_all(mask, (MASK_RULE,), "a DisentangledNonLocal2d")
    twice = ("norm.running_mean", "norm.bias") if found["norm"] else ("out.bias",)
    block |= {name: 2 * block[name] for name in twice}
    ratio = _ratio(block["g.weight"])
    options = {"block": "DisentangledNonLocalBlock", "temperature": DISENTANGLED_TEMPERATURE}
    shared = {name: found[name] for name in ("sub_sample", "use_scale", "norm")}
    return block, {**options, **shared, "inner_ratio": ratio}


def take_blocks(
    body: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[Place, dict[str, Tensor]], str]:
    """Takes blocks out of a ResNet under mmdetection's names (``layer3.2.context_block.``).

    Returns:
        the ResNet, its residual blocks counted anew; the blocks by place; and the ``position`` of
        :func:`nl_detectron.insert_non_local` that they have.

    Raises:
        CheckpointError: naming one in a place where none can be.
    """
    children: dict[str, dict[int, dict[str, Tensor]]] = defaultdict(lambda: defaultdict(dict))
    trunk: dict[str, Tensor] = {}
    for name, tensor in body.items():
        if match := re.fullmatch(r"layer([1-4])\.(\d+)\.(.+)", name):
            children[f"res{int(match[1]) + 1}"][int(match[2])][match[3]] = tensor
        else:
            trunk[name] = tensor
    between: dict[Place, dict[str, Tensor]] = {}
    inside: dict[Place, dict[str, Tensor]] = {}
    for stage, by_index in children.items():
        count = 0
        for index in sorted(by_index):
            tensors = by_index[index]
            if any(name.startswith(BETWEEN) for name in tensors):
                if count == 0 or (stage, count - 1) in between:
                    raise CheckpointError(
                        f"not converted: the non-local block {stage}.{index} does not come after a "
                        "residual block of its stage"
                    )
                between[stage, count - 1] = tensors
                continue
            layer = f"layer{int(stage[3]) - 1}"
            if plugin := _take_plugin(tensors, f"{layer}.{index}"):
                inside[stage, count] = plugin
            trunk |= {f"{layer}.{count}.{name}": tensor for name, tensor in tensors.items()}
            count += 1
    if between and inside:
        raise CheckpointError(
            "not converted: it has non-local blocks between residual blocks and inside of them; "
            "here all are in the same kind of place"
        )
    return trunk, between or inside, "before_sum" if inside else "after_block"


def _take_plugin(residual: dict[str, Tensor], layer: str) -> dict[str, Tensor]:
    """The plugin among the tensors of a residual block, which are then without it."""
    names = [name for name in residual if PLUGIN.match(name)]
    if not names:
        return {}
    if any(name.startswith("gen_attention_block") for name in names):
        raise CheckpointError(
            f"not converted: {layer}.{names[0]} is of a GeneralizedAttention, which no "
            "block here is"
        )
    if len({name.partition(".")[0] for name in names}) > 1:
        raise CheckpointError(
            f"not converted: {layer} has more than one plugin, {', '.join(names)}"
        )
    channels = next(residual[name].shape[1] for name in names if residual[name].dim() == 4)
    if "conv3.weight" not in residual or residual["conv3.weight"].shape[0] != channels:
        raise CheckpointError(
            f"not converted: {layer}.{names[0]} is of a plugin inside of a residual block, before "
            f"its addition, but of {channels} channels, so not of position='after_conv3', the one "
            "that blocks can have here"
        )
    return {name.partition(".")[2]: residual.pop(name) for name in names}


def _ratio(weight: Tensor) -> float:
    """Inner channels as a fraction of all, of the first convolution's weight."""
    return weight.shape[0] / weight.shape[1]
