"""Hidden legs in a picture, as models place them, and how far a keypoint head sees from them."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import read_image

from nl_detectron.inference import Predictor
from nl_detectron.visualization import draw_cross, draw_ground_truth, draw_instances, spotlight

from .measures import ANSWERS
from .run import first_trained

# The box of the largest figure of people_in_skirts, and an ankle of it; the arms are above ARMS
FIGURE_SIZE = (128, 128)
FIGURE, ANKLE, ARMS = (14, 3, 113, 126), (94, 114), 39
SCALE = 2  # of the picture


def draw_legs(
    output: Path, difficulty: str, seeds: Sequence[int], file: Path, *, num_images: int = 3
) -> bool:
    """Pictures what a plain head and one with blocks say, on validation images.

    Args:
        file: the PNG to write: a row for each image, with the truth, the plain model's keypoints,
            those of the model with blocks, and what its last block relates to an ankle.

    Returns:
        Whether there were trained models to do it with.
    """
    predictors = []
    for variant in ("plain", "embedded_gaussian_head"):
        run = first_trained(output, difficulty, [variant], seeds)
        if run is None:
            return False
        predictors.append(Predictor(run.cfg(output), run.weights(output), device="cpu"))
    dataset, metadata = run.cfg(output).DATASETS.TEST[0], predictors[0].metadata
    rows = []
    for record in DatasetCatalog.get(dataset)[:num_images]:
        image = read_image(record["file_name"], format="BGR")
        panels = [draw_ground_truth(image, record, metadata, scale=SCALE)]
        for predictor in predictors:
            instances = predictor(image)[:1]
            instances.pred_keypoints[..., 2] = 1  # however unsure: shown
            panels.append(draw_instances(image, instances, metadata, scale=SCALE))
        ankle = metadata.keypoint_names.index(ANSWERS[0])
        x, y, _ = record["annotations"][0]["keypoints"][3 * ankle : 3 * ankle + 3]
        attention = predictors[1].attention(image, [(x, y)])
        # none where the figure is not found
        attention_map = attention.maps[-1] if attention.maps else None
        panels.append(
            draw_cross(spotlight(image, attention_map, scale=SCALE), (x * SCALE, y * SCALE))
        )
        rows.append(np.hstack(panels))
    cv2.imwrite(str(file), np.vstack(rows))
    return True
