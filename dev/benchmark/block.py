"""The block beside mmcv's NonLocal2d, the block that people use today, and a textbook version."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from nl_detectron.layers import PAIRWISE_FUNCTIONS, NonLocalBlock

from .attention import attention_table
from .measure import MatrixProduct, alternate, cell_seconds, peak_memory
from .table import Table, dtypes, text_of

RES4, RES3 = (50, 84), (100, 168)  # of 800x1333 pixels
MAPS = ((25, 42), RES4, (84, 84), RES3)
LONGEST = 65536  # positions: a float32 matrix of all pairs takes 17 GB
PEER_LIMIT = 8e9  # bytes: cells in which a peer would need more are left out, and say so


class Setting(Protocol):
    """What a step of any module depends on."""

    @property
    def training(self) -> bool: ...
    @property
    def size(self) -> tuple[int, int]: ...
    @property
    def batch(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def dtype(self) -> torch.dtype: ...


@dataclass(frozen=True)
class Cell:
    """One setting of the block, and what a step of it costs.

    Attributes:
        size: height and width of the map.
        channels: C; inner channels are half of it.
    """

    pairwise: str
    sub_sample: bool
    training: bool
    size: tuple[int, int]
    batch: int = 1
    channels: int = 1024
    dtype: torch.dtype = torch.float32

    @property
    def pairs(self) -> int:
        """Elements of the matrix of all pairs, of the whole batch."""
        height, width = self.size
        keys = -(-height // 2) * -(-width // 2) if self.sub_sample else height * width
        return self.batch * height * width * keys

    @property
    def flops(self) -> int:
        """Operations that the products of the block cannot do without, a multiply-add being two.

        Backward takes twice those of forward. Dot products are taken in the cheaper order, of the
        Gaussian's symmetric logits every second one; the concatenation form has no products of
        pairs.
        """
        inner = self.channels // 2
        positions = self.batch * self.size[0] * self.size[1]
        projections = (2 if self.pairwise == "gaussian" else 4) * self.channels * inner * positions
        keys = self.pairs // positions
        products = {
            "gaussian": self.pairs * (inner + (self.channels if self.sub_sample else inner)),
            "embedded_gaussian": self.pairs * 2 * inner,
            "dot_product": min(
                self.pairs * 2 * inner, (positions + self.batch * keys) * inner * inner
            ),
            "concatenation": 0,
        }
        return 2 * (3 if self.training else 1) * (projections + products[self.pairwise])

    @property
    def peer_bytes(self) -> int:
        """What the peers hold at least: matrices of all pairs, C of them for concatenation."""
        matrices = 2 * self.channels if self.pairwise == "concatenation" else 2
        return matrices * self.pairs * self.dtype.itemsize * (2 if self.training else 1)

    @property
    def labels(self) -> tuple[str, ...]:
        """Cells of a row of a table."""
        return (
            self.pairwise.replace("_", " "),
            "yes" if self.sub_sample else "no",
            "training" if self.training else "inference",
            f"{self.size[0]}x{self.size[1]}",
            str(self.batch),
            str(self.channels),
            str(self.dtype).removeprefix("torch."),
        )

    @property
    def goal(self) -> float:
        """How many times a peer's speed is aimed for."""
        positions = self.size[0] * self.size[1]
        if self.pairwise == "concatenation":
            return 10.0
        if self.pairwise == "dot_product" and self.size == RES4 and not self.sub_sample:
            return 2.4
        if self.pairwise == "embedded_gaussian" and positions >= RES4[0] * RES4[1]:
            return 1.1 if self.sub_sample else 1.4
        return 1.0


LABELS = ("pairwise", "sub-sampled", "step", "map", "batch", "C", "dtype")


def tables(*, quick: bool, device: str) -> Iterator[Table]:
    """Time, memory and, on CUDA, backends of attention.

    Raises:
        ImportError: if mmcv-lite is missing.
    """
    maps = MAPS[:1] if quick else MAPS
    cells = time_cells(maps, quick=quick, device=device)
    yield time_table(cells, device, seconds=cell_seconds(2.0, quick=quick, device=device))
    yield memory_table(memory_cells(maps[:1] if quick else (RES4, RES3)), device)
    yield linear_table([(1, 1024), (1, 4096)] if quick else LENGTHS, device)
    yield attention_table((RES4, RES3), device)


