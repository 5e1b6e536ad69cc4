import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import detectron2.modeling
import pytest

from dev.install_snapshot import REQUIREMENT, unpack
from tests.places import ROOT

SCRIPT = ROOT / "dev/install_snapshot.py"
IS_SNAPSHOT = "snapshot" in metadata.version("detectron2")


@pytest.fixture
def carrier(tmp_path) -> Path:
    """A wheel with a copy of two modules of Detectron2, and something else."""
    wheel = tmp_path / "labgym-3.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("LabGym/__init__.py", "raise AssertionError")
        archive.writestr("LabGym/gui.py", "import LabGym.detectron2")
        archive.writestr("LabGym/detectron2/__init__.py", '__version__ = "0.6"\n')
        archive.writestr(
            "LabGym/detectron2/a.py", "# Copyright\nfrom LabGym.detectron2.b import c\n"
        )
        archive.writestr("LabGym/detectron2/b.py", "c = 1\n")
        archive.writestr("LabGym/detectron2/model_zoo/configs/x.yaml", "LabGym.detectron2: 1\n")
    return wheel


def test_unpacks_detectron2_alone_under_its_own_name(carrier, tmp_path):
    root = unpack(carrier, tmp_path)
    assert root.name == "detectron2-0.6+snapshot.3.1.2"
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    info = f"{root.name}.dist-info"
    assert files == {
        "detectron2/__init__.py",
        "detectron2/a.py",
        "detectron2/b.py",
        "detectron2/model_zoo/configs/x.yaml",
        f"{info}/METADATA",
        f"{info}/WHEEL",
        f"{info}/licenses/LICENSE",
    }
    assert (root / "detectron2/a.py").read_text() == "# Copyright\nfrom detectron2.b import c\n"
    assert "Apache License" in (root / info / "licenses/LICENSE").read_text()


def test_what_is_installed_can_be_uninstalled_with_pip(carrier, tmp_path):
    root, site = unpack(carrier, tmp_path), tmp_path / "site"
    pack = [sys.executable, "-m", "wheel", "pack", str(root), "-d", str(tmp_path)]
    subprocess.run(pack, check=True, capture_output=True)
    [wheel] = tmp_path.glob("detectron2-*.whl")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    subprocess.run([*pip, "--no-deps", "--target", str(site), str(wheel)], check=True)
    [found] = metadata.distributions(name="detectron2", path=[str(site)])
    assert found.version == "0.6+snapshot.3.1.2"
    recorded = {str(file) for file in found.files or ()}
    assert {"detectron2/__init__.py", "detectron2/a.py", "detectron2/b.py"} <= recorded


def write_detectron2(folder: Path, *, package: bool) -> None:
    (folder / "detectron2").mkdir()
    if package:
        (folder / "detectron2/__init__.py").touch()


@pytest.mark.parametrize("package", [True, False])
def test_an_installed_detectron2_is_never_touched(tmp_path, package):
    """A mere folder of that name, such as a clone, is none."""
    write_detectron2(tmp_path, package=package)
    code = (
        "import runpy, sys; sys.path.append(sys.argv[1]);"
        "print(runpy.run_path(sys.argv[2])['is_installed']())"
    )
    command = [sys.executable, "-S", "-c", code, str(tmp_path), str(SCRIPT)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert out.strip() == str(package)
    out = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=True)
    assert out.stdout == "Detectron2 is installed already\n"


def test_the_wheel_is_pinned_by_its_hash():
    [pinned] = [line for line in REQUIREMENT.read_text().splitlines() if not line.startswith("#")]
    assert re.fullmatch(r"LabGym==[\d.]+ --hash=sha256:[0-9a-f]{64}", pinned)


def test_detectron2_is_itself_in_any_order_of_imports():
    assert detectron2.modeling.__name__ == "detectron2.modeling"
    assert "build_non_local_resnet_backbone" in detectron2.modeling.BACKBONE_REGISTRY
    code = (
        "import torch, detectron2.modeling, nl_detectron, sys;"
        "assert 'build_non_local_resnet_backbone' in detectron2.modeling.BACKBONE_REGISTRY;"
        "assert not [name for name in sys.modules if name.partition('.')[0] == 'LabGym']"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_module_of_the_snapshot_names_the_carrier():
    if not IS_SNAPSHOT:
        pytest.skip("Detectron2 itself is installed here, not the snapshot")
    folder = Path(detectron2.modeling.__file__).parents[1]
    assert len(list(folder.rglob("*.py"))) > 200
    assert not [file for file in folder.rglob("*.py") if "LabGym" in file.read_text()]
    [license] = [f for f in metadata.files("detectron2") or () if f.name == "LICENSE"]
    assert "Apache License" in license.read_text()
