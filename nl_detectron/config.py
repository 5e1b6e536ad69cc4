"""The configuration keys that nl_detectron adds to Detectron2's."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from detectron2.config import CfgNode

from .layers import BlockOptions
from .layers.options import CONFIG_OPTIONS

# Keys of before the first release, and what they are called now
RENAMED = {
    "MODEL.NON_LOCAL.CHECKPOINT": "MODEL.NON_LOCAL.GRAD_CHECKPOINT",
    "MODEL.NON_LOCAL.KEYPOINT_HEAD_AFTER": "MODEL.ROI_KEYPOINT_HEAD.NON_LOCAL.AFTER",
    "SOLVER.NON_LOCAL_LR_FACTOR": "SOLVER.NON_LOCAL_OTHERS_LR_FACTOR",
}


def add_non_local_config(cfg: CfgNode) -> None:
    """Adds the keys of non-local blocks and of ``SOLVER`` to a Detectron2 config, in place.

    ``MODEL.NON_LOCAL`` is for the ResNet, ``MODEL.FPN.NON_LOCAL`` for the pyramid, and the
    ``NON_LOCAL`` of each RoI head for that head. Besides where blocks go, all have the fields of
    :class:`BlockOptions`, in capitals.
    """
    # AFTER: the residual blocks of the ResNet after each of which a non-local block goes,
    # "stage.index", negative indices from the stage's end, or "stage" for each of a stage. The
    # default is the paper's for COCO: right before the last residual block of res4.
    # POSITION: "after_block", or "before_sum": inside of these residual blocks, between their last
    # norm and the sum with the shortcut. Read by the build_non_local_* backbones only.
    cfg.MODEL.NON_LOCAL = _block_node(AFTER=["res4.-2"], POSITION="after_block")
    # LEVEL: that to which all levels of the FPN are resized, whose mean the block refines.
    # ADD_MEAN: add the refined mean to each level, as Libra R-CNN does, and not only what the block
    # adds to the mean, which is nothing at the start.
    # Read by the build_non_local_pyramid_* backbones only.
    cfg.MODEL.FPN.NON_LOCAL = _block_node(LEVEL="p4", ADD_MEAN=False)
    # The convolutions of a head, counted from 1, after each of which a non-local block goes. The
    # keypoint head's default is the paper's "+4 in head"; the other two follow it. Each is read by
    # its own head only: NonLocalBoxHead (whose NUM_CONV is not to be 0), NonLocalMaskHead,
    # NonLocalKeypointHead.
    cfg.MODEL.ROI_BOX_HEAD.NON_LOCAL = _block_node(AFTER=[2, 4])
    cfg.MODEL.ROI_MASK_HEAD.NON_LOCAL = _block_node(AFTER=[2, 4])
    cfg.MODEL.ROI_KEYPOINT_HEAD.NON_LOCAL = _block_node(AFTER=[2, 4, 6, 8])

    # Datasets of one's own: [name, annotation file in COCO's format, folder of images] each; they
    # are registered when the config is loaded. See docs/own-data.md.
    cfg.DATASETS.OWN = []
    # The names of the model's classes by index. Empty: those of the first own training set, by
    # rising category id. Categories of all own sets are matched with them by name.
    cfg.DATASETS.CLASSES = []
    # [name, name] of keypoints of own data that change places in a mirrored image. Empty: those
    # that "left" and "right", or "l" and "r", in their names tell.
    cfg.DATASETS.KEYPOINT_FLIP_PAIRS = []

    # "SGD", as Detectron2 trains, or "AdamW", which trains small models from scratch faster
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Parts that each batch of IMS_PER_BATCH images is taken in, one after another, for one step of
    # the optimizer: the memory of IMS_PER_BATCH / ACCUMULATE images. An iteration stays a step.
    cfg.SOLVER.ACCUMULATE = 1
    # The IMS_PER_BATCH that BASE_LR is meant for. With another one the learning rate is
    # BASE_LR * IMS_PER_BATCH / REFERENCE_IMS_PER_BATCH. 0: it is BASE_LR.
    cfg.SOLVER.REFERENCE_IMS_PER_BATCH = 0
    # Save the weights of each checkpoint as .safetensors, too, beside the .pth that --resume needs
    cfg.SOLVER.CHECKPOINT_SAFETENSORS = False
    # How many checkpoints of CHECKPOINT_PERIOD are kept, the latest ones, beside the best and the
    # final one; 0 for all
    cfg.SOLVER.CHECKPOINT_KEEP = 0
    # What a training does when a checkpoint cannot be written, after some tries: "stop", with the
    # last good one whole, or "continue", with an alarm in the log
    cfg.SOLVER.CHECKPOINT_ON_ERROR = "stop"
    # Factor on the learning rate of the layers of the pairwise function f in each non-local block:
    # theta, phi, psi, w_f and conv_mask. From scratch with AdamW, 0.1 with INIT "similarity" trains
    # all four.
    cfg.SOLVER.NON_LOCAL_PAIRWISE_LR_FACTOR = 1.0
    # The same of the block's other layers: g, out and norm
    cfg.SOLVER.NON_LOCAL_OTHERS_LR_FACTOR = 1.0

    # The figure by which model_best.pth is kept, such as "bbox/AP" or "keypoints/AP50" (with
    # several DATASETS.TEST "name/bbox/AP"); "" for the AP of the first task
    cfg.TEST.BEST_METRIC = ""
    # Training ends when this many evaluations in a row (TEST.EVAL_PERIOD) brought none that is
    # better by TEST.BEST_METRIC; 0 for never
    cfg.TEST.EARLY_STOPPING_PATIENCE = 0
    # Average the weights over the iterations (EMA). What is evaluated, and what checkpoints hold as
    # the model, are then the averaged weights; --resume goes on from the trained ones.
    cfg.MODEL_EMA = CfgNode()
    cfg.MODEL_EMA.ENABLED = False
    # Weight of what has been averaged so far in each iteration; less in the first ones
    cfg.MODEL_EMA.DECAY = 0.999


def block_options(node: CfgNode) -> BlockOptions:
    """The options in one of the nodes called ``NON_LOCAL``.

    Raises:
        ValueError: if a value is none of the allowed ones.
    """
    return BlockOptions(**{option.name: node[key] for key, option in CONFIG_OPTIONS.items()})


def renamed_keys(loaded: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A loaded config with today's names for the keys of before, and a line on each renamed one.

    Where the keypoint head's blocks have their old key, they had the options of the backbone's.
    """
    renamed, notes = deepcopy(loaded), []
    for old, new in RENAMED.items():
        *path, key = old.split(".")
        node = _find(renamed, path)
        if not isinstance(node, dict) or key not in node:
            continue
        *new_path, new_key = new.split(".")
        target = renamed
        for part in new_path:
            target = target.setdefault(part, {})
        if key == "KEYPOINT_HEAD_AFTER":
            options = (k for k in node if k in CONFIG_OPTIONS)  # CHECKPOINT has its new name
            target.update({k: node[k] for k in options if k not in target})
        target.setdefault(new_key, node[key])
        del node[key]
        notes.append(f"the config key {old} is called {new} now")
    return renamed, notes


