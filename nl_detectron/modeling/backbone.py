"""Detectron2's ResNet backbones with non-local blocks: its own builders, then an insertion."""

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, ResNet, build_resnet_backbone
from detectron2.modeling.backbone.fpn import (
    build_resnet_fpn_backbone,
    build_retinanet_resnet_fpn_backbone,
)

from ..config import block_options
from ..layers import BlockOptions
from .insertion import insert_non_local, resolve_placement

# Residual blocks in res2 to res5 by depth (He et al., Deep Residual Learning, Table 1)
BLOCKS_PER_STAGE = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


def check_placement(cfg: CfgNode) -> None:
    """Checks ``MODEL.NON_LOCAL.AFTER`` against the ResNet that the config describes.

    Raises:
        ValueError: naming the value and the allowed ones.
    """
    depth = cfg.MODEL.RESNETS.DEPTH
    if depth not in BLOCKS_PER_STAGE:
        raise ValueError(
            f"MODEL.RESNETS.DEPTH must be one of {list(BLOCKS_PER_STAGE)}, got {depth}"
        )
    stages = {f"res{i}": count for i, count in enumerate(BLOCKS_PER_STAGE[depth], start=2)}
    # A ResNet has no stage beyond the last one whose features are used.
    while stages and list(stages)[-1] not in cfg.MODEL.RESNETS.OUT_FEATURES:
        stages.popitem()
    try:
        resolve_placement(cfg.MODEL.NON_LOCAL.AFTER, stages)
    except ValueError as error:
        raise ValueError(f"MODEL.NON_LOCAL.AFTER = {cfg.MODEL.NON_LOCAL.AFTER}: {error}") from None


@BACKBONE_REGISTRY.register()
def build_non_local_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Detectron2's ``build_resnet_backbone`` with the blocks of ``MODEL.NON_LOCAL``."""
    check_placement(cfg)
    return _with_non_local(build_resnet_backbone(cfg, input_shape), cfg)


@BACKBONE_REGISTRY.register()
def build_non_local_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Detectron2's ``build_resnet_fpn_backbone`` with the blocks of ``MODEL.NON_LOCAL``."""
    check_placement(cfg)
    return _with_non_local(build_resnet_fpn_backbone(cfg, input_shape), cfg)


@BACKBONE_REGISTRY.register()
def build_non_local_retinanet_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """``build_retinanet_resnet_fpn_backbone`` with the blocks of ``MODEL.NON_LOCAL``."""
    check_placement(cfg)
    return _with_non_local(build_retinanet_resnet_fpn_backbone(cfg, input_shape), cfg)


def non_local_resnet(
    *,
    non_local_after: Sequence[str] = ("res4.-2",),
    non_local_options: BlockOptions | None = None,
    **resnet: Any,
) -> ResNet:
    """Detectron2's ``ResNet`` with non-local blocks: the same for LazyConfigs.

    Args:
        non_local_after: the residual blocks after which a block goes, see
            :func:`insert_non_local`.
        non_local_options: of the blocks; by default the paper's.
        resnet: the arguments of :class:`detectron2.modeling.backbone.ResNet`.

    Raises:
        ValueError: as :func:`insert_non_local`.
    """
    backbone = ResNet(**resnet)
    insert_non_local(backbone, non_local_after, options=non_local_options)
    return backbone


def _with_non_local(backbone: ResNet | FPN, cfg: CfgNode) -> ResNet | FPN:
    node = cfg.MODEL.NON_LOCAL
    insert_non_local(backbone, node.AFTER, options=block_options(node))
    return backbone
