"""The page of the experiment, README.md, from what the runs have left."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .pictures import draw_attention, draw_legs, plot_entropy, plot_results
from .run import Results, read_results
from .skirts import ANKLE, ARMS
from .strips import GAP
from .tables import SOLVED, costs_table, head_costs_table, results_table, solved_table
from .tasks import TASKS, Task
from .variants import STRIPS

TEMPLATE = "page.md.j2"


@dataclass(frozen=True)
class Section:
    """What the page shows of a task.

    Attributes:
        task: which it is.
        table: of results, in Markdown.
        pictures: those that there are, by what they show: "results", "attention", "entropy".
    """

    task: Task
    table: str
    pictures: Mapping[str, str]


def write_page(output: Path, docs: Path, seeds: Sequence[int] | None = None) -> Path:
    """Writes README.md and its pictures, with "not run yet" where there is no result.

    Args:
        output: the folder of all results.
        docs: where to write; the pictures are in its ``docs/``.
        seeds: those of the runs that count; by default each task's.

    Returns:
        The path of README.md.
    """
    Path(docs, "docs").mkdir(parents=True, exist_ok=True)
    counted = {name: seeds or task.seeds for name, task in TASKS.items()}
    results = {name: read_results(output, name, counted[name]) for name in TASKS}
    sections = {name: _section(name, results[name], output, docs, counted[name]) for name in TASKS}
    solved = solved_table({name: results[name] for name in STRIPS})
    file = docs / "README.md"
    text = render(sections, solved, costs_table(), head_costs_table())
    file.write_text(text, encoding="utf-8")
    return file


def render(sections: Mapping[str, Section], solved: str, costs: str, head_costs: str) -> str:
    """The page's Markdown.

    Args:
        sections: of each of :data:`far_cue.tasks.TASKS`, by name.
        solved, costs, head_costs: tables in Markdown.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(TEMPLATE).render(
        sections=sections,
        solved=solved,
        solved_from=SOLVED,
        costs=costs,
        head_costs=head_costs,
        key_distance=GAP,
        arm_distance=ANKLE[1] - ARMS,
    )


def _section(
    name: str, results: Results, output: Path, docs: Path, seeds: Sequence[int]
) -> Section:
    draws = {
        "results": plot_results,
        "attention": draw_legs if name == "hidden_legs" else draw_attention,
        "entropy": plot_entropy,
    }
    files = {shown: f"docs/{shown}_{name}.png" for shown in draws}
    pictures = {
        shown: files[shown]
        for shown, draw in draws.items()
        if draw(output, name, seeds, docs / files[shown])
    }
    columns = TASKS[name].measure.columns
    table = results_table(results, len(seeds), columns)
    return Section(TASKS[name], table, pictures)
