"""A checkpoint in, a checked file of another format out."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import GeneralizedRCNN, RetinaNet, build_model
from detectron2.structures import Instances
from torch import nn

from ..checkpoint import NonLocalCheckpointer
from ..checkpoint.vocabulary import from_text, metadata_of_model
from ..engine.checks import check_output_dir, check_threshold
from ..engine.config import cfg_of_weights
from ..errors import UsageError
from ..layers import non_local_blocks
from .agreement import Agreement, agree, agreement_table, agreements
from .metadata import describe
from .model import ExportedModel
from .parity import Difference, check_images, compare, generated_images, table
from .quantize import MOST_IMAGES, check_quantizable
from .record import Recorder, check_format

ARCHITECTURES = (GeneralizedRCNN, RetinaNet)  # those of which all outputs can be read back


@dataclass(frozen=True)
class Export:
    """An exported file, and how it compares with the model.

    Attributes:
        path: the file; gone if it failed.
        differences: on each of the images, of a file in single precision.
        agreements: on each of the images, of a file in int8, which cannot give the same.
    """

    path: Path
    differences: list[Difference] = field(default_factory=list)
    agreements: list[Agreement] = field(default_factory=list)

    @property
    def passes(self) -> bool:
        return all(difference.passes for difference in self.differences) and agree(self.agreements)

    def table(self) -> str:
        return agreement_table(self.agreements) if self.agreements else table(self.differences)


def export_model(
    weights: str | Path,
    output: str | Path,
    *,
    format: str = "onnx",
    config: str | Path | None = None,
    opts: Sequence[str] = (),
    confidence_threshold: float | None = None,
    images: Sequence[np.ndarray] = (),
    int8: bool = False,
    trust: bool = False,
) -> Export:
    """Writes a trained detector as one file for images of any size, and checks it.

    The file is compared with the model on images of sizes other than the example's and on a blank
    one, and removed if it differs; see :mod:`.parity`.

    Args:
        weights: a checkpoint's path or address.
        output: the folder; made if need be.
        format: one of :data:`FORMATS`.
        config, opts, trust: as for :class:`nl_detectron.Predictor`.
        confidence_threshold: detections with lower scores are not in the file's outputs; by
            default the config's ``SCORE_THRESH_TEST``.
        images: to check with, uint8 (H, W, 3) in BGR order; by default generated ones.
        int8: quantize it after these images; see :mod:`.quantize`. It is then compared by how many
            of the model's detections it has; see :mod:`.agreement`.

    Raises:
        UsageError: naming the argument that cannot work.
    """
    check_format(format)
    if int8:
        check_quantizable(format, images)
    cfg, model, known = load(str(weights), config, opts, confidence_threshold, trust)
    check_output_dir("output", str(output))
    images = list(images) or generated_images(people=cfg.MODEL.KEYPOINT_ON)
    path = write_file(cfg, model, known, Path(output), format, images, int8=int8)
    model_and_file = (predictor(cfg, model), predictor(cfg, ExportedModel(path)))
    if int8:
        result = Export(path, agreements=agreements(*model_and_file, images))
    else:
        result = Export(path, compare(*model_and_file, check_images(images)))
    if not result.passes:
        path.unlink()
        path.with_suffix(".bin").unlink(missing_ok=True)  # OpenVINO's weights
    return result


def write_file(
    cfg: CfgNode,
    model: nn.Module,
    known: Metadata,
    folder: Path,
    format: str,
    images: Sequence[np.ndarray],
    *,
    int8: bool = False,
) -> Path:
    """Writes what :func:`load` gives, unchecked.

    Args:
        cfg, model, known: of :func:`load`.
        folder, format, images, int8: see :func:`export_model`; there is an image.
    """
    recorder = Recorder(model, model_input(cfg, images[0]))
    calibration = [model_input(cfg, image).numpy() for image in images[:MOST_IMAGES] if int8]
    precision = "int8" if int8 else "float32"
    metadata = describe(cfg, recorder.outputs, known, precision=precision)
    return recorder.write(format, folder, metadata, calibration)


def load(
    weights: str,
    config: str | Path | None = None,
    opts: Sequence[str] = (),
    threshold: float | None = None,
    trust: bool = False,
) -> tuple[CfgNode, nn.Module, Metadata]:
    """The config, the plain model in evaluation mode on the CPU, and its names of things."""
    if "://" not in weights and not os.path.isfile(weights):
        raise UsageError(f"weights {weights} does not exist", arguments=["weights"])
    cfg = cfg_of_weights(weights, config, opts, trust=trust)
    cfg.defrost()
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    if threshold is not None:
        check_threshold(threshold)
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = threshold
        cfg.MODEL.RETINANET.SCORE_THRESH_TEST = threshold
    cfg.freeze()
    model = build_model(cfg).eval()
    if type(model) not in ARCHITECTURES:
        names = ", ".join(kind.__name__ for kind in ARCHITECTURES)
        raise UsageError(
            f"weights {weights} are of a {type(model).__name__} model, which cannot be exported; "
            f"those of {names} can",
            arguments=["weights"],
        )
    content = NonLocalCheckpointer(model, complete=True, trust=trust).load(weights)
    for name, block in non_local_blocks(model).items():
        if not block.last_weight().any():
            raise UsageError(
                f"weights {weights}: the non-local block {name} has not been trained, it still "
                "does nothing; train it, or leave it out of the config",
                arguments=["weights"],
            )
    return cfg, model, metadata_of_model(cfg, from_text(content.get("vocabulary")))


def model_input(cfg: CfgNode, image: np.ndarray) -> torch.Tensor:
    """uint8 (3, H, W) of an image, resized as the config says."""
    size = cfg.INPUT.MIN_SIZE_TEST
    if size:
        resize = ResizeShortestEdge([size, size], cfg.INPUT.MAX_SIZE_TEST)
        image = resize.get_transform(image).apply_image(image)
    if cfg.INPUT.FORMAT == "RGB":
        image = image[:, :, ::-1]
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def predictor(cfg: CfgNode, model: nn.Module) -> Callable[[np.ndarray], Instances]:
    """A detector as a function of an image, uint8 (H, W, 3) in BGR order."""

    def predict(image: np.ndarray) -> Instances:
        height, width = image.shape[:2]
        inputs = {"image": model_input(cfg, image), "height": height, "width": width}
        with torch.inference_mode():
            return model([inputs])[0]["instances"]

    return predict
