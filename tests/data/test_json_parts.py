"""A stream of JSON is read as json.loads reads the whole."""

import io
import itertools
import json
import math
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nl_detectron.data.json_parts import read_parts

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)
LAYOUTS = {"indent": st.sampled_from([None, 0, 3]), "ensure_ascii": st.booleans()}
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"]


def read(data: bytes, block: int) -> tuple[object, list[int]]:
    """The content that was read, and how long its parts were."""
    content: dict = {}
    lengths = []
    for key, value in read_parts(io.BytesIO(data), "many", block=block):
        if key == "many" and isinstance(value, list):
            content[key] = content.get(key, []) + value
            lengths.append(len(value))
        else:
            content[key] = value
    return content, lengths


def alike(a: object, b: object) -> bool:
    """Equality under which NaN equals itself."""
    return repr(a) == repr(b)


@given(
    content=st.dictionaries(st.text(max_size=5) | st.just("few"), VALUES, max_size=3),
    many=st.none() | st.lists(VALUES, max_size=8),
    first=st.booleans(),
    layout=st.fixed_dictionaries(LAYOUTS),
    encoding=st.sampled_from(ENCODINGS),
    block=st.integers(1, 40),
)
def test_any_object_is_read_as_json_reads_it(content, many, first, layout, encoding, block):
    content.pop("many", None)
    if many is not None:
        content = {"many": many} | content if first else content | {"many": many}
    text = json.dumps(content, **layout).encode("utf-8", "replace").decode()  # lone surrogates
    found, lengths = read(text.encode(encoding), block)
    assert alike(found, json.loads(text))
    if many is not None:
        assert sum(lengths) == len(many) and (0 not in lengths or lengths == [0])


@given(
    many=st.lists(VALUES, max_size=4),
    at=st.floats(0, 1),
    change=st.sampled_from(["", "x", "}", "]", ",", '"', "\\", "\n", "7", "{"]),
    is_cut=st.booleans(),
    block=st.integers(1, 40),
)
def test_a_damaged_file_is_refused_where_json_refuses_it(many, at, change, is_cut, block):
    text = json.dumps({"a": 1, "many": many, "z": "\u00e9"}, indent=1)
    place = int(at * len(text))
    text = text[:place] + change + ("" if is_cut else text[place + 1 :])
    try:
        expected = json.loads(text)
    except ValueError as error:
        with pytest.raises(ValueError) as raised:
            read(text.encode(), block)
        known = str(error)
        if "delimiter" not in known and "property name" not in known:  # worded otherwise
            assert known in str(raised.value)
        where = known[known.index("(char") :]
        assert where in str(raised.value) or "delimiter" in known
    else:
        if isinstance(expected, dict) and text.count('"many"') < 2:
            assert alike(read(text.encode(), block)[0], expected)


def test_a_list_of_objects_is_read_many_at_once():
    many = [{"id": i, "of": [{"a": 1.5}, {"b": "}, {"}]} for i in range(1000)]
    for odd, block in itertools.product([None, math.nan, 2**70], (300, 3000)):
        many[500]["odd"] = odd
        data = json.dumps({"many": many}, indent=2).encode()
        found, lengths = read(data, block)
        assert alike(found, {"many": many}) and max(lengths) > 1
        assert len(lengths) < 3 * len(data) / block


def test_numbers_and_names_that_a_block_cuts():
    content = {"a": -123456.789e-3, "many": [True, None, -math.inf, 12345678901234567890], "b": 7}
    for block in range(1, 60):
        assert read(json.dumps(content).encode(), block)[0] == content


@pytest.mark.parametrize("data", [b"[1, 2]", b'"text"', b" 3 "])
def test_what_is_no_object_has_no_parts(data):
    assert read(data, 2) == ({}, [])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "Expecting value: line 1 column 1 .char 0.; it ends early"),
        (b'{"many": [{}, {"a"', "Expecting ':' delimiter: line 1 column 19 .*; it ends early"),
        (b'{"a": 1}\n x', "Extra data: line 2 column 2 .char 10."),
        (b'{"many": [1], "many": [2]}', "it has 'many' twice"),
    ],
)
def test_the_place_of_an_error(data, message):
    for block in (1, 5, 1000):
        with pytest.raises(ValueError, match=message):
            read(data, block)


def test_a_byte_of_no_encoding():
    data = b'{"a": "' + b"x" * 50 + b'\xe9"}'
    for block in (1, 7, 1000):
        with pytest.raises(UnicodeError, match="byte 0xe9 at 57 is none of that encoding"):
            read(data, block)


def test_an_error_at_the_start_is_told_without_reading_on():
    class Endless(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(size) or b" " * (size or 1)

    with pytest.raises(ValueError, match="Expecting value: line 1 column 7 "):
        list(read_parts(Endless(b'{"a": x' + b" " * 1000), "many", block=100))


def test_memory_does_not_grow_with_the_list():
    def peak(count: int) -> int:
        part = json.dumps([{"bbox": [1.5, 2.5, 3.5, 4.5]}] * count).encode()
        stream = io.BytesIO(b'{"many": ' + part + b"}")
        tracemalloc.start()
        for _ in read_parts(stream, "many", block=10_000):
            pass
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(1000)
    assert peak(40_000) < 1.2 * peak(4000)
