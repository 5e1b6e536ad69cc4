"""From a run's folder to its report."""

import contextlib
import functools
import io
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.collect_env import collect_env_info
from matplotlib.figure import Figure
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from ..data.annotations import read_annotations
from ..data.images import read_image
from ..engine.config import load_cfg
from ..errors import UsageError
from ..evaluation import TaskResult
from ..evaluation.details import detail_of, examine_results
from ..files import replacing
from ..inference import Predictor
from ..inference.attention import check_has_blocks
from ..version import __version__
from ..visualization import (
    draw_attention_sheet,
    draw_comparison,
    figure_picture,
)
from .errors import errors_section
from .page import Section, picture, render
from .training import training_section

QUALITIES = (88, 70, 45)  # of JPEGs; the next one is taken where a page would be too large
PICTURE_WIDTH = 960
RESULTS = "inference/coco_instances_results.json"


def write_report(
    run: Path,
    file: Path,
    *,
    weights: Path | None = None,
    num_images: int = 5,
    min_score: float = 0.5,
    device: str | None = None,
    max_bytes: int = 10_000_000,
) -> Path:
    """Writes one self-contained HTML page on a training run.

    It has the training curves, the AP overall, by size and by class, precision-recall curves, the
    best and the worst images with the ground truth beside the predictions, attention examples, the
    config and the versions. What a run lacks is said in its place.

    Args:
        run: the training's ``OUTPUT_DIR``, with its ``config.yaml`` and ``metrics.json``.
        file: the page; its folder is made if need be.
        weights: for the attention examples; by default ``model_final.pth`` in ``run``.
        num_images: number of the best, and of the worst images, and at most of attention examples.
        min_score: predictions with lower scores are not drawn and do not count for what is best.
        device: for the attention examples; by default CUDA where there is a GPU, else the CPU.
        max_bytes: pictures are compressed more, and in the end fewer, to stay below.

    Returns:
        ``file``.

    Raises:
        UsageError: if the folder holds no run, or its dataset is not there.
    """
    cfg = _read_run(run)
    evaluated = _Evaluation(cfg, run, min_score) if (run / RESULTS).is_file() else None
    weights = weights or run / "model_final.pth"
    ranked = evaluated.ranked()[: min(num_images, 3)] if evaluated else []
    files = [evaluated.records[i]["file_name"] for i in ranked] if evaluated else []
    sheets, note = _attention_sheets(cfg, weights, device, files)
    training, config = training_section(run), _config(run)
    for quality, count in [(quality, num_images) for quality in QUALITIES] + [(QUALITIES[-1], 1)]:
        sections = [
            training,
            *(evaluated.sections(count, quality) if evaluated else [_no_results(run)]),
            _attention(sheets, list(sheets)[:count], note, quality),
            config,
        ]
        trained = f"{run}, trained on {', '.join(cfg.DATASETS.TRAIN)}"
        text = render(f"Training report: {run.resolve().name}", trained, sections)
        if len(text.encode()) <= max_bytes:
            break
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")
    return file


def _read_run(run: Path) -> CfgNode:
    for name in ("config.yaml", "metrics.json"):
        if not (run / name).is_file():
            raise UsageError(
                f"{run} is no folder of a training run: it has no {name}; give its OUTPUT_DIR"
            )
    return load_cfg(run / "config.yaml")


def _no_results(run: Path) -> Section:
    note = (
        f"There are no predictions in {run / RESULTS}; tools/train_net.py --eval-only writes them."
    )
    return Section("Evaluation", note=note)


