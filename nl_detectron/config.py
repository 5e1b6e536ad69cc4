"""The configuration keys that nl_detectron adds to Detectron2's."""

from typing import Any

from detectron2.config import CfgNode


def add_non_local_config(cfg: CfgNode) -> None:
    """Adds ``MODEL.NON_LOCAL`` and the new keys of ``SOLVER`` to a Detectron2 config, in place."""
    cfg.MODEL.NON_LOCAL = CfgNode()
    node = cfg.MODEL.NON_LOCAL

    # The residual blocks of the ResNet after each of which a non-local block goes, "stage.index",
    # negative indices from the stage's end. The default is the paper's for COCO: right before the
    # last residual block of res4. Read by the build_non_local_* backbones only.
    node.AFTER = ["res4.-2"]
    # The convolutions of the keypoint head, counted from 1, after each of which a non-local block
    # goes. The default is the paper's "+4 in head". Read by NonLocalKeypointHead only.
    node.KEYPOINT_HEAD_AFTER = [2, 4, 6, 8]
    # "embedded_gaussian", "gaussian", "dot_product" or "concatenation" (paper, sec. 3.2)
    node.PAIRWISE = "embedded_gaussian"
    # Channels inside the block, as a fraction of the map's channels
    node.INNER_RATIO = 0.5
    # Max-pool phi and g by 2 in height and width, which quarters the pairwise computation
    node.SUB_SAMPLE = True
    # Multiply the logits of the (embedded) Gaussian by channels ** -0.5
    node.USE_SCALE = True
    # Normalization after the block's last convolution, apart from RESNETS.NORM: "" (none), "BN",
    # "SyncBN", "GN", ... "FrozenBN" is refused: its zero start could never be left.
    node.NORM = ""
    # How theta, phi, g and w_f start: "normal" as in the released code, with a standard deviation
    # of 0.01, or "similarity", where positions alike relate most, for training from random weights
    node.INIT = "normal"
    # In training, compute the block's inner activations again in the backward pass instead of
    # holding them: less memory for a little time, and the same gradients
    node.CHECKPOINT = False

    # "SGD", as Detectron2 trains, or "AdamW", which trains small models from scratch faster
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Save the weights of each checkpoint as .safetensors, too, beside the .pth that --resume needs
    cfg.SOLVER.CHECKPOINT_SAFETENSORS = False
    # Factor on the learning rate of the layers of the pairwise function f in each non-local block:
    # theta, phi and w_f. From scratch with AdamW, 0.1 with INIT "similarity" trains all four.
    cfg.SOLVER.NON_LOCAL_PAIRWISE_LR_FACTOR = 1.0
    # The same of the block's other layers: g, out and norm
    cfg.SOLVER.NON_LOCAL_LR_FACTOR = 1.0


def non_local_options(cfg: CfgNode) -> dict[str, Any]:
    """``MODEL.NON_LOCAL`` as the keyword arguments that shape a block, placement aside."""
    node = cfg.MODEL.NON_LOCAL
    return {
        "pairwise": node.PAIRWISE,
        "inner_ratio": node.INNER_RATIO,
        "sub_sample": node.SUB_SAMPLE,
        "use_scale": node.USE_SCALE,
        "norm": node.NORM,
        "init": node.INIT,
        "checkpoint": node.CHECKPOINT,
    }
