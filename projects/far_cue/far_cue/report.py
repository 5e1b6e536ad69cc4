"""docs/evidence.md and its pictures, from what the runs have left."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import read_image
from detectron2.modeling import GeneralizedRCNN, build_model
from matplotlib.figure import Figure
from tabulate import tabulate

from far_cue.receptive_field import keypoint_reach, reach
from far_cue.strips import FAR_CUE_SIZE, KEY_ZONE, TARGET_ZONE
from nl_detectron.analysis import count_flops, count_parameters, largest_input
from nl_detectron.inference import Predictor
from nl_detectron.visualization import draw_cross, read_metrics, spotlight

from .legs import ANKLE, ARMS, FIGURE, FIGURE_SIZE, draw_legs
from .measures import is_target
from .run import Run, first_trained
from .variants import DIFFICULTIES, VARIANTS, Difficulty, build_cfg, variants_of

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
GAP = FAR_CUE_SIZE[1] - KEY_ZONE - TARGET_ZONE  # pixels from a target to the keys, at least
NEAREST_TARGET = (KEY_ZONE + GAP, 22, KEY_ZONE + GAP + 20, 42)  # its box, in an unmirrored strip

ENTROPY = "non_local/res4.nl4/entropy"

# Results by variant, those of several seeds each
Results = Mapping[str, Sequence[Mapping]]


def write_report(output: Path, docs: Path, seeds: Sequence[int] | None, command: str) -> Path:
    """Writes ``evidence.md`` and its pictures, with "not run yet" where there is no result.

    Args:
        output: the folder of all results.
        docs: where to write.
        seeds: those of the runs that count; by default each task's.
        command: by which all is made, named in the text.

    Returns:
        The path of ``evidence.md``.
    """
    docs.mkdir(parents=True, exist_ok=True)
    parts = [_INTRODUCTION.format(command=command, gap=GAP)]
    for difficulty, task in DIFFICULTIES.items():
        task_seeds = seeds or task.seeds
        results = read_results(output, difficulty, task_seeds)
        parts.append(
            f"## {task.title}\n\n{_TASKS[difficulty]}\n{task.iterations} iterations a run."
        )
        if any(results.get(name) for name in PLOTTED):
            plot_results(results, docs / f"evidence_{difficulty}.png", task)
            parts.append(f"![Curves and accuracies](evidence_{difficulty}.png)")
            legs = difficulty == "hidden_legs"
            draw, caption = (draw_legs, _LEGS) if legs else (draw_attention, _ATTENTION)
            if draw(output, difficulty, task_seeds, docs / f"attention_{difficulty}.png"):
                parts.append(caption.format(difficulty=difficulty))
        parts.append(results_table(results, len(task_seeds), task.measure.columns))
        if plot_entropy(output, difficulty, task_seeds, docs / f"entropy_{difficulty}.png"):
            parts.append(_ENTROPY.format(difficulty=difficulty))
    parts.append(f"## What each model costs and sees\n\n{_COSTS.format(gap=GAP)}")
    parts.append(costs_table())
    parts.append(f"{_HEAD_COSTS.format(gap=ANKLE[1] - ARMS)}\n\n{head_costs_table()}")
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


def results_table(results: Results, num_seeds: int, columns: Mapping[str, str]) -> str:
    """A Markdown table, a row for each variant: mean (minimum to maximum) over seeds."""
    rows = []
    for name, found in results.items():
        variant = VARIANTS[name]
        cells = [_spread([result[key] for result in found]) for key in columns.values() if found]
        rows.append((variant.title, f"{len(found)} of {num_seeds}", *(cells or ["not run yet"])))
    return _markdown(rows, ("model", "seeds", *columns))


def costs_table() -> str:
    """A Markdown table of each variant's parameters and FLOPs, and of how far it sees."""

    def seen(model: GeneralizedRCNN) -> str:
        distance = reach(model, FAR_CUE_SIZE, NEAREST_TARGET)
        return f"{distance} pixels" if distance < NEAREST_TARGET[0] else "everything"

    return _costs_table("one_key", FAR_CUE_SIZE, seen)


