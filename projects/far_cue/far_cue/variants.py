"""The models that are compared, and the controls among them that are no choice of the config."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, ROI_KEYPOINT_HEAD_REGISTRY
from detectron2.modeling.backbone import ResNet, build_resnet_backbone
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import nn

from nl_detectron import NonLocalBlock, NonLocalKeypointHead, add_non_local_config
from nl_detectron.layers import block_kind
from nl_detectron.modeling.backbone import build_non_local_resnet_backbone
from nl_detectron.modeling.joining import insert_after

from .tasks import TASKS

# The bottleneck channels with which a residual block has at least the parameters and FLOPs of any
# one non-local block at its place in the model for strips
DEEPER_CHANNELS = 56
# The same of the keypoint head's convolutions and the four blocks between them
WIDER_CHANNELS = 40


@BACKBONE_REGISTRY.register()
def build_uniform_attention_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """A control: each position draws on all equally, as all logits of the softmax are zero."""
    return _with_uniform_attention(build_non_local_resnet_backbone(cfg, input_shape))


@ROI_KEYPOINT_HEAD_REGISTRY.register()
def build_uniform_attention_keypoint_head(cfg: CfgNode, input_shape: ShapeSpec) -> nn.Module:
    """The same control in the keypoint head."""
    return _with_uniform_attention(NonLocalKeypointHead(cfg, input_shape))


def _with_uniform_attention(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, NonLocalBlock):
            module.scale = 0.0
    return model


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
    """A model: its title in tables, what it changes in the config, and the tasks it is tried on."""

    title: str
    options: Mapping[str, object] = field(default_factory=dict)
    tasks: tuple[str, ...] = ("one_key",)


def _backbone(name: str) -> dict[str, object]:
    return {"MODEL.BACKBONE.NAME": f"build_{name}_backbone"}


# Of the learning rate, for the layers of similarities and for the other ones of a block
RATES = {
    "SOLVER.NON_LOCAL_PAIRWISE_LR_FACTOR": 0.1,
    "SOLVER.NON_LOCAL_OTHERS_LR_FACTOR": 2.0,
}


def _non_local(pairwise: str, **options: object) -> dict[str, object]:
    """One block, trained as nl_detectron advises, in the same way for each pairwise function."""
    return {
        **_backbone("non_local_resnet"),
        "MODEL.NON_LOCAL.PAIRWISE": pairwise,
        "MODEL.NON_LOCAL.INIT": "similarity",
        **RATES,
        **{f"MODEL.NON_LOCAL.{key}": value for key, value in options.items()},
    }


def _of_family(kind: str, **options: object) -> dict[str, object]:
    """One block of another kind, trained in the same way as far as it has the layers for that."""
    init = {"INIT": "similarity"} if "init" in block_kind(kind).USES else {}
    return {
        **_backbone("non_local_resnet"),
        **RATES,
        **{f"MODEL.NON_LOCAL.{k}": v for k, v in ({"BLOCK": kind} | init | options).items()},
    }


def _in_head(head: str) -> dict[str, object]:
    """Embedded Gaussian blocks in the keypoint head, trained so, and none in the backbone."""
    return {
        **_backbone("resnet"),
        "MODEL.ROI_KEYPOINT_HEAD.NAME": head,
        "MODEL.ROI_KEYPOINT_HEAD.NON_LOCAL.INIT": "similarity",
        "SOLVER.NON_LOCAL_PAIRWISE_LR_FACTOR": 0.1,
    }


RELEASED = {"MODEL.NON_LOCAL.INIT": "normal"}
ONE_RATE = dict.fromkeys(RATES, 1.0)
MASKS = {"MODEL.MASK_ON": True}
EMBEDDED = _non_local("embedded_gaussian")
CONCATENATION = _non_local("concatenation")
LEGS = ("hidden_legs",)
STRIPS = ("one_key", "matching_key")
VARIANTS = {
    "plain": Variant("plain", tasks=tuple(TASKS)),
    "deeper": Variant("plain, one residual block deeper", _backbone("deeper_resnet")),
    "uniform": Variant(
        "uniform attention", {**EMBEDDED, **_backbone("uniform_attention_resnet")}, STRIPS
    ),
    "embedded_gaussian": Variant("embedded Gaussian", EMBEDDED, STRIPS),
    "dot_product": Variant("dot product", _non_local("dot_product")),
    "gaussian": Variant("Gaussian", _non_local("gaussian")),
    "concatenation": Variant("concatenation", CONCATENATION),
    "embedded_gaussian_full": Variant(
        "embedded Gaussian, not sub-sampled", _non_local("embedded_gaussian", SUB_SAMPLE=False)
    ),
    "two_blocks": Variant(
        "embedded Gaussian, 2 blocks",
        _non_local("embedded_gaussian", AFTER=["res4.2", "res4.4"]),
    ),
    "plain_masks": Variant("plain, masks on", MASKS),
    "embedded_gaussian_masks": Variant("embedded Gaussian, masks on", {**EMBEDDED, **MASKS}),
    "embedded_gaussian_one_rate": Variant(
        "embedded Gaussian, one learning rate", {**EMBEDDED, **ONE_RATE}
    ),
    "embedded_gaussian_released": Variant(
        "embedded Gaussian, released init", {**EMBEDDED, **RELEASED}
    ),
    "embedded_gaussian_neither": Variant(
        "embedded Gaussian, released init, one learning rate",
        {**EMBEDDED, **RELEASED, **ONE_RATE},
    ),
    "concatenation_released": Variant(
        "concatenation, released init", {**CONCATENATION, **RELEASED}
    ),
    "global_context": Variant(
        "global context", _of_family("GlobalContextBlock", INNER_RATIO=0.25), STRIPS
    ),
    "simplified": Variant("simplified", _of_family("SimplifiedNonLocalBlock"), STRIPS),
    "disentangled": Variant("disentangled", _of_family("DisentangledNonLocalBlock"), STRIPS),
    "criss_cross": Variant("criss-cross, twice", _of_family("CrissCrossBlock"), STRIPS),
    "efficient": Variant("efficient attention", _of_family("EfficientAttentionBlock"), STRIPS),
    "asymmetric": Variant("asymmetric", _of_family("AsymmetricNonLocalBlock"), STRIPS),
    "expectation_maximization": Variant("expectation-maximization", _of_family("EMABlock"), STRIPS),
    "latent_gnn": Variant("latent nodes", _of_family("LatentGNNBlock"), STRIPS),
    "wider_head": Variant(
        "plain, wider head", {"MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": [WIDER_CHANNELS] * 4}, LEGS
    ),
    "uniform_head": Variant(
        "4 blocks, uniform attention",
        _in_head("build_uniform_attention_keypoint_head"),
        LEGS,
    ),
    "embedded_gaussian_head": Variant(
        "4 blocks, embedded Gaussian", _in_head("NonLocalKeypointHead"), LEGS
    ),
}


def variants_of(task: str) -> list[str]:
    """The variants that are tried on a task, in the order of :data:`VARIANTS`."""
    return [name for name, variant in VARIANTS.items() if task in variant.tasks]


def options(variant: str, task: str, seed: int) -> dict[str, object]:
    """What a run sets on top of its task's config, as KEY: value.

    Args:
        variant: one of :data:`VARIANTS`.
        task: one of :data:`far_cue.tasks.TASKS`.
    """
    return {
        "MODEL.DEVICE": "cpu",
        "DATASETS.TRAIN": TASKS[task].train,
        "DATASETS.TEST": (TASKS[task].test,),
        "MODEL.ROI_HEADS.NUM_CLASSES": TASKS[task].num_classes,
        "SOLVER.MAX_ITER": TASKS[task].iterations,
        "SOLVER.STEPS": (TASKS[task].iterations * 4 // 5,),
        "SEED": seed,
        **VARIANTS[variant].options,
    }


def build_cfg(variant: str, task: str, seed: int) -> CfgNode:
    """The config of a run on the CPU, without its ``OUTPUT_DIR``; see :func:`options`."""
    cfg = get_cfg()
    add_non_local_config(cfg)
    cfg.merge_from_file(str(TASKS[task].config))
    pairs = options(variant, task, seed).items()
    cfg.merge_from_list([item for pair in pairs for item in pair])
    return cfg
