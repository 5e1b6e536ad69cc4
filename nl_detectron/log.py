"""The logger of this package, below the one that Detectron2 sets up."""

import atexit
import contextlib
import logging
import sys

from .errors import full_disk, one_line


class _Printable(logging.Filter):
    """Takes from messages what a name in them could do to a terminal; their lines stay lines."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = "\n".join(map(one_line, record.getMessage().split("\n")))
        record.args = None
        return True


logger = logging.getLogger("detectron2.nl_detectron")
logger.addFilter(_Printable())


class _Once:
    """Says once, in one line, that a handler's file cannot be written; others print tracebacks."""

    def __init__(self, handler: logging.StreamHandler):
        self._handler, self._other_error = handler, handler.handleError
        self._is_told = False

    def __call__(self, record: logging.LogRecord) -> None:
        full = full_disk(sys.exc_info()[1])
        if full is None:
            self._other_error(record)
        elif not self._is_told:
            self._is_told = True
            atexit.register(self._close)
            name = getattr(self._handler.stream, "name", "the log")
            print(f"ALARM: {name} cannot be written ({full.strerror})", file=sys.stderr)

    def _close(self) -> None:
        with contextlib.suppress(OSError):  # of what it still holds
            self._handler.stream.close()


def say_once_of_full_disks() -> None:
    """A log file for which there is no room is no reason for a traceback with each line."""
    for name in ("detectron2", "fvcore"):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler.handleError, _Once):
                continue
            if isinstance(handler, logging.StreamHandler):
                handler.handleError = _Once(handler)  # type: ignore[method-assign]
