"""Each COCO config is its twin of Detectron2's zoo, but for the keys that we mean."""

import re
from pathlib import Path

from nl_detectron import NonLocalBlock
from nl_detectron.engine import load_cfg

import pytest
from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.modeling import build_model

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
LEAVES = sorted(p for p in CONFIGS.rglob("*.yaml") if not p.name.startswith("Base-"))
COCO = [p for p in LEAVES if p.parent.name.startswith("COCO")]
NEW_NODES = ("MODEL.NON_LOCAL.", "SOLVER.OPTIMIZER")
NON_LOCAL = {
    "mask_rcnn": {"MODEL.BACKBONE.NAME": "build_non_local_resnet_fpn_backbone"},
    "keypoint_rcnn": {
        "MODEL.BACKBONE.NAME": "build_non_local_resnet_fpn_backbone",
        "MODEL.ROI_KEYPOINT_HEAD.NAME": "NonLocalKeypointHead",
    },
}


def load(path: Path) -> CfgNode:
    return load_cfg(default_argument_parser().parse_args(["--config-file", str(path)]))


def flatten(node: CfgNode, prefix: str = "") -> dict[str, object]:
    flat = {}
    for key, value in node.items():
        flat |= (
            flatten(value, f"{prefix}{key}.")
            if isinstance(value, CfgNode)
            else {prefix + key: value}
        )
    return flat


def test_the_readme_names_configs_that_exist():
    text = (CONFIGS.parent / "README.md").read_text()
    named = set(re.findall(r"(?:configs/|`)((?:COCO|quick)[\w/-]+\.yaml)", text))
    assert named == {name(path) for path in LEAVES}


def name(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


@pytest.mark.parametrize("path", LEAVES, ids=name)
def test_leaves_are_short(path):
    assert len(path.read_text().splitlines()) <= 8


@pytest.mark.parametrize("path", COCO, ids=name)
def test_equals_its_twin_but_for_the_keys_we_mean(path):
    twin = flatten(model_zoo.get_config(name(path).replace("_nl_", "_")))
    ours = flatten(load(path))
    difference = {
        key: value
        for key, value in ours.items()
        if key != "MODEL.DEVICE" and not key.startswith(NEW_NODES) and twin[key] != value
    }
    model = path.name.partition("_R_")[0]
    assert difference == (NON_LOCAL[model] if "_nl_" in path.name else {})
    assert not twin.keys() - ours.keys()


@pytest.mark.parametrize("path", LEAVES, ids=name)
def test_builds(path):
    cfg = load(path).clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    blocks = {n for n, m in model.named_modules() if isinstance(m, NonLocalBlock)}
    expected = set()
    if cfg.MODEL.BACKBONE.NAME.startswith("build_non_local"):
        expected |= {"backbone.bottom_up.res4.nl4"}
    if cfg.MODEL.ROI_KEYPOINT_HEAD.NAME == "NonLocalKeypointHead":
        after = cfg.MODEL.NON_LOCAL.KEYPOINT_HEAD_AFTER
        assert after == [2, 4, 6, 8][: len(after)]
        expected |= {f"roi_heads.keypoint_head.nl{i}" for i in after}
    assert blocks == expected
    assert bool(blocks) == ("_nl" in path.name)
