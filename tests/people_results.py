"""A small set of people, and predictions on it that are more or less right."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO

from nl_detectron.data import generate


@pytest.fixture(scope="session")
def truth(tmp_path_factory: pytest.TempPathFactory) -> COCO:
    folder = tmp_path_factory.mktemp("set") / "people"
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(generate(folder, kind="people", num_images=12, seed=5)))


def results_of(truth: COCO, *, jitter: float) -> list[dict]:
    """The truth as predictions, the further from it the higher the image's id."""
    rng = np.random.default_rng(0)
    results = []
    for annotation in truth.dataset["annotations"]:
        noise = jitter * annotation["image_id"]
        box = np.array(annotation["bbox"]) + rng.normal(0, noise, 4)
        points = np.array(annotation["keypoints"], float).reshape(-1, 3)
        points[:, :2] += rng.normal(0, noise, (len(points), 2))
        results.append(
            {key: annotation[key] for key in ("image_id", "category_id", "segmentation")}
            | {"bbox": np.maximum(box, 1).tolist(), "keypoints": points.ravel().tolist()}
            | {"score": float(rng.uniform(0.6, 1))}
        )
    return results
