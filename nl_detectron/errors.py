"""Errors that the user can put right."""

import contextlib
import difflib
import sys
from collections.abc import Iterable, Iterator


class UsageError(Exception):
    """Something that the user can put right; its message is one line that says how."""


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Ends the program with exit code 2 and one line on stderr if a :class:`UsageError` occurs.

    An interruption (Ctrl-C) ends it with exit code 130.
    """
    try:
        yield
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def did_you_mean(value: str, allowed: Iterable[str]) -> str:
    """``"; did you mean a or b?"`` with the closest of the allowed values, or nothing."""
    close = difflib.get_close_matches(value, list(allowed), n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""
