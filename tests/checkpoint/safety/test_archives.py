"""Files of torch.save are read as torch itself reads them."""

import collections
import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nl_detectron.checkpoint.safety.archives import load_torch

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
KINDS = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex64, torch.complex128),
]
LATER_KINDS = [  # whose files of the legacy format torch writes, but does not read
    *(torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.pth"


def save(content: object, path: Path, zipped: bool = True) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)


def bytes_of(tensor: Tensor) -> bytes:
    """Those of the whole storage."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).numpy().tobytes()


def assert_equal(read: Any, expected: Any) -> None:
    """The same containers, with tensors of the same bits, types, shapes and strides."""
    if isinstance(expected, Tensor):
        assert type(read) is Tensor and read.dtype == expected.dtype
        assert (read.shape, read.stride()) == (expected.shape, expected.stride())
        assert read.storage_offset() == expected.storage_offset()
        assert (read.is_conj(), read.is_neg()) == (expected.is_conj(), expected.is_neg())
        assert bytes_of(read) == bytes_of(expected)
    elif isinstance(expected, dict):
        assert list(read) == list(expected)
        for key in expected:
            assert_equal(read[key], expected[key])
    elif type(expected) in (list, tuple):
        assert type(read) is type(expected) and len(read) == len(expected)
        for one, other in zip(read, expected, strict=True):
            assert_equal(one, other)
    else:
        assert type(read) is type(expected) and read == expected


def assert_as_torch(path: Path) -> Any:
    read = load_torch(str(path))
    assert_equal(read, torch.load(path, map_location="cpu", weights_only=False))
    return read


@FORMATS
@pytest.mark.parametrize("kind", KINDS + LATER_KINDS, ids=str)
def test_a_tensor_of_every_type_is_read_as_by_torch(path, zipped, kind):
    ones = torch.arange(12).remainder(2).to(torch.float32).to(kind)
    content = {"w": ones.reshape(3, 4), "t": ones.reshape(3, 4).T[1:], "one": ones[5]}
    try:
        save(content, path, zipped)
    except KeyError:
        pytest.skip("this torch does not write this type")
    assert_equal(load_torch(str(path)), content)
    if zipped or kind in KINDS:
        assert_as_torch(path)


@FORMATS
def test_views_empty_and_scalar_tensors_are_read_as_by_torch(path, zipped):
    base = torch.randn(4, 6)
    content = {
        "scalar": torch.tensor(2.5),
        "empty": [torch.zeros(0), torch.zeros(0, 4), torch.zeros(3, 0, 2), base[4:]],
        "views": [base, base.T, base[1:, ::2], base[:, 3], base.flatten()[7]],
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "lazy": [torch.randn(3, dtype=torch.complex64).conj(), torch.ones(2, dtype=torch.cfloat)],
        "negative": torch.randn(3, dtype=torch.complex64).conj().imag,
        "transposed": torch.nn.Linear(3, 2).weight.detach().T,
    }
    save(content, path, zipped)
    read = assert_as_torch(path)
    assert torch.equal(read["lazy"][0], content["lazy"][0])
    assert torch.equal(read["negative"], content["negative"])


@FORMATS
def test_shared_memory_stays_shared_and_can_be_written(path, zipped):
    base = torch.zeros(6)
    save({"a": base, "b": base[2:], "c": base.clone(), "same": [base, base]}, path, zipped)
    read = load_torch(str(path))
    read["a"][3] = 7
    assert read["b"].tolist() == [0, 7, 0, 0] and read["c"].tolist() == [0] * 6
    assert read["same"][0] is read["same"][1] is read["a"]
    assert torch.equal(copy.deepcopy(read)["b"], read["b"])
    read["c"].requires_grad_().sum().backward()
    assert read["c"].grad.tolist() == [1] * 6


@FORMATS
def test_other_values_are_read_as_by_torch(path, zipped):
    content = {
        "size": torch.Size([2, 3]),
        "devices": [torch.device("cpu"), torch.device("cuda", 1)],
        "dtypes": (torch.float32, torch.bfloat16),
        "milestones": collections.Counter([3, 3, 5]),
        "text": ["a", b"\xff", ("b", None, True, 1.5, -(2**70))],
        "keys": {0: "a", -5: "b", 2**31 - 1: "c", None: "d", b"e": "e", True: "f"},
    }
    save(content, path, zipped)
    assert_as_torch(path)
    save(collections.OrderedDict(w=1), path, zipped)
    assert load_torch(str(path)) == {"w": 1}


@FORMATS
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_a_training_checkpoint_is_read_as_by_torch(path, zipped, optimizer):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    options = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    optimizer = optimizer(model.parameters(), lr=0.1, **options)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 1, 3])
    for _ in range(2):
        model(torch.randn(2, 3, 8, 8)).sum().backward()
        optimizer.step()
        scheduler.step()
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "iteration": 2,
    }
    save(content, path, zipped)
    read = assert_as_torch(path)
    assert read["optimizer"]["state"].keys() == {0, 1, 2, 3, 4, 5}
    optimizer.load_state_dict(read["optimizer"])
    model.load_state_dict(read["model"])


@FORMATS
def test_a_parameter_comes_back_as_a_plain_tensor(path, zipped):
    parameter = nn.Parameter(torch.randn(2, 3))
    save({"w": parameter, "g": torch.ones(2, requires_grad=True)}, path, zipped)
    read = load_torch(str(path))
    assert type(read["w"]) is Tensor and torch.equal(read["w"], parameter)
    assert not read["w"].requires_grad and not read["g"].requires_grad


def test_arrays_beside_the_tensors_are_read_as_by_torch(path):
    save({"best": np.float64(0.5), "array": np.arange(6).reshape(2, 3), "w": torch.ones(2)}, path)
    read = load_torch(str(path))
    assert read["best"] == 0.5 and read["array"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_file_of_the_legacy_format_may_have_more_after_it(path):
    save({"w": torch.ones(2)}, path, zipped=False)
    path.write_bytes(path.read_bytes() + b"more")
    assert load_torch(str(path))["w"].tolist() == [1, 1]
