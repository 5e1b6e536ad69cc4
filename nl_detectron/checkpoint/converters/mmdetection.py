"""mmdetection's Mask R-CNN with a ResNet and FPN, and mmcv's NonLocal2d in it."""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...layers.names import block_name, place_of
from ..reading import CheckpointError
from .converted import Converted, Rule, need, rename_all
from .resnet import NORM, RGB, describe_resnet, rename_resnet

PARAMETER = "(weight|bias)"
RULES: tuple[Rule, ...] = (
    (
        rf"neck\.lateral_convs\.([0-3])\.conv\.{PARAMETER}",
        lambda m: f"backbone.fpn_lateral{int(m[1]) + 2}.{m[2]}",
    ),
    (
        rf"neck\.fpn_convs\.([0-3])\.conv\.{PARAMETER}",
        lambda m: f"backbone.fpn_output{int(m[1]) + 2}.{m[2]}",
    ),
    (rf"rpn_head\.rpn_conv\.{PARAMETER}", r"proposal_generator.rpn_head.conv.\1"),
    (rf"rpn_head\.rpn_cls\.{PARAMETER}", r"proposal_generator.rpn_head.objectness_logits.\1"),
    (rf"rpn_head\.rpn_reg\.{PARAMETER}", r"proposal_generator.rpn_head.anchor_deltas.\1"),
    (
        rf"roi_head\.bbox_head\.shared_fcs\.([01])\.{PARAMETER}",
        lambda m: f"roi_heads.box_head.fc{int(m[1]) + 1}.{m[2]}",
    ),
    (rf"roi_head\.bbox_head\.fc_cls\.{PARAMETER}", r"roi_heads.box_predictor.cls_score.\1"),
    (rf"roi_head\.bbox_head\.fc_reg\.{PARAMETER}", r"roi_heads.box_predictor.bbox_pred.\1"),
    (
        rf"roi_head\.mask_head\.convs\.([0-3])\.conv\.{PARAMETER}",
        lambda m: f"roi_heads.mask_head.mask_fcn{int(m[1]) + 1}.{m[2]}",
    ),
    (rf"roi_head\.mask_head\.upsample\.{PARAMETER}", r"roi_heads.mask_head.deconv.\1"),
    (rf"roi_head\.mask_head\.conv_logits\.{PARAMETER}", r"roi_heads.mask_head.predictor.\1"),
)
# Pooling turns g and phi into g.0 and phi.0.
BLOCK_RULES: tuple[Rule, ...] = (
    (rf"(theta|phi|g)(?:\.0)?\.conv\.{PARAMETER}", r"\1.\2"),
    (rf"conv_out\.conv\.{PARAMETER}", r"out.\1"),
    (rf"conv_out\.(?:bn|gn)\.{NORM}", r"norm.\1"),
    (r"concat_project\.conv\.weight", "w_f"),
    (r".*num_batches_tracked", ""),
)
# ImageNet models of Caffe, which mmdetection's "caffe" configs start from
CAFFE = {
    "INPUT.FORMAT": "BGR",
    "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
}


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


