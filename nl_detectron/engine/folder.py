"""The folder of a training: for one at a time, and with room for what is to be written."""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from typing import IO

from detectron2.utils import comm

from ..errors import UsageError
from ..files import LEFT_OVER
from ..log import logger

LOCK = ".lock"
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# What a training writes in one step, and so may have left in pieces
WRITTEN = ("last_checkpoint", "metrics.json", "model_")


@contextlib.contextmanager
def only_training_in(key: str, folder: str) -> Iterator[None]:
    """Around a training: no other one can begin in its folder, on this or another machine.

    The kernel lets go of the folder when the process ends, however it does. What processes that
    were killed while they wrote have left is removed.

    Args:
        key: of the folder in the config, for errors.

    Raises:
        UsageError: if another training is at work in the folder, naming its process.
    """
    if not comm.is_main_process():
        yield
        return
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, LOCK), "a+", encoding="utf-8") as file:
        _lock(file, key, folder)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        for name in os.listdir(folder):
            if name.startswith(WRITTEN) and LEFT_OVER.search(name):
                os.remove(os.path.join(folder, name))
        yield


def check_free(key: str, folder: str) -> None:
    """Checks that no training is at work in a folder.

    Raises:
        UsageError: if one is, naming its process.
    """
    try:
        with open(os.path.join(folder, LOCK), "r+", encoding="utf-8") as file:
            _lock(file, key, folder)
    except FileNotFoundError:
        return


def _lock(file: IO[str], key: str, folder: str) -> None:
    try:
        # Unlike flock()'s, this lock is not that of a killed process's workers, too.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in UNSUPPORTED:
            logger.warning(f"{key} {folder} cannot be locked: let no other training write there")
        else:
            raise UsageError(_in_use(key, folder, file.name)) from None


def _in_use(key: str, folder: str, lock: str) -> str:
    with open(lock, encoding="utf-8") as file:
        holder = file.read() or "a process"
    return f"{key} {folder}: another training is at work there ({holder}); choose another folder"