def time_cells(maps: tuple[tuple[int, int], ...], *, quick: bool, device: str) -> Iterator[Cell]:
    """What is timed: a cross of all settings at C = 1024 and batch 1, and arms from it."""
    steps = tuple(itertools.product(PAIRWISE_FUNCTIONS, (False, True), (False, True)))
    measured = [getattr(torch, name) for name in dtypes(device)][: 1 if quick else None]
    for dtype, size, step in itertools.product(measured, maps, steps):
        yield Cell(*step, size, dtype=dtype)
    if quick:
        return
    for dtype, size, step in itertools.product(measured, (MAPS[0],), steps):
        yield Cell(*step, size, batch=2, dtype=dtype)
    for dtype, size, step in itertools.product(measured, (RES4,), steps):
        yield Cell(*step, size, channels=512, dtype=dtype)


def memory_cells(maps: tuple[tuple[int, int], ...]) -> Iterator[Cell]:
    for size, training, pairwise in itertools.product(maps, (False, True), PAIRWISE_FUNCTIONS):
        yield Cell(pairwise, False, training, size)


# height and width of maps from 4,096 positions to 65,536
LENGTHS = [(64, 64), (128, 64), (128, 128), (256, 128), (256, 256)]


def time_table(cells: Iterator[Cell], device: str, *, seconds: float) -> Table:
    """Ratios of medians, and the fraction of the machine's rate of matrix products."""
    rows = []
    for cell in tqdm(list(cells), desc="block: time", unit="cell", leave=False):
        functions = {"ours": step_of(_ours(cell), cell, device)}
        if cell.peer_bytes <= PEER_LIMIT:
            if _mmcv_runs(cell):
                functions["mmcv"] = step_of(_mmcv(cell), cell, device)
            if cell.size != RES3:
                functions["textbook"] = step_of(Textbook(cell), cell, device)
        product = MatrixProduct(cell.dtype, device)
        times = alternate(functions | {"product": product}, seconds=seconds, device=device)
        ours, rate = times["ours"], product.flops / times["product"]
        rows.append(
            (
                *cell.labels,
                f"{1e3 * ours:.1f}",
                *(
                    f"{times[peer] / ours:.2f}" if peer in times else _left_out(peer, cell)
                    for peer in ("mmcv", "textbook")
                ),
                f"{cell.goal:.1f}",
                f"{cell.flops / rate / ours:.2f}",
            )
        )
    title = "The block's time"
    return Table(
        title,
        text_of(title, limit=PEER_LIMIT / 1e9),
        (*LABELS, "ours (ms)", "mmcv / ours", "textbook / ours", "goal", "limit"),
        rows,
    )


def memory_table(cells: Iterator[Cell], device: str) -> Table:
    """Peak memory beside the peer's."""
    rows = []
    for cell in tqdm(list(cells), desc="block: memory", unit="cell", leave=False):
        ours = extra_memory(_ours(cell), cell, device)
        goal = 0.1 if cell.size == RES3 else 0.25
        if cell.peer_bytes <= PEER_LIMIT and _mmcv_runs(cell):
            peer = extra_memory(_mmcv(cell), cell, device)
            theirs, part = f"{peer / 1e6:.0f}", f"{ours / peer:.3f}"
        else:
            theirs, part = _left_out("mmcv", cell), f"< {ours / cell.peer_bytes:.3f}"
        rows.append((*cell.labels, f"{ours / 1e6:.0f}", theirs, part, f"{goal:.2f}"))
    title = "The block's memory"
    return Table(
        title,
        text_of(title),
        (*LABELS, "ours (MB)", "mmcv (MB)", "ours / mmcv", "goal"),
        rows,
    )


def linear_table(sizes: list[tuple[int, int]], device: str) -> Table:
    """Peak memory per position, which stays the same where memory is linear."""
    rows = []
    for pairwise, size in itertools.product(PAIRWISE_FUNCTIONS, sizes):
        # C = 64: what grows with N alone is seen, and time stays short
        cell = Cell(pairwise, False, False, size, channels=64)
        extra = extra_memory(_ours(cell), cell, device)
        positions = size[0] * size[1]
        matrix = positions**2 * cell.dtype.itemsize
        rows.append(
            (
                pairwise.replace("_", " "),
                f"{positions:,}",
                f"{extra / 1e6:.1f}",
                f"{extra / positions / (cell.channels * cell.dtype.itemsize):.2f}",
                f"{matrix / 1e6:,.0f}",
            )
        )
    title = "Memory grows with the number of positions, not with its square"
    return Table(
        title,
        text_of(title),
        ("pairwise", "N", "ours (MB)", "in inputs", "one matrix of all pairs (MB)"),
        rows,
    )