class _Evaluation:
    """A run's predictions beside the ground truth of its dataset."""

    def __init__(self, cfg: CfgNode, run: Path, min_score: float):
        self.name = cfg.DATASETS.TEST[-1] if cfg.DATASETS.TEST else ""
        self.records = _load_dataset(self.name)
        self.metadata = MetadataCatalog.get(self.name)
        self.min_score = min_score
        results = json.loads((run / RESULTS).read_text(encoding="utf-8"))
        self.results = defaultdict(list)
        for result in results:
            self.results[result["image_id"]].append(result)
        if unknown := set(self.results) - set(self.records):
            raise UsageError(
                f"{run / RESULTS} has predictions for image {min(unknown)}, which is not in "
                f"{self.name}, the last of DATASETS.TEST in {run / 'config.yaml'}"
            )
        self.tasks: list[TaskResult] = []
        self.errors: list[Section] = []
        self.left_out: list[str] = []
        if results:
            truth = _read_coco(self.metadata.json_file)
            sigmas = cfg.TEST.KEYPOINT_OKS_SIGMAS
            examined, results = examine_results(truth, results, kpt_oks_sigmas=sigmas)
            self.tasks = detail_of(examined, results, kpt_oks_sigmas=sigmas, min_score=min_score)
            self.left_out = examined.notes
            self.errors = [errors_section(examined, results, min_score=min_score)]

    def sections(self, num_images: int, quality: int) -> list[Section]:
        if not self.tasks:
            nothing = f"The model found nothing in the {len(self.records)} images of {self.name}."
            note = ". ".join(self.left_out) or nothing
            return [Section("Evaluation", note=note)]
        columns = list(dict.fromkeys(name for task in self.tasks for name in task.overall))
        overall: list[list[str | float]] = [
            [task.task, *(task.overall.get(column, math.nan) for column in columns)]
            for task in self.tasks
        ]
        classes: list[list[str | float]] = [
            [name, *(task.per_class[name] for task in self.tasks)]
            for name in self.tasks[0].per_class
        ]
        where = f"On {self.name}, {len(self.records)} images. AP in percent; APs, APm and APl are "
        where += "those of small, medium and large instances."
        curves = picture(self._curves(), "Averaged over classes, by IoU; and by class at IoU 0.50")
        return [
            Section(
                "Evaluation",
                text=where,
                note=". ".join(self.left_out),
                header=["", *columns],
                rows=overall,
            ),
            Section("AP by class", header=["class", *(t.task for t in self.tasks)], rows=classes),
            Section("Precision and recall", pictures=[curves]),
            *self.errors,
            self._examples("Best images", self.ranked()[:num_images], quality),
            self._examples("Worst images", self.ranked()[::-1][:num_images], quality),
        ]

    def ranked(self) -> list[int]:
        """Image ids from the best to the worst, by the last of the tasks."""
        quality = self.tasks[-1].quality if self.tasks else {}
        return sorted(quality, key=lambda image_id: (-quality[image_id], image_id))

    def _examples(self, title: str, image_ids: Sequence[int], quality: int) -> Section:
        task = self.tasks[-1]
        pictures = []
        for image_id in image_ids:
            name = Path(self.records[image_id]["file_name"]).name
            caption = f"{name}: F1 {task.quality[image_id]:.2f}"
            pictures.append(picture(self._pair(image_id), caption, quality=quality))
        note = f"Ground truth on the left, predictions with scores from {self.min_score:g} on the "
        note += f"right. Ranked by the F1 score of {task.task}, averaged over IoU thresholds."
        return Section(title, note=note, pictures=pictures)

    @functools.cache  # noqa: B019  # as long-lived as the report
    def _curves(self) -> np.ndarray:
        return figure_picture(_precision_recall(self.tasks))

    @functools.cache  # noqa: B019  # as long-lived as the report
    def _pair(self, image_id: int) -> np.ndarray:
        record = self.records[image_id]
        image = read_image(record["file_name"])
        scale = PICTURE_WIDTH / 2 / max(image.shape[:2])
        found = _instances(self.results[image_id], image.shape[:2], self.metadata, self.min_score)
        return draw_comparison(image, record, found, self.metadata, scale=scale)


def _load_dataset(name: str) -> dict[int, dict]:
    """The records of a dataset by image id."""
    if name not in DatasetCatalog:
        raise UsageError(
            f"dataset {name!r}, the last of the run's DATASETS.TEST, is not registered"
        )
    if MetadataCatalog.get(name).get("evaluator_type") != "coco":
        raise UsageError(f"dataset {name!r} is not evaluated as COCO is, so there is no report")
    try:
        records = DatasetCatalog.get(name)
    except OSError as error:
        raise UsageError(
            f"dataset {name!r} is not there: {error}; see DETECTRON2_DATASETS"
        ) from error
    return {record["image_id"]: record for record in records}


