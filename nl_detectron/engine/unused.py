"""Keys of non-local blocks that are set in vain."""

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_KEYPOINT_HEAD_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
)
from fvcore.common.registry import Registry

from ..config import add_non_local_config, block_nodes
from ..layers import block_kind
from ..layers.options import CONFIG_OPTIONS

# Of each node of blocks in a head: the head's node, its registry, what switches it on, and ours
HEADS = {
    "MODEL.ROI_BOX_HEAD.NON_LOCAL": ("ROI_BOX_HEAD", ROI_BOX_HEAD_REGISTRY, "", "NonLocalBoxHead"),
    "MODEL.ROI_MASK_HEAD.NON_LOCAL": (
        "ROI_MASK_HEAD",
        ROI_MASK_HEAD_REGISTRY,
        "MASK_ON",
        "NonLocalMaskHead",
    ),
    "MODEL.ROI_KEYPOINT_HEAD.NON_LOCAL": (
        "ROI_KEYPOINT_HEAD",
        ROI_KEYPOINT_HEAD_REGISTRY,
        "KEYPOINT_ON",
        "NonLocalKeypointHead",
    ),
}


def unused_options(cfg: CfgNode) -> list[str]:
    """A line on each key of non-local blocks that is set but read by nothing in this config.

    It says what would make the key count.
    """
    defaults = get_cfg()
    add_non_local_config(defaults)
    readers, default_nodes = _readers(cfg), block_nodes(defaults)
    unused = []
    for name, node in block_nodes(cfg).items():
        is_read, where = readers[name]
        if not is_read:
            unused += _set_in_vain(name, node, default_nodes[name], where)
            continue
        unused += _not_of_the_block(name, node, default_nodes[name])
        if name in HEADS and node.MASK_PADDING:
            unused.append(
                f"{name}.MASK_PADDING True has no effect: the head's regions have no padding; "
                "MODEL.NON_LOCAL.MASK_PADDING is for the backbone"
            )
    for key in ("NON_LOCAL_PAIRWISE_LR_FACTOR", "NON_LOCAL_OTHERS_LR_FACTOR"):
        if cfg.SOLVER[key] != 1 and not any(is_read for is_read, _ in readers.values()):
            unused.append(f"SOLVER.{key} has no effect on a model without non-local blocks")
    return unused


def _readers(cfg: CfgNode) -> dict[str, tuple[bool, str]]:
    """Whether a node of blocks is read in this config, and what says so, by the node's name."""
    model = cfg.MODEL
    backbone = f"MODEL.BACKBONE.NAME {model.BACKBONE.NAME}"
    # What others have registered may read the keys, too.
    others = not _is_detectron2s(BACKBONE_REGISTRY, model.BACKBONE.NAME)
    ours = model.BACKBONE.NAME.startswith("build_non_local_")
    in_pyramid = model.BACKBONE.NAME.startswith("build_non_local_pyramid_")
    readers = {
        "MODEL.NON_LOCAL": (others, f"{backbone}: the build_non_local_* backbones have blocks"),
        "MODEL.FPN.NON_LOCAL": (
            others and (in_pyramid or not ours),
            f"{backbone}: the build_non_local_pyramid_* backbones have a block there",
        ),
    }
    for name, (head, registry, switch, reader) in HEADS.items():
        head_name = model[head].NAME
        is_read = bool(head_name) and not _is_detectron2s(registry, head_name)
        where = f"MODEL.{head}.NAME {head_name}: a {reader} has blocks"
        if head == "ROI_BOX_HEAD" and model.ROI_HEADS.NAME == "Res5ROIHeads":
            is_read = False
            where = "MODEL.ROI_HEADS.NAME Res5ROIHeads, whose box head is the ResNet's res5"
        if switch:
            is_read = is_read and model[switch]
            where = f"MODEL.{switch} {model[switch]} and {where}"
        readers[name] = is_read, where
    return readers


def _is_detectron2s(registry: Registry, name: str) -> bool:
    return registry.get(name).__module__.startswith("detectron2.")


def _set_in_vain(name: str, node: CfgNode, default: CfgNode, where: str) -> list[str]:
    changed = [key for key in node if node[key] != default[key]]
    return [f"{name}.{key} {node[key]} has no effect with {where}" for key in changed]


def _not_of_the_block(name: str, node: CfgNode, default: CfgNode) -> list[str]:
    """A line on each option that is set, but of which the kind of block makes nothing."""
    used = block_kind(node.BLOCK).USES
    others = [key for key in CONFIG_OPTIONS if key.lower() not in used]
    set_ones = [key for key in others if node[key] != default[key]]
    return [f"{name}.{key} {node[key]} has no effect with BLOCK {node.BLOCK}" for key in set_ones]
