"""Corrected copies of annotation files, which Detectron2 reads in their place."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import file_lock

from ..errors import UsageError
from ..files import replacing
from ..log import logger
from .annotations import write_annotations
from .checking import Checked, Effect, Finding, Objects, check_file, having

FORMAT = 3  # to be raised whenever the rules change, so that files are checked again


@dataclass(frozen=True)
class Prepared:
    """What is known of an annotation file that was checked.

    Attributes:
        original: the file.
        json_file: the file to read in its place: itself where nothing had to be corrected.
        image_root: the folder of its images.
        findings: the worst first.
        categories: as corrected.
        has_annotations: False for a file that can only be tested on.
        num_images, num_annotations: in the original.
        objects: that a model can be trained on.
    """

    original: str
    json_file: str
    image_root: str
    findings: list[Finding]
    categories: list[dict]
    has_annotations: bool
    num_images: int
    num_annotations: int
    objects: Objects

    def stop(self, *, corrected: bool) -> None:
        """Stops at what cannot be used.

        Args:
            corrected: whether :attr:`json_file` is read in the place of :attr:`original`.

        Raises:
            UsageError: with the first finding that stops training or evaluation.
        """
        command = f"check_dataset.py --annotations {self.original} --images {self.image_root}"
        for finding in having(self.findings, Effect.STOPS):
            raise UsageError(f"{self.original}: {finding}. All findings: tools/{command}")
        for finding in [] if corrected else having(self.findings, Effect.REPAIRED):
            raise UsageError(
                f"{self.original}: {finding}. Register a corrected copy: tools/{command} --fix FILE"
            )

    def log(self) -> None:
        """Logs what was corrected."""
        corrected = having(self.findings, Effect.REPAIRED, Effect.CORRECTED)
        if corrected:
            logger.info(f"{self.original}: the corrected copy {self.json_file} is read")
        for finding in corrected:
            logger.info(f"{self.original}: {finding}")


def prepare(json_file: str, image_root: str) -> Prepared:
    """Checks an annotation file, and makes the corrected copy if one is needed.

    The copy is in ``$XDG_CACHE_HOME/nl_detectron/annotations`` (by default below ``~/.cache``).
    No object is ever taken out of it but those of images that the file does not have.

    What stops training is only told: the caller decides. Anything else is kept beside the copies,
    and not checked again until the annotation file or a folder of its images changes.

    Raises:
        UsageError: if the file cannot be read, or the copy not be written.
    """
    folder = _cache_folder()
    stored = _stored(folder, json_file, image_root)
    if prepared := _load(stored):
        return prepared
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a folder that cannot be written
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(file_lock(str(stored)))
        if prepared := _load(stored):  # by another process
            return prepared
        checked = check_file(json_file, image_root)
        prepared = _prepared(checked, json_file, image_root)
        if having(prepared.findings, Effect.STOPS):
            return prepared
        if having(prepared.findings, Effect.REPAIRED, Effect.CORRECTED):
            copy = str(stored.with_suffix("")) + ".json"
            prepared = replace(prepared, json_file=copy)
            try:
                write_corrected(checked, copy)
            except OSError as error:
                raise UsageError(
                    f"{copy}, a corrected copy of {json_file}, cannot be written "
                    f"({error.strerror}): name another folder with XDG_CACHE_HOME"
                ) from error
        with contextlib.suppress(OSError), replacing(stored) as temporary:
            folders = _folders(checked.content["images"], image_root)
            Path(temporary).write_text(json.dumps(_to_json(prepared) | {"folders": folders}))
    return prepared


@contextlib.contextmanager
def errors_of_dataset(name: str) -> Iterator[None]:
    """Names the dataset in a :class:`UsageError`."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"dataset {name!r}: {error}") from error


def write_corrected(checked: Checked, file: str | Path) -> None:
    """Writes the corrected annotation file in one step."""
    annotations = checked.annotations() if checked.has_annotations else None
    write_annotations(checked.corrected(), annotations, file)


def _prepared(checked: Checked, json_file: str, image_root: str) -> Prepared:
    return Prepared(
        json_file,
        json_file,
        image_root,
        checked.findings,
        checked.content["categories"],
        checked.has_annotations,
        checked.num_images,
        checked.num_annotations,
        checked.objects,
    )


def _cache_folder() -> Path:
    cache = os.getenv("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "nl_detectron", "annotations")


def _stored(folder: Path, json_file: str, image_root: str) -> Path:
    """Where what is known of a file is kept, by its path, size and time."""
    if Path(json_file).parent == folder:  # a copy
        return Path(json_file).with_suffix(".check")
    known: list[object] = [FORMAT, os.path.abspath(json_file), os.path.abspath(image_root)]
    with contextlib.suppress(OSError):
        status = os.stat(PathManager.get_local_path(json_file))
        known += [status.st_size, status.st_mtime_ns]
        known += [os.stat(image_root).st_mtime_ns]
    return folder / f"{hashlib.sha256(repr(known).encode()).hexdigest()[:32]}.check"


def _folders(images: list[dict], image_root: str) -> dict[str, int]:
    """The folders below ``image_root`` that images are in, and when they were changed, in ns."""
    names = {os.path.dirname(str(image.get("file_name"))) for image in images}
    folders = {os.path.join(image_root, name) for name in names if name}
    return {f: os.stat(f).st_mtime_ns for f in sorted(folders) if os.path.isdir(f)}


def _load(stored: Path) -> Prepared | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        values = json.loads(stored.read_text())
        values["findings"] = [Finding.from_json(finding) for finding in values["findings"]]
        folders = values.pop("folders")
        prepared = Prepared(**values | {"objects": Objects(**values["objects"])})
        if any(os.stat(folder).st_mtime_ns != time for folder, time in folders.items()):
            return None
        if os.path.isfile(prepared.json_file) or "://" in prepared.json_file:
            return prepared
    return None


def _to_json(prepared: Prepared) -> dict:
    values = {key: getattr(prepared, key) for key in Prepared.__dataclass_fields__}
    values["findings"] = [finding.to_json() for finding in prepared.findings]
    return values | {"objects": asdict(prepared.objects)}
