"""Paper, Table 5, "X152, baseline": ResNeXt-152-32x8d, pretrained on ImageNet-5k."""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.resnet import BottleneckBlock, ResNet

from .mask_rcnn_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

# make_default_stages knows no ResNeXt: its bottlenecks are as wide as the block's output in res2.
model.backbone.bottom_up.stages = [
    L(ResNet.make_stage)(
        block_class=BottleneckBlock,
        num_blocks=num_blocks,
        stride_per_block=[stride] + [1] * (num_blocks - 1),
        in_channels=in_channels,
        out_channels=out_channels,
        bottleneck_channels=out_channels,  # 32 groups of 8 channels in res2
        num_groups=32,
        stride_in_1x1=False,
        norm="FrozenBN",
    )
    for num_blocks, stride, in_channels, out_channels in (
        (3, 1, 64, 256),
        (8, 2, 256, 512),
        (36, 2, 512, 1024),
        (3, 2, 1024, 2048),
    )
]
train.init_checkpoint = "catalog://ImageNetPretrained/FAIR/X-152-32x8d-IN5k"
