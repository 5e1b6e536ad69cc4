"""What a format or extra needs to be written and run, of which a machine may lack something."""

import pytest

PACKAGES = {
    "onnx": ("onnx", "onnxruntime"),
    "openvino": ("onnx", "openvino"),
    "torchscript": (),
    "torch-export": (),
    "int8": ("onnx", "openvino", "nncf"),
}


def needs(format: str) -> None:
    """Skips a test where this cannot be had."""
    for package in PACKAGES[format]:
        pytest.importorskip(
            package, reason=f"{package} is not installed: pip install nl_detectron[{format}]"
        )
