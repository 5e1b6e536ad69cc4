"""Makes ``import detectron2`` work where only the snapshot that PyPI carries is installed.

Imported before anything else of Detectron2. An importable ``detectron2`` is used as it is, and
this module does nothing. Otherwise the copy of Detectron2 inside the ``LabGym`` wheel answers for
it: each ``detectron2.x`` *is* the module ``LabGym.detectron2.x``, one object under two names, since
two copies would mean two registries.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

SNAPSHOT = "LabGym.detectron2"
INSTALL_OFFICIAL = (
    "pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2.git"
)
INSTALL_SNAPSHOT = "pip install --no-deps --ignore-requires-python LabGym==3.1.2"


class _SnapshotFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds ``detectron2`` and ``detectron2.*`` in the snapshot, and nothing else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package, _, rest = fullname.partition(".")
        if package != "detectron2":
            return None
        original = importlib.util.find_spec(f"{SNAPSHOT}.{rest}" if rest else SNAPSHOT)
        if original is None:
            return None
        return importlib.machinery.ModuleSpec(
            fullname, self, origin=original.origin, loader_state=original.name
        )

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(spec.loader_state)
        # The import system overwrites __spec__ next; exec_module puts it back.
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = module.__spec__.loader_state


def ensure_detectron2() -> None:
    """Makes ``detectron2`` importable, from the snapshot if need be.

    Raises:
        ImportError: if neither Detectron2 nor the snapshot is installed.
    """
    installed = importlib.util.find_spec("detectron2")
    # A folder of that name without an __init__.py, such as a clone in the working directory, is
    # found as well, but has no origin.
    if installed is not None and installed.origin is not None:
        return
    if importlib.util.find_spec("LabGym") is None or importlib.util.find_spec(SNAPSHOT) is None:
        raise ImportError(
            "nl_detectron needs Detectron2, which is not installed. Install it from source:\n"
            f"    {INSTALL_OFFICIAL}\n"
            "or, from PyPI alone (a snapshot without the compiled operators):\n"
            f"    {INSTALL_SNAPSHOT}"
        )
    # First in line: once `detectron2` is imported its __path__ would let the ordinary finder load
    # every submodule a second time.
    sys.meta_path.insert(0, _SnapshotFinder())


ensure_detectron2()
