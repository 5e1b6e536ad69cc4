"""CONFIGS.md: what each config is, what is published for it, and what it costs."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from jinja2 import Template
from tabulate import tabulate
from tqdm import tqdm

from nl_detectron.analysis import SIZE, count_flops, count_parameters, largest_input
from nl_detectron.model_zoo import get_config, list_configs

TEMPLATE = Path(__file__).with_name("configs_page.md.j2")
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
# What comes before the heads, norms and schedule in the names of non-local configs
NON_LOCAL_NAME = re.compile(
    r"_(?:nl|gc|snl|dnl|latent_gnn)(?:_\w+?)??(?=(?:_4conv1fc)?(?:_syncbn)?(?:_noaug)?_[123]x\.yaml)"
)


def baseline_of(name: str) -> str | None:
    """The name of the same YAML config without non-local blocks; None if it has none."""
    baseline = NON_LOCAL_NAME.sub("", name)
    return None if baseline == name else baseline


def _reported(
    authors: str,
    baseline: str,
    rows: dict[str, str],
    names: str = "COCO-InstanceSegmentation/mask_rcnn_{}.yaml",
) -> dict[str, str]:
    """What the authors of a block report, by config; behind blocks, of which baseline, too.

    Args:
        authors: whose method it is.
        baseline: their own, "box AP / mask AP".
        rows: title and AP by what stands in ``names``.
        names: of the configs.
    """
    reported = {}
    for short, row in rows.items():
        name = names.format(short)
        of = f" from {baseline}" if baseline_of(name) else ""
        reported[name] = f"{authors}'s authors, {row}{of}"
    return reported


# What the authors of the other blocks report in their repositories, COCO val2017: box / mask AP of
# the row and, after "from", of their own baseline. By the configs' names, in the order of the page
AUTHORS = {
    **_reported(
        "GCNet",
        "37.3 / 34.2",
        {
            "R_50_FPN_gc_r16_1x": "R50, r16: 38.5 / 35.1",
            "R_50_FPN_gc_r4_1x": "R50, r4: 38.9 / 35.5",
        },
    ),
    **_reported(
        "GCNet",
        "38.2 / 34.9",
        {
            "R_50_FPN_2x": "R50, 2x: 38.2 / 34.9",
            "R_50_FPN_gc_r16_2x": "R50, 2x, r16: 39.7 / 36.1",
            "R_50_FPN_gc_r4_2x": "R50, 2x, r4: 40.0 / 36.2",
        },
    ),
    **_reported(
        "GCNet",
        "37.2 / 33.8",
        {
            "R_50_FPN_syncbn_1x": "R50, SyncBN: 37.2 / 33.8",
            "R_50_FPN_gc_r16_syncbn_1x": "R50, SyncBN, r16: 39.4 / 35.7",
            "R_50_FPN_gc_r4_syncbn_1x": "R50, SyncBN, r4: 39.9 / 36.2",
        },
    ),
    **_reported(
        "GCNet",
        "37.7 / 34.3",
        {
            "R_50_FPN_syncbn_2x": "R50, SyncBN, 2x: 37.7 / 34.3",
            "R_50_FPN_gc_r16_syncbn_2x": "R50, SyncBN, 2x, r16: 39.7 / 36.0",
            "R_50_FPN_gc_r4_syncbn_2x": "R50, SyncBN, 2x, r4: 40.2 / 36.3",
        },
    ),
    **_reported(
        "GCNet",
        "39.4 / 35.9",
        {
            "R_101_FPN_gc_r16_1x": "R101, r16: 40.8 / 37.0",
            "R_101_FPN_gc_r4_1x": "R101, r4: 40.8 / 36.9",
        },
    ),
    **_reported(
        "GCNet",
        "39.8 / 36.0",
        {
            "R_101_FPN_syncbn_1x": "R101, SyncBN: 39.8 / 36.0",
            "R_101_FPN_gc_r16_syncbn_1x": "R101, SyncBN, r16: 41.1 / 37.4",
            "R_101_FPN_gc_r4_syncbn_1x": "R101, SyncBN, r4: 41.7 / 37.6",
        },
    ),
    **_reported(
        "GCNet",
        "41.2 / 37.3",
        {
            "X_101_32x4d_FPN_syncbn_1x": "X101, SyncBN: 41.2 / 37.3",
            "X_101_32x4d_FPN_gc_r16_syncbn_1x": "X101, SyncBN, r16: 42.4 / 38.0",
            "X_101_32x4d_FPN_gc_r4_syncbn_1x": "X101, SyncBN, r4: 42.9 / 38.5",
        },
    ),
    **_reported(
        "DNL",
        "38.8 / 35.1",
        {
            "R_50_FPN_4conv1fc_syncbn_1x": (
                "SyncBN, 4conv1fc, baseline: 38.8 / 35.1; GCNet's: 38.8 / 34.6"
            ),
            "R_50_FPN_nl_c4_4conv1fc_syncbn_1x": "SyncBN, 4conv1fc, NL(c4): 39.6 / 35.8",
            "R_50_FPN_snl_c4_4conv1fc_syncbn_1x": "SyncBN, 4conv1fc, SNL(c4): 40.1 / 36.2",
            "R_50_FPN_gc_r4_c4_4conv1fc_syncbn_1x": "SyncBN, 4conv1fc, GC(c4, r4): 40.1 / 36.2",
            "R_50_FPN_dnl_c4_4conv1fc_syncbn_1x": "SyncBN, 4conv1fc, DNL(c4): 40.3 / 36.4",
            "R_50_FPN_dnl_c4_c5_4conv1fc_syncbn_1x": (
                "SyncBN, 4conv1fc, DNL(c4+c5_all): 41.2 / 37.2"
            ),
        },
    ),
    **_reported(
        "GCNet",
        "38.8 / 34.6",
        {
            "R_50_FPN_gc_r16_4conv1fc_syncbn_1x": "SyncBN, 4conv1fc, r16: 41.0 / 36.5",
            "R_50_FPN_gc_r4_4conv1fc_syncbn_1x": "SyncBN, 4conv1fc, r4: 41.4 / 37.0",
        },
    ),
    **_reported(
        "LatentGNN",
        "37.8 / 34.2",
        {
            "R_50_FPN_latent_gnn_c3_1x": "R50, c3: 38.2 / 34.7",
            "R_50_FPN_latent_gnn_c4_1x": "R50, c4: 39.0 / 35.2",
            "R_50_FPN_latent_gnn_c5_1x": "R50, c5: 38.8 / 35.0",
            "R_50_FPN_latent_gnn_c3_c5_1x": "R50, c3-c5: 39.5 / 35.6",
        },
    ),
    **_reported(
        "LatentGNN",
        "40.1 / 36.1",
        {
            "R_101_FPN_latent_gnn_c4_1x": "R101, c4: 41.0 / 36.9",
            "R_101_FPN_latent_gnn_c3_c5_1x": "R101, c3-c5: 41.4 / 37.2",
        },
    ),
    **_reported(
        "LatentGNN",
        "42.2 / 37.8",
        {
            "X_101_32x8d_FPN_1x": "X101: 42.2 / 37.8",
            "X_101_32x8d_FPN_latent_gnn_c4_1x": "X101, c4: 43.0 / 38.5",
            "X_101_32x8d_FPN_latent_gnn_c3_c5_1x": "X101, c3-c5: 43.2 / 38.8",
        },
    ),
    **_reported(
        "GCNet",
        "44.7 / 38.3",
        {
            "syncbn_1x": "X101, Cascade, SyncBN: 44.7 / 38.3",
            "gc_r16_syncbn_1x": "X101, Cascade, SyncBN, r16: 45.9 / 39.3",
            "gc_r4_syncbn_1x": "X101, Cascade, SyncBN, r4: 46.5 / 39.7",
        },
        names="Misc/cascade_mask_rcnn_X_101_32x4d_FPN_{}.yaml",
    ),
    "COCO-Detection/faster_rcnn_R_50_FPN_nl_pyramid_1x.yaml": (
        "Libra R-CNN's authors, the whole method: 38.6"
    ),
}


def write_page() -> str:
    """The whole text of CONFIGS.md. Takes minutes, with a progress bar on stderr."""
    names = sorted((n for n in list_configs() if n.endswith(".yaml")), key=_place)
    coco = [name for name in names if not name.startswith("quick_schedules/")]
    detectron1 = [name for name in coco if name.startswith("Detectron1-Comparisons/")]
    paper = [name for row in PAPER.values() for name in detectron1 if _paper(name) == row]
    costs: dict[str, tuple[int, int]] = {}
    with tqdm(total=len(coco), unit="config") as progress:

        def table(chosen: Iterable[str]) -> str:
            rows = []
            for name in chosen:
                rows.append(table_row(name, costs))
                progress.update()
            return _markdown(rows)

        def others(folders: Sequence[str]) -> list[str]:
            shown = (*paper, *AUTHORS)
            return [n for n in coco if n.startswith(tuple(folders)) and n not in shown]

        def rows(*folders: str) -> str:
            return table(others(folders))

        def folded(*folders: str) -> str:
            summary = f"<details><summary>{len(others(folders))} configs</summary>"
            return f"{summary}\n\n{rows(*folders)}\n\n</details>"

        template = Template(TEMPLATE.read_text(encoding="utf-8"), keep_trailing_newline=True)
        return template.render(
            height=SIZE[0],
            width=SIZE[1],
            paper_rows=lambda: table(paper),
            authors_rows=lambda: table(AUTHORS),
            rows=rows,
            folded=folded,
            quick_schedules=lambda: _quick_schedules(n for n in names if n not in coco),
        )


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
    table, row, ap = _paper(name) or ("", "", "")
    published = f"Table {table}, {row}: {ap}" if table else AUTHORS.get(name, "")
    parameters, flops = _cost(get_config(name), costs)
    cells = {
        "config": f"[{name.removesuffix('.yaml')}](configs/{name})",
        "published": published,
        "parameters": f"{parameters / 1e6:.2f}",
        "GFLOPs": f"{flops / 1e9:.1f}",
        "added": "",
        "command": f"`python tools/train_net.py --num-gpus 8 --config-file {name}`",
    }
    if name.replace(".yaml", ".py") in list_configs():
        cells["config"] += " + .py"
    if baseline := baseline_of(name):
        # where we have it not, Detectron2 has
        get = get_config if baseline in list_configs() else model_zoo.get_config
        of_baseline = _cost(get(baseline), costs)
        added = [new / old - 1 for new, old in zip((parameters, flops), of_baseline, strict=True)]
        cells["added"] = " / ".join(f"{share:+.1%}" for share in added)
    return cells


def _paper(name: str) -> tuple[str, str, str] | None:
    """Table, row and AP of a config that reproduces a row of the paper."""
    match = PAPER_NAME.fullmatch(name.rpartition("/")[2])
    return PAPER.get((match[1], match[2], match[3])) if match else None


def _cost(cfg: CfgNode, costs: dict[str, tuple[int, int]]) -> tuple[int, int]:
    cfg = cfg.clone()
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    key = cfg.MODEL.dump()
    if key not in costs:
        model = build_model(cfg).eval()
        costs[key] = count_parameters(model), count_flops(model, largest_input(model)).total()
    return costs[key]


def _quick_schedules(names: Iterable[str]) -> str:
    rows = []
    for name in names:
        expected = get_config(name).TEST.EXPECTED_RESULTS
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
    return _markdown(rows)


def _markdown(rows: list[dict[str, str]]) -> str:
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)


if __name__ == "__main__":
    print(write_page(), end="")
