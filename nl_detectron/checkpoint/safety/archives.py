"""Reads the files of torch.save as data: torch itself unpickles none of them.

Its own ``weights_only=True`` could be made to run code before 2.6 (CVE-2025-32434), and to corrupt
memory before 2.10 (CVE-2026-24747). Here, the bytes of a storage become a flat tensor, and tensors
are made of it by a few rules, once what the file declares about them has been checked.
"""

import io
import os
import struct
import zipfile
from typing import Any

from .pickles import DamagedError, DataUnpickler, UnpicklingError, show
from .tensors import Storages, load_tensors

# The formats of torch.save: zip archives since torch 1.6; before, pickles that begin with these
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001

MAX_DIRECTORY = 8_000_000  # bytes, of an archive; a record's line takes about a hundred


def load_torch(path: str) -> Any:
    """What a local file of ``torch.save`` holds, in the zip format or the one before torch 1.6.

    Returns:
        plain containers of numbers, text, NumPy arrays, and tensors on the CPU that are as they
        were when saved, with memory shared where it was, but need no gradient. A Parameter is a
        tensor, an OrderedDict a dict.

    Raises:
        UnpicklingError: saying what the file holds that it must not; :class:`DamagedError` if it
            is cut off, or was changed since it was written.
    """
    with open(path, "rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04"  # as torch tells
    try:
        return _load_archive(path) if is_archive else _load_legacy(path)
    except UnpicklingError:
        raise
    except Exception as error:  # whatever a broken file leads to
        raise DamagedError(f"it is damaged or cut off ({error!r:.200})") from error


def check_records(path: str) -> None:
    """Compares the records of a file of torch.save with their CRC-32, which torch does not.

    Raises:
        DamagedError: if one is not as it was written. Of a file that is no archive nothing is said.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if (name := archive.testzip()) is not None:
                raise DamagedError(f"it is damaged: record {show(name)} has another CRC-32")


class _Archive(io.FileIO):
    """A file whose directory of records, which is read at once, may only be so large."""

    limit: int | None = MAX_DIRECTORY

    def read(self, size: int | None = -1, /) -> bytes:
        if self.limit is not None and size is not None and size > self.limit:
            raise UnpicklingError("it is an archive of more records than a model has")
        return super().read(-1 if size is None else size) or b""


def _load_archive(path: str) -> Any:
    with _Archive(path) as file, zipfile.ZipFile(file) as archive:
        file.limit = None
        sizes = _sizes(archive, os.path.getsize(path))
        pickles = [name for name in sizes if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1 or any(name.endswith("/constants.pkl") for name in sizes):
            raise UnpicklingError("it is an archive, but not one of weights")
        folder = pickles[0].removesuffix("data.pkl")

        order = f"{folder}byteorder"
        if order in sizes and _record(archive, order) != b"little":
            raise UnpicklingError("its byteorder is not little: its numbers are back to front here")

        def read(key: str, num_bytes: int) -> bytearray:
            name = f"{folder}data/{key}"
            if sizes.get(name) != num_bytes:
                raise UnpicklingError(
                    f"storage {show(key)} declares {num_bytes} bytes, but the file holds "
                    f"{sizes.get(name)}"
                )
            return bytearray(_record(archive, name))

        return load_tensors(io.BytesIO(_record(archive, pickles[0])), Storages(read))


def _sizes(archive: zipfile.ZipFile, file_size: int) -> dict[str, int]:
    """The sizes of an archive's records, none of which takes more room than it has in the file."""
    records = archive.infolist()
    # torch stores without compression. What is compressed, or many records in one place, could
    # unfold to any size.
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise UnpicklingError("it is a compressed archive, which torch.save does not write")
    # What this reader of archives and another, for which A and a are one name, could take for
    # different contents
    offsets = [record.header_offset for record in records]
    names = {record.filename.lower() for record in records}
    if archive.comment or min(offsets, default=1) != 0 or len(names) != len(records):
        raise UnpicklingError("it is an archive that can be read in two ways")
    sizes = {record.filename: record.file_size for record in records}
    if sum(sizes.values()) > file_size:
        raise UnpicklingError("its records declare more than the file holds")
    return sizes


def _record(archive: zipfile.ZipFile, name: str) -> bytes:
    data = archive.read(name)  # whole, which compares the CRC-32
    if len(data) != archive.getinfo(name).file_size:
        raise DamagedError(f"record {show(name)} is shorter than it declares")
    return data


def _load_legacy(path: str) -> Any:
    """The format before torch 1.6: pickles, then all storages, each after the number of its items.

    They are made when the pickle refers to them, and filled afterwards.
    """
    with open(path, "rb") as file:
        left = os.path.getsize(path)

        def make(key: str, num_bytes: int) -> bytearray:
            nonlocal left
            left -= num_bytes + 8
            if left < file.tell():
                raise DamagedError("its storages declare more than the file holds")
            return bytearray(num_bytes)

        try:
            magic = DataUnpickler(file, calls={}).load()
        except UnpicklingError:
            magic = None
        if magic != LEGACY_MAGIC or DataUnpickler(file, calls={}).load() != LEGACY_PROTOCOL:
            raise DamagedError("it is cut off, or is no file of torch.save")
        system = DataUnpickler(file, calls={}).load()
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise UnpicklingError("it is not little_endian: its numbers are back to front here")
        storages = Storages(make)
        content = load_tensors(file, storages)
        keys = DataUnpickler(file, calls={}).load()
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise DamagedError("its list of storages is malformed")
        if sorted(keys) != sorted(storages.found):
            raise DamagedError("its storages are not those that its tensors refer to")
        for key in keys:
            storage = storages.found[key]
            (count,) = struct.unpack("<q", file.read(8))
            if count != storage.count or file.readinto(storage.data) != len(storage.data):
                raise DamagedError(f"storage {show(key)} is not of the size that it declares")
    return content
