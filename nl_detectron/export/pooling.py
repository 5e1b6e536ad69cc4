"""The sub-sampling of blocks for OpenVINO, which pools neither no samples nor a single row."""

from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layers import non_local
from .stand_ins import replaced


def halve(x: Tensor, first_axis: int) -> Tensor:
    """As :func:`nl_detectron.layers.pooling.halve`, with one sample and one position more for it.

    They are below all values, and are left out of what is returned.
    """
    pooled = x.dim() - first_axis
    # How much before and behind each axis, from the last one to that of the samples
    more = [0, 1] * pooled + [0, 0] * (first_axis - 1) + [0, 1]
    window = [1] * (first_axis - 2) + [2] * pooled
    max_pool = {3: F.max_pool1d, 4: F.max_pool2d, 5: F.max_pool3d}[x.dim()]
    return max_pool(F.pad(x, more, value=torch.finfo(x.dtype).min), window, window)[:-1]


def pooling_for_openvino() -> AbstractContextManager[None]:
    """Within it blocks sub-sample by :func:`halve`."""
    return replaced(non_local, "halve", halve)