def _read_coco(json_file: str) -> COCO:
    truth = COCO()
    truth.dataset = read_annotations(json_file, lists=())
    truth.dataset.setdefault("info", {})  # which some versions of pycocotools ask for
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


def _instances(
    results: Sequence[dict], size: tuple[int, int], metadata: Metadata, min_score: float
) -> Instances:
    """An image's results in COCO's format as Instances."""
    ids: Mapping[int, int] = metadata.thing_dataset_id_to_contiguous_id
    results = [result for result in results if result["score"] >= min_score]
    boxes = np.array([result["bbox"] for result in results], np.float32).reshape(-1, 4)
    boxes = BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    instances = Instances(
        size,
        pred_boxes=Boxes(torch.from_numpy(boxes)),
        scores=torch.tensor([result["score"] for result in results]),
        pred_classes=torch.tensor([ids[result["category_id"]] for result in results]).long(),
    )
    if results and "segmentation" in results[0]:
        masks = [mask_util.decode(result["segmentation"]) for result in results]
        instances.pred_masks = torch.from_numpy(np.stack(masks).astype(bool))
    if results and "keypoints" in results[0]:
        keypoints = torch.tensor([result["keypoints"] for result in results])
        keypoints = keypoints.reshape(len(results), -1, 3)
        keypoints[..., :2] += 0.5  # COCO's are pixel indices
        instances.pred_keypoints = keypoints
    return instances


def _precision_recall(tasks: Sequence[TaskResult], most_classes: int = 10) -> Figure:
    figure = Figure(figsize=(4.4 * len(tasks), 4), layout="constrained")
    for axis, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        half, names = int(np.argmin(np.abs(task.ious - 0.5))), list(task.per_class)
        for k, name in enumerate(names if 1 < len(names) <= most_classes else []):
            axis.plot(task.recalls, task.precision[half, :, k], linewidth=0.8, label=name)
        occurs = ~np.isnan(task.precision).all((0, 1))
        for iou in (0.5, 0.75):
            index = int(np.argmin(np.abs(task.ious - iou)))
            mean = task.precision[index][:, occurs].mean(1) if occurs.any() else 0 * task.recalls
            axis.plot(task.recalls, mean, linewidth=2.5, label=f"IoU {iou:.2f}")
        mean = task.precision[..., occurs].mean((0, 2)) if occurs.any() else 0 * task.recalls
        axis.plot(task.recalls, mean, "k--", linewidth=1.5, label="IoU 0.50 to 0.95")
        axis.set(xlabel="recall", ylabel="precision", title=task.task, xlim=(0, 1), ylim=(0, 1.02))
        axis.legend(fontsize="x-small")
    return figure


def _attention_sheets(
    cfg: CfgNode, weights: Path, device: str | None, files: Sequence[str]
) -> tuple[dict[str, np.ndarray], str]:
    """Pictures of what the blocks relate, by the images' names, and a note on them."""
    if not weights.is_file():
        return {}, f"There are no weights {weights}."
    predictor = Predictor(weights, cfg, device=device)
    try:
        check_has_blocks(predictor.model)
    except UsageError:
        return {}, "The model has no non-local blocks."
    sheets = {}
    for file in files:
        sheet = draw_attention_sheet(predictor.attention(file), predictor.metadata, max_points=2)
        width = min(sheet.shape[1], 2 * PICTURE_WIDTH)
        size = (width, round(len(sheet) * width / sheet.shape[1]))
        sheets[Path(file).name] = cv2.resize(sheet, size, interpolation=cv2.INTER_AREA)
    note = "What each non-local block relates to the centres of the two surest detections: arrows "
    return sheets, note + "lead to the strongest positions."


def _attention(
    sheets: Mapping[str, np.ndarray], names: Sequence[str], note: str, quality: int
) -> Section:
    pictures = [picture(sheets[name], name, quality=quality) for name in names]
    return Section("Attention", note=note, pictures=pictures)


def _config(run: Path) -> Section:
    config = (run / "config.yaml").read_text(encoding="utf-8")
    versions = f"nl_detectron {__version__}\n\n{collect_env_info()}"
    return Section(
        "Config and versions",
        folded=[("config.yaml", config), ("Versions, where this report was made", versions)],
    )
