"""The page's pictures: what the runs have measured, and what trained models relate to what."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import read_image
from matplotlib.figure import Figure

from nl_detectron.files import write_image
from nl_detectron.visualization import (
    draw_cross,
    draw_ground_truth,
    draw_instances,
    read_metrics,
    spotlight,
)

from .measures import ANSWERS, is_target
from .run import Run, first_trained, read_results
from .tasks import TASKS
from .variants import VARIANTS

PLOTTED = (
    *("plain", "deeper", "uniform"),
    *("embedded_gaussian", "dot_product", "gaussian", "concatenation"),
    *("wider_head", "uniform_head", "embedded_gaussian_head"),
)
# Those whose attention is a distribution, and is learned
WITH_ENTROPY = (
    *("embedded_gaussian", "embedded_gaussian_released", "embedded_gaussian_one_rate"),
    *("embedded_gaussian_neither", "gaussian"),
)
# The first one there is
PICTURED = ("embedded_gaussian_full", "embedded_gaussian", "gaussian", "dot_product")
ENTROPY = "non_local/res4.nl4/entropy"
SCALE = 2  # of the pictures of figures


def plot_results(output: Path, task: str, seeds: Sequence[int], file: Path) -> bool:
    """Plots AP over the training, mean and spread over seeds, and each seed's right answers.

    Returns:
        Whether there were results to plot.
    """
    results = read_results(output, task, seeds)
    names = [name for name in PLOTTED if name in results]
    shown = [name for name in names if results[name]]
    if not shown:
        return False
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    curves, points = figure.subplots(1, 2, width_ratios=(3, 2))
    measure = TASKS[task].measure
    lowest = 32.0
    for row, name in enumerate(shown):
        found, colour = results[name], f"C{names.index(name)}"
        iterations = [0, *(point[0] for point in found[0]["curve"])]
        values = np.array([[0, *(point[1] for point in result["curve"])] for result in found])
        label = f"{VARIANTS[name].title} ({len(found)})"
        curves.plot(iterations, values.mean(axis=0), color=colour, label=label)
        curves.fill_between(
            iterations, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15
        )
        accuracies = [result[measure.columns[measure.answer]] for result in found]
        points.plot(accuracies, [row] * len(found), "o", color=colour, alpha=0.6)
        lowest = min(lowest, *accuracies)
    curves.set(xlabel="iteration", ylabel=measure.curve)
    curves.set_title(f"{TASKS[task].title}: {measure.curve} (seeds)")
    curves.legend(fontsize="small")
    points.axvline(50, color="grey", linestyle=":")
    points.set(xlim=(lowest - 2, 102), xlabel=measure.answer, title="each seed; chance is 50 %")
    points.set_yticks(range(len(shown)), [VARIANTS[name].title for name in shown])
    points.invert_yaxis()
    figure.savefig(file, dpi=110)
    return True


def plot_entropy(output: Path, task: str, seeds: Sequence[int], file: Path) -> bool:
    """Plots the attention's entropy over the training, a line for each seed.

    Returns:
        Whether there were results to plot.
    """
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    for i, name in enumerate(WITH_ENTROPY):
        label: str | None = VARIANTS[name].title
        for run in (Run(task, name, seed) for seed in seeds):
            if run.result(output) is None:
                continue
            records = read_metrics(run.folder(output) / "metrics.json")
            points = [(r["iteration"], r[ENTROPY]) for r in records if ENTROPY in r]
            axes.plot(*zip(*points, strict=True), color=f"C{i}", linewidth=1, label=label)
            label = None  # one entry in the legend for all seeds
    if not axes.lines:
        return False
    axes.set(xlabel="iteration", ylabel="entropy / log M", ylim=(-0.02, 1.02))
    axes.legend(fontsize="small")
    figure.savefig(file, dpi=110)
    return True


def draw_attention(
    output: Path, task: str, seeds: Sequence[int], file: Path, *, num_images: int = 4
) -> bool:
    """Pictures what the block relates to a target, on validation images.

    Args:
        file: the PNG to write: a row for each image, with the query, the centre of the image's
            first target, as a cross, and on the right the same darkened where it is not looked at.

    Returns:
        Whether there was a trained model to do it with.
    """
    run = first_trained(output, task, PICTURED, seeds)
    if run is None:
        return False
    predictor = run.predictor(output)
    rows = []
    for record in DatasetCatalog.get(TASKS[task].test)[:num_images]:
        image = read_image(record["file_name"], format="BGR")
        annotations = record["annotations"]
        targets = [a for a in annotations if is_target(predictor.class_names[a["category_id"]])]
        x, y, width, height = targets[0]["bbox"]
        centre = x + width / 2, y + height / 2
        attention = predictor.attention(image, [centre])
        marked = draw_cross(image.copy(), centre)
        rows.append(np.hstack([marked, spotlight(image, attention.maps[-1])]))
    write_image(file, np.vstack(rows))
    return True


def draw_legs(
    output: Path, task: str, seeds: Sequence[int], file: Path, *, num_images: int = 3
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
        run = first_trained(output, task, [variant], seeds)
        if run is None:
            return False
        predictors.append(run.predictor(output))
    metadata = predictors[0].metadata
    rows = []
    for record in DatasetCatalog.get(TASKS[task].test)[:num_images]:
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
    write_image(file, np.vstack(rows))
    return True
