"""Files that attack whoever loads them, files that are broken, and files that are fine."""

import codecs
import collections
import io
import json
import os
import pickle
import random
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nl_detectron.checkpoint import CheckpointError, read_checkpoint

# What pickled arrays call, under the name that it has in this NumPy
_reconstruct = np.zeros(1).__reduce__()[0]
_frombuffer = np.zeros(1).__reduce_ex__(5)[0]

ARRAYS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.random.default_rng(0).random((3, 4))),
    "empty": np.zeros((0, 3), np.int64),
    "big_endian": np.arange(3, dtype=">i4"),
    "scalar": np.array(2.5, np.float16),
    "flags": np.array([True, False]),
}
CONTENT = {
    "model": ARRAYS,
    "ordered": collections.OrderedDict(b=1, a=[None, True, 1.5, ("x", {"y": -(2**70)})]),
    "lr": np.float32(0.25),
    "bytes": b"\xff\x00",
    "no_bytes": b"",
    "__author__": "Detectron2 Model Zoo",
}


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Build:
    """Pickles as a change of ``target`` by ``state``."""

    def __init__(self, target, state):
        self.target, self.state = target, state

    def __reduce__(self):
        return codecs.encode, ("", "latin1"), self.state


def assert_refused(path: Path, *words: str) -> None:
    before = sorted(path.parent.iterdir())
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(str(path))
    message = str(error.value)
    assert str(path) in message and "\n" not in message
    for word in words:
        assert word in message
    assert sorted(path.parent.iterdir()) == before  # nothing was created


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_containers(tmp_path, protocol):
    path = tmp_path / "fine.pkl"
    path.write_bytes(pickle.dumps(CONTENT, protocol=protocol))
    content = read_checkpoint(str(path))
    assert content.keys() == CONTENT.keys()
    for name, array in ARRAYS.items():
        read = content["model"][name]
        assert read.dtype == array.dtype.newbyteorder("=") and read.flags.writeable
        assert np.array_equal(read, array)
    for key in ("ordered", "lr", "bytes", "no_bytes", "__author__"):
        assert content[key] == CONTENT[key]


def test_shared_and_circular_containers(tmp_path):
    shared = [ARRAYS["matrix"]]
    circular = {"shared": (shared, shared)}
    circular["self"] = circular
    path = tmp_path / "circular.pkl"
    path.write_bytes(pickle.dumps(circular))
    content = read_checkpoint(str(path))
    assert content["self"] is content
    assert content["shared"][0] is content["shared"][1]
    assert np.array_equal(content["shared"][0][0], ARRAYS["matrix"])


def python2_string(text: bytes) -> bytes:
    return b"T" + struct.pack("<I", len(text)) + text  # BINSTRING


