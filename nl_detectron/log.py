"""The logger of this package, below the one that Detectron2 sets up."""

import logging

from .errors import one_line


class _Printable(logging.Filter):
    """Takes from messages what a name in them could do to a terminal; their lines stay lines."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = "\n".join(map(one_line, record.getMessage().split("\n")))
        record.args = None
        return True


logger = logging.getLogger("detectron2.nl_detectron")
logger.addFilter(_Printable())
