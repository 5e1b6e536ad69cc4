"""The fixtures of all tests: of the package, of dev/ and of projects/."""

import logging
import multiprocessing.spawn
import os
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.logger import setup_logger

from nl_detectron.checkpoint import NonLocalCheckpointer
from nl_detectron.report import find_chromium
from tests.models import base_cfg, leave_zero_start
from tests.places import CONFIGS, ROOT
from tests.warm_python import warm_python

QUICK = {
    "shapes": CONFIGS / "quick_schedules/mask_rcnn_shapes_nl.yaml",
    "people": CONFIGS / "quick_schedules/keypoint_rcnn_people_nl.yaml",
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """What is kept of checked annotation files is kept in a folder of this session's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        # Matplotlib's list of fonts, which takes seconds, may stay where it is.
        patch.setenv("MPLCONFIGDIR", str(Path.home() / ".cache/matplotlib"))
        yield


@pytest.fixture(autouse=True, scope="session")
def no_trace_records():
    """PyTorch writes each step of an export as JSON for the handlers of a log that ends in itself.

    Pytest gives such logs handlers of its own, by which an export takes a fifth longer.
    """
    logger = logging.getLogger("torch.__trace")
    own, logger.propagate = logger.propagate, True
    yield
    logger.propagate = own


@pytest.fixture
def log(caplog):
    """What nl_detectron logs, even after Detectron2 has stopped its loggers' propagation."""
    logger = logging.getLogger("detectron2.nl_detectron")
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO, logger.name)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.fixture(scope="session")
def generated_sets(tmp_path_factory) -> dict[str, str]:
    """An environment in which the registered datasets are in a folder of this session's own."""
    return {**os.environ, "DETECTRON2_DATASETS": str(tmp_path_factory.mktemp("datasets"))}


@pytest.fixture(scope="session")
def python(tmp_path_factory):
    """A Python that starts in a moment; the real one where CUDA would be in a copy of a process."""
    if torch.cuda.is_available():
        yield Path(sys.executable)
        return
    with warm_python(tmp_path_factory.mktemp("python")) as program:
        yield program


@pytest.fixture
def quick_spawn(python):
    """Processes that this one spawns start in a moment, too."""
    real = multiprocessing.spawn.get_executable()
    multiprocessing.set_executable(str(python))
    yield
    multiprocessing.set_executable(real)


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
        # Detectron2 gives its loggers handlers once, which write to what is stdout then: here it
        # is this test's, and closed for the next one.
        loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore")]
        before = [logger.handlers[:] for logger in loggers]
        setup_logger.cache_clear()
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
        finally:
            for logger, handlers in zip(loggers, before, strict=True):
                logger.handlers[:] = handlers
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> dict[str, Path]:
    """Checkpoints of small models that find something everywhere, as training writes them.

    They are not trained, but their non-local blocks have left their zero start.
    """
    files = {}
    for name, config in QUICK.items():
        cfg = base_cfg(config)
        # With this start and seed they find something in all parts of an image.
        for node in (cfg.MODEL.NON_LOCAL, cfg.MODEL.ROI_KEYPOINT_HEAD.NON_LOCAL):
            node.INIT = "normal"
        cfg.TEST.DETECTIONS_PER_IMAGE = 5
        torch.manual_seed(1)
        model = leave_zero_start(build_model(cfg))
        folder = tmp_path_factory.mktemp(name)
        (folder / "config.yaml").write_text(cfg.dump())
        files[name] = folder / "model_final.pth"
        NonLocalCheckpointer(model, str(folder), cfg=cfg).save("model_final")
    return files


@pytest.fixture
def picture(tmp_path) -> Path:
    """An image of 120 x 80 pixels."""
    rng = np.random.default_rng(0)
    file = tmp_path / "picture.png"
    image = cv2.resize(rng.integers(0, 255, (8, 12, 3), np.uint8), (120, 80))
    cv2.imwrite(str(file), image)
    return file
