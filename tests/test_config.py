"""Keys of the config and the options of blocks: one thing under two names."""

from dataclasses import fields

import pytest
import yaml
from detectron2.config import get_cfg

from nl_detectron import BlockOptions, NonLocalBlock, add_non_local_config, insert_non_local
from nl_detectron.config import block_nodes, block_options, renamed_keys
from nl_detectron.engine import load_cfg
from nl_detectron.engine.checks import check_cfg
from nl_detectron.engine.unused import unused_options
from nl_detectron.layers.options import CONFIG_OPTIONS, LEARNED_OPTIONS

PEOPLE = "quick_schedules/keypoint_rcnn_people_nl.yaml"
MASK = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_nl_1x.yaml"
# Of each option a value other than its default
OTHERS = {
    "block": "GlobalContextBlock",
    "pairwise": "dot_product",
    "inner_ratio": 0.25,
    "sub_sample": False,
    "use_scale": False,
    "norm": "GN",
    "init": "similarity",
    "grad_checkpoint": True,
    "mask_padding": True,
    "recurrence": 3,
    "temperature": 0.05,
    "pairwise_gate": True,
    "nodes": 100,
    "iterations": 1,
    "momentum": 0.99,
}


def test_each_option_is_a_key_of_both_nodes_with_its_default():
    cfg = get_cfg()
    add_non_local_config(cfg)
    names = {option.name for option in fields(BlockOptions)}
    assert names == {*OTHERS, "zero_init"}
    assert {key.lower() for key in CONFIG_OPTIONS} == set(OTHERS)
    where = {"MODEL.NON_LOCAL": ("AFTER", "POSITION"), "MODEL.FPN.NON_LOCAL": ("LEVEL", "ADD_MEAN")}
    for name, node in block_nodes(cfg).items():
        assert set(node) == {*where.get(name, ["AFTER"]), *CONFIG_OPTIONS}
        assert block_options(node) == BlockOptions()
    for name, value in OTHERS.items():
        cfg.MODEL.NON_LOCAL[name.upper()] = value
        assert getattr(block_options(cfg.MODEL.NON_LOCAL), name) == value
    assert block_options(cfg.MODEL.NON_LOCAL) == BlockOptions(**OTHERS)
    assert block_options(cfg.MODEL.ROI_KEYPOINT_HEAD.NON_LOCAL) == BlockOptions()
    learned = ("BLOCK", "PAIRWISE", "SUB_SAMPLE", "USE_SCALE")
    of_some = ("RECURRENCE", "TEMPERATURE", "PAIRWISE_GATE", "NODES", "ITERATIONS")
    assert (*learned, *of_some) == LEARNED_OPTIONS


