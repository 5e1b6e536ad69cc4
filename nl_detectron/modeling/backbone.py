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
from .insertion import check_position, insert_non_local, resolve_placement
from .pyramid import check_pyramid, insert_in_pyramid

# Residual blocks in res2 to res5 by depth (He et al., Deep Residual Learning, Table 1)
BLOCKS_PER_STAGE = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


def check_placement(cfg: CfgNode) -> None:
    """Checks where blocks go against the ResNet, and the pyramid, that the config describes.

    Raises:
        ValueError: naming the value and the allowed ones.
    """
    node, depth = cfg.MODEL.NON_LOCAL, cfg.MODEL.RESNETS.DEPTH
    if depth not in BLOCKS_PER_STAGE:
        raise ValueError(
            f"MODEL.RESNETS.DEPTH must be one of {list(BLOCKS_PER_STAGE)}, got {depth}"
        )
    stages = {f"res{i}": count for i, count in enumerate(BLOCKS_PER_STAGE[depth], start=2)}
    # A ResNet has no stage beyond the last one whose features are used.
    while stages and list(stages)[-1] not in cfg.MODEL.RESNETS.OUT_FEATURES:
        stages.popitem()
    try:
        resolve_placement(node.AFTER, stages)
    except ValueError as error:
        raise ValueError(f"MODEL.NON_LOCAL.AFTER = {node.AFTER}: {error}") from None
    try:
        check_position(node.POSITION, block_options(node))
    except ValueError as error:
        raise ValueError(f"MODEL.NON_LOCAL: {error}") from None
    if cfg.MODEL.BACKBONE.NAME.startswith("build_non_local_pyramid_"):
        pyramid = cfg.MODEL.FPN.NON_LOCAL
        try:
            check_pyramid(pyramid.LEVEL, _levels(cfg), block_options(pyramid))
        except ValueError as error:
            raise ValueError(f"MODEL.FPN.NON_LOCAL: {error}") from None


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


@BACKBONE_REGISTRY.register()
def build_non_local_pyramid_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """``build_non_local_resnet_fpn_backbone`` with the block of ``MODEL.FPN.NON_LOCAL``."""
    return _with_pyramid(build_non_local_resnet_fpn_backbone(cfg, input_shape), cfg)


@BACKBONE_REGISTRY.register()
def build_non_local_pyramid_retinanet_resnet_fpn_backbone(
    cfg: CfgNode, input_shape: ShapeSpec
) -> FPN:
    """The same of ``build_non_local_retinanet_resnet_fpn_backbone``."""
    return _with_pyramid(build_non_local_retinanet_resnet_fpn_backbone(cfg, input_shape), cfg)


def non_local_resnet(
    *,
    non_local_after: Sequence[str] = ("res4.-2",),
    non_local_position: str = "after_block",
    non_local_options: BlockOptions | None = None,
    **resnet: Any,
) -> ResNet:
    """Detectron2's ``ResNet`` with non-local blocks: the same for LazyConfigs.

    Args:
        non_local_after, non_local_position: the residual blocks after which a block goes, or
            before whose sums, see :func:`insert_non_local`.
        non_local_options: of the blocks; by default the paper's.
        resnet: the arguments of :class:`detectron2.modeling.backbone.ResNet`.

    Raises:
        ValueError: as :func:`insert_non_local`.
    """
    backbone = ResNet(**resnet)
    insert_non_local(
        backbone, non_local_after, position=non_local_position, options=non_local_options
    )
    return backbone


def _with_non_local(backbone: ResNet | FPN, cfg: CfgNode) -> ResNet | FPN:
    node = cfg.MODEL.NON_LOCAL
    insert_non_local(backbone, node.AFTER, position=node.POSITION, options=block_options(node))
    return backbone


def _with_pyramid(backbone: FPN, cfg: CfgNode) -> FPN:
    node = cfg.MODEL.FPN.NON_LOCAL
    insert_in_pyramid(backbone, node.LEVEL, add_mean=node.ADD_MEAN, options=block_options(node))
    return backbone


def _levels(cfg: CfgNode) -> list[str]:
    """The levels of the FPN that a config describes."""
    levels = [int(name.removeprefix("res")) for name in cfg.MODEL.FPN.IN_FEATURES]
    top = 2 if "retinanet" in cfg.MODEL.BACKBONE.NAME else 1
    return [f"p{level}" for level in (*levels, *range(levels[-1] + 1, levels[-1] + 1 + top))]
