"""As paper, Table 6, "NL, +4 in head, +1 in backbone", with R50."""

from nl_detectron.modeling import NonLocalKeypointHead, non_local_resnet

from .keypoint_rcnn_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.update(_target_=non_local_resnet, non_local_after=["res4.-2"])
model.roi_heads.keypoint_head.update(_target_=NonLocalKeypointHead, non_local_after=[2, 4, 6, 8])
