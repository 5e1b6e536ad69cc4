import pytest
import torch

from nl_detectron import Predictor


@pytest.fixture(scope="session", params=["shapes", "people"])
def predictor(request, weights) -> Predictor:
    return Predictor(weights[request.param], confidence_threshold=0, device="cpu")


@pytest.fixture
def with_threads():
    """torch.set_num_threads for the time of a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
