"""Memory stays flat in training and in prediction: that of the process, and of a GPU."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase

from nl_detectron import Predictor, model_zoo
from nl_detectron.data.builtin import register_generated
from nl_detectron.engine import Trainer

from .growth import Growth, allocated, grow, resident
from .row import Row

CONFIG = "quick_schedules/keypoint_rcnn_people_nl.yaml"  # masks, keypoints, blocks in both places
DATASET = "soak_people"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LOOKS: dict[str, Callable[[], float]] = {"memory": resident}
if DEVICE == "cuda":
    LOOKS["CUDA memory"] = allocated


def rows(*, calls: int) -> Iterator[Row]:
    """A training of so many iterations, and as many predictions with what it leaves."""
    with tempfile.TemporaryDirectory() as folder:
        for name, growth in train(Path(folder), calls).items():
            yield Row(f"{name} is flat in training", calls, growth.is_flat(), str(growth))
        for name, growth in predict(Path(folder) / "model_final.pth", calls).items():
            yield Row(f"{name} is flat in prediction", calls, growth.is_flat(), str(growth))


class Watch(HookBase):
    """Looks at the memory a hundred times."""

    def __init__(self, look: Callable[[], float]) -> None:
        self.growth = Growth([], [])
        self._look = look

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % max(1, self.trainer.max_iter // 100) == 0:
            self.growth.calls.append(done)
            self.growth.memory.append(self._look())


def config(folder: Path, iterations: int) -> CfgNode:
    """A training on eight small images, whose checkpoints and evaluations are part of it."""
    cfg = model_zoo.get_config(CONFIG)
    cfg.defrost()
    cfg.MODEL.DEVICE = DEVICE
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 16, 4
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (64,), 64
    cfg.TEST.DETECTIONS_PER_IMAGE = 5
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SOLVER.MAX_ITER = iterations
    cfg.SOLVER.CHECKPOINT_PERIOD = max(1, iterations // 4)
    cfg.TEST.EVAL_PERIOD = max(1, iterations // 4)
    cfg.OUTPUT_DIR = str(folder)
    return cfg


def train(folder: Path, iterations: int) -> dict[str, Growth]:
    """By what was looked at; leaves model_final.pth."""
    register_generated(DATASET, folder / "data", kind="people", num_images=8, seed=0)
    cfg = config(folder, iterations)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (DATASET,)
    try:
        torch.manual_seed(0)
        trainer = Trainer(cfg)
        watches = {name: Watch(look) for name, look in LOOKS.items()}
        trainer.register_hooks(watches.values())
        trainer.train()
    finally:
        DatasetCatalog.remove(DATASET)
        MetadataCatalog.remove(DATASET)
    return {name: watch.growth for name, watch in watches.items()}


def predict(weights: Path, calls: int) -> dict[str, Growth]:
    """By what was looked at. On images of many sizes: each has its own buffers."""
    predictor = Predictor(weights, device=DEVICE, confidence_threshold=0.05)
    rng = np.random.default_rng(0)

    def call(_: int) -> None:
        height, width = rng.integers(40, 200, 2)
        predictor(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))

    return {name: grow(call, calls, look=look) for name, look in LOOKS.items()}
