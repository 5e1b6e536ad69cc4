"""Records a whole detector as a graph, and writes it in each format."""

import contextlib
import copy
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.export import TracingAdapter
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.roi_heads import BaseKeypointRCNNHead
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.torch_version import TorchVersion

from ..errors import UsageError
from .metadata import KEY, to_text
from .model import HEAT_MAPS
from .nms import recordable_nms
from .pooling import pooling_for_openvino
from .quantize import prefer_convolutions, quantize

OPSET = 17
# What a graph gives of each detection, in this order, as far as the model has it
OUTPUTS = ("pred_boxes", "scores", "pred_classes", "pred_masks", HEAT_MAPS)
FORMATS = {
    "onnx": "model.onnx",
    "openvino": "model.xml",
    "torchscript": "model.torchscript",
    "torch-export": "model.pt2",
}
# PyTorch whose torch.export records detectors
TORCH_EXPORT_SINCE = "2.12"


def check_format(format: str) -> None:
    """
    Raises:
        UsageError: if this is none of :data:`FORMATS`, or cannot be written with this PyTorch.
    """
    if format not in FORMATS:
        raise UsageError(
            f"format must be one of {', '.join(FORMATS)}, got {format!r}", arguments=["format"]
        )
    version = torch.__version__
    if format == "torch-export" and TorchVersion(version) < TORCH_EXPORT_SINCE:
        raise UsageError(
            f"format torch-export needs PyTorch {TORCH_EXPORT_SINCE} or later, this is {version}; "
            "use another format",
            arguments=["format"],
        )


class _GivesHeatMaps:
    """A keypoint head whose heat maps are not decoded: ONNX cannot express the loop over boxes."""

    layers: Any

    def forward(self, x: Tensor, instances: list[Instances]) -> list[Instances]:
        (found,) = instances  # of one image
        found.set(HEAT_MAPS, self.layers(x))
        return instances


class Recorder:
    """A detector as a graph of one image, of which it gives the fields of :data:`OUTPUTS`.

    Attributes:
        outputs: their names.
    """

    def __init__(self, model: nn.Module, example: Tensor):
        """
        Args:
            model: in evaluation mode, on the CPU, not optimized for inference.
            example: an image as the model takes it, uint8 (3, H, W). Nothing depends on its size.
        """
        model = copy.deepcopy(model)
        for module in model.modules():
            if isinstance(module, BaseKeypointRCNNHead):
                kind = type(module)
                module.__class__ = type(kind.__name__, (_GivesHeatMaps, kind), {})
        with torch.no_grad():
            found = _detect(model, [{"image": example}])
        self.outputs = [name for name in OUTPUTS if found.has(name)]
        self._example = example
        self._adapter = TracingAdapter(model, [{"image": example}], self._infer).eval()

    def write(
        self,
        format: str,
        folder: Path,
        metadata: dict[str, Any],
        calibration: Sequence[np.ndarray] = (),
    ) -> Path:
        """Writes a file of :data:`FORMATS`; beside ``model.xml``, its weights in ``model.bin``.

        Args:
            format: one of :data:`FORMATS`.
            folder: where to.
            metadata: see :func:`.metadata.describe`.
            calibration: of OpenVINO, images as the model takes them, uint8 (3, H, W), with which
                to quantize it; without any it stays in float.

        Raises:
            UsageError: if what writes the format is not installed.
        """
        path = folder / FORMATS[format]
        text = to_text(metadata)
        if format == "torchscript":
            with _recording():
                traced = torch.jit.trace(self._adapter, (self._example,), check_trace=False)
            torch.jit.save(traced, str(path), _extra_files={KEY: text})
        elif format == "torch-export":
            self._write_torch_export(path, text)
        elif format == "onnx":
            self._write_onnx(path, text)
        else:
            self._write_openvino(path, text, calibration)
        return path

    def _infer(self, model: nn.Module, inputs: list[dict[str, Tensor]]) -> tuple[Tensor, ...]:
        found = _detect(model, inputs)
        values = (found.get(name) for name in self.outputs)
        return tuple(value.tensor if isinstance(value, Boxes) else value for value in values)

    def _write_torch_export(self, path: Path, text: str) -> None:
        from .symbolic import exported_program  # by what only newer versions of PyTorch have

        model = self._adapter.model
        program = exported_program(
            lambda image: self._infer(model, [{"image": image}]), model, self._example
        )
        torch.export.save(program, path, extra_files={KEY: text})

    def _write_onnx(self, path: Path, text: str) -> None:
        onnx = _imported("onnx", "onnx")
        with _recording():
            torch.onnx.export(
                self._adapter,
                (self._example,),
                str(path),
                dynamo=False,  # the other one refuses sizes read from tensors
                opset_version=OPSET,
                input_names=["image"],
                output_names=self.outputs,
                dynamic_axes={
                    "image": {1: "height", 2: "width"},
                    **{name: {0: "detections"} for name in self.outputs},
                },
            )
        model = onnx.load(str(path))
        onnx.helper.set_model_props(model, {KEY: text})
        onnx.save(model, str(path))

    def _write_openvino(self, path: Path, text: str, calibration: Sequence[np.ndarray]) -> None:
        openvino = _imported("openvino", "openvino")
        onnx_file = path.with_suffix(".onnx.tmp")
        if calibration:
            prefer_convolutions(self._adapter)
        try:
            with pooling_for_openvino():
                self._write_onnx(onnx_file, text)
            model = openvino.convert_model(onnx_file)
            if calibration:
                model = quantize(model, calibration)
            model.set_rt_info(text, [KEY])
            openvino.save_model(model, path, compress_to_fp16=False)
        finally:
            onnx_file.unlink(missing_ok=True)


def _detect(model: nn.Module, inputs: list[dict[str, Tensor]]) -> Instances:
    """A model's detections in one image, in that image's pixels."""
    if isinstance(model, GeneralizedRCNN):
        return model.inference(inputs, do_postprocess=False)[0]
    return model(inputs)[0]["instances"]


@contextlib.contextmanager
def _recording() -> Iterator[None]:
    """Without gradients, by an NMS that can be recorded, and without the recorders' warnings.

    They are of what is the same for all sizes.
    """
    with torch.no_grad(), recordable_nms(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _imported(package: str, extra: str) -> Any:
    try:
        return __import__(package)
    except ImportError:
        raise UsageError(
            f"format {extra} needs {package}, which is not installed; install it with: "
            f"pip install nl_detectron[{extra}]",
            arguments=["format"],
        ) from None
