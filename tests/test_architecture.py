"""What keeps the package's parts apart: its imports."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import nl_detectron

PACKAGE = Path(nl_detectron.__file__).parent
FILES = {
    ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): file
    for file in PACKAGE.rglob("*.py")
}


def imports(module: str) -> set[str]:
    """Full names of what a module imports anywhere, for type checking only included."""
    package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*parts, node.module or ""]) if node.level else node.module or ""
            base = base.strip(".")
            found |= {base, *(f"{base}.{name.name}" for name in node.names)}
    return found


def test_no_circle_of_imports():
    """Among modules; that a package's __init__ re-exports its own modules is none."""
    graph = {module: imports(module) & FILES.keys() - {module} for module in FILES}
    for module in graph:
        # A package stands for what it re-exports, but not for the module that asks.
        graph[module] -= {name for name in graph[module] if module.startswith(f"{name}.")}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("name", ["argparse", "unittest", "pytest", "dev", "far_cue"])
def test_what_the_package_does_without(name):
    users = [m for m in FILES if any(i.split(".")[0] == name for i in imports(m))]
    assert users == []


def test_only_the_page_needs_gradio():
    assert [m for m in FILES if "gradio" in imports(m)] == ["nl_detectron.app"]


@pytest.mark.parametrize("module", ["layers", "modeling", "config", "checkpoint", "structures"])
def test_models_do_not_need_the_training_engine(module):
    of_it = [m for m in FILES if f"{m}.".startswith(f"nl_detectron.{module}.")]
    upper = {"engine", "inference", "report", "visualization", "evaluation", "app"}
    for name in of_it:
        assert not {i.split(".")[1] for i in imports(name) if i.startswith("nl_detectron.")} & upper


def test_importing_the_package_imports_no_more_than_models_and_datasets():
    code = (
        "import sys, nl_detectron; print(*sys.modules); "
        "from nl_detectron import Predictor; assert 'Predictor' in dir(nl_detectron)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(out.stdout.split())
    for name in ("engine", "inference", "report", "visualization", "evaluation", "app"):
        assert f"nl_detectron.{name}" not in loaded
    assert not {"detectron2.engine", "gradio", "matplotlib", "hotcoco", "pandas"} & loaded


def test_without_detectron2_it_says_how_to_install_it(tmp_path):
    (tmp_path / "detectron2/detectron2").mkdir(parents=True)  # a clone in the working directory
    code = f"import sys; sys.path.append({str(PACKAGE.parent)!r}); import nl_detectron"
    for folder in (tmp_path, tmp_path / "detectron2/detectron2"):
        command = [sys.executable, "-S", "-c", code]
        result = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        assert result.returncode == 1
        error = result.stderr.partition("ImportError: ")[2]
        assert "pip install --no-build-isolation git+https://github.com/facebookresearch/" in error
        assert "python dev/install_snapshot.py" in error
