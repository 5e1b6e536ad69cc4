"""Time and memory of functions, side by side."""

import gc
import itertools
import random
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

MATRIX_SIZE = {"cpu": 2048, "cuda": 8192}  # large enough for the best rate of a matrix product


def cell_seconds(full: float, *, quick: bool, device: str) -> float:
    """How long a cell may take: ``full`` on a CPU; a GPU does as much in a few tenths."""
    return 0.5 if quick else full if device == "cpu" else 0.3


class MatrixProduct:
    """A large matrix product: what the machine reaches at best, to run among other functions.

    Attributes:
        flops: operations of one call, a multiply-add counted as two.
    """

    def __init__(self, dtype: torch.dtype, device: str):
        size = MATRIX_SIZE[device]
        self.flops = 2 * size**3
        self._a, self._b = torch.randn(2, size, size, device=device).to(dtype)
        self._product = torch.empty_like(self._a)

    def __call__(self) -> None:
        torch.mm(self._a, self._b, out=self._product)


def alternate(
    functions: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 3.0,
    at_least: int = 3,
    at_most: int = 100,
    device: str = "cpu",
) -> dict[str, float]:
    """Median time of each function, in seconds, over rounds of one run each.

    What slows the machine for a while then slows all of them; and by an order that changes from
    round to round, none always follows the one that leaves caches and clocks at their worst. The
    first round does not count where there was time for more than are asked for; of three slow ones
    the median does without it.

    Args:
        functions: what to run, by name.
        seconds: how long the rounds may take altogether.
        at_least: rounds even if they take longer.
        at_most: rounds even if there is time left.
        device: on ``cuda`` each run is waited for.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    rounds, end = 0, time.perf_counter() + seconds
    turns, shuffled = list(functions), random.Random(0)
    while rounds < at_least or (rounds < at_most and time.perf_counter() < end):
        for name in turns:
            times[name].append(_time(functions[name], device))
        shuffled.shuffle(turns)
        rounds += 1
    first = 1 if rounds > at_least else 0
    return {name: statistics.median(values[first:]) for name, values in times.items()}


def peak_memory(function: Callable[[], object], *, device: str = "cpu") -> int:
    """Bytes allocated at once at most while ``function`` runs, beyond what was there before.

    Exact: on CUDA from PyTorch's allocator; on CPU every allocation and release of a tensor's
    memory is recorded and summed. Scratch memory inside MKL and oneDNN is not PyTorch's and not
    counted. What ``function`` returns counts.
    """
    if device != "cpu":
        start_libraries(device)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    return max(itertools.accumulate(_allocations(function)), default=0)


def start_libraries(device: str) -> None:
    """Has cuBLAS allocate what it keeps, which is no function's own."""
    a = torch.zeros(64, 64, device=device)
    torch.addmm(a[0], a, a)


def held_memory(function: Callable[[], object], *, device: str = "cpu") -> int:
    """Bytes that ``function`` leaves allocated, as what it returned is held; exact as the peak."""
    gc.collect()  # what is released meanwhile would count
    if device != "cpu":
        before = torch.cuda.memory_allocated()
        result = function()
        held = torch.cuda.memory_allocated() - before
        del result
        return held
    return sum(_allocations(function))


def _allocations(function: Callable[[], object]) -> list[int]:
    """Bytes of each allocation on the CPU, releases negative, in the order of time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = function()
    del result  # only now, after the recording
    return [
        event.nbytes()
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]" and event.device_type() == DeviceType.CPU
    ]


def _time(function: Callable[[], object], device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    began = time.perf_counter()
    function()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - began
