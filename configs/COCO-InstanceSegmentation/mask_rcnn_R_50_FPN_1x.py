"""Paper, Table 5, "R50, baseline", by Detectron2's own parts."""

from detectron2.model_zoo import get_config

from nl_detectron.evaluation import COCOEvaluator

dataloader = get_config("common/data/coco.py").dataloader
lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_1x
model = get_config("common/models/mask_rcnn_fpn.py").model
optimizer = get_config("common/optim.py").SGD
train = get_config("common/train.py").train

dataloader.evaluator._target_ = COCOEvaluator
model.backbone.bottom_up.freeze_at = 2
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
