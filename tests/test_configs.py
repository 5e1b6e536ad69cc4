"""Each YAML config is its twin of Detectron2's zoo, but for the keys that we mean, and it runs."""

import re
from pathlib import Path

import pytest
import torch
from detectron2 import model_zoo as detectron2_zoo
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from dev.configs_page import baseline_of
from nl_detectron import add_non_local_config, model_zoo
from nl_detectron.engine import Trainer
from nl_detectron.engine.unused import unused_options
from nl_detectron.layers.names import non_local_blocks
from tests.places import ROOT

from .examples import example

NAMES = [name for name in model_zoo.list_configs() if name.endswith(".yaml")]
COCO = [name for name in NAMES if not name.startswith("quick_schedules/")]
# The keys that nl_detectron adds to SOLVER, as all COCO configs leave them
NEW_SOLVER = {
    "SOLVER.OPTIMIZER": "SGD",
    "SOLVER.CHECKPOINT_SAFETENSORS": False,
    "SOLVER.CHECKPOINT_KEEP": 0,
    "SOLVER.CHECKPOINT_ON_ERROR": "stop",
    "SOLVER.NON_LOCAL_PAIRWISE_LR_FACTOR": 1.0,
    "SOLVER.NON_LOCAL_OTHERS_LR_FACTOR": 1.0,
    "SOLVER.ACCUMULATE": 1,
    "SOLVER.REFERENCE_IMS_PER_BATCH": 0,
}
TEN = [f"res3.{i}" for i in range(4)] + [f"res4.{i}" for i in range(6)]
HEADS = ("ROI_BOX_HEAD", "ROI_MASK_HEAD", "ROI_KEYPOINT_HEAD")
NEW_NODES = ("MODEL.NON_LOCAL.", "MODEL.FPN.NON_LOCAL.", "MODEL_EMA.") + tuple(
    f"MODEL.{head}.NON_LOCAL." for head in HEADS
)
NEW_DATA = {"DATASETS.OWN": [], "DATASETS.CLASSES": [], "DATASETS.KEYPOINT_FLIP_PAIRS": []}
NEW_TEST = {"TEST.BEST_METRIC": "", "TEST.EARLY_STOPPING_PATIENCE": 0}
NEW_KEYS = NEW_SOLVER | NEW_DATA | NEW_TEST
# What the names of the configs promise of MODEL.NON_LOCAL
NON_LOCAL = {
    "_gaussian": {"PAIRWISE": "gaussian"},
    "_dot_product": {"PAIRWISE": "dot_product"},
    "_concatenation": {"PAIRWISE": "concatenation"},
    "_full": {"SUB_SAMPLE": False},
    "_5_blocks": {"AFTER": ["res3.1", "res3.3", "res4.1", "res4.3", "res4.5"]},
    "_10_blocks": {"AFTER": TEN},
    "_pyramid": {"AFTER": []},
}
# What those of the other blocks promise, in order
STAGES = ["res3", "res4", "res5"]
FAMILY = {
    "_gc_": {"BLOCK": "GlobalContextBlock", "POSITION": "before_sum", "AFTER": STAGES},
    "_snl_": {"BLOCK": "SimplifiedNonLocalBlock"},
    "_dnl_": {"BLOCK": "DisentangledNonLocalBlock", "TEMPERATURE": 0.05, "PAIRWISE_GATE": True},
    "_r16_": {"INNER_RATIO": 1 / 16},
    "_r4_": {"INNER_RATIO": 1 / 4},
    "_c4_": {"POSITION": "before_sum", "AFTER": ["res4.-2"]},
    "_c4_c5_": {"AFTER": ["res4.-2", "res5"]},
    "nl_c4_": {"INNER_RATIO": 1 / 4, "SUB_SAMPLE": False},
    "_snl_c4_": {"INNER_RATIO": 1 / 2, "SUB_SAMPLE": True},
    "_latent_gnn_": {"BLOCK": "LatentGNNBlock", "INNER_RATIO": 1 / 8, "NODES": 100},
    "_latent_gnn_c4_": {"POSITION": "after_block", "AFTER": ["res4.-1"]},
    "_latent_gnn_c3_1x": {"POSITION": "after_block", "AFTER": ["res3.-1"]},
    "_latent_gnn_c5_1x": {"POSITION": "after_block", "AFTER": ["res5.-1"]},
    "_latent_gnn_c3_c5_": {"AFTER": ["res3.-1", "res4.-1", "res5.-1"]},
}
SYNC_BN = {
    "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/torchvision/R-50.pkl",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "INPUT.FORMAT": "RGB",
}
RESNEXT101 = {
    "MODEL.WEIGHTS": "x101_32x4d.safetensors",
    "MODEL.RESNETS.DEPTH": 101,
    "MODEL.RESNETS.NUM_GROUPS": 32,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
}
TWICE = {"SOLVER.STEPS": (120000, 160000), "SOLVER.MAX_ITER": 180000}
HEADS_4CONV1FC = {
    "MODEL.FPN.NORM": "SyncBN",
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.NORM": "SyncBN",
    "MODEL.ROI_MASK_HEAD.NORM": "SyncBN",
}


