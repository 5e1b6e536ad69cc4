"""What the pages say of settings is what the code and the configs have."""

import re

import pytest
import yaml
from detectron2.config import CfgNode, get_cfg

from nl_detectron import add_non_local_config, model_zoo
from nl_detectron.config import block_nodes

from .pages import blocks, read

QUICK = ("quick_schedules/mask_rcnn_shapes_nl.yaml", "quick_schedules/keypoint_rcnn_people_nl.yaml")


def flatten(node: dict, prefix: str = "") -> dict[str, object]:
    flat = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def table(page: str, heading: str) -> list[tuple[str, object]]:
    """The keys and defaults of the table under a heading."""
    section = re.split(r"^## ", read(page), flags=re.MULTILINE)
    [section] = [text for text in section if text.startswith(f"{heading}\n")]
    rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \|", section, re.MULTILINE)
    return [(key, yaml.safe_load(value)) for key, value in rows]


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_non_local_config(cfg)
    return cfg


def test_the_table_of_blocks_has_all_keys_and_their_defaults(cfg):
    backbone, head, *shared = table("docs/blocks.md", "Keys")
    position, level, add_mean, box, mask = table("docs/blocks.md", "Places")
    own = {
        "MODEL.NON_LOCAL": [backbone, position],
        "MODEL.FPN.NON_LOCAL": [level, add_mean],
        "MODEL.ROI_BOX_HEAD.NON_LOCAL": [box],
        "MODEL.ROI_MASK_HEAD.NON_LOCAL": [mask],
        "MODEL.ROI_KEYPOINT_HEAD.NON_LOCAL": [head],
    }
    for name, node in block_nodes(cfg).items():
        assert dict([*own[name], *shared]) == dict(node), name


def test_the_table_of_the_solver_has_all_new_keys_and_their_defaults(cfg):
    new = set(cfg.SOLVER) - set(get_cfg().SOLVER)
    assert dict(table("docs/train.md", "Keys of SOLVER")) == {key: cfg.SOLVER[key] for key in new}


def test_the_table_of_datasets_has_all_new_keys_and_their_defaults(cfg):
    new = set(cfg.DATASETS) - set(get_cfg().DATASETS)
    found = dict(table("docs/own-data.md", "Keys of DATASETS"))
    assert found == {key: cfg.DATASETS[key] for key in new}


def test_the_table_of_tests_has_all_new_keys_and_their_defaults(cfg):
    new = set(cfg.TEST) - set(get_cfg().TEST)
    assert dict(table("docs/evaluate.md", "Keys of TEST")) == {key: cfg.TEST[key] for key in new}


@pytest.mark.parametrize("name", QUICK)
def test_the_recipe_is_that_of_the_quick_schedules(name):
    [block] = [block for block in blocks("docs/training-blocks.md") if block.language == "yaml"]
    recipe, shipped = flatten(yaml.safe_load(block.text)), flatten(model_zoo.get_config(name))
    if "keypoint" not in name:
        recipe = {key: value for key, value in recipe.items() if "KEYPOINT_HEAD" not in key}
    assert {key: shipped[key] for key in recipe} == recipe


def test_the_recipe_for_lazyconfigs_has_the_same_figures():
    [recipe, lazy] = [block.text for block in blocks("docs/training-blocks.md")]
    solver = yaml.safe_load(recipe)["SOLVER"]
    assert f"pairwise={solver['NON_LOCAL_PAIRWISE_LR_FACTOR']}" in lazy
    assert f"= {solver['BASE_LR']}, {solver['WEIGHT_DECAY']}\n" in lazy
