from pathlib import Path

from nl_detectron import NonLocalBlock, Predictor, add_non_local_config

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = {
    "shapes": ROOT / "configs/quick_schedules/mask_rcnn_shapes_nl.yaml",
    "people": ROOT / "configs/quick_schedules/keypoint_rcnn_people_nl.yaml",
}


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> dict[str, Path]:
    """Checkpoints of small models that find something everywhere, each with its config beside it.

    They are not trained, but their non-local blocks have left their zero start.
    """
    files = {}
    for name, config in CONFIGS.items():
        cfg = get_cfg()
        add_non_local_config(cfg)
        cfg.merge_from_file(str(config))
        cfg.MODEL.DEVICE = "cpu"
        cfg.TEST.DETECTIONS_PER_IMAGE = 5
        torch.manual_seed(1)
        model = build_model(cfg)
        for block in (module for module in model.modules() if isinstance(module, NonLocalBlock)):
            block.reset_parameters(zero_init=False)
        folder = tmp_path_factory.mktemp(name)
        (folder / "config.yaml").write_text(cfg.dump())
        files[name] = folder / "model_final.pth"
        torch.save({"model": model.state_dict()}, files[name])
    return files


@pytest.fixture(scope="session", params=CONFIGS)
def predictor(request, weights) -> Predictor:
    return Predictor(None, weights[request.param], confidence_threshold=0, device="cpu")


@pytest.fixture
def picture(tmp_path) -> Path:
    """An image of 120 x 80 pixels."""
    rng = np.random.default_rng(0)
    file = tmp_path / "picture.png"
    image = cv2.resize(rng.integers(0, 255, (8, 12, 3), np.uint8), (120, 80))
    cv2.imwrite(str(file), image)
    return file
