"""Installs the copy of Detectron2 that PyPI carries, as the package ``detectron2``.

    python dev/install_snapshot.py

Detectron2 itself is not on PyPI, but the wheel of another project holds all of its Python sources
(Apache-2.0) as a package of its own. This takes them out of that wheel, gives its imports their
usual names back and installs the result with pip, which can uninstall it, too. Nothing else of that
wheel is installed. An installed Detectron2 is never touched.
"""

import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REQUIREMENT = Path(__file__).resolve().parents[1] / "requirements/snapshot.txt"
LICENSE = REQUIREMENT.parents[1] / "LICENSE"
CARRIER = "LabGym"  # the package in whose wheel Detectron2 is a subpackage
# The version that the sources give themselves, and of the wheel that they come from
METADATA = """\
Metadata-Version: 2.1
Name: detectron2
Version: {version}
Summary: Detectron2's Python sources, without its compiled operators
License: Apache-2.0
Home-page: https://github.com/facebookresearch/detectron2
Author: FAIR
"""
WHEEL = "Wheel-Version: 1.0\nGenerator: nl_detectron\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def is_installed() -> bool:
    """Whether there is a Detectron2; a mere folder of that name, such as a clone, is none."""
    found = importlib.util.find_spec("detectron2")
    return found is not None and found.origin is not None


def unpack(wheel: Path, folder: Path) -> Path:
    """Writes Detectron2's sources in the carrier's wheel into a folder, as a wheel unpacked.

    Args:
        wheel: ``LabGym-VERSION-py3-none-any.whl``.
        folder: an empty one.

    Returns:
        The path of a subfolder ``detectron2-VERSION``, for ``wheel pack``.
    """
    version = f"0.6+snapshot.{wheel.name.split('-')[1]}"
    root = folder / f"detectron2-{version}"
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if not name.startswith(f"{CARRIER}/detectron2/") or name.endswith("/"):
                continue
            content = archive.read(name)
            if name.endswith(".py"):
                content = content.replace(f"{CARRIER}.detectron2".encode(), b"detectron2")
            file = root / name.removeprefix(f"{CARRIER}/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    info = root / f"detectron2-{version}.dist-info"
    (info / "licenses").mkdir(parents=True)
    (info / "METADATA").write_text(METADATA.format(version=version), encoding="utf-8")
    (info / "WHEEL").write_text(WHEEL, encoding="utf-8")
    (info / "licenses" / "LICENSE").write_bytes(LICENSE.read_bytes())
    return root


def main() -> None:
    if is_installed():
        print("Detectron2 is installed already")
        return
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        download = ["download", "--no-deps", "--require-hashes", "--ignore-requires-python"]
        subprocess.run([*pip, *download, "-r", str(REQUIREMENT), "-d", temporary], check=True)
        [carrier] = folder.glob("*.whl")
        root = unpack(carrier, folder)
        pack = [sys.executable, "-m", "wheel", "pack", str(root), "-d", temporary]
        subprocess.run(pack, check=True, stdout=subprocess.DEVNULL)
        [wheel] = folder.glob("detectron2-*.whl")
        subprocess.run([*pip, "install", "--no-deps", str(wheel)], check=True)


if __name__ == "__main__":
    main()
