"""What a format needs to be written and run, of which a machine may lack something."""

import pytest

PACKAGES = {
    "onnx": ("onnx", "onnxruntime"),
    "openvino": ("onnx", "openvino"),
    "torchscript": (),
    "torch-export": (),
}


def needs(format: str) -> None:
    """Skips a test where this format cannot be had."""
    for package in PACKAGES[format]:
        pytest.importorskip(
            package, reason=f"{package} is not installed: pip install nl_detectron[{format}]"
        )
