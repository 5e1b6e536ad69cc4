import os

import pytest
import torch


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def generated_sets(tmp_path_factory) -> dict[str, str]:
    """An environment in which the registered datasets are in a folder of this session's own."""
    return {**os.environ, "DETECTRON2_DATASETS": str(tmp_path_factory.mktemp("datasets"))}
