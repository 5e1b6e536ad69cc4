"""Random weights that decide: scores, boxes and masks far from each other, as trained ones have.

With Detectron2's own start scores, boxes and masks are alike to the last digits, or saturated.
Which of them come first, or pass a threshold, is then up to rounding, and says nothing about a
model.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import RetinaNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nl_detectron.layers import non_local_blocks

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
# Standard deviation and mean of each channel of what a layer gives; logits, but for the deltas'
INNER = (1.0, 0.0)
LAST = {
    "objectness_logits": (4.0, 0.0),
    "anchor_deltas": (0.2, 0.0),
    "cls_score": (3.0, 0.0),
    "bbox_pred": (1.0, 0.0),  # divided by 5 and 10
    "predictor": (5.0, 0.0),
    "score_lowres": (5.0, 0.0),
}
# RetinaNet's own, whose classes have no background beside them, and whose deltas are not divided
DENSE = {"cls_score": (2.0, -6.0), "bbox_pred": (0.2, 0.0)}
# Of a residual block's own part, which is the lesser one in trained networks. Otherwise differences
# grow with each block, those of rounding too: 700 times in 16 blocks.
BRANCH = 0.2

Inputs = list[dict[str, Any]]  # as Detectron2's models take them


def decide(model: nn.Module, inputs: Inputs, *, seed: int = 0) -> nn.Module:
    """Gives a model of random weights contrast, from what its layers see in some images.

    Norms get the statistics of what they are first given, and layers without a norm the weights
    with which each of their channels has a deviation and a mean: see :data:`LAST`.

    Args:
        model: of random weights; in evaluation mode after it.
        inputs: images that are not blank.
        seed: of the blocks' weights, which do something after it.
    """
    torch.manual_seed(seed)
    blocks = non_local_blocks(model)
    for block in blocks.values():
        block.reset_parameters(zero_init=False)
    hooks: dict[nn.Module, Any] = {}
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if isinstance(module, FrozenBatchNorm2d | _BatchNorm):
            hooks[module] = module.register_forward_pre_hook(_Once(_settle))
            if name.endswith("conv3.norm"):
                module.weight.data.fill_(BRANCH)
        elif any(name.startswith(f"{block}.") for block in blocks):
            continue
        elif isinstance(module, LAYERS) and module.bias is not None:
            dense = last in DENSE and isinstance(module, nn.Conv2d)
            std, mean = (DENSE if dense else LAST).get(last, INNER)
            hook = _Once(partial(_spread, std=std, mean=mean))
            hooks[module] = module.register_forward_hook(hook)
    with torch.no_grad():
        model.eval()(inputs)
    for hook in hooks.values():
        hook.remove()
    if isinstance(model, RetinaNet):
        _see_nothing_in_blank(model, torch.zeros_like(inputs[0]["image"]))
    return model


def _see_nothing_in_blank(model: RetinaNet, image: Tensor) -> None:
    """Its scores there would be the same in all positions, and so in no order."""
    layer = model.head.cls_score
    with torch.no_grad():
        features = model.backbone(model.preprocess_image([{"image": image}]).tensor)
        logits = layer(model.head.cls_subnet(features[model.head_in_features[0]]))
        layer.bias += DENSE["cls_score"][1] - logits.mean((0, 2, 3))


class _Once:
    """A hook for a module's first call with anything in it: heads are shared by many levels."""

    def __init__(self, hook: Callable[..., Any]):
        self._hook = hook
        self._called = False

    def __call__(self, module: nn.Module, inputs: tuple[Tensor], *output: Tensor) -> Any:
        if self._called or not inputs[0].numel():
            return None
        self._called = True
        return self._hook(module, *inputs, *output)


def _settle(norm: Any, x: Tensor) -> None:
    variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance.clamp(min=1e-3))


def _spread(layer: Any, x: Tensor, output: Tensor, *, std: float, mean: float) -> Tensor:
    deviation, average = torch.std_mean(output, dim=_others(output), correction=0)
    scale = std / deviation.clamp(min=1e-6)
    outputs_dim = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
    shape = [-1 if dim == outputs_dim else 1 for dim in range(layer.weight.dim())]
    layer.weight.mul_(scale.view(shape))
    layer.bias.copy_((layer.bias - average) * scale + mean)
    return (output - average.view(_channels(output))) * scale.view(_channels(output)) + mean


def _others(output: Tensor) -> list[int]:
    return [dim for dim in range(output.dim()) if dim != 1]


def _channels(output: Tensor) -> list[int]:
    return [-1 if dim == 1 else 1 for dim in range(output.dim())]
