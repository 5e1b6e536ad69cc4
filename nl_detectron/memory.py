"""One image that needs more memory than there is does not end the work on the others."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

DIVISORS = (1, 2, 4)  # of an image's sides, one after the other
# What PyTorch's allocator for CPUs, OpenCV and ONNX Runtime say
WORDS = ("can't allocate memory", "insufficient memory", "failed to allocate", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is that memory does not suffice, of a GPU or of the machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, Exception) and any(word in str(error).lower() for word in WORDS)


def predict_within_memory(
    model: Callable[[list[dict]], list[dict]], inputs: dict[str, Any]
) -> tuple[dict[str, Any] | None, int]:
    """What a model gives for an image, made smaller where memory does not suffice.

    Args:
        model: as Detectron2's in evaluation mode.
        inputs: of one image, with ``image``, (C, H, W).

    Returns:
        The outputs, in the pixels of ``height`` and ``width`` as ever, and what the image's sides
        were divided by; None where it was in vain.
    """
    for divisor in DIVISORS if "proposals" not in inputs else (1,):
        try:
            return model([_divided(inputs, divisor)])[0], divisor
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # The error is gone here, and with it what it held.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return None, divisor


def _divided(inputs: dict[str, Any], divisor: int) -> dict[str, Any]:
    if divisor == 1:
        return inputs
    image = inputs["image"]
    height, width = image.shape[1:]
    size = max(height // divisor, 1), max(width // divisor, 1)
    small = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    if not image.is_floating_point():
        small = small.round_().to(image.dtype)
    return {"height": height, "width": width, **inputs, "image": small}
