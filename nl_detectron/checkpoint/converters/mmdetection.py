"""mmdetection's Mask R-CNN with a ResNet and FPN, and mmcv's blocks in it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...layers.names import block_name
from ..reading import CheckpointError
from .converted import Converted, Rule, rename_all
from .mmcv import PARAMETER, convert_module, take_blocks
from .resnet import RGB, describe_resnet, rename_resnet

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
# ImageNet models of Caffe, which mmdetection's "caffe" configs start from
CAFFE = {
    "INPUT.FORMAT": "BGR",
    "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
}


def convert_mask_rcnn(
    weights: Mapping[str, Tensor],
    *,
    pairwise: str | None = None,
    use_scale: bool = True,
    caffe_style: bool = False,
) -> Converted:
    """mmdetection's (2.0 and later) Mask R-CNN or Faster R-CNN with a ResNet and FPN.

    A ``NonLocal2d`` between two residual blocks becomes a block there; a plugin of ``position=
    "after_conv3"``, one inside of the residual block, before its sum: ``ContextBlock`` (GCNet),
    ``NonLocal2d``, ``CrissCrossAttention`` or mmsegmentation's ``DisentangledNonLocal2d``.

    Args:
        pairwise, use_scale: of a ``NonLocal2d``, see :func:`convert_block`.
        caffe_style: the config has ``style="caffe"``; its name shows it, the file does not.

    Raises:
        CheckpointError: for other plugins and places, blocks that differ in their options or are
            in both kinds of place, and all other layers that Detectron2's model does not have.
    """
    body = {n.removeprefix("backbone."): w for n, w in weights.items() if n.startswith("backbone.")}
    rest = {n: w for n, w in weights.items() if not n.startswith("backbone.")}
    trunk, blocks, position = take_blocks(body)
    resnet = rename_resnet(trunk)
    style = CAFFE if caffe_style else RGB
    overrides = {**describe_resnet(resnet), **style}
    notes = [
        f"taken as style={'caffe' if caffe_style else 'pytorch'} with its pixel mean, standard "
        "deviation and channel order, which the file does not show"
    ]
    options: dict[str, Any] = {}
    for (stage, index), module in blocks.items():
        tensors, found = convert_module(module, pairwise=pairwise, use_scale=use_scale)
        if options not in ({}, found):
            raise CheckpointError(
                f"not converted: its non-local blocks differ, {stage}.{index} has {found}"
            )
        options = found
        inside = f"{index}.conv3.activation." if position == "before_sum" else ""
        prefix = f"{stage}.{inside}{block_name(index)}"
        resnet |= {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}
    if blocks:
        overrides |= {
            "MODEL.BACKBONE.NAME": "build_non_local_resnet_fpn_backbone",
            "MODEL.NON_LOCAL.AFTER": [f"{stage}.{index}" for stage, index in blocks],
            "MODEL.NON_LOCAL.POSITION": position,
        }
        overrides |= {f"MODEL.NON_LOCAL.{name.upper()}": v for name, v in options.items()}
    if "pairwise" in options:
        notes.append(
            f"blocks are taken as mode={options['pairwise']}, use_scale={options['use_scale']}, "
            "which the file does not show; with sub_sample, outputs are equal on maps of even "
            "height and width"
        )
    if "temperature" in options:
        notes.append(
            f"blocks are taken as mode=embedded_gaussian, use_scale={options['use_scale']}, "
            f"temperature={options['temperature']}, which the file does not show; with a norm, "
            "outputs are equal in evaluation"
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
