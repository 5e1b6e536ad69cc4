"""What of Detectron2 stands in the way of ``torch.export``, and what takes its place.

``torch.export`` runs a model with symbols for its sizes and numbers of boxes, and no choice can be
made by a number that is not known. In a few places Detectron2 makes one. They have other forms
here, of the same results, for the time of a recording; all else is Detectron2's own.
"""

import contextlib
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.export.torchscript_patch import patch_builtin_len
from detectron2.modeling import anchor_generator, poolers
from detectron2.modeling.meta_arch import dense_detector
from detectron2.modeling.proposal_generator import proposal_utils
from detectron2.structures import Boxes, ImageList
from torch import Tensor, _meta_registrations, nn
from torch._library.fake_impl import FakeImplCtx
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config
from torch.overrides import TorchFunctionMode
from torchvision.ops import boxes as box_ops

from ..errors import UsageError
from ..modeling.padding import MaskingResNet
from .stand_ins import replaced


def exported_program(
    detect: Callable[[Tensor], tuple[Tensor, ...]], model: nn.Module, example: Tensor
) -> ExportedProgram:
    """A detector recorded by ``torch.export``.

    Args:
        detect: what it gives of an image, by calling ``model``.
        model: a Detectron2 detector, in evaluation mode.
        example: an image, uint8 (3, H, W).

    Raises:
        UsageError: if its blocks find out by the image where its padding is.
    """
    if any(isinstance(module, MaskingResNet) for module in model.modules()):
        raise UsageError(
            "format torch-export: blocks with MASK_PADDING read from the image where its padding "
            "is, which torch.export does not take; use another format",
            arguments=["format"],
        )
    with symbolic():
        return torch.export.export(
            _Detector(detect, model),
            (example,),
            dynamic_shapes={"image": {1: Dim.DYNAMIC, 2: Dim.DYNAMIC}},
        )


class _Detector(nn.Module):
    def __init__(self, detect: Callable[[Tensor], tuple[Tensor, ...]], model: nn.Module):
        super().__init__()
        self.detect, self.model = detect, model  # so that its parameters are found
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.detect(image)


@contextlib.contextmanager
def symbolic() -> Iterator[None]:
    """Within it Detectron2's models can be run with symbols, for one image."""
    with contextlib.ExitStack() as stack:
        for owner, name, replacement in (
            (ImageList, "from_tensors", staticmethod(padded)),
            (Boxes, "__init__", _keep_boxes),
            (anchor_generator, "_create_grid_offsets", grid_offsets),
            (proposal_utils, "min", torch.sym_min),
            (proposal_utils, "_is_tracing", lambda: True),  # then it asks for no counts
            (dense_detector, "min", torch.sym_min),
            (poolers, "convert_boxes_to_pooler_format", of_first_image),
            (box_ops, "batched_nms", batched_nms),
            (F, "batch_norm", _batch_norm),
            # Torchvision says of its NMS that it gives at least two boxes
            (FakeImplCtx, "create_unbacked_symint", FakeImplCtx.new_dynamic_size),
            # PyTorch's own asks whether the size of a pooled map was odd
            (_meta_registrations, "div_rtn", operator.floordiv),
        ):
            stack.enter_context(replaced(owner, name, replacement))
        stack.enter_context(patch_builtin_len(["detectron2.structures.instances"]))
        # Otherwise maps of one row or column, as other examples have, are refused
        oblivious = _config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
        stack.enter_context(oblivious)
        stack.enter_context(FiniteBoxes())
        stack.enter_context(torch.no_grad())
        yield


class FiniteBoxes(TorchFunctionMode):
    """Whether all of something is finite is answered with yes, as in a trace of such an example."""

    def __init__(self) -> None:
        super().__init__()
        self._asked: list[Tensor] = []  # what torch.isfinite gave, and what was made of it alone

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        known = [
            any(value is one for one in self._asked) for value in args if isinstance(value, Tensor)
        ]
        if func is Tensor.__bool__ and known == [True]:
            return True
        result = func(*args, **(kwargs or {}))
        if func is torch.isfinite or (func in (Tensor.all, Tensor.__and__) and all(known)):
            self._asked.append(result)
        return result


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """As :func:`.nms.batched_nms`, by a single NMS: classes are moved to places of their own.

    In double precision, in which that moves no coordinate by 1e-9 of a pixel.
    """
    boxes = boxes.double()
    values = torch.cat([boxes.reshape(-1), boxes.new_zeros(1)])  # there may be none
    moved = boxes + (idxs.to(boxes) * (values.max() - values.min() + 1)).unsqueeze(1)
    return box_ops.nms(moved, scores.double(), iou_threshold)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """That of evaluation. PyTorch's asks whether there are any samples."""
    return torch._native_batch_norm_legit_no_training(
        input, weight, bias, running_mean, running_var, momentum, eps
    )[0]


def padded(
    tensors: Sequence[Tensor],
    size_divisibility: int = 0,
    pad_value: float = 0.0,
    padding_constraints: dict[str, int] | None = None,
) -> ImageList:
    """Of one image. Detectron2's makes a tensor of its sizes, and reads the padding from that."""
    (image,) = tensors
    divisor = (padding_constraints or {}).get("size_divisibility", size_divisibility) or 1
    height, width = image.shape[-2:]
    right, bottom = ((size + divisor - 1) // divisor * divisor - size for size in (width, height))
    image = F.pad(image, (0, right, 0, bottom), value=pad_value)
    return ImageList(image.unsqueeze(0), [(height, width)])


def _keep_boxes(self: Boxes, tensor: Tensor) -> None:
    """Of float32 (N, 4). Detectron2's asks whether there are any."""
    self.tensor = tensor.to(torch.float32)


def grid_offsets(
    size: Sequence[int], stride: int, offset: float, target_device_tensor: Tensor
) -> tuple[Tensor, Tensor]:
    """Detectron2's counts in steps of the stride, of which no symbol for their number comes."""
    height, width = (
        (torch.arange(length, device=target_device_tensor.device) + offset) * stride
        for length in size
    )
    shift_y, shift_x = torch.meshgrid(height, width, indexing="ij")
    return shift_x.reshape(-1), shift_y.reshape(-1)


def of_first_image(box_lists: Sequence[Boxes]) -> Tensor:
    """(M, 5), the index 0 before each box. Detectron2's repeats it by numbers that it reads."""
    (boxes,) = box_lists
    return F.pad(boxes.tensor, (1, 0))
