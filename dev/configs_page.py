"""CONFIGS.md: what each config is, what the paper reports for it, and what it costs."""

import re
from collections.abc import Iterable

from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tabulate import tabulate
from tqdm import tqdm

from nl_detectron.analysis import SIZE, count_flops, count_parameters, largest_input
from nl_detectron.model_zoo import catalog

# Paper, Tables 5 and 6, COCO val2017: box / mask AP, or keypoint AP. By the model, the backbone and
# what is non-local, as they stand in the configs' names
PAPER = {
    ("mask_rcnn", "R_50", ""): ("5", "R50, baseline", "38.0 / 34.6"),
    ("mask_rcnn", "R_50", "_nl"): ("5", "R50, +1 NL", "39.0 / 35.5"),
    ("mask_rcnn", "R_101", ""): ("5", "R101, baseline", "39.5 / 36.0"),
    ("mask_rcnn", "R_101", "_nl"): ("5", "R101, +1 NL", "40.8 / 37.1"),
    ("mask_rcnn", "X_152_32x8d", ""): ("5", "X152, baseline", "44.1 / 39.7"),
    ("mask_rcnn", "X_152_32x8d", "_nl"): ("5", "X152, +1 NL", "45.0 / 40.3"),
    ("keypoint_rcnn", "R_101", ""): ("6", "R101 baseline", "65.1"),
    ("keypoint_rcnn", "R_101", "_nl_head"): ("6", "NL, +4 in head", "66.0"),
    ("keypoint_rcnn", "R_101", "_nl"): ("6", "NL, +4 in head, +1 in backbone", "66.5"),
}
PAPER_NAME = re.compile(
    r"(mask_rcnn|keypoint_rcnn)_(R_50|R_101|X_152_32x8d)_FPN(|_nl|_nl_head)(?:_noaug)?_[13]x\.yaml"
)
# What comes before the schedule in the names of non-local configs
NON_LOCAL_NAME = re.compile(r"_nl(?:_\w+?)??(?=(?:_noaug)?_[13]x\.yaml)")

SECTIONS = (
    (
        "Detectron1's settings",
        "Detectron1-Comparisons/",
        "The closest to those of the paper's baselines, as far as they are known: the paper gives "
        "no schedule, learning rate or batch size for COCO.",
    ),
    (
        "Mask R-CNN",
        "COCO-InstanceSegmentation/",
        "With Detectron2's defaults. The configs with more blocks, other pairwise functions and "
        "without sub-sampling (`full`) are for studies, and so are C4 and DC5.",
    ),
    ("Keypoint R-CNN", "COCO-Keypoints/", "With Detectron2's defaults."),
    (
        "Other detectors",
        ("COCO-Detection/", "COCO-PanopticSegmentation/", "Misc/"),
        "The same backbones elsewhere. Their baselines are those of Detectron2's zoo.",
    ),
)
INTRODUCTION = f"""# Model zoo

All configs, by the names that `--config-file` and `nl_detectron.model_zoo` take. Written by
`python -m dev.configs_page > CONFIGS.md`.

- **Paper**: the row that a config reproduces, and the AP **that the paper reports** for it on COCO
  val2017, box / mask or keypoints. Settings that the paper does not give are Detectron2's.
- **Our AP**: measured with this repository, or "not run yet". No other figure is put there.
- **Parameters**, in millions; FrozenBN has none. **GFLOPs**, in multiply-adds, for one image of
  {SIZE[0]}×{SIZE[1]} pixels with as many proposals and detections as the config admits (usually
  1,000 and 100); the non-local operation is counted in full. **Added**: both over the same model
  without non-local blocks. `python tools/analyze_model.py --config-file NAME --compare BASELINE`
  shows more.
- A name with **+ .py** exists as a LazyConfig, too.

Each config is trained, and evaluated at the end, by its command, here for a machine of 8 GPUs (16
images a batch; for another batch size see `SOLVER.REFERENCE_WORLD_SIZE`). `--eval-only
MODEL.WEIGHTS FILE` evaluates only. LazyConfigs have `tools/lazyconfig_train_net.py`.
"""


