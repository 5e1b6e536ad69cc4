"""Paper, Table 5, "R50, +1 NL"."""

from nl_detectron.modeling import non_local_resnet

from .mask_rcnn_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.update(_target_=non_local_resnet, non_local_after=["res4.-2"])