def convert_mask_rcnn(
    weights: Mapping[str, Tensor],
    *,
    pairwise: str | None = None,
    use_scale: bool = True,
    caffe_style: bool = False,
) -> Converted:
    """mmdetection's (2.0 and later) Mask R-CNN or Faster R-CNN with a ResNet and FPN.

    A ``NonLocal2d`` between two residual blocks becomes a block there. mmdetection's own plugins
    sit inside of a residual block, before its addition and ReLU: no block after it computes the
    same, so they are refused.

    Args:
        pairwise, use_scale: see :func:`convert_block`.
        caffe_style: the config has ``style="caffe"``; its name shows it, the file does not.

    Raises:
        CheckpointError: for blocks inside of residual blocks, and for all other layers that
            Detectron2's model does not have.
    """
    body = {n.removeprefix("backbone."): w for n, w in weights.items() if n.startswith("backbone.")}
    rest = {n: w for n, w in weights.items() if not n.startswith("backbone.")}
    trunk, blocks = _take_blocks(body)
    resnet = rename_resnet(trunk)
    style = CAFFE if caffe_style else RGB
    overrides = {**describe_resnet(resnet), **style}
    notes = [
        f"taken as style={'caffe' if caffe_style else 'pytorch'} with its pixel mean, standard "
        "deviation and channel order, which the file does not show"
    ]
    options: dict[str, Any] = {}
    for place, block in blocks.items():
        tensors, found = convert_block(block, pairwise=pairwise, use_scale=use_scale)
        if options not in ({}, found):
            raise CheckpointError(
                f"not converted: its non-local blocks differ, {place} has {found}"
            )
        options = found
        resnet |= {f"{place}.{name}": tensor for name, tensor in tensors.items()}
    if blocks:
        ratio = _inner_ratio(blocks)
        overrides |= {
            "MODEL.BACKBONE.NAME": "build_non_local_resnet_fpn_backbone",
            "MODEL.NON_LOCAL.AFTER": [place_of(name) for name in blocks],
            "MODEL.NON_LOCAL.PAIRWISE": options["pairwise"],
            "MODEL.NON_LOCAL.INNER_RATIO": ratio,
            "MODEL.NON_LOCAL.SUB_SAMPLE": options["sub_sample"],
            "MODEL.NON_LOCAL.USE_SCALE": options["use_scale"],
            "MODEL.NON_LOCAL.NORM": options["norm"],
        }
        notes.append(
            f"blocks are taken as mode={options['pairwise']}, use_scale={options['use_scale']}, "
            "which the file does not show; with sub_sample, outputs are equal on maps of even "
            "height and width"
        )
    if not rest:  # a backbone alone
        return Converted(resnet, overrides, by_suffix=True, notes=notes)
    heads = rename_all(rest, RULES, "mmdetection's Mask R-CNN")
    overrides["MODEL.MASK_ON"] = "roi_heads.mask_head.deconv.weight" in heads
    if "roi_heads.box_predictor.cls_score.bias" in heads:
        classes = len(heads["roi_heads.box_predictor.cls_score.bias"]) - 1
        overrides["MODEL.ROI_HEADS.NUM_CLASSES"] = classes
    backbone = {f"backbone.bottom_up.{name}": tensor for name, tensor in resnet.items()}
    return Converted({**backbone, **heads}, overrides, notes=notes)


def _take_blocks(
    body: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """The ResNet, its residual blocks counted anew, and non-local blocks by place (res4.nl4)."""
    children: dict[str, dict[int, dict[str, Tensor]]] = defaultdict(lambda: defaultdict(dict))
    trunk: dict[str, Tensor] = {}
    for name, tensor in body.items():
        if match := re.fullmatch(r"layer([1-4])\.(\d+)\.(.+)", name):
            if re.search(r"(^|\.)(nonlocal_block\w*|conv_out)\.", match[3]) and not re.match(
                r"conv_out\.", match[3]
            ):
                raise CheckpointError(
                    f"not converted: {name} is of a non-local block inside of a residual block, "
                    "before its addition and ReLU, where mmdetection's plugins are. Here blocks "
                    "stand after residual blocks, which does not compute the same"
                )
            children[f"res{int(match[1]) + 1}"][int(match[2])][match[3]] = tensor
        else:
            trunk[name] = tensor
    blocks: dict[str, dict[str, Tensor]] = {}
    for stage, by_index in children.items():
        count = 0
        for index in sorted(by_index):
            tensors = by_index[index]
            if any(name.startswith("conv_out.") for name in tensors):
                place = f"{stage}.{block_name(count - 1)}"
                if count == 0 or place in blocks:
                    raise CheckpointError(
                        f"not converted: the non-local block {stage}.{index} does not come after a "
                        "residual block of its stage"
                    )
                blocks[place] = tensors
            else:
                layer = f"layer{int(stage[3]) - 1}.{count}"
                trunk |= {f"{layer}.{name}": tensor for name, tensor in tensors.items()}
                count += 1
    return trunk, blocks


def _inner_ratio(blocks: Mapping[str, Mapping[str, Tensor]]) -> float:
    ratios = set()
    for tensors in blocks.values():
        out = tensors["conv_out.conv.weight"]
        ratios.add(out.shape[1] / out.shape[0])
    if len(ratios) != 1:
        raise CheckpointError("not converted: its non-local blocks differ in their inner channels")
    return ratios.pop()
