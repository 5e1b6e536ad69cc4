"""A trained model as one call: an image in, Detectron2's Instances out."""

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import nn

from ..checkpoint import NonLocalCheckpointer
from ..checkpoint.vocabulary import from_text, metadata_of_model
from ..data.images import ImageError, read_image, to_format
from ..engine.checks import check_threshold
from ..engine.config import cfg_of_weights
from ..engine.devices import check_device
from ..errors import UsageError, did_you_mean, few
from ..export.model import ExportedModel
from ..export.runtimes import is_exported
from ..log import logger
from ..memory import predict_within_memory
from ..structures import Attention
from .ahead import Item, ahead
from .attention import attend
from .optimize import DTYPES, optimize_for_inference
from .processor import lacks_bfloat16, processor_flags

if TYPE_CHECKING:
    import supervision

# Images that a CPU predicts on at a time: each takes a gigabyte or two at 800 pixels.
MAX_WORKERS = 8


class Predictor:
    """Detects, segments and finds keypoints with a trained model.

    >>> predictor = Predictor("output/model_final.pth")
    >>> instances = predictor("image.jpg")

    Attributes:
        cfg: the model's config.
        model: in evaluation mode, on ``device``, optimized for inference.
        class_names: by class index.
        metadata: what :class:`detectron2.utils.visualizer.Visualizer` needs to draw.
    """

    def __init__(
        self,
        weights: str | Path,
        config: str | Path | CfgNode | None = None,
        *,
        device: str | None = None,
        dtype: str = "float32",
        confidence_threshold: float = 0.5,
        classes: Sequence[str] | None = None,
        opts: Sequence[str] = (),
        trust: bool = False,
    ):
        """
        Args:
            weights: a checkpoint's path, an address that Detectron2 resolves, or a file that
                ``tools/export_model.py`` wrote, which runs on the CPU.
            config: a config, its file or name in our model zoo; by default the one that is kept
                with the weights.
            device: by default CUDA where there is a GPU, else the CPU.
            dtype: "float32", whose detections are Detectron2's own within rounding, or "bfloat16",
                which is faster where the hardware has it.
            confidence_threshold: instances with lower scores are left out; 0 to 1.
            classes: names of the classes to keep; by default all.
            opts: ``KEY VALUE`` pairs that override the config.
            trust: execute what the files of weights and config tell to; see
                :class:`NonLocalCheckpointer`.

        Raises:
            UsageError: naming the argument that cannot work; a checkpoint that leaves any part of
                the model without weights, too.
        """
        check_threshold(confidence_threshold)
        if dtype not in DTYPES:
            raise UsageError(
                f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}", arguments=["dtype"]
            )
        weights = str(weights)
        if weights.endswith((".yaml", ".yml", ".py")):
            raise UsageError(
                f"weights {weights} is a config; weights come first, then config",
                arguments=["weights"],
            )
        if not urlparse(weights).scheme and not os.path.isfile(weights):
            raise UsageError(f"weights {weights} does not exist", arguments=["weights"])
        exported = is_exported(weights)
        if exported:
            model = ExportedModel(weights)
            _check_exported(
                model, device, dtype, confidence_threshold, config is not None or bool(opts)
            )
            cfg = model.cfg()
        elif isinstance(config, CfgNode):
            cfg = config.clone()
            cfg.defrost()
            cfg.merge_from_list(list(opts))
        else:
            cfg = cfg_of_weights(weights, config, opts, trust=trust)
            cfg.defrost()
        cfg.MODEL.DEVICE = "cpu" if exported else resolve_device(device)
        if dtype == "bfloat16" and cfg.MODEL.DEVICE == "cpu" and lacks_bfloat16(processor_flags()):
            logger.warning(
                "dtype bfloat16: this processor has no such products (avx512_bf16 or amx_bf16), so "
                "it is slower than float32 here"
            )
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = confidence_threshold
        cfg.MODEL.RETINANET.SCORE_THRESH_TEST = confidence_threshold
        cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH = confidence_threshold
        cfg.MODEL.WEIGHTS = ""  # loaded below
        cfg.freeze()
        self.cfg = cfg
        self._dtype = DTYPES[dtype]
        self._threshold = confidence_threshold
        shortest = [cfg.INPUT.MIN_SIZE_TEST] * 2
        self._resize = ResizeShortestEdge(shortest, cfg.INPUT.MAX_SIZE_TEST)
        if exported:
            self.model: nn.Module = model
            self.metadata = model.dataset_metadata()
            self._workers = 1  # with all cores: a runtime's threads are its own
        else:
            self.model = build_model(cfg).eval()
            content = NonLocalCheckpointer(self.model, complete=True, trust=trust).load(weights)
            self.metadata = metadata_of_model(cfg, from_text(content.get("vocabulary")))
            self._workers = min(torch.get_num_threads(), MAX_WORKERS)
            optimize_for_inference(self.model, self._dtype)
        self.class_names: list[str] = self.metadata.thing_classes
        self.kept = _class_indices(classes, self.class_names) if classes else None

    @property
    def device(self) -> torch.device:
        return self.model.device  # type: ignore[return-value]

    def __call__(self, image: np.ndarray | str | Path, *, name: str = "the image") -> Instances:
        """
        Args:
            image: uint8 (H, W, 3) in BGR order, as OpenCV reads, or a path.
            name: of an array, for what is said of it.

        Returns:
            N instances in the image's pixels, on the CPU, by falling score: ``pred_boxes``,
            ``scores`` and ``pred_classes``, with a mask head ``pred_masks`` (bool (N, H, W)), with
            a keypoint head ``pred_keypoints`` ((N, K, 3): x, y and score).

        Raises:
            UsageError: if the image cannot be read, is no image the model can take, or needs more
                memory than there is. Before that it is tried smaller, and the log says so.
        """
        if not isinstance(image, np.ndarray):
            name = str(image)
        model_input = self._model_input(self.load(image))
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32),
        ):
            outputs, divisor = predict_within_memory(self.model, model_input)
        if outputs is None:
            raise ImageError(f"{name} needs more memory than there is, at 1/{divisor} of its size")
        if divisor > 1:
            logger.warning(f"{name} did not fit into memory: predicted at 1/{divisor} of its size")
        if "instances" not in outputs:
            raise UsageError(f"{self.cfg.MODEL.META_ARCHITECTURE} models predict no instances")
        instances = outputs["instances"]
        if isinstance(self.model, ExportedModel):  # whose own threshold is another
            instances = instances[instances.scores > self._threshold]
        if instances.has("pred_keypoint_heatmaps"):
            instances.remove("pred_keypoint_heatmaps")  # large, and only of use in training
        # Copies, since what inference mode makes cannot be changed in place.
        fields = {name: value.clone() for name, value in instances.get_fields().items()}
        instances = Instances(instances.image_size, **fields).to("cpu")
        if self.kept is not None:
            instances = instances[torch.isin(instances.pred_classes, torch.tensor(self.kept))]
        return instances

    def stream(self, images: Iterable[np.ndarray | str | Path]) -> Iterator[Instances]:
        """Predicts on many images, several at a time; see :meth:`side_by_side`.

        Returns:
            What :meth:`__call__` returns, for each image in turn.

        Raises:
            UsageError: if an image cannot be used, when its turn has come.
        """
        for _, found in self.side_by_side(self, images):
            yield found.result()

    def side_by_side(
        self, function: Callable[[Item], Any], items: Iterable[Item]
    ) -> Iterator[tuple[Item, Future]]:
        """Calls a function that reads an image and predicts, for several items at a time.

        On a CPU each core has an image of its own, which is faster than all cores for one image:
        nobody waits for the others in the middle of a layer. On a GPU the next image is read and
        resized meanwhile. While this runs, PyTorch is told on a CPU to use one thread for each.

        Returns:
            The items in their order, each with a future of what ``function`` gave.
        """
        if self.device.type != "cpu" or self._workers == 1:
            yield from ahead(function, items)
            return
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            # PyTorch's number of threads is each thread's own as well.
            yield from ahead(
                function, items, workers=self._workers, start=lambda: torch.set_num_threads(1)
            )
        finally:
            torch.set_num_threads(threads)

    def attention(
        self,
        image: np.ndarray | str | Path,
        points: Sequence[tuple[float, float]] | None = None,
    ) -> Attention:
        """What each non-local block relates to query points of an image.

        Args:
            image: as for :meth:`__call__`.
            points: (x, y) in the image's pixels; by default the centre of each detected instance's
                box.

        Raises:
            UsageError: if the model has no non-local block, the image cannot be read, or a point is
                outside of it.
        """
        image = self.load(image)
        return attend(self.model, image, points, self, self.input_size(image))

    def load(self, image: np.ndarray | str | Path) -> np.ndarray:
        """The image as an array that the model can take; see :meth:`__call__`."""
        name = "the image"
        if not isinstance(image, np.ndarray):
            name, image = str(image), read_image(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ImageError(
                f"{name} must be uint8 (H, W, 3) in BGR order, got {image.dtype} {image.shape}"
            )
        if 0 in image.shape or min(self.input_size(image)) < 1:
            height, width = image.shape[:2]
            raise ImageError(f"{name} of {width} x {height} pixels is too thin for the model")
        return image

    def input_size(self, image: np.ndarray) -> tuple[int, int]:
        """(H, W) to which the model's input is resized; padding comes after it."""
        height, width = image.shape[:2]
        size = self.cfg.INPUT.MIN_SIZE_TEST
        if size == 0:
            return height, width
        return self._resize.get_output_shape(height, width, size, self.cfg.INPUT.MAX_SIZE_TEST)

    def to_coco(self, instances: Instances, image_id: int = 1) -> list[dict]:
        """Instances as results in COCO's format, which pycocotools' ``loadRes`` takes.

        Category ids are those of the dataset that the model was trained on, which are kept with
        the weights; of older weights class index + 1, unless their dataset is loaded.
        """
        results = instances_to_coco_json(copy.deepcopy(instances), image_id)  # it moves keypoints
        ids = self.metadata.get("thing_dataset_id_to_contiguous_id", {})
        category_ids = {index: category for category, index in ids.items()}
        for result in results:
            index = result["category_id"]
            result["category_id"] = category_ids.get(index, index + 1)
        return results

    def to_supervision(self, instances: Instances) -> "supervision.Detections":
        """Instances as ``supervision.Detections``, with ``class_name`` in its data.

        Raises:
            UsageError: if the package supervision is not installed.
        """
        try:
            import supervision
        except ImportError:
            raise UsageError(
                "supervision is not installed; install it with: pip install supervision"
            ) from None
        detections = supervision.Detections.from_detectron2({"instances": instances})
        names = [self.class_names[index] for index in instances.pred_classes]
        detections.data["class_name"] = np.array(names, dtype=str)
        return detections

    def _model_input(self, image: np.ndarray) -> dict:
        """What Detectron2's models take: the resized image, and the size to predict in."""
        height, width = image.shape[:2]
        image = to_format(image, self.cfg.INPUT.FORMAT)
        resized = self._resize.get_transform(image).apply_image(image)
        # As bytes, of which a quarter is copied to a GPU; the model makes them floats.
        tensor = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        return {"image": tensor, "height": height, "width": width}


def _check_exported(
    model: ExportedModel, device: str | None, dtype: str, threshold: float, configured: bool
) -> None:
    """Raises a UsageError for what cannot be asked of an exported file."""
    if device not in (None, "cpu"):
        raise UsageError(
            f"device {device}: an exported file runs on the CPU; use cpu", arguments=["device"]
        )
    if dtype != "float32":
        raise UsageError(
            f"dtype {dtype}: an exported file has the one it was written in; leave dtype out",
            arguments=["dtype"],
        )
    if configured:
        raise UsageError(
            "config_file and opts do not change an exported file: give them to "
            "tools/export_model.py instead",
            arguments=["config_file", "opts"],
        )
    lowest = model.metadata["score_threshold"]
    if threshold < lowest:
        raise UsageError(
            f"confidence_threshold {threshold:g} is below {lowest:g}, which the file was exported "
            f"with; give {lowest:g} or more",
            arguments=["confidence_threshold"],
        )


def resolve_device(device: str | None) -> str:
    """The device asked for, or CUDA where there is a GPU, else the CPU.

    Raises:
        UsageError: if there is no such device here.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    check_device("device", device, arguments=("device",))
    return device


def _class_indices(classes: Sequence[str], names: Sequence[str]) -> list[int]:
    for name in classes:
        if name not in names:
            hint = did_you_mean(name, names) or f"; it has {few(names, most=5)}"
            raise UsageError(
                f"classes: {name!r} is no class of this model{hint}", arguments=["classes"]
            )
    return [names.index(name) for name in classes]
