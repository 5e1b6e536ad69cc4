"""The non-local blocks of video-nonlocal-net, the paper's released code, in Caffe2."""

import re
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from ...layers.names import block_name, place_of
from ..reading import CheckpointError
from .converted import Converted, need

BLOB = re.compile(r"nonlocal_conv([2-5])_(\d+)_(theta|phi|g|out|bn)_(w|b|s|rm|riv)")
# Its config's NONLOCAL.BN_EPSILON
EPSILON = 1.0000001e-5


def convert_video_blocks(blobs: Mapping[str, Tensor]) -> Converted:
    """The blocks, whose 1x1x1 convolutions become 1x1, with the norm after each folded into W_z.

    ``nonlocal_conv4_1`` stands after residual block 1 of res4, as ``res4.nl1`` does here.

    Raises:
        CheckpointError: if there is no such block, or one is not whole.
    """
    blocks: Mapping[str, dict[str, Tensor]] = defaultdict(dict)
    left_out = 0
    for name, blob in blobs.items():
        if match := BLOB.fullmatch(name):
            stage, index, layer, end = match.groups()
            blocks[f"res{stage}.{block_name(int(index))}"][f"{layer}_{end}"] = torch.as_tensor(blob)
        else:
            left_out += not name.endswith("_momentum")
    if not blocks:
        raise CheckpointError("not converted: there is no blob nonlocal_conv..., so no block")
    blocks = dict(sorted(blocks.items()))
    weights = {
        f"{place}.{name}": tensor
        for place, block in blocks.items()
        for name, tensor in _convert(place, block).items()
    }
    overrides = {
        "MODEL.NON_LOCAL.AFTER": [place_of(name) for name in blocks],
        "MODEL.NON_LOCAL.PAIRWISE": "embedded_gaussian",
        "MODEL.NON_LOCAL.SUB_SAMPLE": False,
        "MODEL.NON_LOCAL.USE_SCALE": True,
        "MODEL.NON_LOCAL.NORM": "",
    }
    notes = [
        "equal outputs for blocks trained without max-pooling (NONLOCAL.USE_MAXPOOL False). With "
        "it, as the released models have it, that code pools before phi and g, which no block "
        "here does: outputs differ, so fine-tune them",
        "taken as NONLOCAL.USE_SOFTMAX and USE_SCALE True, its defaults, which the file does not "
        "show; without softmax it is PAIRWISE dot_product",
        f"{left_out} blobs of the video network around the blocks are left out",
    ]
    return Converted(weights, overrides, by_suffix=True, notes=notes)


def _convert(place: str, block: dict[str, Tensor]) -> dict[str, Tensor]:
    need(
        {f"{place}: {name}": tensor for name, tensor in block.items()},
        *(f"{place}: {layer}_w" for layer in ("theta", "phi", "g", "out")),
    )
    tensors: dict[str, Tensor] = {}
    for layer in ("theta", "phi", "g", "out"):
        weight = block[f"{layer}_w"]
        if tuple(weight.shape[2:]) not in ((1, 1, 1), (1, 1)):
            raise CheckpointError(f"not converted: {place} {layer}_w is {list(weight.shape)}")
        tensors[f"{layer}.weight"] = weight.reshape(*weight.shape[:2], 1, 1)
        bias = block.get(f"{layer}_b")  # none with NONLOCAL.NO_BIAS
        tensors[f"{layer}.bias"] = weight.new_zeros(len(weight)) if bias is None else bias
    if "bn_s" in block:  # BN, or the affine layer that it was folded into, without statistics
        need(block, "bn_b")
        scale, mean = block["bn_s"], block.get("bn_rm", torch.zeros(()))
        if "bn_riv" in block:  # the running variance, whatever its name says
            scale = scale * (block["bn_riv"] + EPSILON).rsqrt()
        tensors["out.weight"] = tensors["out.weight"] * scale.reshape(-1, 1, 1, 1)
        tensors["out.bias"] = (tensors["out.bias"] - mean) * scale + block["bn_b"]
    return tensors
