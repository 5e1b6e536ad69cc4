"""Whether a process's memory, or a GPU's, grows with what is done."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

PAGE = os.sysconf("SC_PAGE_SIZE")
WARM_UP = 0.4  # of the calls, in which caches fill
NOISE = 10.0  # MB that an allocator's memory goes up and down by


def resident(process: int | None = None) -> float:
    """A process's resident memory in MB, by default this one's."""
    statm = Path(f"/proc/{process or os.getpid()}/statm").read_text()
    return int(statm.split()[1]) * PAGE / 1e6


def allocated() -> float:
    """What this process's tensors take of the GPU's memory, in MB."""
    return torch.cuda.memory_allocated() / 1e6


def in_use() -> float:
    """What all processes take of the GPU's memory, in MB."""
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 1e6


@dataclass
class Growth:
    """Memory in MB, by how many calls have been made."""

    calls: list[int]
    memory: list[float]

    def slope(self) -> float:
        """MB that a call adds: the median of the slopes between all pairs (Theil and Sen)."""
        start = np.searchsorted(self.calls, WARM_UP * self.calls[-1])
        x, y = np.array(self.calls[start:], float), np.array(self.memory[start:])
        i, j = np.triu_indices(len(x), 1)
        return float(np.median((y[j] - y[i]) / (x[j] - x[i])))

    def is_flat(self) -> bool:
        """Whether the slope, over the calls it is taken from, leads nowhere."""
        return self.slope() * (1 - WARM_UP) * self.calls[-1] < NOISE

    def __str__(self) -> str:
        return f"{1000 * self.slope():+.2f} MB in 1,000, at {self.memory[-1]:.0f} MB"


def grow(
    function: Callable[[int], object],
    calls: int,
    *,
    samples: int = 100,
    look: Callable[[], float] = resident,
) -> Growth:
    """Calls a function many times and looks at the memory now and then.

    Args:
        function: of the number of the call.
        look: the memory in MB.
    """
    growth = Growth([], [])
    looks: Sequence[int] = np.linspace(1, calls, min(samples, calls)).astype(int).tolist()
    due = set(looks)
    for call in range(1, calls + 1):
        function(call)
        if call in due:
            growth.calls.append(call)
            growth.memory.append(look())
    return growth
