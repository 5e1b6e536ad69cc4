"""Detectron2's keypoint head with non-local blocks between its convolutions."""

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_KEYPOINT_HEAD_REGISTRY
from detectron2.modeling.roi_heads import KRCNNConvDeconvUpsampleHead

from ..config import block_options
from ..layers import BlockOptions, build_block
from ..layers.names import block_name
from .insertion import insert_after


@ROI_KEYPOINT_HEAD_REGISTRY.register()
class NonLocalKeypointHead(KRCNNConvDeconvUpsampleHead):
    """Mask R-CNN's keypoint head with non-local blocks (paper, sec. 5.2, "NL, +4 in head").

    A block after the second convolution is the child ``nl2`` after ``conv_fcn_relu2``; all other
    parameters keep the names they have in :class:`KRCNNConvDeconvUpsampleHead`.
    """

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
            input_shape: channels of the RoI features.
            conv_dims: output channels of each convolution.
            non_local_after: the convolutions, counted from 1, after which a block goes.
            non_local_options: of the blocks; by default the paper's.
            kwargs: the remaining arguments of :class:`KRCNNConvDeconvUpsampleHead`.

        Raises:
            ValueError: if ``non_local_after`` names a convolution twice or one that is not there.
        """
        check_keypoint_head_placement(non_local_after, len(conv_dims))
        # Blocks come after super().__init__(), whose initialisation would undo their zero start.
        super().__init__(input_shape, conv_dims=conv_dims, **kwargs)
        for index in non_local_after:
            block = build_block(conv_dims[index - 1], options=non_local_options)
            insert_after(self, f"conv_fcn_relu{index}", block_name(index), block)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        node = cfg.MODEL.ROI_KEYPOINT_HEAD.NON_LOCAL
        return {
            **super().from_config(cfg, input_shape),
            "non_local_after": node.AFTER,
            "non_local_options": block_options(node),
        }


def check_keypoint_head_placement(after: Sequence[int], num_convs: int) -> None:
    """Checks that ``after`` names distinct convolutions out of 1 to ``num_convs``.

    Raises:
        ValueError: naming the values and the allowed ones.
    """
    allowed = [index for index in range(1, num_convs + 1) if list(after).count(index) <= 1]
    if not all(type(index) is int and index in allowed for index in after):
        raise ValueError(
            f"MODEL.ROI_KEYPOINT_HEAD.NON_LOCAL.AFTER = {list(after)}: expected distinct "
            f"convolutions out of 1 to {num_convs}, of which this keypoint head has {num_convs}"
        )
