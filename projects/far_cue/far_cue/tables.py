"""The page's tables, in Markdown: what the runs have measured, what models cost and see."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from detectron2.modeling import GeneralizedRCNN, build_model
from tabulate import tabulate

from nl_detectron.analysis import count_flops, count_parameters, largest_input

from .receptive_field import keypoint_reach, reach
from .run import Results
from .skirts import ANKLE, FIGURE, FIGURE_SIZE
from .strips import NEAREST_TARGET, STRIP_SIZE
from .tasks import TASKS
from .variants import VARIANTS, build_cfg, variants_of

SOLVED = 90  # the target accuracy, %, from which on a seed has solved a task


def results_table(results: Results, num_seeds: int, columns: Mapping[str, str]) -> str:
    """A row for each variant: mean (minimum to maximum) over seeds, or "not run yet".

    Args:
        results: of the variants.
        num_seeds: that are to be run.
        columns: see :class:`far_cue.measures.Measure`.
    """
    rows = []
    for name, found in results.items():
        variant = VARIANTS[name]
        cells = [_spread([result[key] for result in found]) for key in columns.values() if found]
        rows.append((variant.title, f"{len(found)} of {num_seeds}", *(cells or ["not run yet"])))
    return _markdown(rows, ("model", "seeds", *columns))


def solved_table(results: Mapping[str, Results]) -> str:
    """Of the variants that are tried on all of these tasks, how many seeds solve each one.

    Args:
        results: of the variants, by task.
    """
    rows = []
    for name, variant in VARIANTS.items():
        if set(results) <= set(variant.tasks):
            rows.append((variant.title, *(_solved(of_task[name]) for of_task in results.values())))
    return _markdown(rows, ("model", *(TASKS[task].title.lower() for task in results)))


def costs_table() -> str:
    """The parameters and FLOPs of each variant for strips, and how far it sees from a target."""

    def seen(model: GeneralizedRCNN) -> str:
        distance = reach(model, STRIP_SIZE, NEAREST_TARGET)
        return f"{distance} pixels" if distance < NEAREST_TARGET[0] else "everything"

    return _costs_table("one_key", STRIP_SIZE, seen)


def head_costs_table() -> str:
    """The same of the variants of the keypoint head, and from an ankle."""

    def seen(model: GeneralizedRCNN) -> str:
        distance = keypoint_reach(model, FIGURE_SIZE, FIGURE, ANKLE)
        return f"{distance} pixels" if distance < int(ANKLE[1]) else "everything"

    return _costs_table("hidden_legs", FIGURE_SIZE, seen)


def _costs_table(task: str, size: Sequence[int], seen: Callable[[GeneralizedRCNN], str]) -> str:
    rows, plain = [], None
    for name in variants_of(task):
        model = build_model(build_cfg(name, task, seed=0)).eval()
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


def _solved(found: Sequence[Mapping]) -> str:
    solved = sum(result["target_accuracy"] >= SOLVED for result in found)
    return f"{solved} of {len(found)}" if found else "not run yet"


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.1f} ({np.min(values):.1f} to {np.max(values):.1f})"


def _markdown(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    return tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True)
