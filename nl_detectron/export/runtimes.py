"""Runs exported files: each of the classes here reads a format and calls its graph.

Shape shorthand: H and W, the height and width of an image; N, the number of detections.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UsageError
from .metadata import KEY, from_text

Graph = Callable[[np.ndarray], list[np.ndarray]]  # uint8 (3, H, W) in, the graph's outputs out


def open_onnx(path: Path) -> tuple[Graph, str | None]:
    """The graph by onnxruntime on the CPU, and the metadata's text."""
    try:
        import onnxruntime
    except ImportError:
        raise _missing(path, "onnxruntime", "onnx") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # its warnings are of the graph, which no user can change
    with _reading(path, "onnxruntime"):
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    name = session.get_inputs()[0].name
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    return lambda image: session.run(None, {name: image}), text


def open_openvino(path: Path) -> tuple[Graph, str | None]:
    """The graph by OpenVINO on the CPU in single precision, and the metadata's text."""
    try:
        import openvino
    except ImportError:
        raise _missing(path, "openvino", "openvino") from None
    # By default it computes in bfloat16 where the processor can, of which scores would be ties
    precise = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    with _reading(path, "OpenVINO"):
        core = openvino.Core()
        model = core.read_model(path)
        has_metadata = model.has_rt_info([KEY])
        text = model.get_rt_info([KEY]).astype(str) if has_metadata else None
        compiled = core.compile_model(model, "CPU", precise)

    def run(image: np.ndarray) -> list[np.ndarray]:
        request = compiled.create_infer_request()  # of one thread each
        outputs = request.infer([image])
        return [np.array(outputs[output]) for output in compiled.outputs]

    return run, text


def open_torchscript(path: Path) -> tuple[Graph, str | None]:
    """The graph by PyTorch's TorchScript, and the metadata's text."""
    import torchvision  # noqa: F401  # of whose operators some are in the graph

    extra = {KEY: ""}
    with _reading(path, "PyTorch"):
        module = torch.jit.load(str(path), map_location="cpu", _extra_files=extra)
    text: Any = extra[KEY]

    def run(image: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            return [output.numpy() for output in module(torch.from_numpy(image))]

    return run, text if isinstance(text, str) else text.decode()


def open_torch_export(path: Path) -> tuple[Graph, str | None]:
    """The graph as PyTorch's ``torch.export`` has it, and the metadata's text."""
    import torchvision  # noqa: F401  # of whose operators some are in the graph

    extra = {KEY: ""}
    with _reading(path, "PyTorch"):
        module = torch.export.load(path, extra_files=extra).module()

    def run(image: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return [output.numpy() for output in module(torch.from_numpy(image))]

    return run, extra[KEY]


# By the ending of the file's name
RUNTIMES = {
    ".onnx": open_onnx,
    ".xml": open_openvino,
    ".torchscript": open_torchscript,
    ".pt2": open_torch_export,
}


def is_exported(path: str | Path) -> bool:
    """Whether a file's name is one of an exported model."""
    return Path(path).suffix in RUNTIMES


def open_graph(path: str | Path) -> tuple[Graph, dict[str, Any]]:
    """An exported file's graph and metadata.

    Raises:
        UsageError: if the file is damaged or of other origin, or its runtime is not installed.
    """
    path = Path(path)
    graph, text = RUNTIMES[path.suffix](path)
    metadata = from_text(text)
    if metadata is None:
        raise UsageError(
            f"weights {path} was not written by this version of tools/export_model.py: what it "
            "needs and gives is not written in it",
            arguments=["weights"],
        )
    return graph, metadata


@contextlib.contextmanager
def _reading(path: Path, runtime: str) -> Any:
    try:
        yield
    except Exception as error:  # whatever a broken file leads to
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UsageError(
            f"weights {path} cannot be read by {runtime}: it is damaged, or cut off ({reason})",
            arguments=["weights"],
        ) from None


def _missing(path: Path, package: str, extra: str) -> UsageError:
    return UsageError(
        f"weights {path} needs {package}, which is not installed; install it with: "
        f"pip install nl_detectron[{extra}]",
        arguments=["weights"],
    )
