"""The module that decides which Detectron2 answers for `import detectron2`, by itself."""

import re
import subprocess
import sys
from pathlib import Path

import nl_detectron

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULE = Path(nl_detectron.__file__).with_name("_detectron2.py")


def write_package(folder: Path, **modules: str) -> None:
    for name, text in modules.items():
        path = folder / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for parent in path.relative_to(folder).parents:
            if parent != Path("."):
                (folder / parent / "__init__.py").touch()


def run(folder: Path, code: str) -> subprocess.CompletedProcess:
    """Runs the module, and then code, where nothing but the packages in the folder is installed."""
    program = (
        f"import runpy, sys; sys.path.append(sys.argv[1]); runpy.run_path(sys.argv[2])\n{code}"
    )
    command = [sys.executable, "-S", "-W", "error", "-c", program, str(folder), str(MODULE)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


def test_neither_is_installed(tmp_path):
    result = run(tmp_path, "")
    assert result.returncode == 1
    error = result.stderr.partition("ImportError: ")[2]
    assert "pip install --no-build-isolation git+https://github.com/facebookresearch/" in error
    assert "pip install --no-deps --ignore-requires-python LabGym==3.1.2" in error


def test_labgym_of_a_version_without_the_snapshot(tmp_path):
    write_package(tmp_path, LabGym__other="")
    assert "ImportError: nl_detectron needs Detectron2" in run(tmp_path, "").stderr


def test_an_installed_detectron2_is_used_as_it_is(tmp_path):
    write_package(tmp_path, detectron2__a="", LabGym__detectron2__a="")
    result = run(
        tmp_path,
        "import detectron2.a\n"
        "assert detectron2.a.__name__ == 'detectron2.a', detectron2.a\n"
        "assert 'LabGym' not in sys.modules",
    )
    assert result.returncode == 0, result.stderr


def test_a_folder_of_that_name_is_no_installed_detectron2(tmp_path):
    """Such as the one in which somebody has just cloned Detectron2."""
    write_package(tmp_path, LabGym__detectron2__a="")
    (tmp_path / "detectron2/detectron2").mkdir(parents=True)
    result = run(tmp_path, "import detectron2.a")
    assert result.returncode == 0, result.stderr


def test_one_version_of_the_snapshot_everywhere():
    pinned = (ROOT / "requirements/snapshot.txt").read_text().split("\n")[1].split()[0]
    assert pinned.startswith("LabGym==")
    for file in (MODULE, ROOT / "README.md"):
        assert set(re.findall(r"LabGym==[\d.]+", file.read_text())) == {pinned}


def test_the_snapshot_answers_for_detectron2(tmp_path):
    """Each module once, whichever of its two names it is imported by, and in whichever order."""
    write_package(
        tmp_path,
        LabGym__detectron2__a="from LabGym.detectron2.b import c\nfrom . import b",
        LabGym__detectron2__b__c="loaded = []",
    )
    result = run(
        tmp_path,
        "import detectron2.a, detectron2.b.c\n"
        "import LabGym.detectron2.b.c as original\n"
        "assert detectron2.b.c is original is detectron2.a.c\n"
        "assert sys.modules['detectron2.b.c'] is original\n"
        "assert original.__spec__.name == original.__name__ == 'LabGym.detectron2.b.c'\n"
        "assert detectron2 is sys.modules['LabGym.detectron2']\n"
        "from detectron2.b import c\n"
        "assert c is original\n"
        "try:\n    import detectron2.d\n"
        "except ModuleNotFoundError as error:\n    assert 'detectron2.d' in str(error)\n"
        "else:\n    raise AssertionError",
    )
    assert result.returncode == 0, result.stderr


def test_registries_are_shared_with_the_detectron2_that_is_installed():
    import detectron2.modeling

    assert "build_non_local_resnet_backbone" in detectron2.modeling.BACKBONE_REGISTRY
    if detectron2.modeling.__name__ == "detectron2.modeling":
        pytest.skip("Detectron2 itself is installed here, not the snapshot")
    assert sys.modules["LabGym.detectron2.modeling"] is sys.modules["detectron2.modeling"]
