"""Writes files so that a kill at any moment leaves either the old file or the new one, whole."""

import contextlib
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np

from .errors import UsageError, full_disk, system_errors
from .log import logger

# Names of what a process that was killed has left where it wrote
LEFT_OVER = re.compile(r"\.\d+-[0-9a-f]{8}\.tmp$")


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[str]:
    """A path to write to; what is there at the end takes the place of ``path`` in one step.

    It is of this call alone, so those who write the same file at the same time do no harm. Where
    the disk is full, the system's error names ``path``.
    """
    temporary = f"{path}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        if (full := full_disk(error)) is not None:
            full.filename = str(path)
        raise
    with contextlib.suppress(OSError):  # file systems that cannot
        folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_again(
    write: Callable[[], None], what: str, *, pauses: Sequence[float] = (1.0, 5.0)
) -> None:
    """Calls what writes a file, and once more after each pause while it cannot.

    Args:
        what: the file, for warnings.
        pauses: in seconds.

    Raises:
        OSError: if it could not in the end.
    """
    for pause in (*pauses, None):
        try:
            return write()
        except (OSError, RuntimeError) as error:
            reason = _reason(error)
            if reason is None:
                raise
            if pause is None:
                raise OSError(f"{what} cannot be written: {reason}") from error
            logger.warning(f"{what} cannot be written ({reason}); once more in {pause:g} s")
            time.sleep(pause)


def _reason(error: BaseException) -> str | None:
    """Why a write has failed, if it is that; PyTorch's writer hides the error within its own."""
    return next((one.strerror or str(one) for one in system_errors(error)), None)


class AtomicPathManager:
    """A path manager whose writes to local files are atomic, and which else is the one given."""

    def __init__(self, path_manager: Any):
        self._path_manager = path_manager

    def __getattr__(self, name: str) -> Any:
        return getattr(self._path_manager, name)

    def open(self, path: str, mode: str = "r", **options: Any) -> Any:
        if "w" in mode and "://" not in path:
            return _replacing_file(path, mode, **options)
        return self._path_manager.open(path, mode, **options)


@contextlib.contextmanager
def _replacing_file(path: str, mode: str, **options: Any) -> Iterator[IO]:
    with replacing(path) as temporary, open(temporary, mode, **options) as file:
        yield file


def write_image(file: str | Path, image: np.ndarray) -> None:
    """Writes a BGR image (H, W, 3), PNG or JPEG by its name; makes its folder.

    Raises:
        UsageError: if the format cannot hold it.
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        is_encoded, data = cv2.imencode(file.suffix.lower(), image)
    except cv2.error as error:
        raise UsageError(f"{file} cannot be written: {error.err}") from error
    if not is_encoded:
        raise UsageError(f"{file} cannot be written: OpenCV cannot encode it")
    with replacing(file) as temporary:
        Path(temporary).write_bytes(data.tobytes())
