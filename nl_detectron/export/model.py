"""An exported file in the place of the model it was made of."""

from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from detectron2.structures.keypoints import heatmaps_to_keypoints
from torch import Tensor, nn

from ..engine.config import cfg_from_text
from .runtimes import open_graph

HEAT_MAPS = "pred_keypoint_heatmaps"


class ExportedModel(nn.Module):
    """Takes and gives what a Detectron2 model does in evaluation mode, on the CPU.

    What the graph leaves to its reader is done here, by Detectron2's own code: keypoints from heat
    maps, masks of 28x28 into the image, and coordinates to the image's.

    Attributes:
        metadata: see :func:`.metadata.describe`.
    """

    def __init__(self, path: str | Path):
        """
        Raises:
            UsageError: see :func:`open_graph`.
        """
        super().__init__()
        self._graph, self.metadata = open_graph(path)
        self.device = torch.device("cpu")

    def cfg(self) -> CfgNode:
        """The config of the model that was exported, which may be changed."""
        cfg = cfg_from_text(self.metadata["config"], source="the exported file")
        cfg.defrost()
        return cfg

    def dataset_metadata(self) -> Metadata:
        """What Detectron2's visualizer needs of the dataset that the model was trained on."""
        known: dict[str, Any] = {"thing_classes": self.metadata["class_names"]}
        if self.metadata["category_ids"]:
            known["thing_dataset_id_to_contiguous_id"] = dict(self.metadata["category_ids"])
        if self.metadata["keypoint_names"]:
            known["keypoint_names"] = self.metadata["keypoint_names"]
            pairs = self.metadata["keypoint_flip_map"]
            known["keypoint_flip_map"] = [tuple(pair) for pair in pairs]
            known["keypoint_connection_rules"] = [
                (start, end, tuple(colour))
                for start, end, colour in self.metadata["keypoint_connection_rules"]
            ]
        return Metadata(**known)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """As Detectron2's models; ``image`` is uint8 (3, H, W), or holds such values."""
        return [{"instances": self._instances(inputs)} for inputs in batched_inputs]

    def _instances(self, inputs: dict[str, Any]) -> Instances:
        image = inputs["image"].cpu().to(torch.uint8)
        height, width = image.shape[1:]
        arrays = self._graph(image.contiguous().numpy())
        fields = dict(zip(self.metadata["outputs"], map(torch.from_numpy, arrays), strict=True))
        return read_instances(
            fields, (height, width), inputs.get("height", height), inputs.get("width", width)
        )


def read_instances(
    fields: dict[str, Tensor], size: tuple[int, int], height: int, width: int
) -> Instances:
    """What a detector returns, of what its graph gives.

    Args:
        fields: the graph's outputs by name.
        size: (H, W) of the graph's input.
        height, width: of the image to predict in.
    """
    instances = Instances(size)
    for name, value in fields.items():
        instances.set(name, Boxes(value) if name == "pred_boxes" else value)
    if instances.has(HEAT_MAPS):
        keypoints = heatmaps_to_keypoints(instances.get(HEAT_MAPS), fields["pred_boxes"])
        instances.remove(HEAT_MAPS)
        instances.pred_keypoints = keypoints[:, :, [0, 1, 3]]  # not the logit
    return detector_postprocess(instances, height, width)
