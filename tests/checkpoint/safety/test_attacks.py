"""Files of torch.save that say what they must not, written here with any pickle."""

import io
import json
import pickle
import random
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nl_detectron.checkpoint import CheckpointError, read_checkpoint, read_config
from nl_detectron.checkpoint.safety.archives import load_torch
from nl_detectron.checkpoint.safety.pickles import DamagedError, UnpicklingError

FLOATS = struct.pack("<6f", *range(6))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.pth"


def assert_refused(path: Path, *words: str, kind: type[Exception] = UnpicklingError) -> None:
    start = time.monotonic()
    with pytest.raises(kind) as error:
        load_torch(str(path))
    assert time.monotonic() - start < 20
    for word in words:
        assert word in str(error.value)


class Call:
    """Pickles as a call of what ``name`` names in ``module``, with ``state`` afterwards if any."""

    def __init__(self, module: str, name: str, *arguments: object, state: object = None):
        self.module, self.name = module, name
        self.arguments, self.state = arguments, state


class Global(str):
    """Pickles as what it names: ``"torch FloatStorage"``."""


class Persistent(tuple):
    """Pickles as a persistent id."""


class Writer(pickle._Pickler):
    dispatch = dict(pickle._Pickler.dispatch)

    def persistent_id(self, value: object) -> object:
        return tuple(value) if isinstance(value, Persistent) else None

    def save_global_name(self, name: Global) -> None:
        module, _, attribute = name.partition(" ")
        self.write(pickle.GLOBAL + f"{module}\n{attribute}\n".encode())

    def save_call(self, call: Call) -> None:
        self.save(Global(f"{call.module} {call.name}"))
        self.save(call.arguments)
        self.write(pickle.REDUCE)
        if call.state is not None:
            self.save(call.state)
            self.write(pickle.BUILD)

    dispatch[Global] = save_global_name
    dispatch[Call] = save_call


def pickled(content: object) -> bytes:
    file = io.BytesIO()
    Writer(file, protocol=2).dump(content)
    return file.getvalue()


def storage(count: int = 6, kind: str = "FloatStorage", key: str = "0") -> Persistent:
    return Persistent(("storage", Global(f"torch {kind}"), key, "cpu", count))


def tensor(*arguments: Any, of: Any = None) -> Call:
    """By default of the only storage: 6 floats in 24 bytes."""
    if of is None:
        of = storage()
    return Call("torch._utils", "_rebuild_tensor_v2", of, *arguments, False, {})


def write(path: Path, content: object, **records: bytes) -> None:
    """Writes an archive; ``records`` are further ones."""
    data = content if isinstance(content, bytes) else pickled(content)
    with zipfile.ZipFile(path, "w") as archive:
        for name, record in {
            "version": b"3",
            "data.pkl": data,
            "data/0": FLOATS,
            **records,
        }.items():
            archive.writestr(f"archive/{name}", record)


def test_an_archive_written_here_is_read(path):
    write(path, {"w": tensor(1, (2, 2), (2, 1))}, byteorder=b"little")
    assert load_torch(str(path))["w"].tolist() == [[1, 2], [3, 4]]
    assert torch.load(path, weights_only=False)["w"].tolist() == [[1, 2], [3, 4]]


