"""Our Predictor beside a loop of Detectron2's DefaultPredictor: the same detections, sooner."""

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import nn

from nl_detectron import model_zoo
from nl_detectron.data.builtin import register_generated
from nl_detectron.engine import Trainer
from nl_detectron.evaluation import build_evaluator
from nl_detectron.export.export import model_input
from nl_detectron.files import write_image
from nl_detectron.inference import Predictor

from ..decided import decide
from .backends import backends_table
from .measure import alternate
from .table import Table, dtypes, text_of

CONFIG = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_nl_1x.yaml"
STOCK = "DefaultPredictor"
WEIGHTS = "model.pth"
GOALS = {"float32": 1.5, "bfloat16": 2.0}  # times the speed of Detectron2's loop
GOAL_BOX, GOAL_SCORE = 0.01, 1e-4  # differences, in pixels and from 0 to 1
GOAL_AP = 0.1
THRESHOLD = 0.05
TRAININGS = {
    "shapes": "quick_schedules/mask_rcnn_shapes_nl.yaml",
    "people": "quick_schedules/keypoint_rcnn_people_nl.yaml",
}


def tables(*, quick: bool, device: str) -> Iterator[Table]:
    """Throughput, equality of detections, and AP by precision."""
    with tempfile.TemporaryDirectory() as folder:
        size = 128 if quick else 800
        images = make_images(Path(folder), 1 if quick else 4)
        sides = make_sides(images, size, device, dtypes(device))
        yield throughput_table(sides, images, size=size, seconds=2 if quick else 120, device=device)
        yield equality_table(sides, images)
        if device == "cpu":
            yield backends_table(
                sides[0].predict,
                Path(folder) / WEIGHTS,
                images[:2],  # all of them, by seven backends, would take half an hour
                size=size,
                seconds=2 if quick else 120,
                threshold=THRESHOLD,
            )
    yield precision_table(
        iterations=2 if quick else 300,
        num_images=(16, 8) if quick else (2000, 200),
        device=device,
        dtypes=dtypes(device),
    )


@dataclass(frozen=True)
class Side:
    """One way to predict on files."""

    name: str
    predict: Callable[[Sequence[Path]], list[Instances]]


def make_images(folder: Path, count: int) -> list[Path]:
    """Smooth random pictures of 640×480 pixels, as JPEG files."""
    rng = np.random.default_rng(0)
    files = [folder / f"{i}.jpg" for i in range(count)]
    for file in files:
        coarse = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        write_image(file, cv2.resize(coarse, (640, 480), interpolation=cv2.INTER_CUBIC))
    return files


def make_sides(
    images: Sequence[Path],
    size: int,
    device: str,
    dtypes: Sequence[str],
    opts: Sequence[object] = (),
) -> list[Side]:
    """Detectron2's loop and ours, with the same weights.

    Args:
        images: files; the weights and their config are written beside them.
        size: of the shorter side to which images are resized, in pixels.
        dtypes: that ours computes in.
        opts: KEY, value and so on, in the place of the config's.
    """
    cfg = model_zoo.get_config(CONFIG)
    cfg.defrost()
    cfg.MODEL.DEVICE = device
    cfg.INPUT.MIN_SIZE_TEST = size
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = THRESHOLD
    cfg.merge_from_list(list(opts))
    weights = images[0].with_name(WEIGHTS)
    model = decided_model(cfg, read_image(str(images[0]), format="BGR"))
    torch.save({"model": model.state_dict()}, weights)
    weights.with_name("config.yaml").write_text(cfg.dump(), encoding="utf-8")
    cfg.MODEL.WEIGHTS = str(weights)
    stock = DefaultPredictor(cfg)

    def loop(files: Sequence[Path]) -> list[Instances]:
        # As Detectron2's demo reads images
        return [stock(read_image(str(file), format="BGR"))["instances"].to("cpu") for file in files]

    sides = [Side(STOCK, loop)]
    for dtype in dtypes:
        predictor = Predictor(
            weights, cfg, device=device, dtype=dtype, confidence_threshold=THRESHOLD
        )
        sides.append(Side(dtype, partial(_predict_all, predictor)))
    return sides


def _predict_all(predictor: Predictor, files: Sequence[Path]) -> list[Instances]:
    return list(predictor.stream(files))


def decided_model(cfg: CfgNode, image: np.ndarray) -> nn.Module:
    """A model that detects as much as a trained one, and the same however its sums are rounded.

    With Detectron2's own start no score is above any threshold.
    """
    torch.manual_seed(0)
    return decide(build_model(cfg), [{"image": model_input(cfg, image)}])


def throughput_table(
    sides: Sequence[Side], images: Sequence[Path], *, size: int, seconds: float, device: str
) -> Table:
    """Seconds for each image, reading included."""
    functions = {side.name: lambda side=side: side.predict(images) for side in sides}
    times = alternate(functions, seconds=seconds, device=device)
    rows = [
        (
            f"Detectron2's {STOCK} loop" if name == STOCK else f"`Predictor.stream`, {name}",
            f"{time / len(images):.3f}",
            f"{times[STOCK] / time:.2f}",
            f"≥ {GOALS[name]}" if name in GOALS else "",
        )
        for name, time in times.items()
    ]
    title = "Prediction throughput"
    text = text_of(title, images=len(images), size=size)
    return Table(title, text, ("", "s / image", "times as fast", "goal"), rows)


