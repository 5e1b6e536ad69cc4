"""The models that are compared, and the controls among them that are no choice of the config."""

from dataclasses import dataclass, field

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import ResNet, build_resnet_backbone
from detectron2.modeling.backbone.resnet import BottleneckBlock

from ..layers import NonLocalBlock
from ..model_zoo import get_config
from ..modeling.backbone import build_non_local_resnet_backbone
from ..modeling.insertion import insert_after

CONFIG = "quick_schedules/Base-Far-Cue.yaml"


@dataclass(frozen=True)
class Difficulty:
    """A task: its title, the datasets that train and test on it, and for how many iterations."""

    title: str
    train: tuple[str, ...]
    test: str
    iterations: int


DIFFICULTIES = {
    "one_key": Difficulty("One key", ("far_cue_one_key_train",), "far_cue_one_key_val", 400),
    # Half of the training images have one key, from which it is learned that keys matter at all.
    "matching_key": Difficulty(
        "Matching key",
        ("far_cue_one_key_train", "far_cue_matching_key_train"),
        "far_cue_matching_key_val",
        900,
    ),
}

# The bottleneck channels with which a residual block has at least the parameters and FLOPs of any
# one non-local block at its place in the model of CONFIG
DEEPER_CHANNELS = 56


@BACKBONE_REGISTRY.register()
def build_uniform_attention_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """A control: each position draws on all equally, as all logits of the softmax are zero."""
    resnet = build_non_local_resnet_backbone(cfg, input_shape)
    for module in resnet.modules():
        if isinstance(module, NonLocalBlock):
            module.scale = 0.0
    return resnet


@BACKBONE_REGISTRY.register()
def build_deeper_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """A control: one more residual block of Detectron2's right before the last one of res4."""
    resnet = build_resnet_backbone(cfg, input_shape)
    channels = resnet.output_shape()["res4"].channels
    block = BottleneckBlock(
        channels,
        channels,
        bottleneck_channels=DEEPER_CHANNELS,
        stride_in_1x1=cfg.MODEL.RESNETS.STRIDE_IN_1X1,
        norm=cfg.MODEL.RESNETS.NORM,
    )
    insert_after(resnet.res4, "4", "4_deeper", block)
    return resnet


@dataclass(frozen=True)
class Variant:
    """A model: what it is called in tables, and what it changes in the config, as KEY: value."""

    title: str
    options: dict[str, object] = field(default_factory=dict)


def _backbone(name: str) -> dict[str, object]:
    return {"MODEL.BACKBONE.NAME": f"build_{name}_backbone"}


# With AdamW from scratch, by pairwise function; see README.md
LR_FACTORS = {
    "gaussian": (1.0, 2.0),
    "embedded_gaussian": (0.03, 2.0),
    "dot_product": (1.0, 1.0),
    "concatenation": (1.0, 1.0),
}


def _non_local(pairwise: str, **options: object) -> dict[str, object]:
    own, others = LR_FACTORS[pairwise]
    return {
        **_backbone("non_local_resnet"),
        "MODEL.NON_LOCAL.PAIRWISE": pairwise,
        "SOLVER.NON_LOCAL_PAIRWISE_LR_FACTOR": own,
        "SOLVER.NON_LOCAL_LR_FACTOR": others,
        **options,
    }


FULL = {"MODEL.NON_LOCAL.SUB_SAMPLE": False}
MASKS = {"MODEL.MASK_ON": True}
EMBEDDED = _non_local("embedded_gaussian")
VARIANTS = {
    "plain": Variant("plain"),
    "deeper": Variant("plain, one residual block deeper", _backbone("deeper_resnet")),
    "wider": Variant("plain, wider", {"MODEL.RESNETS.WIDTH_PER_GROUP": 10}),
    "uniform": Variant("uniform attention", {**EMBEDDED, **_backbone("uniform_attention_resnet")}),
    "embedded_gaussian": Variant("embedded Gaussian", EMBEDDED),
    "dot_product": Variant("dot product", _non_local("dot_product")),
    "gaussian": Variant("Gaussian", _non_local("gaussian")),
    "concatenation": Variant("concatenation", _non_local("concatenation")),
    "embedded_gaussian_full": Variant("embedded Gaussian, not sub-sampled", {**EMBEDDED, **FULL}),
    "dot_product_full": Variant(
        "dot product, not sub-sampled", {**_non_local("dot_product"), **FULL}
    ),
    "gaussian_full": Variant("Gaussian, not sub-sampled", {**_non_local("gaussian"), **FULL}),
    "concatenation_full": Variant(
        "concatenation, not sub-sampled", {**_non_local("concatenation"), **FULL}
    ),
    "two_blocks": Variant(
        "embedded Gaussian, 2 blocks", {**EMBEDDED, "MODEL.NON_LOCAL.AFTER": ["res4.2", "res4.4"]}
    ),
    "one_rate": Variant(
        "embedded Gaussian, one learning rate for all",
        {
            **EMBEDDED,
            "SOLVER.NON_LOCAL_PAIRWISE_LR_FACTOR": 1.0,
            "SOLVER.NON_LOCAL_LR_FACTOR": 1.0,
        },
    ),
    "plain_masks": Variant("plain, masks on", MASKS),
    "embedded_gaussian_masks": Variant("embedded Gaussian, masks on", {**EMBEDDED, **MASKS}),
}


def options(variant: str, difficulty: str, seed: int) -> dict[str, object]:
    """What a run sets on top of :data:`CONFIG`, as KEY: value.

    Args:
        variant: one of :data:`VARIANTS`.
        difficulty: one of :data:`DIFFICULTIES`.
    """
    task = DIFFICULTIES[difficulty]
    return {
        "MODEL.DEVICE": "cpu",
        "DATASETS.TRAIN": task.train,
        "DATASETS.TEST": (task.test,),
        "SOLVER.MAX_ITER": task.iterations,
        "SEED": seed,
        **VARIANTS[variant].options,
    }


def build_cfg(variant: str, difficulty: str, seed: int) -> CfgNode:
    """The config of a run on the CPU, without its ``OUTPUT_DIR``; see :func:`options`."""
    cfg = get_config(CONFIG)
    pairs = options(variant, difficulty, seed).items()
    cfg.merge_from_list([item for pair in pairs for item in pair])
    return cfg
