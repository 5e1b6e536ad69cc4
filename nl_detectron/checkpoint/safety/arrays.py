"""Rules by which pickled NumPy arrays of plain numbers become arrays."""

import math
import re
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from .pickles import CONTAINERS, DataUnpickler, Name, Part, UnpicklingError, show


class _Dtype(Part):
    """A NumPy dtype of plain numbers; its byte order arrives after its code."""

    called = "an array's type"
    CODE = re.compile(r"\?|b1|[iu][1248]|f[248]|c(8|16)")

    def __init__(self, code: object, *_: object):
        if not isinstance(code, str) or not self.CODE.fullmatch(code):
            raise UnpicklingError(
                f"it holds an array of type {show(code)}, which is not of numbers"
            )
        self.dtype = np.dtype(code)

    def build(self, state: object) -> None:
        # (version, byte order, subdtype, names, fields, itemsize, alignment, flags[, metadata])
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "=", "|"):
            raise UnpicklingError("an array's type is malformed")
        if any(part is not None for part in state[2:5]):
            raise UnpicklingError("it holds a structured array, which is not of numbers")
        if state[1] != "|":
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array(Part):
    """A NumPy array, filled from the state that follows it."""

    called = "an array that is empty of contents"

    def build(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise UnpicklingError("an array's state is malformed")
        _, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, "F" if fortran else "C")


def _array(data: object, dtype: object, shape: object, order: object) -> np.ndarray:
    if isinstance(data, str):  # bytes of Python 2
        data = data.encode("latin1")
    if not isinstance(data, (bytes, bytearray)) or not isinstance(dtype, _Dtype):
        raise UnpicklingError("an array is not made of bytes and a type of number")
    if (
        not isinstance(shape, tuple)
        or len(shape) > 32
        or not all(type(n) is int and 0 <= n < 2**48 for n in shape)
        or order not in ("C", "F")
    ):
        raise UnpicklingError("an array's shape is malformed")
    if math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise UnpicklingError(
            f"an array declares shape {shape} of {dtype.dtype} but comes with {len(data)} bytes"
        )
    if not data:
        return np.zeros(shape, dtype.dtype)
    array = np.ndarray(shape, dtype.dtype, buffer=data, order=order)
    # writable, in the machine's byte order
    return np.array(array, dtype=dtype.dtype.newbyteorder("="), order=order)


def _scalar(dtype: object, data: object = b"") -> Any:
    return _array(data, dtype, (), "C")[()]


NDARRAY = Name("numpy", "ndarray")


def _reconstruct(subtype: object = None, *_: object) -> _Array:
    if subtype != NDARRAY:
        raise UnpicklingError(f"it builds an array as {show(subtype)}")
    return _Array()


# What a pickle of arrays and plain containers calls, and what is done instead
ARRAYS: dict[Name, Callable] = {**CONTAINERS, Name("numpy", "dtype"): _Dtype}
for _core in ("numpy.core", "numpy._core"):  # before and since NumPy 2
    ARRAYS[Name(f"{_core}.multiarray", "_reconstruct")] = _reconstruct
    ARRAYS[Name(f"{_core}.multiarray", "scalar")] = _scalar
    ARRAYS[Name(f"{_core}.numeric", "_frombuffer")] = _array


def load_arrays(file: BinaryIO) -> Any:
    """The arrays and plain containers that a pickle holds, of Python 3 or 2.

    Raises:
        UnpicklingError: if it holds anything else, or is damaged.
    """
    return DataUnpickler(file, calls=ARRAYS, names={NDARRAY: NDARRAY}).load()
