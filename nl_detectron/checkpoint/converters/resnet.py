"""ResNets under torchvision's names, which timm and mmdetection use, too."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..reading import CheckpointError
from .converted import Converted, Rule, need, rename_all

NORM = "(weight|bias|running_mean|running_var)"
RULES: tuple[Rule, ...] = (
    (r"fc\.(weight|bias)", ""),  # the classifier
    (r".*num_batches_tracked", ""),  # a counter
    (r"conv1\.weight", "stem.conv1.weight"),
    (rf"bn1\.{NORM}", r"stem.conv1.norm.\1"),
    (r"res(\d)\.(\d+)\.conv(\d)\.weight", r"res\1.\2.conv\3.weight"),
    (rf"res(\d)\.(\d+)\.bn(\d)\.{NORM}", r"res\1.\2.conv\3.norm.\4"),
    (r"res(\d)\.(\d+)\.downsample\.0\.weight", r"res\1.\2.shortcut.weight"),
    (rf"res(\d)\.(\d+)\.downsample\.1\.{NORM}", r"res\1.\2.shortcut.norm.\3"),
)
# By the number of residual blocks in each stage, with two and with three convolutions in a block
DEPTHS = {
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
}
# torchvision's mean and standard deviation of RGB in 0 to 1, for 0 to 255
RGB = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
}


def convert_resnet(weights: Mapping[str, Tensor]) -> Converted:
    """A ResNet, ResNeXt or wide ResNet of torchvision or timm, without its classifier.

    Raises:
        CheckpointError: for variants that Detectron2's ResNet does not compute, such as those with
            a deep stem, average pooling in the shortcut, attention in the blocks or other norms.
    """
    notes = [
        "pixel mean and standard deviation are torchvision's; a few timm models have others, and "
        "some (resnetaa50, ...) differ from a ResNet in layers without weights, which no file "
        "shows"
    ]
    names = rename_resnet(weights)
    return Converted(names, {**describe_resnet(names), **RGB}, by_suffix=True, notes=notes)


def rename_resnet(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under Detectron2's names (``res4.5.conv1.norm.weight``)."""
    staged = {
        re.sub(r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}.", name): tensor
        for name, tensor in weights.items()
    }
    renamed = rename_all(staged, RULES, "a ResNet")
    for name, tensor in renamed.items():
        if tensor.dim() != (1 if ".norm." in name else 4):
            raise CheckpointError(
                f"not converted: {name} has shape {list(tensor.shape)}, so it is no ResNet of "
                "Detectron2's"
            )
        if name.endswith("norm.weight"):
            need(renamed, name.replace("norm.weight", "norm.running_var"))
    return renamed


def describe_resnet(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The config keys of a ResNet, read from its weights under Detectron2's names.

    Raises:
        CheckpointError: if Detectron2 has no ResNet of that many blocks or of such a stem.
    """

    def count(stage: int) -> int:
        return len({n.split(".")[1] for n in weights if n.startswith(f"res{stage}.")})

    blocks = count(2), count(3), count(4), count(5)
    has_bottlenecks = "res2.0.conv3.weight" in weights
    depth = DEPTHS.get((blocks, has_bottlenecks))
    if depth is None:
        raise CheckpointError(
            f"not converted: Detectron2 has no ResNet of {blocks} blocks with "
            f"{3 if has_bottlenecks else 2} convolutions each"
        )
    need(weights, "stem.conv1.weight", "res2.0.conv2.weight")
    stem, conv2 = weights["stem.conv1.weight"], weights["res2.0.conv2.weight"]
    if tuple(stem.shape[1:]) != (3, 7, 7):
        raise CheckpointError(f"not converted: its stem has shape {list(stem.shape)}")
    described: dict[str, Any] = {
        "MODEL.RESNETS.DEPTH": depth,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": stem.shape[0],
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": conv2.shape[0],
    }
    if has_bottlenecks:
        described |= {
            "MODEL.RESNETS.RES2_OUT_CHANNELS": weights["res2.0.conv3.weight"].shape[0],
            "MODEL.RESNETS.NUM_GROUPS": conv2.shape[0] // conv2.shape[1],
            "MODEL.RESNETS.WIDTH_PER_GROUP": conv2.shape[1],
        }
    return described