def has_blocks(name: str) -> bool:
    return re.search(r"_(nl|gc|snl|dnl|latent_gnn)(_|\.)", name) is not None


def flatten(node: CfgNode, prefix: str = "") -> dict[str, object]:
    flat = {}
    for key, value in node.items():
        flat |= (
            flatten(value, f"{prefix}{key}.")
            if isinstance(value, CfgNode)
            else {prefix + key: value}
        )
    return flat


def default_options() -> dict[str, object]:
    cfg = get_cfg()
    add_non_local_config(cfg)
    return flatten(cfg.MODEL.NON_LOCAL)


def twin(name: str) -> tuple[str, dict[str, object]]:
    """The nearest config of Detectron2's zoo, and what must differ from it, non-local or not."""
    zoo = baseline_of(name) or name
    schedule = {"SOLVER.STEPS": (60000, 80000), "SOLVER.MAX_ITER": 90000}
    resnet101 = {
        "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-101.pkl",
        "MODEL.RESNETS.DEPTH": 101,
    }
    resnext152 = {
        "MODEL.WEIGHTS": "catalog://ImageNetPretrained/FAIR/X-152-32x8d-IN5k",
        "MODEL.RESNETS.DEPTH": 152,
    }
    if "X_152" in zoo and "noaug" in zoo:
        groups = {"NUM_GROUPS": 32, "WIDTH_PER_GROUP": 8, "STRIDE_IN_1X1": False}
        groups = {f"MODEL.RESNETS.{key}": value for key, value in groups.items()}
        return zoo.replace("X_152_32x8d", "R_50"), resnext152 | groups
    if "X_152" in zoo:
        # Of X-101's weights Detectron2 divides the pixels; X-152's, as in Misc/, do without.
        pixels = {"MODEL.PIXEL_STD": [1.0, 1.0, 1.0]}
        name = zoo.replace("X_152", "X_101").replace("_1x", "_3x")
        return name, resnext152 | schedule | pixels
    if "_2x" in zoo:
        name, difference = twin(zoo.replace("_2x", "_1x"))
        return name, difference | TWICE
    if "X_101_32x4d" in zoo:
        cascade, of_r50 = "cascade" in zoo, zoo.replace("X_101_32x4d", "R_50")
        name, difference = twin(of_r50.replace("_syncbn", "") if cascade else of_r50)
        return name, SYNC_BN | difference | RESNEXT101
    if "X_101" in zoo:
        return zoo.replace("_1x", "_3x"), schedule
    if "_syncbn" in zoo:
        heads = HEADS_4CONV1FC if "_4conv1fc" in zoo else {}
        deeper = resnet101 | {"MODEL.WEIGHTS": "r101.safetensors"}
        difference = SYNC_BN | heads | (deeper if "R_101" in zoo else {})
        name = zoo.replace("_4conv1fc", "").replace("_syncbn", "")
        return name.replace("R_101", "R_50"), difference
    if "R_101" in zoo and "3x" not in zoo:
        return zoo.replace("R_101", "R_50"), resnet101
    return zoo, {}


