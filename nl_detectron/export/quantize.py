"""Post-training quantization: products of 8-bit integers where a detector bears them.

In float stay the non-local blocks, whose sums over all positions cancel, the layers whose outputs
are scores, boxes, masks and keypoints, and all that is computed with coordinates: of 8 bits they
would be steps of a 256th of the image, by which small boxes miss their objects.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from ..inference.optimize import OUTPUT_LAYERS

MOST_IMAGES = 300  # for the ranges of activations, which more of them do not change
# Names that OpenVINO gives to the operations of the graph: the module's path, then the operation
FLOAT = (
    r".*nl\d+.*",
    *(rf".*/{layer}.*" for layer in OUTPUT_LAYERS),
    # Boxes: what Detectron2's models compute outside of layers, and between them
    r"/((proposal_generator|roi_heads)/)?[^/]*$",
    r".*(anchor_generator|_pooler)/.*",
)


def check_quantizable(format: str, images: Sequence[np.ndarray]) -> None:
    """
    Raises:
        UsageError: if this format cannot be quantized, or something is missing for it.
    """
    if format != "openvino":
        raise UsageError(
            f"int8 is for format openvino, which runs it fastest on CPUs; got format {format}",
            arguments=["int8", "format"],
        )
    if not images:
        raise UsageError(
            "int8 needs images of your own, some tens to 300, to see the range of each layer; "
            "give them as images",
            arguments=["int8", "images"],
        )
    _nncf()


class _PointwiseConvolution(nn.Linear):
    """A linear layer of (N, C) as a 1x1 convolution, with the N side by side as its positions.

    OpenVINO's kernels for convolutions of integers are several times as fast as those for matrices.
    """

    def forward(self, x: Tensor) -> Tensor:
        positions = x.reshape(1, 1, -1, self.in_features).permute(0, 3, 1, 2)
        y = F.conv2d(positions, self.weight[:, :, None, None], self.bias)
        return y.permute(0, 2, 3, 1).reshape(-1, self.out_features)


def prefer_convolutions(model: nn.Module) -> None:
    """Makes convolutions of the linear layers that are to be quantized, in place."""
    for name, module in model.named_modules():
        if type(module) is nn.Linear and name.rpartition(".")[2] not in OUTPUT_LAYERS:
            module.__class__ = _PointwiseConvolution


def quantize(model: Any, inputs: Sequence[np.ndarray]) -> Any:
    """An OpenVINO model with 8-bit products.

    Args:
        model: an ``openvino.Model`` of an image of any size.
        inputs: images as it takes them, uint8 (3, H, W), to calibrate with.

    Returns:
        An ``openvino.Model``.
    """
    nncf = _nncf()
    nncf.set_log_level(40)  # its notes are of the graph, which no user can change
    no_smoothing = nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
    return nncf.quantize(
        model,
        nncf.Dataset(list(inputs)),
        subset_size=len(inputs),
        ignored_scope=nncf.IgnoredScope(patterns=list(FLOAT), validate=False),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            # Weights of 7 bits: without VNNI two products of 8 exceed the 16 that they are added in
            overflow_fix=nncf.OverflowFix.ENABLE,
            smooth_quant_alphas=no_smoothing,
        ),
    )


def _nncf() -> Any:
    try:
        import nncf
    except ImportError:
        raise UsageError(
            "int8 needs nncf, which is not installed; install it with: "
            "pip install nl_detectron[int8]",
            arguments=["int8"],
        ) from None
    return nncf
