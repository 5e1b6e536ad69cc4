"""docs/evidence.md and its pictures, from what the runs have left."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import read_image
from detectron2.modeling import build_model
from matplotlib.figure import Figure
from tabulate import tabulate

from ..analysis import count_flops, count_parameters, largest_input
from ..data.far_cue import FAR_CUE_SIZE, KEY_ZONE, TARGET_ZONE
from ..inference import Predictor
from ..receptive_field import reach
from ..visualization import read_metrics
from .run import Run, is_target
from .variants import DIFFICULTIES, VARIANTS, build_cfg, variants_of

COLUMNS = {
    "target accuracy, %": "target_accuracy",
    "targets found, %": "targets_found",
    "target AP": "target_AP",
    "key AP": "key_AP",
    "seconds": "seconds",
}
PLOTTED = (
    *("plain", "deeper", "wider", "uniform"),
    *("embedded_gaussian", "dot_product", "gaussian", "concatenation"),
)
# Those whose attention is a distribution, and is learned
WITH_ENTROPY = (
    *("embedded_gaussian", "embedded_gaussian_released", "embedded_gaussian_one_rate"),
    *("embedded_gaussian_neither", "gaussian"),
)
# The first one there is
PICTURED = ("embedded_gaussian_full", "embedded_gaussian", "gaussian", "dot_product")
GAP = FAR_CUE_SIZE[1] - KEY_ZONE - TARGET_ZONE  # pixels from a target to the keys, at least
NEAREST_TARGET = (KEY_ZONE + GAP, 22, KEY_ZONE + GAP + 20, 42)  # its box, in an unmirrored strip

ENTROPY = "non_local/res4.nl4/entropy"

# Results by variant, those of several seeds each
Results = Mapping[str, Sequence[Mapping]]


def write_report(output: Path, docs: Path, seeds: Sequence[int], command: str) -> Path:
    """Writes ``evidence.md`` and its pictures, with "not run yet" where there is no result.

    Args:
        output: the folder of all results.
        docs: where to write.
        seeds: those of the runs that count.
        command: by which all is made, named in the text.

    Returns:
        The path of ``evidence.md``.
    """
    docs.mkdir(parents=True, exist_ok=True)
    parts = [_INTRODUCTION.format(command=command, num_seeds=len(seeds), gap=GAP)]
    for difficulty, task in DIFFICULTIES.items():
        results = read_results(output, difficulty, seeds)
        parts.append(
            f"## {task.title}\n\n{_TASKS[difficulty]}\n{task.iterations} iterations a run."
        )
        if any(results.get(name) for name in PLOTTED):
            plot_results(results, docs / f"evidence_{difficulty}.png", title=task.title)
            parts.append(f"![Curves and accuracies](evidence_{difficulty}.png)")
            if draw_attention(output, difficulty, seeds, docs / f"attention_{difficulty}.png"):
                parts.append(_ATTENTION.format(difficulty=difficulty))
        parts.append(results_table(results, len(seeds)))
        if plot_entropy(output, difficulty, seeds, docs / f"entropy_{difficulty}.png"):
            parts.append(_ENTROPY.format(difficulty=difficulty))
    parts.append(f"## What each model costs and sees\n\n{_COSTS.format(gap=GAP)}")
    parts.append(costs_table())
    file = docs / "evidence.md"
    file.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return file


def read_results(output: Path, difficulty: str, seeds: Sequence[int]) -> Results:
    """The results that are there, of these seeds and of the variants as they are now."""
    return {
        variant: [
            result for seed in seeds if (result := Run(difficulty, variant, seed).result(output))
        ]
        for variant in variants_of(difficulty)
    }


def results_table(results: Results, num_seeds: int) -> str:
    """A Markdown table, a row for each variant: mean (minimum to maximum) over seeds."""
    rows = []
    for name, found in results.items():
        variant = VARIANTS[name]
        cells = [_spread([result[key] for result in found]) for key in COLUMNS.values() if found]
        rows.append((variant.title, f"{len(found)} of {num_seeds}", *(cells or ["not run yet"])))
    return _markdown(rows, ("model", "seeds", *COLUMNS))


def costs_table() -> str:
    """A Markdown table of each variant's parameters and FLOPs, and of how far it sees."""
    rows, plain = [], None
    for name, variant in VARIANTS.items():
        model = build_model(build_cfg(name, "one_key", seed=0)).eval()
        distance = reach(model, FAR_CUE_SIZE, NEAREST_TARGET)
        flops = count_flops(model, largest_input(model, FAR_CUE_SIZE)).total()
        parameters = count_parameters(model)
        plain = plain or (parameters, flops)
        rows.append(
            (
                variant.title,
                f"{parameters:,}",
                f"{parameters - plain[0]:+,}",
                f"{flops / 1e6:.1f}",
                f"{(flops - plain[1]) / 1e6:+.2f}",
                f"{distance} pixels" if distance < NEAREST_TARGET[0] else "everything",
            )
        )
    return _markdown(rows, ("model", "parameters", "added", "MFLOPs", "added", "sees to"))


