import subprocess

import pytest

from nl_detectron.data import builtin, register_splits
from tests.data import kind_checks as checks

CODE = """
from detectron2.data import DatasetCatalog
before = set(DatasetCatalog)
import nl_detectron
print(*sorted(set(DatasetCatalog) - before))
"""


def test_the_package_registers_the_six_sets_of_its_quick_schedules(python):
    """In a process of its own, where no project has registered others."""
    result = subprocess.run([str(python), "-c", CODE], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    expected = [f"{kind}_{split}" for kind in ("people", "shapes") for split in checks.SPLITS]
    assert result.stdout.split() == sorted(expected)


def test_import_registers_below_the_root_and_writes_nothing(tmp_path, monkeypatch):
    checks.check_import_registers_below_the_root_and_writes_nothing(
        builtin, checks.BUILTIN, tmp_path, monkeypatch
    )


def test_builtin_sets(monkeypatch):
    checks.check_splits(checks.BUILTIN, monkeypatch)


@pytest.mark.parametrize("kind", checks.BUILTIN)
def test_metadata_is_complete_before_loading(kind, tmp_path):
    checks.check_metadata_is_complete_before_loading(kind, checks.BUILTIN[kind], tmp_path / "set")


@pytest.mark.parametrize("kind", checks.BUILTIN)
def test_first_use_generates(kind, tmp_path):
    checks.check_first_use_generates(kind, checks.BUILTIN[kind], tmp_path / "set")


@pytest.mark.parametrize("kind", checks.BUILTIN)
def test_detectron2_maps_the_set(kind, tmp_path):
    checks.check_detectron2_maps_the_set(kind, checks.BUILTIN[kind], tmp_path / "set")


def test_names_cannot_be_registered_twice():
    with pytest.raises(AssertionError, match="already registered"):
        register_splits("shapes", "elsewhere")