def baseline_of(name: str) -> str | None:
    """The name of the same YAML config without non-local blocks; None if it has none."""
    baseline = NON_LOCAL_NAME.sub("", name)
    return None if baseline == name else baseline


def model_zoo_markdown() -> str:
    """The whole text of CONFIGS.md. Takes minutes, with a progress bar on stderr."""
    names = sorted((n for n in catalog.list() if n.endswith(".yaml")), key=_place)
    costs: dict[str, tuple[int, int]] = {}
    parts = [INTRODUCTION]
    with tqdm(total=len([n for n in names if "quick_" not in n]), unit="config") as progress:
        for title, folder, text in SECTIONS:
            rows = []
            for name in names:
                if name.startswith(folder):
                    rows.append(table_row(name, costs))
                    progress.update()
            parts.append(f"## {title}\n\n{text}\n\n{_markdown(rows)}\n")
    parts.append(_quick_schedules(n for n in names if n.startswith("quick_schedules/")))
    return "\n".join(parts)


def _place(name: str) -> tuple:
    """Sorts each model behind its baseline, and backbones by their depth."""
    baseline = baseline_of(name) or name
    depth = re.search(r"_[RX]_(\d+)", baseline)
    return baseline.partition("/")[0], int(depth[1]) if depth else 0, baseline, len(name), name


def table_row(name: str, costs: dict[str, tuple[int, int]]) -> dict[str, str]:
    """The cells of one config.

    Args:
        name: of a YAML config.
        costs: (parameters, FLOPs) by the text of a config's model node; those that are missing are
            counted and added.
    """
    file = re.search(r"[^/]+$", name)[0]
    match = PAPER_NAME.fullmatch(file)
    table, row, ap = PAPER.get(match.groups() if match else (), ("", "", ""))
    parameters, flops = _cost(catalog.get_config(name), costs)
    cells = {
        "config": f"[{name.removesuffix('.yaml')}](configs/{name})",
        "paper": f"Table {table}, {row}: {ap}" if table else "",
        "our AP": "not run yet",
        "parameters": f"{parameters / 1e6:.2f}",
        "GFLOPs": f"{flops / 1e9:.1f}",
        "added": "",
        "command": f"`python tools/train_net.py --num-gpus 8 --config-file {name}`",
    }
    if name.replace(".yaml", ".py") in catalog.list():
        cells["config"] += " + .py"
    if baseline := baseline_of(name):
        # where we have it not, Detectron2 has
        zoo = catalog if baseline in catalog.list() else model_zoo
        of_baseline = _cost(zoo.get_config(baseline), costs)
        added = [new / old - 1 for new, old in zip((parameters, flops), of_baseline, strict=True)]
        cells["added"] = " / ".join(f"{share:+.1%}" for share in added)
    return cells


def _cost(cfg: CfgNode, costs: dict[str, tuple[int, int]]) -> tuple[int, int]:
    cfg = cfg.clone()
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    key = cfg.MODEL.dump()
    if key not in costs:
        model = build_model(cfg).eval()
        costs[key] = count_parameters(model), count_flops(model, largest_input(model)).total()
    return costs[key]


def _quick_schedules(names: Iterable[str]) -> str:
    text = (
        "## Quick schedules\n\nNarrow models on generated images, from random weights on a CPU in "
        "minutes. Those with expected results overfit eight images in a minute or two, and end "
        "with exit code 1 if they miss them: for use after any change.\n"
    )
    rows = []
    for name in names:
        expected = catalog.get_config(name).TEST.EXPECTED_RESULTS
        rows.append(
            {
                "config": f"[{name.removesuffix('.yaml')}](configs/{name})",
                "expected results": ", ".join(
                    f"{task} {figure} {value} ± {tolerance}"
                    for task, figure, value, tolerance in expected
                ),
                "command": f"`python tools/train_net.py --config-file {name}`",
            }
        )
    return f"{text}\n{_markdown(rows)}\n"


def _markdown(rows: list[dict[str, str]]) -> str:
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)


if __name__ == "__main__":
    print(model_zoo_markdown(), end="")
