"""What a user can put right, as one line and exit code 2."""

import contextlib
import sys
from collections.abc import Iterator


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