def test_options_of_a_block_by_object_or_by_name():
    block = NonLocalBlock(64, options=BlockOptions(pairwise="gaussian", inner_ratio=0.1), norm="BN")
    assert block.pairwise == "gaussian" and block.inner_channels == 6 and block.norm is not None
    assert NonLocalBlock(1).inner_channels == 1
    with pytest.raises(TypeError, match="pairwize"):
        NonLocalBlock(64, pairwize="gaussian")
    with pytest.raises(TypeError, match="pairwize"):
        insert_non_local(block, pairwize="gaussian")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairwise": "cosine"}, "pairwise must be one of .*, got 'cosine'"),
        ({"init": "zeros"}, "init must be one of .*, got 'zeros'"),
        ({"inner_ratio": 0}, "inner_ratio must be above 0, got 0"),
        ({"inner_ratio": float("nan")}, "inner_ratio must be above 0, got nan"),
        ({"inner_ratio": float("inf")}, "inner_ratio must be above 0, got inf"),
        ({"sub_sample": "flase"}, "sub_sample must be True or False, got 'flase'"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        BlockOptions(**options)


def test_backbone_and_head_differ():
    opts = ["MODEL.NON_LOCAL.PAIRWISE", "gaussian", "MODEL.ROI_KEYPOINT_HEAD.NON_LOCAL.NORM", "BN"]
    model = load_cfg(PEOPLE, opts).MODEL
    assert block_options(model.NON_LOCAL).pairwise == "gaussian"
    assert block_options(model.ROI_KEYPOINT_HEAD.NON_LOCAL).pairwise == "embedded_gaussian"
    assert block_options(model.ROI_KEYPOINT_HEAD.NON_LOCAL).norm == "BN"


OLD = """
MODEL:
  NON_LOCAL:
    AFTER: [res4.-2]
    KEYPOINT_HEAD_AFTER: [2, 4]
    PAIRWISE: dot_product
    INIT: similarity
    CHECKPOINT: true
SOLVER:
  NON_LOCAL_LR_FACTOR: 2.0
"""


def test_keys_of_before_are_read_with_their_old_meaning(tmp_path, log):
    """As they stand in the config inside of older checkpoints: the head had the same options."""
    file = tmp_path / "old.yaml"
    file.write_text(OLD)
    cfg = load_cfg(file)
    head = cfg.MODEL.ROI_KEYPOINT_HEAD.NON_LOCAL
    assert head.AFTER == [2, 4] and cfg.MODEL.NON_LOCAL.AFTER == ["res4.-2"]
    expected = BlockOptions(pairwise="dot_product", init="similarity", grad_checkpoint=True)
    assert block_options(head) == block_options(cfg.MODEL.NON_LOCAL) == expected
    assert cfg.SOLVER.NON_LOCAL_OTHERS_LR_FACTOR == 2
    assert len({r.getMessage() for r in log.records if " is called " in r.getMessage()}) == 3
    assert "KEYPOINT_HEAD_AFTER is called MODEL.ROI_KEYPOINT_HEAD.NON_LOCAL.AFTER now" in log.text
    loaded = yaml.safe_load(OLD)
    assert renamed_keys(loaded)[0] != loaded and loaded == yaml.safe_load(OLD)
    opts = ["MODEL.NON_LOCAL.CHECKPOINT", "True", "SOLVER.NON_LOCAL_LR_FACTOR", "3.0"]
    cfg = load_cfg(None, opts)
    assert cfg.MODEL.NON_LOCAL.GRAD_CHECKPOINT and cfg.SOLVER.NON_LOCAL_OTHERS_LR_FACTOR == 3


@pytest.mark.parametrize(
    ("config", "opts", "message"),
    [
        (
            MASK,
            ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.NON_LOCAL.NORM", "BN"],
            "MODEL.NON_LOCAL.NORM BN has no effect with MODEL.BACKBONE.NAME build_resnet_fpn",
        ),
        (
            MASK,
            ["MODEL.ROI_KEYPOINT_HEAD.NON_LOCAL.AFTER", "[1]"],
            r"NON_LOCAL.AFTER \[1\] has no effect with MODEL.KEYPOINT_ON False",
        ),
        (
            MASK.replace("_nl_", "_"),
            ["SOLVER.NON_LOCAL_PAIRWISE_LR_FACTOR", "0.1"],
            "SOLVER.NON_LOCAL_PAIRWISE_LR_FACTOR has no effect on a model without",
        ),
        (
            MASK,
            ["MODEL.KEYPOINT_ON", "True", "MODEL.ROI_KEYPOINT_HEAD.NAME", "NonLocalKeypointHead"]
            + ["MODEL.ROI_KEYPOINT_HEAD.NON_LOCAL.MASK_PADDING", "True"],
            "MASK_PADDING True has no effect: the head's regions have no padding",
        ),
        (
            MASK,
            ["MODEL.NON_LOCAL.RECURRENCE", "3"],
            "MODEL.NON_LOCAL.RECURRENCE 3 has no effect with BLOCK NonLocalBlock",
        ),
    ],
)
def test_keys_without_effect_are_named(config, opts, message, log, monkeypatch):
    assert unused_options(load_cfg(config)) == []
    [note] = unused_options(load_cfg(config, opts))
    assert pytest.raises(AssertionError, match=message).matches(AssertionError(note))
    with pytest.raises(ValueError, match="instances_train2017"):
        check_cfg(load_cfg(config, [*opts, "MODEL.WEIGHTS", ""]))
    assert note in log.text


def test_options_that_the_kind_of_block_does_not_use_are_named():
    node = "MODEL.ROI_KEYPOINT_HEAD.NON_LOCAL"
    opts = [f"{node}.BLOCK", "GlobalContextBlock", f"{node}.INNER_RATIO", "0.25"]
    opts += [f"{node}.USE_SCALE", "False"]
    assert unused_options(load_cfg(PEOPLE, opts)) == [
        f"{node}.USE_SCALE False has no effect with BLOCK GlobalContextBlock",
        f"{node}.INIT similarity has no effect with BLOCK GlobalContextBlock",  # of the config
    ]