def expected_difference(name: str) -> dict[str, object]:
    zoo, difference = twin(name)
    if has_blocks(name) and "_nl_head" not in name:
        backbone = detectron2_zoo.get_config(zoo).MODEL.BACKBONE.NAME
        ours = "build_non_local_pyramid_" if "_pyramid" in name else "build_non_local_"
        difference["MODEL.BACKBONE.NAME"] = backbone.replace("build_", ours)
    if "_nl" in name and "keypoint" in name:
        difference["MODEL.ROI_KEYPOINT_HEAD.NAME"] = "NonLocalKeypointHead"
    return difference


def expected_non_local(name: str) -> dict[str, object]:
    options = default_options()
    for part, values in NON_LOCAL.items():
        if f"_nl{part}" in name or (part == "_full" and part in name):
            options |= values
    for part, values in FAMILY.items():
        if part in name:
            options |= values
    return options


@pytest.mark.parametrize("name", NAMES)
def test_leaves_are_short(name):
    assert len(Path(model_zoo.get_config_file(name)).read_text().splitlines()) <= 8


@pytest.mark.parametrize("name", COCO)
def test_equals_its_twin_but_for_the_keys_we_mean(name):
    twin_cfg, ours = flatten(detectron2_zoo.get_config(twin(name)[0])), model_zoo.get_config(name)
    flat = flatten(ours)
    difference = {
        key: value
        for key, value in flat.items()
        if not key.startswith((*NEW_NODES, *NEW_KEYS)) and twin_cfg[key] != value
    }
    assert difference == expected_difference(name)
    assert not twin_cfg.keys() - flat.keys()
    assert flatten(ours.MODEL.NON_LOCAL) == expected_non_local(name)
    head = flatten(ours.MODEL.ROI_KEYPOINT_HEAD.NON_LOCAL)
    defaults = default_options()
    assert head | {"POSITION": "after_block"} == {**defaults, "AFTER": [2, 4, 6, 8]}
    pyramid = {**defaults, "LEVEL": "p4", "ADD_MEAN": False}
    if "_pyramid" in name:  # all that is Libra R-CNN's
        pyramid |= {"ADD_MEAN": True, "INNER_RATIO": 1.0, "SUB_SAMPLE": False, "USE_SCALE": False}
    left_out = {"AFTER", "POSITION"}
    assert (
        flatten(ours.MODEL.FPN.NON_LOCAL).items()
        == {key: value for key, value in pyramid.items() if key not in left_out}.items()
    )
    assert {key: flat[key] for key in NEW_KEYS} == NEW_KEYS
    assert unused_options(ours) == []


def expected_blocks(cfg: CfgNode) -> set[str]:
    blocks = set()
    if cfg.MODEL.BACKBONE.NAME.startswith("build_non_local"):
        stages = "backbone" + (".bottom_up" if "fpn" in cfg.MODEL.BACKBONE.NAME else "")
        count = {50: 6, 101: 23, 152: 36}[cfg.MODEL.RESNETS.DEPTH]
        for place in cfg.MODEL.NON_LOCAL.AFTER:
            stage, _, index = place.partition(".")
            of_stage = range({"res3": 4, "res4": count, "res5": 3}[stage])
            for i in [of_stage[int(index)]] if index else of_stage:
                inside = cfg.MODEL.NON_LOCAL.POSITION == "before_sum"
                blocks.add(f"{stages}.{stage}.{f'{i}.conv3.activation.' if inside else ''}nl{i}")
    if "pyramid" in cfg.MODEL.BACKBONE.NAME:
        blocks.add("backbone.nl4")
    if cfg.MODEL.KEYPOINT_ON and cfg.MODEL.ROI_KEYPOINT_HEAD.NAME == "NonLocalKeypointHead":
        after = cfg.MODEL.ROI_KEYPOINT_HEAD.NON_LOCAL.AFTER
        assert after == [2, 4, 6, 8][: len(after)]
        blocks |= {f"roi_heads.keypoint_head.nl{i}" for i in after}
    return blocks


