import logging
import os
import runpy
import sys
from pathlib import Path

from nl_detectron.report import find_chromium

import detectron2
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def log(caplog):
    """What nl_detectron logs, even after Detectron2 has stopped its loggers' propagation."""
    logger = logging.getLogger(f"{detectron2.__name__}.nl_detectron")
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO, logger.name)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.fixture(scope="session")
def generated_sets(tmp_path_factory) -> dict[str, str]:
    """An environment in which the registered datasets are in a folder of this session's own."""
    return {**os.environ, "DETECTRON2_DATASETS": str(tmp_path_factory.mktemp("datasets"))}


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium, driven by Playwright."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed: requirements/app.txt"
    )
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        # Chromium's sandbox cannot be used by root, as whom CI may run.
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def tool(monkeypatch, capsys):
    """Runs tools/NAME.py with arguments, and returns the exit code, stdout and stderr."""

    def run(name: str, *arguments: object) -> tuple[int, str, str]:
        path = ROOT / "tools" / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    return run
