"""Inputs for the models under test."""

import torch
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints


def example(training: bool) -> list[dict]:
    """What any detector of Detectron2 takes: an image and, for training, all its ground truth."""
    image = torch.randint(0, 256, (3, 128, 160), dtype=torch.uint8)
    inputs = {"image": image, "height": 256, "width": 320}
    if training:
        instances = Instances((128, 160))
        instances.gt_boxes = Boxes(torch.tensor([[10.0, 20, 90, 100], [60, 5, 150, 70]]))
        instances.gt_classes = torch.tensor([0, 0])
        masks = torch.zeros(2, 128, 160, dtype=torch.bool)
        masks[0, 20:100, 10:90] = masks[1, 5:70, 60:150] = True
        instances.gt_masks = BitMasks(masks)
        keypoints = torch.rand(2, 17, 3) * 60 + 60
        keypoints[..., 2] = 2
        instances.gt_keypoints = Keypoints(keypoints)
        inputs["instances"] = instances
        inputs["sem_seg"] = torch.randint(0, 54, (128, 160))
    return [inputs]