def distinct_models() -> list[str]:
    """One name for each model; schedules, weights and a context's ratio make no other."""
    by_model = {}
    for name in NAMES:
        cfg = model_zoo.get_config(name)
        cfg.MODEL.WEIGHTS = ""
        if cfg.MODEL.NON_LOCAL.BLOCK == "GlobalContextBlock":
            cfg.MODEL.NON_LOCAL.INNER_RATIO = 0.25
        by_model.setdefault(cfg.MODEL.dump(), name)
    return list(by_model.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", distinct_models())
def test_builds_in_full(name):
    """Without memory for weights, which nothing here asks for."""
    cfg = model_zoo.get_config(name)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        blocks = non_local_blocks(build_model(cfg))
    assert blocks.keys() == expected_blocks(cfg)
    assert {type(block).__name__ for block in blocks.values()} <= {cfg.MODEL.NON_LOCAL.BLOCK}
    assert bool(blocks) == has_blocks(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", distinct_models())
def test_trains_a_step_and_predicts(name):
    """A narrow copy: all depths, stages, heads and blocks are the config's own."""
    cfg = model_zoo.get_config(name)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    resnet = cfg.MODEL.RESNETS
    resnet.NORM, resnet.STEM_OUT_CHANNELS, resnet.RES2_OUT_CHANNELS = "BN", 16, 16
    resnet.NUM_GROUPS = min(resnet.NUM_GROUPS, 4)
    resnet.WIDTH_PER_GROUP = 4 // resnet.NUM_GROUPS
    for node in (cfg.MODEL.FPN, cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD):
        node.NORM = node.NORM.removeprefix("Sync")  # which trains on GPUs only
    cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 32  # its GroupNorm has 32 groups
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.ROI_BOX_HEAD.CONV_DIM = 16
    head = cfg.MODEL.ROI_KEYPOINT_HEAD
    head.CONV_DIMS = [16] * len(head.CONV_DIMS)
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 20
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    cfg.TEST.DETECTIONS_PER_IMAGE = 3
    cfg.INPUT.MASK_FORMAT = "bitmask"
    model = build_model(cfg)
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = Trainer.build_optimizer(cfg, model)
    with EventStorage():
        losses = model.train()(example(training=True))
    sum(losses.values()).backward()
    optimizer.step()
    assert all(torch.isfinite(loss) for loss in losses.values())
    changed = {name for name, value in model.named_parameters() if (value != before[name]).any()}
    for block in expected_blocks(cfg):  # what starts at zero learns first
        assert f"{block}.out.weight" in changed
    with torch.no_grad():
        output = model.eval()(example(training=False))[0]
    instances = output["instances"]
    assert instances.image_size == (256, 320)
    assert ("pred_masks" in instances.get_fields()) == cfg.MODEL.MASK_ON
    assert ("pred_keypoints" in instances.get_fields()) == cfg.MODEL.KEYPOINT_ON
    assert ("panoptic_seg" in output) == (cfg.MODEL.META_ARCHITECTURE == "PanopticFPN")


def test_the_readme_and_the_zoo_s_page_name_configs_that_exist():
    for file in ("README.md", "CONFIGS.md"):
        text = (ROOT / file).read_text()
        folders = "COCO-|Detectron1-|Misc/|quick_schedules/"
        named = re.findall(rf"(?:configs/|`| )((?:{folders})[\w/-]+\.(?:yaml|py))\b", text)
        assert named and not set(named) - set(model_zoo.list_configs())