def equality_table(sides: Sequence[Side], images: Sequence[Path]) -> Table:
    """How far the detections in single precision are from Detectron2's."""
    stock, ours = (side.predict(images) for side in sides[:2])
    found = [differences(*pair) for pair in zip(stock, ours, strict=True)]
    count = f"{sum(map(len, stock))} / {sum(map(len, ours))}"
    found_rows = [
        ("detections, Detectron2's / ours", count, "equal"),
        ("largest difference of a box, pixels", f"{max(d[0] for d in found):.1e}", GOAL_BOX),
        ("largest difference of a score", f"{max(d[1] for d in found):.1e}", GOAL_SCORE),
        ("share of masks' pixels that differ", f"{max(d[2] for d in found):.1e}", ""),
    ]
    title = "Identical detections"
    rows = [(name, value, str(goal)) for name, value, goal in found_rows]
    return Table(title, text_of(title), ("", "measured", "goal"), rows)


def differences(expected: Instances, actual: Instances) -> tuple[float, float, float]:
    """The largest differences between detections and their nearest ones of the same class.

    Returns:
        Of the boxes in pixels, of the scores, and the share of the masks' pixels that differ. All
        are infinite if a detection has no counterpart.
    """
    if len(expected) != len(actual):
        return (float("inf"),) * 3
    if not len(expected):
        return 0.0, 0.0, 0.0
    boxes = expected.pred_boxes.tensor[:, None] - actual.pred_boxes.tensor[None]
    distances = boxes.abs().amax(2)  # (N, N)
    distances[expected.pred_classes[:, None] != actual.pred_classes[None]] = float("inf")
    distance, nearest = distances.min(1)
    if len(nearest.unique()) < len(nearest):
        return (float("inf"),) * 3
    scores = (expected.scores - actual.scores[nearest]).abs().max()
    masks = expected.pred_masks != actual.pred_masks[nearest]
    share = masks.sum() / expected.pred_masks.sum().clamp(min=1)
    return float(distance.max()), float(scores), float(share)


def precision_table(
    *,
    iterations: int,
    num_images: tuple[int, int],
    device: str,
    dtypes: Sequence[str],
    opts: Sequence[object] = (),
) -> Table:
    """AP of models that are trained here for a moment, by what predicts.

    Args:
        iterations: of each training.
        num_images: to train on, and to evaluate on.
        dtypes: that ours computes in; the last one is held against Detectron2's.
        opts: KEY, value and so on, in the place of the configs'.
    """
    rows = []
    for kind, config in TRAININGS.items():
        # pycocotools prints what it does.
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            cfg = _train(kind, config, Path(folder), iterations, num_images, device, opts)
            aps = [_evaluate(cfg, side, Path(folder), device) for side in (STOCK, *dtypes)]
        for task, stock in aps[0].items():
            cells = [f"{ap[task]:.2f}" for ap in aps]
            difference = f"{aps[-1][task] - stock:+.2f}"
            rows.append((kind, task, *cells, difference, f"± {GOAL_AP}"))
        for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
    title = "Precision and AP"
    trained, tested = num_images
    text = text_of(title, trained=trained, tested=tested, iterations=iterations)
    header = ("set", "task", STOCK, *dtypes, f"{dtypes[-1]}'s difference", "goal")
    return Table(title, text, header, rows)


def _train(
    kind: str,
    config: str,
    folder: Path,
    iterations: int,
    num_images: tuple[int, int],
    device: str,
    opts: Sequence[object],
) -> CfgNode:
    cfg = model_zoo.get_config(config)
    cfg.defrost()
    cfg.MODEL.DEVICE = device
    cfg.OUTPUT_DIR = str(folder)
    cfg.SOLVER.MAX_ITER = iterations
    cfg.TEST.EVAL_PERIOD = 0
    cfg.merge_from_list(list(opts))
    names = [f"benchmark_{kind}_{name}" for name in ("train", "val")]
    for seed, (name, count) in enumerate(zip(names, num_images, strict=True)):
        register_generated(name, folder / name, kind=kind, num_images=count, seed=seed)
        DatasetCatalog.get(name)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (names[0],), ()
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.train()
    cfg.DATASETS.TEST = (names[1],)
    return cfg


def _evaluate(cfg: CfgNode, name: str, folder: Path, device: str) -> dict[str, float]:
    """AP by task of what a side predicts on the last of ``DATASETS.TEST``."""
    weights = folder / "model_final.pth"
    if name == STOCK:
        cfg = cfg.clone()
        cfg.MODEL.WEIGHTS = str(weights)
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = THRESHOLD
        stock = DefaultPredictor(cfg)

        def predict(files: Sequence[str]) -> Iterator[Instances]:
            for file in files:
                yield stock(read_image(file, format="BGR"))["instances"]

    else:
        ours = Predictor(weights, cfg, device=device, dtype=name, confidence_threshold=THRESHOLD)

        def predict(files: Sequence[str]) -> Iterator[Instances]:
            yield from ours.stream(files)

    dataset = cfg.DATASETS.TEST[0]
    records = DatasetCatalog.get(dataset)
    evaluator = build_evaluator(cfg, dataset)
    evaluator.reset()
    files = [record["file_name"] for record in records]
    for record, instances in zip(records, predict(files), strict=True):
        evaluator.process([record], [{"instances": instances}])
    results = evaluator.evaluate()
    return {task: figures["AP"] for task, figures in results.items()}