def plot_results(results: Results, file: Path, *, title: str) -> None:
    """Target AP over the training, mean and spread over seeds, and each seed's final accuracy."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    curves, points = figure.subplots(1, 2, width_ratios=(3, 2))
    shown = [name for name in PLOTTED if results.get(name)]
    for row, name in enumerate(shown):
        found, colour = results[name], f"C{PLOTTED.index(name)}"
        iterations = [0, *(point[0] for point in found[0]["curve"])]
        values = np.array([[0, *(point[1] for point in result["curve"])] for result in found])
        label = f"{VARIANTS[name].title} ({len(found)})"
        curves.plot(iterations, values.mean(axis=0), color=colour, label=label)
        curves.fill_between(
            iterations, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15
        )
        accuracies = [result["target_accuracy"] for result in found]
        points.plot(accuracies, [row] * len(found), "o", color=colour, alpha=0.6)
    curves.set(xlabel="iteration", ylabel="target AP", title=f"{title}: target AP (seeds)")
    curves.legend(fontsize="small")
    points.axvline(50, color="grey", linestyle=":")
    points.set(xlim=(30, 102), xlabel="target accuracy, %", title="each seed; chance is 50 %")
    points.set_yticks(range(len(shown)), [VARIANTS[name].title for name in shown])
    points.invert_yaxis()
    figure.savefig(file, dpi=110)


def plot_entropy(output: Path, difficulty: str, seeds: Sequence[int], file: Path) -> bool:
    """Plots the attention's entropy over the training, a line for each seed, if there is any."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    for i, name in enumerate(WITH_ENTROPY):
        label = VARIANTS[name].title
        for run in (Run(difficulty, name, seed) for seed in seeds):
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
    output: Path, difficulty: str, seeds: Sequence[int], file: Path, *, num_images: int = 4
) -> bool:
    """Pictures what the block relates to a target, on validation images.

    Args:
        file: the PNG to write: a row for each image, with the query, the centre of the image's
            first target, as a cross, and on the right the same darkened where it is not looked at.

    Returns:
        Whether there was a trained model to do it with.
    """
    runs = [Run(difficulty, name, seed) for name in PICTURED for seed in seeds]
    run = next((run for run in runs if run.result(output) and run.weights(output).exists()), None)
    if run is None:
        return False
    cfg = run.cfg(output)
    predictor = Predictor(cfg, run.weights(output), device="cpu")
    rows = []
    for record in DatasetCatalog.get(cfg.DATASETS.TEST[0])[:num_images]:
        image = read_image(record["file_name"], format="BGR")
        annotations = record["annotations"]
        targets = [a for a in annotations if is_target(predictor.class_names[a["category_id"]])]
        x, y, width, height = targets[0]["bbox"]
        centre = x + width / 2, y + height / 2
        weights = attention(predictor, image, centre)
        weights = cv2.resize(weights, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        light = 0.15 + 0.85 * np.abs(weights) / np.abs(weights).max()
        place = tuple(round(c) for c in centre)
        marked = cv2.drawMarker(image.copy(), place, (255, 0, 255), cv2.MARKER_CROSS, 14, 2)
        rows.append(np.hstack([marked, (image * light[..., None]).astype(np.uint8)]))
    cv2.imwrite(str(file), np.vstack(rows))
    return True


def attention(predictor: Predictor, image: np.ndarray, point: tuple[float, float]) -> np.ndarray:
    """The affinity of a point to all keys, float32 (h, w), in the last block of a backbone.

    Args:
        image: uint8 (H, W, 3) BGR.
        point: (x, y) in pixels.
    """
    return predictor.attention(image, [point]).maps[-1].weights


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.1f} ({np.min(values):.1f} to {np.max(values):.1f})"


def _markdown(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    return tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True)


_TASKS = {
    "one_key": """\
There is one key, red or green, which tells the class of all targets.""",
    "matching_key": """\
There are four keys with cores of different colours, two of them with a white rim and two with a
black one. A target's class is its colour, which is seen from near by, and its answer: the rim of
the key whose core has the target's colour. The average of the keys tells nothing. Half of the
training images have a single key; none of the tested ones do.""",
}

_INTRODUCTION = """\
# What non-local blocks are for, measured

This page is written by `{command}`. It generates strips on which the class of what stands at
one end, the *targets*, is told by what stands at the other end, the *keys*, at least {gap} pixels
away: farther than the plain model sees. Detectors are trained from random weights on them, with the
same data, iterations, optimiser and base learning rate, with up to {num_seeds} seeds, none of which
was used in choosing any setting. A cell is the mean over the seeds that were run (and the minimum
to the maximum). Blocks start and learn as README.md says (`INIT similarity`, theta, phi and w_f at
a tenth of the learning rate), except in the ablation: *released init* is `INIT normal`, *one
learning rate* has no factor.

- *Target accuracy*: of the targets that are found (by a detection that overlaps them with an IoU of
  0.5 or more), those whose answer is right. There are two, so chance is 50 %.
- *Target AP*, *key AP*: COCO's box AP, mean of their classes. Keys are told from near by: their
  AP is the control that a model has learned to see.
- *Seconds*: of one CPU core, training and evaluations together."""

_ATTENTION = """\
![Attention of targets](attention_{difficulty}.png)

*Validation images. On the left the query, a target (cross); on the right the same image, as bright
as the positions that the block in res4 relates to it.*"""

_ENTROPY = """\
![Entropy of attention](entropy_{difficulty}.png)

*The entropy of the block's attention during training, 1 for uniform attention and 0 for attention
to a single position, which differs from query to query unless attention has collapsed.*"""

_COSTS = """\
How far a model sees beyond the border of a target is found by experiment on the built model, its
RPN and RoI heads included: a column of pixels is set to NaN, which no layer can undo. The keys are
at least {gap} pixels away."""
