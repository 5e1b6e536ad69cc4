from .convert import FORMATS, SOURCES, convert_file
from .converted import Converted
from .mmcv import convert_block
from .mmdetection import convert_mask_rcnn
from .resnet import convert_resnet
from .torchvision import convert_rcnn
from .video import convert_video_blocks

__all__ = [
    "FORMATS",
    "SOURCES",
    "Converted",
    "convert_block",
    "convert_file",
    "convert_mask_rcnn",
    "convert_rcnn",
    "convert_resnet",
    "convert_video_blocks",
]
