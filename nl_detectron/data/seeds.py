"""Random numbers that depend on a place in a training, and not on what was drawn before it."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch

# What random numbers are for: the first part of a place
STEP, SAMPLE, SAMPLER = range(3)


def derive(seed: int, *place: int) -> int:
    """A seed of 63 bits for one place of a run.

    Args:
        seed: the run's, at least 0.
        place: such as ``(SAMPLE, 7)``: integers from 0.
    """
    state = np.random.SeedSequence(seed, spawn_key=place).generate_state(1, np.uint64)
    return int(state[0]) >> 1


def seed_all(seed: int) -> None:
    """Seeds the generators of Python, NumPy and PyTorch, those of all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextlib.contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Lets the three generators of the CPU draw from a seed; then they go on as if nothing was."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed() would reach the GPUs', too
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
