"""Numbers in annotations, which may be text, null or anything else."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def to_number(value: Any) -> float | int | None:
    """A number, or text that is one, as a number; else None. NaN and infinities are numbers."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return value if abs(value) < 1e300 or isinstance(value, float) else math.inf
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return None


def to_numbers(values: Any) -> list[float | int] | None:
    """The same of a list; None if it is none, or one of its values is no number."""
    if not isinstance(values, list):
        return None
    numbers = [to_number(value) for value in values]
    return None if None in numbers else numbers  # type: ignore[return-value]


def are_numbers(values: Sequence[Any]) -> bool:
    """Whether all values are numbers as JSON has them, of a size that NumPy can hold."""
    types = set(map(type, values))
    if int in types and not all(-(2**63) < v < 2**63 for v in values if type(v) is int):
        return False
    return types <= {int, float}


def as_array(rows: Sequence[Any], width: int) -> np.ndarray | None:
    """Lists of numbers as float64 (N, width), or None unless all are as JSON should have them."""
    try:
        array = np.array(rows)
    except (ValueError, OverflowError):  # of different lengths, or numbers beyond int64
        return None
    if array.dtype.kind not in "iuf" or array.shape != (len(rows), width):
        return None
    return array.astype(np.float64)