def renamed_options(opts: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """The same of ``KEY VALUE`` pairs."""
    keys = [key for key in opts[::2] if key in RENAMED]
    renamed = [RENAMED.get(o, o) if i % 2 == 0 else o for i, o in enumerate(opts)]
    return renamed, [f"the config key {key} is called {RENAMED[key]} now" for key in keys]


def block_nodes(cfg: CfgNode) -> dict[str, CfgNode]:
    """The nodes of blocks of all parts of a model, by their names."""
    model = cfg.MODEL
    return {
        "MODEL.NON_LOCAL": model.NON_LOCAL,
        "MODEL.FPN.NON_LOCAL": model.FPN.NON_LOCAL,
        "MODEL.ROI_BOX_HEAD.NON_LOCAL": model.ROI_BOX_HEAD.NON_LOCAL,
        "MODEL.ROI_MASK_HEAD.NON_LOCAL": model.ROI_MASK_HEAD.NON_LOCAL,
        "MODEL.ROI_KEYPOINT_HEAD.NON_LOCAL": model.ROI_KEYPOINT_HEAD.NON_LOCAL,
    }


def _block_node(**where: Any) -> CfgNode:
    """
    Args:
        where: keys that say where blocks go.
    """
    node = CfgNode(where)
    for key, option in CONFIG_OPTIONS.items():
        node[key] = option.default
    return node


def _find(node: Any, path: Sequence[str]) -> Any:
    for part in path:
        node = node.get(part) if isinstance(node, dict) else None
    return node
