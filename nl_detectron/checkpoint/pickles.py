"""Reads pickles as data: nothing that a pickle names is ever imported or called.

Python's own unpickler executes what a file tells it to. :class:`DataUnpickler` walks the same
instructions, but a name (``numpy ndarray``) stays a name, and calling or building something is
carried out by the few rules below, for exactly known names, on plain values.
"""

import math
import os
import pickle
import re
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np

UnpicklingError = pickle.UnpicklingError


class DamagedError(UnpicklingError):
    """A pickle that does not even load when it is trusted."""


class Name(NamedTuple):
    """Something that a pickle refers to by module and name, and that is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


def show(value: object) -> str:
    """What a message says of a value in a file, which could be of any length when written out."""
    if isinstance(value, Name):
        return str(value)[:80]
    return repr(value[:80]) if isinstance(value, str) else f"a {type(value).__name__}"


class Opaque(NamedTuple):
    """Stands for an object that is not built, such as a tensor while a .pth is inspected."""

    name: Name
    arguments: tuple


class _Dtype:
    """A NumPy dtype of plain numbers; its byte order arrives after its code."""

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


class _Array:
    """A NumPy array, filled from the state that follows it."""

    def __init__(self) -> None:
        self.value: np.ndarray | None = None

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


def _encode(text: object, encoding: object = "latin1") -> bytes:
    # How protocols 0 to 2 write bytes in Python 3
    if not isinstance(text, str) or encoding != "latin1":
        raise UnpicklingError("it calls _codecs.encode for something other than bytes")
    return text.encode("latin1")


def _empty_bytes(*arguments: object) -> bytes:
    if arguments:
        raise UnpicklingError("it calls bytes with arguments")
    return b""


def _ordered(pairs: object = ()) -> dict:
    # Python 2 hands over [[key, value], ...], Python 3 sets the items afterwards.
    ordered: dict = {}
    if not isinstance(pairs, (list, tuple)) or not all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs
    ):
        raise UnpicklingError("it builds an OrderedDict from something other than pairs")
    _set_items(ordered, pairs)
    return ordered


def _set_items(target: object, items: Iterable[Sequence]) -> None:
    if type(target) is not dict:
        raise UnpicklingError("it sets items of something that is no dict")
    for key, value in items:
        # Nested tuples as keys could take for ever to hash.
        if not isinstance(key, (str, bytes, int, float, type(None))):
            raise UnpicklingError(f"it has a {type(key).__name__} as a key")
        target[key] = value


NDARRAY = Name("numpy", "ndarray")
DTYPE = Name("numpy", "dtype")


def _reconstruct(subtype: object = None, *_: object) -> _Array:
    if subtype != NDARRAY:
        raise UnpicklingError(f"it builds an array as {show(subtype)}")
    return _Array()


# What a pickle of arrays and plain containers calls, and what is done instead
ARRAYS: dict[Name, Callable] = {
    DTYPE: _Dtype,
    Name("collections", "OrderedDict"): _ordered,
    Name("_codecs", "encode"): _encode,
    Name("__builtin__", "bytes"): _empty_bytes,
    Name("builtins", "bytes"): _empty_bytes,
}
for _core in ("numpy.core", "numpy._core"):  # before and since NumPy 2
    ARRAYS[Name(f"{_core}.multiarray", "_reconstruct")] = _reconstruct
    ARRAYS[Name(f"{_core}.multiarray", "scalar")] = _scalar
    ARRAYS[Name(f"{_core}.numeric", "_frombuffer")] = _array


class DataUnpickler(pickle._Unpickler):  # the one in Python, whose instructions can be replaced
    """Unpickles arrays and plain containers from ``file``, and refuses everything else.

    Args:
        file: open for reading in binary, at the pickle's start.
        calls: what may be called, and the function that is called in its place.
        names: what may be named besides, and stays a :class:`Name`.
        persistent: what becomes of persistent ids; by default they are refused.
    """

    dispatch = dict(pickle._Unpickler.dispatch)
    # Other ways to make objects, none of which arrays and containers need
    for _code in (
        *(pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX),
        *(pickle.EXT1, pickle.EXT2, pickle.EXT4),
        *(pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
        *(pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET),
    ):
        del dispatch[_code[0]]

    def __init__(
        self,
        file: BinaryIO,
        *,
        calls: dict[Name, Callable],
        names: Callable[[Name], bool] = lambda name: False,
        persistent: Callable[[object], object] | None = None,
    ):
        start = file.tell()
        size = file.seek(0, os.SEEK_END)
        file.seek(start)
        super().__init__(_Bounded(file, size), encoding="latin1")
        self._calls = calls
        self._names = names
        self._persistent = persistent
        self._array_bytes = size - start

    def load(self) -> Any:
        """
        Raises:
            UnpicklingError: saying what the pickle holds that it must not, or that it is damaged.
        """
        try:
            return self._resolve(super().load(), {})
        except UnpicklingError:
            raise
        except KeyError as error:
            raise UnpicklingError(f"it is damaged, or makes objects ({error!r})") from error
        except RecursionError as error:
            raise UnpicklingError("its containers are nested too deeply") from error
        except Exception as error:  # whatever broken instructions lead to
            raise DamagedError(f"it is damaged or cut off ({error!r:.200})") from error

    def find_class(self, module: str, name: str) -> Name:
        found = Name(module, name)
        if found in self._calls or found == NDARRAY or self._names(found):
            return found
        raise UnpicklingError(
            f"it names {show(found)}, which is neither an array nor a plain container"
        )

    def persistent_load(self, pid: object) -> object:
        if self._persistent is None:
            raise UnpicklingError("it refers to objects outside of itself")
        return self._persistent(pid)

    def load_bytearray8(self) -> None:
        # Python's own makes room for the declared length before it reads.
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        if not isinstance(function, Name) or function not in self._calls:
            raise UnpicklingError(f"it calls {show(function)}")
        if not isinstance(arguments, tuple):
            raise UnpicklingError("it calls something with malformed arguments")
        self.stack[-1] = result = self._calls[function](*arguments)
        if isinstance(result, np.ndarray):
            self._count(result)

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, (_Array, _Dtype)):
            target.build(state)
            if isinstance(target, _Array):
                self._count(target.value)
        elif not (isinstance(target, dict) and isinstance(state, dict)):
            # An OrderedDict's attributes, such as a state dict's _metadata, are not needed.
            raise UnpicklingError(f"it changes the inside of a {type(target).__name__}")

    dispatch[pickle.BUILD[0]] = load_build

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _set_items(self.stack[-1], [(key, value)])

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        items = self.pop_mark()
        _set_items(self.stack[-1], zip(items[::2], items[1::2], strict=True))

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        _set_items(self.stack[-1], zip(items[::2], items[1::2], strict=True))

    dispatch[pickle.DICT[0]] = load_dict

    def load_append(self) -> None:
        self._extend([self.stack.pop()])

    dispatch[pickle.APPEND[0]] = load_append

    def load_appends(self) -> None:
        self._extend(self.pop_mark())

    dispatch[pickle.APPENDS[0]] = load_appends

    def _extend(self, items: list) -> None:
        if type(self.stack[-1]) is not list:
            raise UnpicklingError("it appends to something that is no list")
        self.stack[-1].extend(items)

    def _count(self, array: np.ndarray) -> None:
        # One piece of data could be made into any number of arrays.
        self._array_bytes -= array.nbytes
        if self._array_bytes < 0:
            raise UnpicklingError("its arrays are larger than the file")

    def _resolve(self, value: Any, done: dict[int, tuple[Any, Any]]) -> Any:
        """``value`` with arrays in the place of what stood for them, each object visited once.

        Args:
            done: by id, objects (which keeps their ids theirs) and what became of them.
        """
        if isinstance(value, Name) and self._names(value):
            return value
        if isinstance(value, (Name, _Dtype)):
            raise UnpicklingError(f"it holds {show(value)} as a value")
        if not isinstance(value, (dict, list, tuple, _Array)) or isinstance(value, Opaque):
            return value
        if id(value) in done:
            return done[id(value)][1]
        result: Any = value
        if isinstance(value, _Array):
            result = value.value
            if result is None:
                raise UnpicklingError("an array is empty of contents")
        elif isinstance(value, tuple):
            result = tuple(self._resolve(item, done) for item in value)
        done[id(value)] = value, result
        if isinstance(value, list):
            value[:] = [self._resolve(item, done) for item in value]
        elif isinstance(value, dict):
            for key, item in value.items():
                value[key] = self._resolve(item, done)
        return result


class _Bounded:
    """A file of which no more is asked than there is: a pickle may declare any length."""

    def __init__(self, file: BinaryIO, size: int):
        self._file = file
        self._size = size

    def read(self, count: int) -> bytes:
        if count < 0 or count > self._size - self._file.tell():
            raise EOFError("it declares more bytes than it has")
        return self._file.read(count)

    def readline(self) -> bytes:
        return self._file.readline(1 << 20)

    def readinto(self, buffer: bytearray) -> int:
        return self._file.readinto(buffer)


def load_arrays(file: BinaryIO) -> Any:
    """The arrays and plain containers that a pickle holds, of Python 3 or 2.

    Raises:
        UnpicklingError: if it holds anything else, or is damaged.
    """
    return DataUnpickler(file, calls=ARRAYS).load()
