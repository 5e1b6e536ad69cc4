import logging
import os

import nl_detectron  # noqa: F401

import detectron2
import pytest
import torch


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
