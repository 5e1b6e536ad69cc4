from nl_detectron import Predictor

import pytest


@pytest.fixture(scope="session", params=["shapes", "people"])
def predictor(request, weights) -> Predictor:
    return Predictor(None, weights[request.param], confidence_threshold=0, device="cpu")
