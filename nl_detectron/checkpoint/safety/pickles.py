"""Reads pickles as data: nothing that a pickle names is ever imported or called.

Python's own unpickler executes what a file tells it to. :class:`DataUnpickler` walks the same
instructions, but a name (``numpy ndarray``) stays a name, and calling or building something is
carried out by the few rules below, for exactly known names, on plain values.
"""

import os
import pickle
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

if TYPE_CHECKING:

    class PythonUnpickler:
        """What is used of the unpickler that is written in Python (3.10 to 3.13)."""

        dispatch: dict[int, Callable[..., None]]
        stack: list[Any]
        metastack: list[list[Any]]
        memo: dict[int, Any]
        append: Callable[[Any], None]

        def __init__(self, file: Any, *, encoding: str) -> None: ...
        def load(self) -> Any: ...
        def read(self, count: int) -> bytes: ...
        def readline(self) -> bytes: ...
        def load_mark(self) -> None: ...
        def pop_mark(self) -> list[Any]: ...

else:  # whose instructions can be replaced
    from pickle import _Unpickler as PythonUnpickler

UnpicklingError = pickle.UnpicklingError


class DamagedError(UnpicklingError):
    """A file that is cut off or changed: to trust it is of no use."""


MAX_KEY = 2**31  # of numbers that are keys
MAX_DEPTH = 1000  # of containers that are begun in one another
# Pieces that are read; some forty make a tensor. An instruction of one byte makes an object of 64.
MAX_READS = 3_000_000


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
    if isinstance(value, Part):
        return value.called
    return repr(value[:80]) if isinstance(value, str) else f"a {type(value).__name__}"


class Part:
    """Stands for something that is no value, or none before its state has arrived."""

    called = "a part"  # in messages
    value: Any = None

    def build(self, state: object) -> None:
        """Takes the state that a pickle gives it."""
        raise UnpicklingError(f"it changes the inside of {self.called}")


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
        # Nested tuples could take for ever to hash, and numbers be chosen to have the same hash.
        if isinstance(key, int) and abs(key) >= MAX_KEY:
            raise UnpicklingError(f"it has a number of {MAX_KEY} or more as a key")
        if not isinstance(key, (str, bytes, int, type(None))):
            raise UnpicklingError(f"it has a {type(key).__name__} as a key")
        target[key] = value


# What a pickle of plain containers calls, and what is done instead
CONTAINERS: dict[Name, Callable] = {
    Name("collections", "OrderedDict"): _ordered,
    Name("_codecs", "encode"): _encode,
    Name("__builtin__", "bytes"): _empty_bytes,
    Name("builtins", "bytes"): _empty_bytes,
}


class DataUnpickler(PythonUnpickler):
    """Unpickles plain containers from ``file``, what the rules make, and refuses everything else.

    Args:
        file: open for reading in binary, at the pickle's start.
        calls: what may be called, and the function that is called in its place.
        names: what may be named besides, and what it stands for: a value, or for what is only an
            argument of a call its :class:`Name`.
        persistent: what becomes of persistent ids; by default they are refused.
    """

    dispatch = dict(PythonUnpickler.dispatch)
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
        calls: Mapping[Name, Callable],
        names: Mapping[Name, object] = MappingProxyType({}),
        persistent: Callable[[object], object] | None = None,
    ):
        start = file.tell()
        size = file.seek(0, os.SEEK_END)
        file.seek(start)
        super().__init__(_Bounded(file, size), encoding="latin1")
        self._calls = calls
        self._names = names
        self._persistent = persistent
        # Bytes may be made first, and an array of them then
        self._left = 2 * (size - start)

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

    def find_class(self, module: str, name: str) -> object:
        found = Name(module, name)
        if found in self._calls:
            return found
        if found in self._names:
            return self._names[found]
        raise UnpicklingError(
            f"it names {show(found)}, which is no tensor, array or plain container"
        )

    def persistent_load(self, pid: object) -> object:
        if self._persistent is None:
            raise UnpicklingError("it refers to objects outside of itself")
        return self._persistent(pid)

    def load_mark(self) -> None:
        if len(self.metastack) == MAX_DEPTH:
            raise UnpicklingError("its containers are nested too deeply")
        super().load_mark()

    dispatch[pickle.MARK[0]] = load_mark

    def load_put(self) -> None:
        index = int(self.readline())
        if not 0 <= index < MAX_KEY:
            raise UnpicklingError("it numbers its objects in an unusual way")
        self.memo[index] = self.stack[-1]

    dispatch[pickle.PUT[0]] = load_put

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
        self._count(result)

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Part):
            target.build(state)
            self._count(target.value)
        elif not (type(target) is dict and type(state) is dict and state.keys() <= {"_metadata"}):
            # The versions of layers, an attribute of a state dict's OrderedDict, are not needed.
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

    def _count(self, made: object) -> None:
        # One piece of data could be made into any number of arrays, bytes or dictionaries.
        if isinstance(made, np.ndarray):
            self._left -= made.nbytes
        elif isinstance(made, (bytes, dict)):
            self._left -= len(made)
        if self._left < 0:
            raise UnpicklingError("its arrays are larger than the file")

    def _resolve(self, value: Any, done: dict[int, tuple[Any, Any]]) -> Any:
        """``value`` without parts: with what they became. Each object is visited once.

        Args:
            done: by id, objects (which keeps their ids theirs) and what became of them.
        """
        if isinstance(value, Part) and value.value is not None:
            return value.value
        if isinstance(value, (Name, Part)):
            raise UnpicklingError(f"it holds {show(value)} as a value")
        if type(value) not in (dict, list, tuple):
            return value
        if id(value) in done:
            return done[id(value)][1]
        result: Any = value
        if isinstance(value, tuple):
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
        self._reads = 0

    def read(self, count: int) -> bytes:
        self._reads += 1
        if self._reads > MAX_READS:
            raise UnpicklingError("it has more instructions than a model's file needs")
        if count < 0 or count > self._size - self._file.tell():
            raise EOFError("it declares more bytes than it has")
        return self._file.read(count)

    def readline(self) -> bytes:
        return self._file.readline(1 << 20)

    def readinto(self, buffer: bytearray) -> int:
        return self._file.readinto(buffer)  # type: ignore[attr-defined]
