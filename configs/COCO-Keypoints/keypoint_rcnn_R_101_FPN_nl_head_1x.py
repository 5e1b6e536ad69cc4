"""Paper, Table 6, "NL, +4 in head"."""

from nl_detectron.modeling import NonLocalKeypointHead

from .keypoint_rcnn_R_101_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.keypoint_head.update(_target_=NonLocalKeypointHead, non_local_after=[2, 4, 6, 8])
