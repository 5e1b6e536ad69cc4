"""Kernels of attention that PyTorch has for CUDA, beside the block's own."""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from nl_detectron.layers.parts import softmax_in_parts

from .measure import alternate, peak_memory
from .table import NOT_MEASURED, Table, text_of


def attention_table(maps: Sequence[tuple[int, int]], device: str) -> Table:
    """PyTorch's kernels for the head dimension of a block after res4, which flash does not take."""
    rows = []
    for dtype, size, training in itertools.product(
        (torch.bfloat16, torch.float16), maps, (False, True)
    ):
        step = "training" if training else "inference"
        label = (step, f"{size[0]}x{size[1]}", str(dtype).removeprefix("torch."))
        if device == "cpu":
            rows.append((*label, *[NOT_MEASURED] * (len(ATTENTION) + 2)))
            continue
        operands = torch.randn(3, 1, 1, size[0] * size[1], 512, device=device, dtype=dtype)
        steps = {name: _attention_step(at, operands, training) for name, at in ATTENTION.items()}
        functions = {name: step for name, step in steps.items() if _runs(step)}
        times = alternate(functions, seconds=1.0, device=device)
        memory = [peak_memory(functions[name], device=device) for name in list(ATTENTION)[:2]]
        rows.append(
            (
                *label,
                *(f"{1e3 * times[name]:.3f}" if name in times else "-" for name in ATTENTION),
                *(f"{peak / 1e6:.0f}" for peak in memory),
            )
        )
    title = "Backends of attention on CUDA"
    memory_of = (f"{name} (MB)" for name in list(ATTENTION)[:2])
    return Table(title, text_of(title), ("step", "map", "dtype", *ATTENTION, *memory_of), rows)


def _attention_step(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor], operands: Tensor, training: bool
) -> Callable[[], object]:
    q, k, v = (x.clone().requires_grad_(training) for x in operands)
    if not training:
        return lambda: attend(q, k, v)
    gradient = torch.randn_like(q)
    return lambda: torch.autograd.grad(attend(q, k, v), (q, k, v), gradient)


def _attend(*backends: SDPBackend) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(list(backends)):
            return scaled_dot_product_attention(q, k, v)

    return attend


def _in_parts(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.squeeze(1) for x in (q, k, v))
    return softmax_in_parts(q, k, v, q.shape[2] ** -0.5).unsqueeze(1)


def _flash_on_halves(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    attend = _attend(SDPBackend.FLASH_ATTENTION)
    q, k = q[..., :256], k[..., :256]
    return torch.cat([attend(q, k, half) for half in v.chunk(2, dim=-1)], dim=-1)


ATTENTION: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "the block's": _in_parts,
    "PyTorch's choice": scaled_dot_product_attention,
    "math": _attend(SDPBackend.MATH),
    "memory-efficient": _attend(SDPBackend.EFFICIENT_ATTENTION),
    "cuDNN": _attend(SDPBackend.CUDNN_ATTENTION),
    "flash on halves": _flash_on_halves,
}


def _runs(step: Callable[[], object]) -> bool:
    try:
        step()
    except RuntimeError:  # there is no such kernel for these operands
        return False
    return True