def extra_memory(module: nn.Module, cell: Cell, device: str) -> int:
    """Peak bytes of one step beyond output and, in training, gradients of input and parameters."""
    step = step_of(module, cell, device)
    peak = peak_memory(step, device=device)
    maps = (2 if cell.training else 1) * cell.batch * cell.channels * cell.size[0] * cell.size[1]
    outputs = maps * cell.dtype.itemsize
    if cell.training:
        outputs += sum(p.numel() * p.element_size() for p in module.parameters())
    return peak - outputs


class Textbook(nn.Module):
    """The paper's equations 1 to 6 as one would write them down: a peer."""

    def __init__(self, cell: Cell):
        super().__init__()
        inner = cell.channels // 2
        embedded = cell.pairwise != "gaussian"
        self.pairwise = cell.pairwise
        self.theta = nn.Conv2d(cell.channels, inner, 1) if embedded else nn.Identity()
        self.phi = nn.Conv2d(cell.channels, inner, 1) if embedded else nn.Identity()
        self.g = nn.Conv2d(cell.channels, inner, 1)
        self.out = nn.Conv2d(inner, cell.channels, 1)
        self.pool = nn.MaxPool2d(2, ceil_mode=True) if cell.sub_sample else nn.Identity()
        self.w_f = nn.Linear(2 * inner, 1, bias=False) if cell.pairwise == "concatenation" else None

    def forward(self, x: Tensor) -> Tensor:
        """z, (N, C, H, W), of x (N, C, H, W)."""
        theta = self.theta(x).flatten(2).transpose(1, 2)  # (N, L, D)
        phi = self.pool(self.phi(x)).flatten(2)  # (N, D, M)
        g = self.pool(self.g(x)).flatten(2).transpose(1, 2)  # (N, M, D)
        if self.w_f is not None:
            pairs = theta.shape[1], phi.shape[2]
            left = theta.unsqueeze(2).expand(-1, *pairs, -1)
            right = phi.transpose(1, 2).unsqueeze(1).expand(-1, *pairs, -1)
            f = self.w_f(torch.cat([left, right], dim=-1)).squeeze(-1).relu() / pairs[1]
        elif self.pairwise == "dot_product":
            f = theta @ phi / phi.shape[2]
        else:
            f = (theta @ phi * theta.shape[2] ** -0.5).softmax(dim=-1)
        y = (f @ g).transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.out(y)


def _ours(cell: Cell) -> nn.Module:
    return NonLocalBlock(
        cell.channels, pairwise=cell.pairwise, sub_sample=cell.sub_sample, zero_init=False
    )


def _mmcv(cell: Cell) -> nn.Module:
    from mmcv.cnn.bricks.non_local import NonLocal2d

    return NonLocal2d(
        cell.channels, mode=cell.pairwise, sub_sample=cell.sub_sample, zeros_init=False
    )


def step_of(module: nn.Module, cell: Setting, device: str) -> Callable[[], Tensor]:
    """One run of the cell, which returns the block's output."""
    module.to(device, cell.dtype)
    x = torch.randn(cell.batch, cell.channels, *cell.size, device=device).to(cell.dtype)
    if not cell.training:

        def infer() -> Tensor:
            with torch.inference_mode():
                return module(x)

        return infer
    x.requires_grad_()
    gradient = torch.randn_like(x)

    def train() -> Tensor:
        x.grad = None
        module.zero_grad()
        z = module(x)
        z.backward(gradient)
        return z

    return train


def _mmcv_runs(cell: Cell) -> bool:
    """Not in training of the concatenation form, whose ReLU's output is changed in place."""
    return not (cell.pairwise == "concatenation" and cell.training)


def _left_out(peer: str, cell: Cell) -> str:
    """Why a peer is not measured."""
    if cell.peer_bytes > PEER_LIMIT:
        return f"would need {cell.peer_bytes / 1e9:.0f} GB"
    return "-" if peer == "textbook" else "fails"
