"""torchvision's Mask R-CNN and Keypoint R-CNN with a ResNet and FPN."""

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.data import MetadataCatalog
from torch import Tensor

from ..reading import CheckpointError
from .converted import Converted, Rule, need, rename_all
from .resnet import RGB, describe_resnet, rename_resnet

BODY = "backbone.body."
# Names of models built today, and those of the published files, which torchvision renames
RULES: tuple[Rule, ...] = (
    (
        r"backbone\.fpn\.inner_blocks\.([0-3])(?:\.0)?\.(weight|bias)",
        lambda m: f"backbone.fpn_lateral{int(m[1]) + 2}.{m[2]}",
    ),
    (
        r"backbone\.fpn\.layer_blocks\.([0-3])(?:\.0)?\.(weight|bias)",
        lambda m: f"backbone.fpn_output{int(m[1]) + 2}.{m[2]}",
    ),
    (r"rpn\.head\.conv(?:\.0\.0)?\.(weight|bias)", r"proposal_generator.rpn_head.conv.\1"),
    (r"rpn\.head\.cls_logits\.(\w+)", r"proposal_generator.rpn_head.objectness_logits.\1"),
    (r"rpn\.head\.bbox_pred\.(\w+)", r"proposal_generator.rpn_head.anchor_deltas.\1"),
    (r"roi_heads\.box_head\.fc6\.(\w+)", r"roi_heads.box_head.fc1.\1"),
    (r"roi_heads\.box_head\.fc7\.(\w+)", r"roi_heads.box_head.fc2.\1"),
    (r"(roi_heads\.box_predictor\.(?:cls_score|bbox_pred)\.\w+)", r"\1"),
    (r"roi_heads\.mask_head\.mask_fcn([1-4])\.(\w+)", r"roi_heads.mask_head.mask_fcn\1.\2"),
    (
        r"roi_heads\.mask_head\.([0-3])\.0\.(weight|bias)",
        lambda m: f"roi_heads.mask_head.mask_fcn{int(m[1]) + 1}.{m[2]}",
    ),
    (r"roi_heads\.mask_predictor\.conv5_mask\.(\w+)", r"roi_heads.mask_head.deconv.\1"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(\w+)", r"roi_heads.mask_head.predictor.\1"),
    (
        r"roi_heads\.keypoint_head\.(0|2|4|6|8|10|12|14)\.(weight|bias)",
        lambda m: f"roi_heads.keypoint_head.conv_fcn{int(m[1]) // 2 + 1}.{m[2]}",
    ),
    (
        r"roi_heads\.keypoint_predictor\.kps_score_lowres\.(\w+)",
        r"roi_heads.keypoint_head.score_lowres.\1",
    ),
)


def convert_rcnn(weights: Mapping[str, Tensor], *, coco_80: bool = False) -> Converted:
    """torchvision's ``maskrcnn_resnet50_fpn`` or ``keypointrcnn_resnet50_fpn``.

    For an input that neither resizes, of a size that is a multiple of 64, boxes, scores, classes,
    keypoints and 28x28 mask probabilities are torchvision's. Class c is torchvision's label c + 1.

    Args:
        coco_80: of the 90 classes of a model trained on COCO, keep the 80 that COCO uses, in
            Detectron2's order. The softmax no longer has the other 10, so scores rise a little.

    Raises:
        CheckpointError: for others, such as the v2 models with their norms in FPN and heads.
    """
    body = {n.removeprefix(BODY): w for n, w in weights.items() if n.startswith(BODY)}
    rest = {n: w for n, w in weights.items() if not n.startswith(BODY)}
    resnet = rename_resnet(body)
    source = "torchvision's Mask R-CNN and Keypoint R-CNN (v2 models are not converted)"
    heads = rename_all(rest, RULES, source)
    need(heads, "backbone.fpn_output2.weight", "roi_heads.box_head.fc1.weight")
    num_classes = _background_last(heads, coco_80)
    notes = [
        "equal to torchvision's: boxes, scores, classes, keypoints and 28x28 mask probabilities "
        "of an input that is not resized and whose height and width are multiples of 64. Resizing "
        "and the pasting of masks are Detectron2's, keypoint scores are probabilities, and boxes "
        "of a hundredth of a pixel are kept",
        (
            "the classes are COCO's 80 in Detectron2's order; without the other 10 in the softmax "
            "scores are a little higher than torchvision's"
            if coco_80
            else f"class c of {num_classes} is torchvision's label c + 1"
        ),
    ]
    backbone = {f"backbone.bottom_up.{name}": tensor for name, tensor in resnet.items()}
    overrides = {**describe_resnet(resnet), **RGB, **_describe(heads, num_classes)}
    return Converted({**backbone, **heads}, overrides, notes=notes)


def _background_last(heads: dict[str, Tensor], coco_80: bool) -> int:
    """Brings the predictors into Detectron2's order, in place; returns the number of classes."""
    predictor, mask = "roi_heads.box_predictor.", "roi_heads.mask_head.predictor."
    need(heads, f"{predictor}cls_score.weight", f"{predictor}bbox_pred.weight")
    num_classes = heads[f"{predictor}cls_score.weight"].shape[0] - 1
    labels = list(range(1, num_classes + 1))
    if coco_80:
        if num_classes != 90:
            raise CheckpointError(f"not converted: {num_classes} classes are not COCO's 90")
        ids = MetadataCatalog.get("coco_2017_val").thing_dataset_id_to_contiguous_id
        labels = sorted(ids, key=ids.get)
    rows = torch.tensor(labels)
    for end in ("weight", "bias"):
        cls = heads[f"{predictor}cls_score.{end}"]
        heads[f"{predictor}cls_score.{end}"] = torch.cat([cls[rows], cls[:1]])
        boxes = heads[f"{predictor}bbox_pred.{end}"]
        boxes = boxes.reshape(num_classes + 1, 4, *boxes.shape[1:])[rows].flatten(0, 1)
        heads[f"{predictor}bbox_pred.{end}"] = boxes
        if f"{mask}{end}" in heads:
            heads[f"{mask}{end}"] = heads[f"{mask}{end}"][rows]
    return len(labels)


def _describe(heads: Mapping[str, Tensor], num_classes: int) -> dict[str, Any]:
    described: dict[str, Any] = {
        "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.FPN.OUT_CHANNELS": heads["backbone.fpn_output2.weight"].shape[0],
        "MODEL.ANCHOR_GENERATOR.NAME": "RoundedAnchorGenerator",
        "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
        "MODEL.ANCHOR_GENERATOR.OFFSET": 0.0,
        "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2000,
        "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
        "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
        "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
        "MODEL.ROI_HEADS.NUM_CLASSES": num_classes,
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
        "MODEL.ROI_BOX_HEAD.FC_DIM": heads["roi_heads.box_head.fc1.weight"].shape[0],
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
        "MODEL.MASK_ON": "roi_heads.mask_head.deconv.weight" in heads,
        "MODEL.KEYPOINT_ON": "roi_heads.keypoint_head.score_lowres.weight" in heads,
    }
    heads_of = ["BOX"]
    if described["MODEL.MASK_ON"]:
        heads_of.append("MASK")
        described |= {
            "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
            "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
            "MODEL.ROI_MASK_HEAD.CONV_DIM": heads["roi_heads.mask_head.deconv.weight"].shape[1],
            "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
        }
    if described["MODEL.KEYPOINT_ON"]:
        heads_of.append("KEYPOINT")
        convs = [heads[f"roi_heads.keypoint_head.conv_fcn{i}.weight"] for i in range(1, 9)]
        keypoints = heads["roi_heads.keypoint_head.score_lowres.weight"].shape[1]
        described |= {
            "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": [conv.shape[0] for conv in convs],
            "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": keypoints,
            "MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION": 14,
        }
    for kind in heads_of:  # not "ROIAlignV2", which is aligned
        described[f"MODEL.ROI_{kind}_HEAD.POOLER_TYPE"] = "ROIAlign"
        described[f"MODEL.ROI_{kind}_HEAD.POOLER_SAMPLING_RATIO"] = 2
    return described
