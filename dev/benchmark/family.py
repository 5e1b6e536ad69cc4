"""Each block of the family beside its peer: mmcv's, or the equations written plainly."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from tqdm import tqdm

from nl_detectron.analysis import count_flops
from nl_detectron.layers import (
    AsymmetricNonLocalBlock,
    BaseNonLocalBlock,
    CrissCrossBlock,
    DisentangledNonLocalBlock,
    EfficientAttentionBlock,
    EMABlock,
    GlobalContextBlock,
    LatentGNNBlock,
    NonLocalBlock,
    SimplifiedNonLocalBlock,
)

from . import family_peers as peers
from .block import MAPS, step_of
from .measure import alternate, cell_seconds, peak_memory
from .table import Table, text_of


@dataclass(frozen=True)
class Pair:
    """A block and its peer.

    Attributes:
        name: of the block and its options, as rows have it.
        ours: the block of C channels.
        peer: whose code it is measured beside.
        theirs: the peer of C channels.
        narrow: whether it is measured at a quarter of the channels, too.
    """

    name: str
    ours: Callable[..., BaseNonLocalBlock]
    peer: str
    theirs: Callable[..., nn.Module]
    narrow: bool = False


@dataclass(frozen=True)
class Cell:
    """One setting of a pair; as :class:`.block.Cell`."""

    pair: Pair
    training: bool
    size: tuple[int, int]
    channels: int = 1024
    batch: int = 1
    dtype: torch.dtype = torch.float32

    @property
    def labels(self) -> tuple[str, ...]:
        """Cells of a row of a table."""
        step = "training" if self.training else "inference"
        return self.pair.name, self.pair.peer, step, f"{self.size[0]}x{self.size[1]}"


def _global_context(ratio: float) -> Pair:
    return Pair(
        f"global context, D = C/{round(1 / ratio)}",
        partial(GlobalContextBlock, inner_ratio=ratio),
        "mmcv ContextBlock",
        partial(peers.context_block, ratio=ratio),
        narrow=True,
    )


def _whole_and_sub_sampled(
    name: str,
    ours: Callable[..., BaseNonLocalBlock],
    peer: str,
    theirs: Callable[..., nn.Module],
) -> Iterator[Pair]:
    for title, sub_sample in ((name, False), (f"{name}, sub-sampled", True)):
        yield Pair(
            title,
            partial(ours, sub_sample=sub_sample),
            peer,
            partial(theirs, sub_sample=sub_sample),
        )


def _criss_cross(recurrence: int) -> Pair:
    return Pair(
        f"criss-cross, {('once', 'twice')[recurrence - 1]}",
        partial(CrissCrossBlock, inner_ratio=1 / 8, recurrence=recurrence),
        "mmcv CrissCrossAttention",
        partial(peers.criss_cross_attention, recurrence=recurrence),
    )


PAIRS = (
    *_whole_and_sub_sampled("embedded Gaussian", NonLocalBlock, "mmcv NonLocal2d", peers.non_local),
    _global_context(1 / 16),
    _global_context(1 / 4),
    Pair(
        "simplified",
        SimplifiedNonLocalBlock,
        "mmcv GeneralizedAttention",
        peers.key_content_attention,
        narrow=True,
    ),
    *_whole_and_sub_sampled(
        "disentangled", DisentangledNonLocalBlock, "equations", peers.Disentangled
    ),
    _criss_cross(1),
    _criss_cross(2),
    Pair("efficient attention", EfficientAttentionBlock, "equations", peers.Efficient),
    Pair("asymmetric", AsymmetricNonLocalBlock, "equations", peers.Asymmetric),
    Pair(
        "expectation-maximization",
        partial(EMABlock, momentum=1.0),  # the bases are left as they are on both sides
        "equations",
        peers.ExpectationMaximization,
    ),
    Pair("latent nodes", LatentGNNBlock, "equations", peers.LatentGNN),
)


def tables(*, quick: bool, device: str) -> Iterator[Table]:
    """Time and memory of each pair."""
    maps = MAPS[:1] if quick else MAPS[:2]
    yield family_table(cells(maps), device, seconds=cell_seconds(3.0, quick=quick, device=device))


def cells(maps: tuple[tuple[int, int], ...], channels: int = 1024) -> Iterator[Cell]:
    """All pairs at C = ``channels``; those that cost little at a quarter of them, too."""
    for size, pair, training in itertools.product(maps, PAIRS, (False, True)):
        for width in (channels, channels // 4) if pair.narrow else (channels,):
            yield Cell(pair, training, size, width)


def family_table(cells: Iterable[Cell], device: str, *, seconds: float) -> Table:
    """Ratios of medians, and of peaks of memory."""
    rows = [
        (*cell.labels, f"{cell.channels}", _operations(cell), *_measured(cell, device, seconds))
        for cell in tqdm(list(cells), desc="family", unit="cell", leave=False)
    ]
    title = "The family's time and memory"
    return Table(
        title,
        text_of(title),
        (
            *("block", "peer", "step", "map", "C", "GMAC", "ours (ms)", "peer / ours", "goal"),
            *("ours (maps)", "ours / peer", "goal "),
        ),
        rows,
    )


def _operations(cell: Cell) -> str:
    """Multiply-adds of the forward pass, 1e9."""
    x = torch.zeros(cell.batch, cell.channels, *cell.size)
    return f"{count_flops(cell.pair.ours(cell.channels).eval(), x).total() / 1e9:.3g}"


def _measured(cell: Cell, device: str, seconds: float) -> tuple[str, ...]:
    """What is in a row after its labels."""
    ours = step_of(cell.pair.ours(cell.channels, zero_init=False), cell, device)
    functions = {"ours": ours}
    with suppress(ImportError):  # of mmcv-lite
        functions["peer"] = step_of(cell.pair.theirs(cell.channels), cell, device)
    memory = {name: peak_memory(step, device=device) for name, step in functions.items()}
    times = alternate(functions, seconds=seconds, at_least=5, at_most=300, device=device)
    one_map = cell.batch * cell.channels * cell.size[0] * cell.size[1] * cell.dtype.itemsize
    faster = part = "needs mmcv-lite"
    if "peer" in functions:
        faster = f"{times['peer'] / times['ours']:.2f}"
        part = f"{memory['ours'] / memory['peer']:.2f}"
    milliseconds, maps = f"{1e3 * times['ours']:.2f}", f"{memory['ours'] / one_map:.2f}"
    return milliseconds, faster, "1.00", maps, part, "1.00"
