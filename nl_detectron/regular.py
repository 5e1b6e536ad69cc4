"""What a file of somebody else's must be before any of it is read."""

import errno
import os
import stat
from pathlib import Path

# A checkpoint that starts with momenta of zero has holes on some file systems, and is far from it.
MOST_HOLES = 0.9
SMALL = 1 << 26  # bytes that may be read all the same

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def problem(path: str | Path, *, largest: int | None = None) -> str | None:
    """Why a file must not be read, as the end of a sentence that begins with its name, or None.

    What is no regular file (a pipe, ``/dev/zero``) could have no end, or wait for ever. A file of
    holes declares any size and holds nothing.

    Args:
        largest: in bytes.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:  # the latter of a name with a zero byte
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        return "does not exist" if missing else f"cannot be read ({error})"
    if not stat.S_ISREG(found.st_mode):
        return f"is no file but {_KINDS.get(stat.S_IFMT(found.st_mode), 'something else')}"
    size = found.st_size
    if largest is not None and size > largest:
        return f"is too large: {size:,} bytes are more than {largest:,}"
    if size > SMALL and (held := _data(path, size)) < (1 - MOST_HOLES) * size:
        return f"is nearly empty: of the {size:,} bytes that it declares it holds {held:,}"
    return None


def _data(path: str | Path, size: int) -> int:
    """The bytes of a file that are not holes, where the system tells."""
    if not hasattr(os, "SEEK_DATA"):
        return size
    held = end = 0
    with open(path, "rb", buffering=0) as file:
        for _ in range(10_000):  # more pieces than this are many data
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
                end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            except OSError as error:
                return held if error.errno == errno.ENXIO else size  # only holes to the end
            held += end - start
    return size