TENSORS: dict[str, tuple[Callable[[], object], str]] = {
    "offset beyond the storage": (lambda: tensor(6, (1,), (1,)), "not within"),
    "empty beyond the storage": (lambda: tensor(7, (0,), (1,)), "not within"),
    "shape beyond the storage": (lambda: tensor(0, (7,), (1,)), "stores 24 bytes"),
    "stride beyond the storage": (lambda: tensor(0, (2, 3), (4, 1)), "not within"),
    "stride far beyond": (lambda: tensor(0, (2,), (2**47,)), "not within"),
    "stride of 0": (lambda: tensor(0, (2**40,), (0,)), "stores 24 bytes"),
    "stride of 0 for a few more": (lambda: tensor(0, (7, 1), (0, 1)), "stores 24 bytes"),
    "negative stride": (lambda: tensor(5, (6,), (-1,)), "negative"),
    "negative offset": (lambda: tensor(-1, (1,), (1,)), "negative"),
    "negative shape": (lambda: tensor(0, (-2, -3), (3, 1)), "negative"),
    "shape that overflows": (lambda: tensor(0, (2**62, 4), (1, 1)), "malformed"),
    "more strides than sizes": (lambda: tensor(0, (6,), (1, 1)), "has the stride"),
    "shape that is a list": (lambda: tensor(0, [6], (1,)), "malformed"),
    "shape of texts": (lambda: tensor(0, ("6",), (1,)), "malformed"),
    "shape of truths": (lambda: tensor(0, (True,), (1,)), "malformed"),
    "too many dimensions": (lambda: tensor(0, (1,) * 65, (1,) * 65), "malformed"),
    "no storage": (lambda: tensor(0, (6,), (1,), of="text"), "without a storage"),
    "a storage as value": (storage, "a tensor's storage as a value"),
    "a kind of storage as value": (lambda: Global("torch FloatStorage"), "FloatStorage"),
    "storage of an unknown kind": (
        lambda: tensor(0, (6,), (1,), of=storage(6, "QInt32Storage")),
        "QInt32Storage",
    ),
    "more than the record": (lambda: tensor(0, (6,), (1,), of=storage(7)), "declares 28 bytes"),
    "less than the record": (lambda: tensor(0, (5,), (1,), of=storage(5)), "declares 20 bytes"),
    "a negative number of items": (lambda: tensor(0, (), (), of=storage(-6)), "malformed storage"),
    "no such record": (lambda: tensor(0, (6,), (1,), of=storage(key="../../1")), "holds None"),
    "one storage as two types": (
        lambda: [tensor(0, (6,), (1,)), tensor(0, (6,), (1,), of=storage(6, "IntStorage"))],
        "in two ways",
    ),
    "a part of a storage": (
        lambda: tensor(0, (6,), (1,), of=Persistent((*storage(), ("1", 0, 3)))),
        "within another",
    ),
    "a quantized tensor": (
        lambda: Call("torch._utils", "_rebuild_qtensor", storage(24, "QInt8Storage")),
        "_rebuild_qtensor",
    ),
    "a quantized type": (lambda: Global("torch qint8"), "torch.qint8"),
    "a sparse tensor": (lambda: Call("torch._utils", "_rebuild_sparse_tensor"), "sparse"),
    "a type that is none": (
        lambda: Call("torch._utils", "_rebuild_tensor_v3", storage(), 0, (), (), False, {}, "f"),
        "whose type is 'f'",
    ),
    "more of a wider type": (
        lambda: Call(
            *("torch._utils", "_rebuild_tensor_v3", storage(24, "UntypedStorage"), 0, (13,), (1,)),
            *(False, {}, Global("torch uint16")),
        ),
        "stores 24 bytes",
    ),
    "unknown metadata": (
        lambda: Call(
            "torch._utils", "_rebuild_tensor_v2", storage(), 0, (6,), (1,), False, {}, {"x": True}
        ),
        "metadata",
    ),
    "a parameter of text": (lambda: Call("torch._utils", "_rebuild_parameter", "x"), "parameter"),
    "a size of text": (lambda: Call("torch", "Size", ("x",)), "torch.Size"),
    "a device of lists": (lambda: Call("torch", "device", []), "torch.device"),
    "counts of tensors": (
        lambda: Call("collections", "Counter", {"x": tensor(0, (6,), (1,))}),
        "whole numbers",
    ),
    "state of a tensor": (
        lambda: Call(
            *("torch._utils", "_rebuild_tensor_v2", storage(), 0, (6,), (1,), False, {}),
            state={"data": 1},
        ),
        "inside of a Tensor",
    ),
    "state of a dictionary": (
        lambda: Call("collections", "OrderedDict", state={"__class__": 1}),
        "inside of a dict",
    ),
    "state beside the known one": (
        lambda: Call("collections", "OrderedDict", state={"_metadata": {}, "move_to_end": 1}),
        "inside of a dict",
    ),
    "a large number as key": (lambda: {2**31: 1}, "as a key"),
    "a float as key": (lambda: {0.5: 1}, "a float as a key"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_an_archive_that_says_what_it_must_not(path, name):
    make, words = TENSORS[name]
    write(path, {"x": make()})
    assert_refused(path, words)


def test_the_versions_of_layers_are_ignored(path):
    write(path, Call("collections", "OrderedDict", state={"_metadata": {"": {"version": 2}}}))
    assert load_torch(str(path)) == {}


def test_numbers_in_the_byte_order_of_other_machines_are_refused(path):
    content = {"w": tensor(0, (6,), (1,))}
    write(path, content, byteorder=b"big")
    assert_refused(path, "byteorder")
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    place = data.index(b"little_endian")
    place = data.index(b"\x88", place)  # True
    path.write_bytes(data[:place] + b"\x89" + data[place + 1 :])
    assert_refused(path, "little_endian")


@pytest.mark.parametrize("record", ["data.pkl", "data/0", "byteorder"])
def test_a_record_that_is_not_as_written_is_damaged(path, record):
    torch.save({"w": torch.arange(300.0), "text": "abc"}, path)
    with zipfile.ZipFile(path) as archive:
        folder = archive.namelist()[0].partition("/")[0]
        content = archive.read(f"{folder}/{record}")
    data = bytearray(path.read_bytes())
    place = data.index(content[-6:])
    data[place] ^= 1
    path.write_bytes(data)
    assert_refused(path, "damaged", "CRC-32", record, kind=DamagedError)


def test_records_that_no_tensor_refers_to_are_not_read(path):
    write(path, {"w": 1}, **{"data/1": b"not read"})
    data = path.read_bytes()
    path.write_bytes(data.replace(b"not read", b"changed!"))
    assert load_torch(str(path)) == {"w": 1}


def legacy(content: object, keys: list, *storages: bytes) -> bytes:
    system = {"protocol_version": 1001, "little_endian": True}
    parts = (0x1950A86A20F9469CFC6C, 1001, system, content, keys)
    return b"".join(map(pickled, parts)) + b"".join(storages)


def test_legacy_storages_that_are_not_those_declared_are_refused(path):
    floats = struct.pack("<q", 6) + FLOATS
    content = {"w": tensor(0, (6,), (1,), of=Persistent((*storage(), None)))}
    path.write_bytes(legacy(content, ["0"], floats))
    assert load_torch(str(path))["w"].tolist() == [0, 1, 2, 3, 4, 5]
    assert torch.load(path, weights_only=False)["w"].tolist() == [0, 1, 2, 3, 4, 5]
    for data, words in {
        legacy(content, ["0"], floats[:-1]): "size",
        legacy(content, ["0"], struct.pack("<q", 5) + bytes(24)): "size",
        legacy(content, ["0"], floats[:4]): "cut off",
        legacy(content, [], floats): "not those",
        legacy(content, ["0", "1"], floats, floats): "not those",
        legacy(content, ["0", "0"], floats, floats): "not those",
        legacy(content, [0], floats): "malformed",
    }.items():
        path.write_bytes(data)
        assert_refused(path, words, kind=DamagedError)
    # together more than there is, though each is not
    many = {str(i): tensor(0, (), (), of=storage(key=str(i))) for i in range(500)}
    path.write_bytes(legacy(many, list(many), bytes(100)))
    assert_refused(path, "declare more", kind=DamagedError)


def test_pickles_with_changed_bytes_are_refused_or_read(path):
    """The archive is whole: its CRC-32 are those of the changed pickle."""
    content = {
        "views": [tensor(0, (2, 3), (3, 1)), tensor(1, (5,), (1,)), tensor(5, (), ())],
        "size": Call("torch", "Size", (2, 3)),
        "state": Call("collections", "OrderedDict", state={"_metadata": {"": 1}}),
    }
    data = pickled(content)
    generator = random.Random(0)
    refused = 0
    for _ in range(500):
        changed = bytearray(data)
        for _ in range(generator.randrange(1, 4)):
            changed[generator.randrange(len(data))] = generator.randrange(256)
        write(path, bytes(changed))
        try:
            repr(load_torch(str(path)))  # looks at every element
        except UnpicklingError:
            refused += 1
    assert 300 < refused < 500


def long(number: int) -> bytes:
    data = pickle.encode_long(number)
    return pickle.LONG1 + bytes([len(data)]) + data


def collisions(count: int = 100_000) -> list[int]:
    """Numbers of the same hash: a dictionary of them takes the square of their number."""
    return [7 + i * (2**61 - 1) for i in range(1, count)]


SLOW: dict[str, tuple[str, Callable[[], bytes]]] = {
    "keys of one hash": (
        "as a key",
        lambda: b"\x80\x02}(" + b"".join(long(key) + b"K\x01" for key in collisions()) + b"u.",
    ),
    "keys of one hash, in a dictionary at once": (
        "as a key",
        lambda: b"\x80\x02(" + b"".join(long(key) + b"K\x01" for key in collisions()) + b"d.",
    ),
    "floats as keys": (
        "as a key",
        lambda: b"\x80\x02}(" + b"G" + struct.pack(">d", 0.5) + b"K\x01u.",
    ),
    "objects numbered by one hash": (
        "unusual",
        lambda: b"\x80\x02}" + b"".join(b"p%d\n" % key for key in collisions()) + b".",
    ),
    "marks": ("too deeply", lambda: b"\x80\x02" + b"(" * 1_000_000 + b"."),
    "lists in lists": ("too deeply", lambda: b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."),
    "tuples in tuples": ("too deeply", lambda: b"\x80\x02)" + b"\x85" * 200_000 + b"."),
    "dictionaries in dictionaries": (
        "too deeply",
        lambda: b"\x80\x02}" + b"K\x01}" * 100_000 + b"s" * 100_000 + b".",
    ),
    "one text as many bytes": (
        "larger than the file",
        lambda: (
            b"\x80\x02(c_codecs\nencode\nq\x00X\x00\x00\x10\x00"
            + b"a" * (1 << 20)
            + b"q\x01h\x00h\x01\x85R"
            + b"h\x00h\x01\x85R" * 20_000
            + b"l."
        ),
    ),
    "one list as many dictionaries": (
        "larger than the file",
        lambda: (
            b"\x80\x02(ccollections\nOrderedDict\nq\x00]q\x01("
            + b"".join(b"M" + struct.pack("<H", i) + b"K\x01\x86" for i in range(50_000))
            + b"e"
            + b"h\x00h\x01\x85R" * 20_000
            + b"l."
        ),
    ),
}


@pytest.mark.parametrize("name", SLOW)
def test_a_pickle_made_to_take_for_ever_is_refused_at_once(path, name):
    words, make = SLOW[name]
    write(path, make())
    assert_refused(path, words)


TABLES: dict[str, Callable[[], bytes]] = {
    "instructions": lambda: b"\x80\x02(" + b"}" * 3_100_000 + b"t.",
    "instructions with arguments": lambda: b"\x80\x02(" + b"M\x00\x01" * 3_100_000 + b"t.",
}


@pytest.mark.parametrize("name", TABLES)
def test_more_than_a_model_needs_is_not_walked_through(path, name):
    write(path, TABLES[name]())
    assert_refused(path, "more instructions")


def test_an_archive_of_many_records_is_not_listed(path):
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(35_000):  # of long names: what is limited are the directory's bytes
            archive.writestr(f"archive/data/{number:0180}", b"")
    assert_refused(path, "more records than a model has")


def tensors(count: int) -> bytes:
    """A .safetensors file of so many tensors, all empty."""
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    table = json.dumps({f"t{i}": empty for i in range(count)}).encode()
    return struct.pack("<Q", len(table)) + table


@pytest.mark.parametrize("count", [60_000, 200_000])
def test_a_table_of_many_empty_tensors_is_refused_at_once(tmp_path, count):
    path = tmp_path / "file.safetensors"
    path.write_bytes(tensors(count))
    for read in (read_checkpoint, read_config):
        start = time.monotonic()
        with pytest.raises(CheckpointError, match="tensors"):
            read(str(path))
        assert time.monotonic() - start < 5
    path.write_bytes(tensors(1000))
    assert len(read_checkpoint(str(path))["model"]) == 1000


def test_a_trusted_archive_is_compared_with_its_crc(tmp_path):
    path = tmp_path / "file.pth"
    torch.save({"w": torch.arange(300.0)}, path)
    data = path.read_bytes()
    place = data.index(struct.pack("<2f", 7, 8))
    path.write_bytes(data[:place] + b"\x01" + data[place + 1 :])
    with pytest.raises(CheckpointError, match="data/0' has another CRC-32"):
        read_checkpoint(str(path), trust=True)
