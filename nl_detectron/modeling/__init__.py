from .anchor_generator import RoundedAnchorGenerator
from .backbone import (
    build_non_local_resnet_backbone,
    build_non_local_resnet_fpn_backbone,
    build_non_local_retinanet_resnet_fpn_backbone,
    non_local_resnet,
)
from .insertion import insert_non_local
from .keypoint_head import NonLocalKeypointHead

__all__ = [
    "NonLocalKeypointHead",
    "RoundedAnchorGenerator",
    "build_non_local_resnet_backbone",
    "build_non_local_resnet_fpn_backbone",
    "build_non_local_retinanet_resnet_fpn_backbone",
    "insert_non_local",
    "non_local_resnet",
]