def head_costs_table() -> str:
    """The same of the variants of the keypoint head, seen from an ankle."""

    def seen(model: GeneralizedRCNN) -> str:
        distance = keypoint_reach(model, FIGURE_SIZE, FIGURE, ANKLE)
        return f"{distance} pixels" if distance < int(ANKLE[1]) else "everything"

    return _costs_table("hidden_legs", FIGURE_SIZE, seen)


def _costs_table(
    difficulty: str, size: Sequence[int], seen: Callable[[GeneralizedRCNN], str]
) -> str:
    rows, plain = [], None
    for name in variants_of(difficulty):
        model = build_model(build_cfg(name, difficulty, seed=0)).eval()
        distance = seen(model)
        flops = count_flops(model, largest_input(model, size)).total()
        parameters = count_parameters(model)
        plain = plain or (parameters, flops)
        rows.append(
            (
                VARIANTS[name].title,
                f"{parameters:,}",
                f"{parameters - plain[0]:+,}",
                f"{flops / 1e6:.1f}",
                f"{(flops - plain[1]) / 1e6:+.2f}",
                distance,
            )
        )
    return _markdown(rows, ("model", "parameters", "added", "MFLOPs", "added", "sees to"))


def plot_results(results: Results, file: Path, task: Difficulty) -> None:
    """AP over the training, mean and spread over seeds, and each seed's share of right answers."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    curves, points = figure.subplots(1, 2, width_ratios=(3, 2))
    measure = task.measure
    names = [name for name in PLOTTED if name in results]
    shown = [name for name in names if results[name]]
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
    curves.set_title(f"{task.title}: {measure.curve} (seeds)")
    curves.legend(fontsize="small")
    points.axvline(50, color="grey", linestyle=":")
    points.set(xlim=(lowest - 2, 102), xlabel=measure.answer, title="each seed; chance is 50 %")
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
    run = first_trained(output, difficulty, PICTURED, seeds)
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
        attention = predictor.attention(image, [centre])
        marked = draw_cross(image.copy(), centre)
        rows.append(np.hstack([marked, spotlight(image, attention.maps[-1])]))
    cv2.imwrite(str(file), np.vstack(rows))
    return True


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.1f} ({np.min(values):.1f} to {np.max(values):.1f})"


def _markdown(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    return tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True)


_TASKS = {
    "one_key": """\
There is one key, red or green, which tells the class of all targets.""",
    "matching_key": """\
There are four keys with cores of different colours, two of them with a white rim and two with a
black one; a key's class is both. A target's class is its colour, which is seen from near by, and
its answer: the rim of the key whose core has the target's colour. The average of the keys tells
nothing. Half of the training images have a single key; none of the tested ones do.""",
    "hidden_legs": """\
A figure wears a skirt that hides its legs. They sway to the side of its raised arm, left or right;
the other arm is behind its back. All else, the box too, is the same for both sides. RoI features
are taken from res2, which sees 17 pixels, and the keypoint head's convolutions do not see from an
ankle to an arm either: only the blocks between them do.

- *Hidden ankles placed*: of the figures that are found, the share of ankles that are placed within
  a tenth of the box's height. To place them at one of the two places gets 50 %, between them
  nothing.
- *Visible joints placed*: the same of all joints that are seen. They are the control that a model
  has learned to see.
- *Keypoint AP*: COCO's, over visible and hidden joints alike.
""",
}

_INTRODUCTION = """\
# What non-local blocks are for, measured

This page is written by `{command}`. It generates strips on which the class of what stands at
one end, the *targets*, is told by what stands at the other end, the *keys*, at least {gap} pixels
away: farther than the plain model sees. Detectors are trained from random weights on them, with the
same data, iterations, optimiser and base learning rate, with seeds of which none was used in
choosing any setting of the task. A cell is the mean over the seeds that were run (and the minimum
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

_LEGS = """\
![Hidden legs](attention_{difficulty}.png)

*Validation images. From the left: the truth, the plain model, the one with blocks, and the image as
bright as the positions that the last block relates to an ankle (cross).*"""

_COSTS = """\
How far a model sees beyond the border of a target is found by experiment on the built model, its
RPN and RoI heads included: a column of pixels is set to NaN, which no layer can undo. The keys are
at least {gap} pixels away."""

_HEAD_COSTS = """\
Of the models for hidden legs, the same is found for the heat maps at an ankle of the largest
figure, with rows and columns of pixels. What tells, its arm, is at least {gap} pixels away."""