def test_python_2_pickle(tmp_path):
    """As Detectron1 wrote them: protocol 2, byte strings, numpy.core."""
    values = np.array([[1.5, -2.0]], np.float32)
    dtype = (
        b"cnumpy\ndtype\n" + python2_string(b"f4") + b"K\x00K\x01\x87R"
        b"(K\x03" + python2_string(b"<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
        + python2_string(b"b")
        + b"\x87R(K\x01K\x01K\x02\x86"
        + dtype
        + b"\x89"
        + python2_string(values.tobytes())
        + b"tb"
    )
    data = (
        b"\x80\x02}" + python2_string(b"blobs") + b"}" + python2_string(b"conv1_w") + array + b"ss."
    )
    assert np.array_equal(pickle.loads(data, encoding="latin1")["blobs"]["conv1_w"], values)
    path = tmp_path / "detectron1.pkl"
    path.write_bytes(data)
    read = read_checkpoint(str(path))["blobs"]["conv1_w"]
    assert read.dtype == np.float32 and np.array_equal(read, values)


def global_call(module: str, name: str, argument: bytes, opcode: bytes = b"R") -> bytes:
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + argument + opcode + b"."


def attacks(target: str) -> dict[str, bytes]:
    """Pickles that create the file ``target``, or change the process, when they are loaded."""
    command = f"touch {target}"
    text = b"X" + struct.pack("<I", len(command)) + command.encode()
    evil = Call(os.system, command)
    objects = np.empty(2, dtype=object)
    objects[0] = evil
    found = {
        "os.system": pickle.dumps(evil, protocol=4),
        "os.system, protocol 0": pickle.dumps(evil, protocol=0),
        "open": pickle.dumps(Call(open, target, "w")),
        "eval": pickle.dumps(Call(eval, f"open({target!r}, 'w')")),
        "Popen": global_call("subprocess", "Popen", text + b"\x85"),
        "among weights": pickle.dumps({"model": {**ARRAYS, "w": evil}, "__author__": "x"}),
        "in an object array": pickle.dumps({"model": {"w": objects}}),
        "INST": b"(" + text + b"iposix\nsystem\n.",
        "OBJ": b"(cposix\nsystem\n" + text + b"o.",
        "NEWOBJ": global_call("subprocess", "Popen", text + b"\x85", b"\x81"),
        "BUILD": b"\x80\x02cnumpy\nndarray\n}" + b"X\x04\x00\x00\x00sizeK\x01sb.",
        # reduce tricks through what is allowed
        "ndarray itself": pickle.dumps(Call(np.ndarray, (2**40,))),
        "another subtype": pickle.dumps(Call(_reconstruct, np.matrix, (0,), b"b")),
        "codec": pickle.dumps(Call(codecs.encode, "evil", "rot13")),
        "bytes of a size": pickle.dumps(Call(bytes, 2**40)),
        "getattr of dtype": pickle.dumps(Call(getattr, np.dtype, "__class__")),
        "frombuffer of objects": pickle.dumps(
            Call(_frombuffer, b"\x00" * 8, np.dtype(object), (1,), "C")
        ),
        "state of a global": (b"\x80\x02c_codecs\nencode\nN}X\x08\x00\x00\x00__code__K\x01s\x86b."),
        "state of text": pickle.dumps(Build("", {"x": 1})),
        "append to a dict": b"\x80\x02}K\x01a.",
        "items of a list": b"\x80\x02]K\x00K\x01s.",
        "persistent id": b"\x80\x02K\x01Q.",
        "extension": b"\x80\x02\x82\x01.",
        "a name as value": b"\x80\x02}K\x01cnumpy\ndtype\ns.",
    }
    found["a trick of several steps"] = (
        b"\x80\x02(c__builtin__\ngetattr\ncnumpy\ncore\nX\x02\x00\x00\x00ostR."
    )
    return found


@pytest.mark.parametrize("name", attacks("x"))
def test_pickle_that_attacks(tmp_path, name):
    target = tmp_path / "created"
    path = tmp_path / "evil.pkl"
    path.write_bytes(attacks(str(target))[name])
    assert_refused(path, "trust=True")
    assert not target.exists()


def test_the_attacks_are_real(tmp_path):
    """Python's own unpickler, and so a load that trusts, does what these files say."""
    for name in ("os.system", "open", "eval", "INST", "among weights", "in an object array"):
        target = tmp_path / name.replace(" ", "_")
        path = tmp_path / "evil.pkl"
        path.write_bytes(attacks(str(target))[name])
        try:
            read_checkpoint(str(path), trust=True)
        except CheckpointError as error:
            assert "not a dictionary" in str(error)
        assert target.exists(), name


def array_pickle(shape: tuple, data: bytes, copies: int = 1) -> bytes:
    """One piece of data as arrays of any declared shape."""
    values = {f"w{i}": Raw(shape, data) for i in range(copies)}
    return pickle.dumps(values, protocol=4)


class Raw:
    def __init__(self, shape, data):
        self.shape, self.data = shape, data

    def __reduce__(self):
        state = (1, self.shape, np.dtype(np.uint8), False, self.data)
        return _reconstruct, (np.ndarray, (0,), b"b"), state


def nested(depth: int) -> bytes:
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


BOMBS = {
    "shape": lambda: array_pickle((2**40,), b"1234"),
    "negative shape": lambda: array_pickle((-4, -1), b"1234"),
    "shared data": lambda: array_pickle((1 << 20,), bytes(1 << 20), copies=1000),
    "bytes": lambda: b"\x80\x04\x8e" + struct.pack("<Q", 2**50) + b"1234.",
    "bytes below 4 GiB": lambda: b"\x80\x04B" + struct.pack("<I", 2**31) + b"1234.",
    "bytearray": lambda: b"\x80\x05\x96" + struct.pack("<Q", 2**50) + b"1234.",
    "text": lambda: b"\x80\x04\x8d" + struct.pack("<Q", 2**50) + b"1234.",
    "frame": lambda: b"\x80\x04\x95" + struct.pack("<Q", 2**50) + b"1234.",
    "nested lists": lambda: nested(200_000),
    "tuples as keys": lambda: b"\x80\x02})" + b"2\x86" * 60 + b"K\x01s.",
    "a call of 2**60 tuples": lambda: b"\x80\x02)" + b"2\x86" * 60 + b")R.",
    "a type of 2**60 tuples": lambda: b"\x80\x02cnumpy\ndtype\n)" + b"2\x86" * 60 + b"\x85R.",
    "a number of a million digits": lambda: b"I" + b"9" * 1_000_000 + b"\n.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_pickle_that_declares_more_than_it_has(tmp_path, name):
    path = tmp_path / "bomb.pkl"
    path.write_bytes(BOMBS[name]())
    assert_refused(path)


def mutations(data: bytes, count: int) -> list[bytes]:
    """Cut off, or with a few bytes changed, always the same ones."""
    generator = random.Random(0)
    found = [data[: generator.randrange(len(data))] for _ in range(count)]
    for _ in range(count):
        changed = bytearray(data)
        for _ in range(generator.randrange(1, 4)):
            changed[generator.randrange(len(data))] = generator.randrange(256)
        found.append(bytes(changed))
    return found


def saved(zipped: bool = True, content: object = None) -> bytes:
    file = io.BytesIO()
    if content is None:
        content = {"model": {"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3)}}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def safetensors(header: dict, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


TENSOR = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
FINE = {
    "a.pkl": lambda: pickle.dumps(CONTENT),
    "a.pth": saved,
    "legacy.pth": lambda: saved(zipped=False),
    "a.safetensors": lambda: safetensors(
        {"w": TENSOR, "__metadata__": {"format": "pt"}}, bytes(16)
    ),
}


@pytest.mark.parametrize("name", FINE)
def test_broken_files(tmp_path, name):
    """Each is refused with a clear error, or loads: no crash, no other exception, no new file."""
    path = tmp_path / name
    path.write_bytes(FINE[name]())
    read_checkpoint(str(path))
    refused = 0
    for data in mutations(path.read_bytes(), 150):
        path.write_bytes(data)
        try:
            read_checkpoint(str(path))
        except CheckpointError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert refused >= 150  # all that are cut off, at the least
    assert list(tmp_path.iterdir()) == [path]
    path.write_bytes(b"")
    assert_refused(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_pth_of_weights_and_training_state(tmp_path, zipped):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iteration": 3}
    path = tmp_path / "model.pth"
    path.write_bytes(saved(zipped, {**content, "parameter": model[0].weight}))
    read = read_checkpoint(str(path))
    assert read["iteration"] == 3
    for name, tensor in model.state_dict().items():
        assert torch.equal(read["model"][name], tensor)
    assert torch.equal(read["parameter"], model[0].weight)


@pytest.mark.parametrize("zipped", [True, False])
def test_pth_of_all_that_checkpoints_hold(tmp_path, zipped):
    base = torch.arange(12.0).reshape(3, 4)
    kinds = (torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool)
    content = {
        **{str(kind): torch.ones(3).to(kind) for kind in kinds},
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(2.5),
        "views": [base[1:], base.T, base[:, ::2]],
        "complex": torch.ones(2, dtype=torch.complex64),
        "parameter": nn.Parameter(base.clone()),
        "size": base.shape,
        "dtype": torch.float32,
        "milestones": collections.Counter([3, 3, 5]),
        "text": ["a", ("b", None, True)],
    }
    path = tmp_path / "all.pth"
    path.write_bytes(saved(zipped, content))
    read = read_checkpoint(str(path))
    assert read.keys() == content.keys()
    for key, value in content.items():
        if key == "views":
            assert all(map(torch.equal, read[key], value))
        elif isinstance(value, torch.Tensor):
            assert torch.equal(read[key], value) and read[key].dtype == value.dtype
        else:
            assert read[key] == value


@pytest.mark.parametrize("zipped", [True, False])
def test_pth_that_attacks(tmp_path, zipped):
    target = tmp_path / "created"
    path = tmp_path / "evil.pth"
    weights = {"w": torch.ones(2), "evil": Call(os.system, f"touch {target}")}
    path.write_bytes(saved(zipped, {"model": weights}))
    assert_refused(path, "system", "trust=True")
    assert not target.exists()
    assert "model" in read_checkpoint(str(path), trust=True)
    assert target.exists()  # the attack is real


def test_pth_that_is_a_plain_pickle(tmp_path):
    target = tmp_path / "created"
    path = tmp_path / "evil.pth"
    path.write_bytes(attacks(str(target))["os.system"])
    assert_refused(path)
    assert not target.exists()


def rewritten(data: bytes, **changes) -> bytes:
    """An archive with other records, by the end of their names, or compressed."""
    out = io.BytesIO()
    compression = changes.pop("compression", zipfile.ZIP_STORED)
    with (
        zipfile.ZipFile(io.BytesIO(data)) as source,
        zipfile.ZipFile(out, "w", compression) as target,
    ):
        for record in source.infolist():
            content = source.read(record)
            for name, change in changes.items():
                if record.filename.endswith(name):
                    content = change(content)
            target.writestr(record.filename, content)
    return out.getvalue()


def test_pth_bombs(tmp_path):
    path = tmp_path / "bomb.pth"
    zeros = saved(content={"model": {"w": torch.zeros(1 << 22)}})
    path.write_bytes(rewritten(zeros, compression=zipfile.ZIP_DEFLATED))
    assert path.stat().st_size < 100_000  # 16 MiB when unfolded
    assert_refused(path, "compressed")

    # many records in one place: each entry of the directory points to the same data
    plain = rewritten(zeros)
    with zipfile.ZipFile(io.BytesIO(plain)) as archive:
        start = archive.start_dir
        entry = archive.getinfo("archive/data/0")
    directory = plain[start:]
    at = directory.index(b"archive/data/0") - 46
    header = directory[at : at + 46 + len(entry.filename) + len(entry.extra)]
    more = b"".join(header.replace(b"/data/0", f"/data/{i}".encode()) for i in range(1, 9))
    end = bytearray(directory[-22:])
    count, size = struct.unpack_from("<HI", end, 10)
    struct.pack_into("<HHI", end, 8, count + 8, count + 8, size + len(more))
    path.write_bytes(plain[:start] + directory[:-22] + more + bytes(end))
    assert_refused(path, "more than the file holds")


def test_pth_that_can_be_read_in_two_ways(tmp_path):
    target = tmp_path / "created"
    path = tmp_path / "two.pth"
    fine, evil = saved(), saved(content={"model": Call(os.system, f"touch {target}")})
    path.write_bytes(saved(zipped=False) + fine)  # the old format, with an archive after it
    assert "model" in read_checkpoint(str(path))
    path.write_bytes(saved(False, {"model": Call(os.system, f"touch {target}")}) + fine)
    assert_refused(path, "system")
    path.write_bytes(
        evil + fine
    )  # Python reads the last archive, and takes what is before for junk
    assert_refused(path, "two ways")
    with zipfile.ZipFile(io.BytesIO(evil)) as archive:
        pickled = archive.read("archive/data.pkl")
    for name in ("archive/DATA.PKL", "Archive/data.pkl", "archive/data.pkl"):
        file = io.BytesIO(fine)
        with zipfile.ZipFile(file, "a") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a name twice
            archive.writestr(name, pickled)
        path.write_bytes(file.getvalue())
        assert_refused(path, "two ways")
    assert not target.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_pth_that_lies_about_its_sizes(tmp_path, zipped):
    path = tmp_path / "lie.pth"
    data = saved(zipped, {"model": {"w": torch.zeros(300)}})

    def lie(content: bytes) -> bytes:  # 300 floats become 2**31 - 1, where the storage is declared
        place = content.index(b"M\x2c\x01")
        return content[:place] + b"J\xff\xff\xff\x7f" + content[place + 3 :]

    path.write_bytes(rewritten(data, **{"/data.pkl": lie}) if zipped else lie(data))
    assert_refused(path, "declare")


def test_pth_of_a_tensor_that_stores_less_than_it_shows(tmp_path):
    path = tmp_path / "expanded.pth"
    path.write_bytes(saved(content={"model": {"w": torch.zeros(1).expand(1 << 40)}}))
    assert_refused(path, "stores 4 bytes")


def test_pth_of_a_program(tmp_path):
    path = tmp_path / "script.pth"
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    assert_refused(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("version", ["2.4.1", "2.9.1+cpu", torch.__version__])
def test_pth_is_read_without_torch_load_on_every_torch(tmp_path, monkeypatch, version, zipped):
    """Below 2.10 a file can corrupt memory even with weights_only=True, below 2.6 run code."""
    path = tmp_path / "fine.pth"
    path.write_bytes(saved(zipped))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("torch.load was called")

    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch, "load", refuse)
    weights = read_checkpoint(str(path))["model"]
    assert weights["w"].tolist() == [[0, 1, 2], [3, 4, 5]] and weights["b"].tolist() == [1, 1, 1]
    with pytest.raises(CheckpointError, match="torch.load was called"):
        read_checkpoint(str(path), trust=True)


LIES = {
    "header longer than the file": struct.pack("<Q", 2**40) + b"{}",
    "header of no JSON": struct.pack("<Q", 4) + b"evil" + bytes(16),
    "tensor beyond the end": safetensors({"w": {**TENSOR, "data_offsets": [0, 2**40]}}, bytes(16)),
    "shape larger than its data": safetensors(
        {"w": {**TENSOR, "shape": [2**20, 2**20]}}, bytes(16)
    ),
    "shape that overflows": safetensors({"w": {**TENSOR, "shape": [2**63, 4]}}, bytes(16)),
    "tensors that overlap": safetensors({"w": TENSOR, "v": TENSOR}, bytes(16)),
    "more data than tensors": safetensors({"w": TENSOR}, bytes(64)),
    "cut off": safetensors({"w": TENSOR}, bytes(7)),
}


@pytest.mark.parametrize("name", LIES)
def test_safetensors_that_lie(tmp_path, name):
    path = tmp_path / "lie.safetensors"
    path.write_bytes(LIES[name])
    assert_refused(path)


def test_no_such_file(tmp_path):
    assert_refused(tmp_path / "nowhere.pth", "does not exist")
