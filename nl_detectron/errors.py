"""Errors that the caller can put right."""

import contextlib
import difflib
import errno
import re
import sys
from collections.abc import Iterable, Iterator, Sequence

# Arguments whose flag on the command line is not their own name
FLAGS = {"trust": "--trust-checkpoint"}
# What the system says where a disk has no room, or none for this user or this file, or only reads
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class UsageError(ValueError):
    """Something that the caller can put right; its message is one line that says how.

    Attributes:
        arguments: names of arguments as they stand in the message, each of which is a flag of the
            same name on the command line.
    """

    def __init__(self, message: str, *, arguments: Sequence[str] = ()):
        super().__init__(one_line(message))
        self.arguments = tuple(arguments)

    def on_command_line(self) -> str:
        """The message with flags in the place of arguments, ``--dtype`` in that of ``dtype``."""
        message = str(self)
        for name in self.arguments:
            flag = FLAGS.get(name, "--" + name.replace("_", "-"))
            shown = f"{name}=True" if f"{name}=True" in message else name
            message = re.sub(rf"(?<![\w.-]){shown}\b", flag, message, count=1)
        return message


def one_line(text: str) -> str:
    """A text without what would break a line or reach the terminal: ``\\n`` in its place.

    Names of classes, files and tensors are anybody's.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Ends the program with exit code 2 and one line on stderr if a :class:`UsageError` occurs.

    So does a full disk. An interruption (Ctrl-C) ends it with exit code 130.
    """
    try:
        yield
    except UsageError as error:
        print(f"error: {error.on_command_line()}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if (full := full_disk(error)) is None:
            raise
        what = one_line(str(full.filename or "a file"))
        print(f"error: {what} cannot be written: {full.strerror}; make room there", file=sys.stderr)
        sys.exit(2)


def full_disk(error: BaseException | None) -> OSError | None:
    """The system's error that a disk has no room, if an error is that or was raised for it."""
    return next((one for one in system_errors(error) if one.errno in FULL), None)


def system_errors(error: BaseException | None) -> Iterator[OSError]:
    """The system's errors among an error and those that it was raised for."""
    while error is not None:
        if isinstance(error, OSError):
            yield error
        error = error.__cause__ or error.__context__


def closest(value: str, allowed: Iterable[str], *, cutoff: float = 0.6) -> list[str]:
    """The three allowed values most like a wrong one, of those that are as like as ``cutoff``."""
    return difflib.get_close_matches(value, list(allowed), n=3, cutoff=cutoff)


def few(names: Sequence[object], most: int = 10) -> str:
    """The first names of a list that may be long, for a message."""
    return ", ".join(map(str, names[:most])) + (", ..." if len(names) > most else "")


def did_you_mean(value: str, allowed: Iterable[str]) -> str:
    """``"; did you mean a or b?"`` with the closest of the allowed values, or nothing."""
    close = closest(value, allowed)
    return f"; did you mean {' or '.join(close)}?" if close else ""
