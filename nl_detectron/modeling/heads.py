"""Detectron2's box, mask and keypoint heads with non-local blocks between their convolutions."""

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    ROI_BOX_HEAD_REGISTRY,
    ROI_KEYPOINT_HEAD_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
)
from detectron2.modeling.roi_heads import (
    FastRCNNConvFCHead,
    KRCNNConvDeconvUpsampleHead,
    MaskRCNNConvUpsampleHead,
)
from torch import nn

from ..config import block_options
from ..layers import BlockOptions, build_block
from ..layers.names import block_name
from .joining import insert_after


class _NonLocalHead(nn.Sequential):
    """What makes a head of Detectron2's, the other base of a class, one with non-local blocks.

    Attributes:
        NODE: the node of the config that the head is read from.
        LAYER: what its convolutions are called, before their numbers.
        LAST: its convolutions, as ``conv_dims`` counts them, after which no block can go.
    """

    NODE: str
    LAYER: str
    LAST = 0

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        conv_dims: Sequence[int],
        non_local_after: Sequence[int],
        non_local_options: BlockOptions | None = None,
        **kwargs: Any,
    ):
        """
        Args:
            input_shape: channels, height and width of the RoI features.
            conv_dims: output channels of each convolution; of a mask head the last is transposed.
            non_local_after: the convolutions, counted from 1, after which a block goes.
            non_local_options: of the blocks; by default the paper's.
            kwargs: the remaining arguments of Detectron2's head.

        Raises:
            ValueError: if ``non_local_after`` names a convolution twice or one that is not there.
        """
        check_head_placement(self.NODE, non_local_after, len(conv_dims) - self.LAST)
        super().__init__(input_shape, conv_dims=conv_dims, **kwargs)  # type: ignore[call-overload]
        # After the head's own __init__, whose initialisation would undo their zero start
        for index in non_local_after:
            block = build_block(conv_dims[index - 1], options=non_local_options)
            insert_after(self, f"{self.LAYER}{index}", block_name(index), block)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        node = cfg.MODEL[cls.NODE].NON_LOCAL
        return {
            **super().from_config(cfg, input_shape),  # type: ignore[misc]
            "non_local_after": node.AFTER,
            "non_local_options": block_options(node),
        }


@ROI_BOX_HEAD_REGISTRY.register()
class NonLocalBoxHead(_NonLocalHead, FastRCNNConvFCHead):
    """Detectron2's box head with non-local blocks, of those that have convolutions.

    A block after the second convolution is the child ``nl2`` after ``conv2``; all other parameters
    keep the names they have in :class:`FastRCNNConvFCHead`.
    """

    NODE, LAYER = "ROI_BOX_HEAD", "conv"


@ROI_MASK_HEAD_REGISTRY.register()
class NonLocalMaskHead(_NonLocalHead, MaskRCNNConvUpsampleHead):
    """Mask R-CNN's mask head with non-local blocks.

    A block after the second convolution is the child ``nl2`` after ``mask_fcn2``; all other
    parameters keep the names they have in :class:`MaskRCNNConvUpsampleHead`.
    """

    NODE, LAYER, LAST = "ROI_MASK_HEAD", "mask_fcn", 1


@ROI_KEYPOINT_HEAD_REGISTRY.register()
class NonLocalKeypointHead(_NonLocalHead, KRCNNConvDeconvUpsampleHead):
    """Mask R-CNN's keypoint head with non-local blocks (paper, sec. 5.2, "NL, +4 in head").

    A block after the second convolution is the child ``nl2`` after ``conv_fcn_relu2``; all other
    parameters keep the names they have in :class:`KRCNNConvDeconvUpsampleHead`.
    """

    NODE, LAYER = "ROI_KEYPOINT_HEAD", "conv_fcn_relu"


def check_heads(cfg: CfgNode) -> None:
    """Checks the ``AFTER`` of each head of ours that a config's model has.

    Raises:
        ValueError: naming the values and the allowed ones.
    """
    model = cfg.MODEL
    box, mask, keypoint = model.ROI_BOX_HEAD, model.ROI_MASK_HEAD, model.ROI_KEYPOINT_HEAD
    if box.NAME == "NonLocalBoxHead":
        check_head_placement("ROI_BOX_HEAD", box.NON_LOCAL.AFTER, box.NUM_CONV)
    if model.MASK_ON and mask.NAME == "NonLocalMaskHead":
        check_head_placement("ROI_MASK_HEAD", mask.NON_LOCAL.AFTER, mask.NUM_CONV)
    if model.KEYPOINT_ON and keypoint.NAME == "NonLocalKeypointHead":
        convs = len(keypoint.CONV_DIMS)
        check_head_placement("ROI_KEYPOINT_HEAD", keypoint.NON_LOCAL.AFTER, convs)


def check_head_placement(head: str, after: Sequence[int], num_convs: int) -> None:
    """Checks that ``after`` names distinct convolutions out of 1 to ``num_convs``.

    Args:
        head: the node of the config that the head is read from.

    Raises:
        ValueError: naming the values and the allowed ones.
    """
    if num_convs == 0 and after:
        raise ValueError(
            f"MODEL.{head}.NON_LOCAL.AFTER = {list(after)}: this head has no convolutions to put a "
            f"block after; set MODEL.{head}.NUM_CONV, to 4 for instance, or AFTER to []"
        )
    allowed = [index for index in range(1, num_convs + 1) if list(after).count(index) <= 1]
    if not all(type(index) is int and index in allowed for index in after):
        raise ValueError(
            f"MODEL.{head}.NON_LOCAL.AFTER = {list(after)}: expected distinct convolutions out of "
            f"1 to {num_convs}, of which this head has {num_convs}"
        )
