"""Reads a JSON file whose largest list may be longer than memory: a few elements at a time.

Two decoders do the work: orjson's, which is several times faster, and the standard one where that
refuses what annotation tools write, such as NaN, and for the words of an error. Readers of streams
such as ijson are slower than both and refuse NaN, too.
"""

import codecs
import contextlib
import json
import re
from collections.abc import Callable, Iterator
from json import JSONDecodeError, JSONDecoder
from typing import Any, BinaryIO

import orjson

WHITESPACE = " \t\n\r"
SPACE = re.compile(f"[{WHITESPACE}]+")
BLOCK = 2**21  # bytes read at once
MARGIN = 200  # characters; there is no more white space between two objects
DIGITS = bytes(ord("0") if chr(byte).isdigit() and byte < 128 else byte for byte in range(256))
LONG = b"0" * 19
TOKEN = 16  # characters; no name of a constant and no escape is longer


def read_parts(stream: BinaryIO, key: str, *, block: int = BLOCK) -> Iterator[tuple[str, Any]]:
    """The keys and values of the object in a file, in UTF-8, UTF-16 or UTF-32.

    Args:
        key: that whose value, if it is a list, is given in parts: at least one, each with the key.
        block: how much is read at once, in bytes, and about what a part takes.

    Yields:
        Keys and values. Of a file that holds no object, nothing.

    Raises:
        ValueError: if it is no JSON, with the line, column and character; and if the key is there
            twice.
        UnicodeError: if it is of none of these encodings, with the byte.
        RecursionError: if it is nested too deeply.
    """
    text = _Text(stream, block)
    if text.next() != "{":
        text.value()
    else:
        seen = False
        for name in _entries(text):
            is_key = name == key
            if is_key and seen:
                raise ValueError(f"it has {key!r} twice")
            seen = seen or is_key
            if is_key and text.next() == "[":
                yield from ((key, part) for part in _parts(text))
            else:
                yield name, text.value()
    if text.next():
        raise text.error("Extra data")


def _entries(text: "_Text") -> Iterator[str]:
    """The names in an object; each value is to be read before the next one."""
    text.skip("{")
    if text.next() == "}":
        return text.skip("}")
    while True:
        if text.next() != '"':
            raise text.error("Expecting property name enclosed in double quotes")
        name = text.value()
        text.skip(":")
        yield name
        if text.next() != ",":
            return text.skip("}")
        text.skip(",")


def _parts(text: "_Text") -> Iterator[list]:
    text.skip("[")
    if text.next() == "]":
        yield []
    else:
        yield text.values()
        while text.next() == ",":
            text.skip(",")
            yield text.values()
    text.skip("]")


def _decode_fast(text: str) -> list | None:
    """Values with commas between them; None for what orjson refuses, or has a large integer."""
    data = f"[{text}]".encode()
    if LONG in data.translate(DIGITS):  # orjson makes a float of an integer beyond 64 bits
        return None
    with contextlib.suppress(orjson.JSONDecodeError):
        return orjson.loads(data)
    return None


class _Text:
    """A text of which a stretch is in memory, and a place in it."""

    def __init__(self, stream: BinaryIO, block: int) -> None:
        self._stream, self._block = stream, block
        self._decoder: codecs.IncrementalDecoder | None = None
        self._scan: Callable = JSONDecoder().scan_once  # type: ignore[attr-defined]
        self._text, self._at, self._is_whole = "", 0, False
        self._bytes = 0  # read
        self._chars, self._lines, self._column = 0, 1, 1  # of the stretch's start, in the file

    def next(self) -> str:
        """The next character that is no white space; nothing at the end."""
        while True:
            character = self._text[self._at : self._at + 1]
            if character and character not in WHITESPACE:
                return character
            space = SPACE.match(self._text, self._at)
            self._at = space.end() if space else self._at
            if self._at == len(self._text) and not self._more():
                return ""

    def skip(self, delimiter: str) -> None:
        if self.next() != delimiter:
            raise self.error(f"Expecting {delimiter!r} delimiter")
        self._at += 1

    def value(self) -> Any:
        self.next()
        while True:
            try:
                value, end = self._scan(self._text, self._at)
            except (JSONDecodeError, StopIteration) as error:
                message, at = "Expecting value", self._at
                if isinstance(error, JSONDecodeError):
                    message, at = error.msg, error.pos
                elif error.value is not None:
                    at = error.value
                # What is cut off by the stretch's end is read again with more of the text.
                is_cut = message.startswith("Unterminated") or at > len(self._text) - TOKEN
                if not is_cut or not self._more():
                    raise self.error(message, at) from None
            else:
                # A number may go on, and "1" be the start of "1e-3".
                if end + 2 < len(self._text) or not self._more():
                    self._at = end
                    return value

    def values(self) -> list:
        """Some values with commas between them, a stretch of objects at best."""
        if len(self._text) - self._at < self._block:
            self._more()
        self.next()
        end = self._last_object()
        if values := _decode_fast(self._text[self._at : end]):
            self._at = end
            return values
        values = [self.value()]
        end += self._chars
        while self._chars + self._at < end and self.next() == ",":
            self.skip(",")
            values.append(self.value())
        return values

    def _last_object(self) -> int:
        """Where, in the stretch, the last ``}`` ends that ``, {`` follows; our place if none does.

        Within an object that is of a list in it, and then what stands before it is no whole value.
        """
        end = len(self._text)
        while (end := self._text.rfind("{", self._at, end)) > self._at:
            start = max(self._at, end - MARGIN)
            before = self._text[start:end].rstrip(WHITESPACE)
            if before.endswith(",") and (before := before[:-1].rstrip(WHITESPACE)).endswith("}"):
                return start + len(before)
        return self._at

    def error(self, message: str, at: int | None = None) -> ValueError:
        at = self._at if at is None else at
        line, column = self._place(at)
        cut_off = self._is_whole and not self._text.rstrip().endswith(("}", "]"))
        return ValueError(
            f"{message}: line {line} column {column} (char {self._chars + at})"
            + ("; it ends early" if cut_off else "")
        )

    def _place(self, at: int) -> tuple[int, int]:
        """Line and column of a character of the stretch."""
        new_lines = self._text.count("\n", 0, at)
        if new_lines:
            return self._lines + new_lines, at - self._text.rindex("\n", 0, at)
        return self._lines, self._column + at

    def _more(self) -> bool:
        """Reads on, in longer steps the longer a value is; returns False at the end."""
        if self._is_whole:
            return False
        self._lines, self._column = self._place(self._at)
        self._chars += self._at
        left = self._text[self._at :]
        data = self._stream.read(max(4, self._block, 2 * len(left)))
        self._bytes += len(data)
        if self._decoder is None:
            self._decoder = codecs.getincrementaldecoder(json.detect_encoding(data[:4]))()
        self._is_whole = not data
        try:
            self._text, self._at = left + self._decoder.decode(data, final=not data), 0
        except UnicodeDecodeError as error:
            at = self._bytes - len(error.object) + error.start
            raise UnicodeError(
                f"byte {error.object[error.start]:#x} at {at} is none of that encoding, perhaps "
                "one of Windows' (cp1252); save it as UTF-8"
            ) from error
        return True
