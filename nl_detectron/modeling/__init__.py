from .anchor_generator import RoundedAnchorGenerator
from .backbone import (
    build_non_local_pyramid_resnet_fpn_backbone,
    build_non_local_pyramid_retinanet_resnet_fpn_backbone,
    build_non_local_resnet_backbone,
    build_non_local_resnet_fpn_backbone,
    build_non_local_retinanet_resnet_fpn_backbone,
    non_local_resnet,
)
from .heads import NonLocalBoxHead, NonLocalKeypointHead, NonLocalMaskHead
from .insertion import insert_non_local
from .pyramid import insert_in_pyramid, non_local_fpn

__all__ = [
    "NonLocalBoxHead",
    "NonLocalKeypointHead",
    "NonLocalMaskHead",
    "RoundedAnchorGenerator",
    "build_non_local_pyramid_resnet_fpn_backbone",
    "build_non_local_pyramid_retinanet_resnet_fpn_backbone",
    "build_non_local_resnet_backbone",
    "build_non_local_resnet_fpn_backbone",
    "build_non_local_retinanet_resnet_fpn_backbone",
    "insert_in_pyramid",
    "insert_non_local",
    "non_local_fpn",
    "non_local_resnet",
]
