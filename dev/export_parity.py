"""Exports COCO's models at their full width, and prints how their files differ from PyTorch.

python -m dev.export_parity
python -m dev.export_parity --formats onnx openvino --models retinanet
"""

import argparse
import copy
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tabulate import tabulate

from nl_detectron import model_zoo
from nl_detectron.checkpoint import NonLocalCheckpointer
from nl_detectron.errors import UsageError, usage_errors
from nl_detectron.export import FORMATS, export_model
from nl_detectron.export.export import model_input, predictor
from nl_detectron.export.parity import Difference, check_images, compare, generated_images
from nl_detectron.inference.optimize import optimize_for_inference

from .decided import decide

MODELS = {
    "mask": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_nl_1x.yaml",
    "c4": "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_nl_1x.yaml",
    "dc5": "COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_nl_1x.yaml",
    "retinanet": "COCO-Detection/retinanet_R_50_FPN_nl_1x.yaml",
    "cascade": "Misc/cascade_mask_rcnn_R_50_FPN_nl_1x.yaml",
    "keypoint": "COCO-Keypoints/keypoint_rcnn_R_50_FPN_nl_1x.yaml",
    "keypoint_head": "COCO-Keypoints/keypoint_rcnn_R_50_FPN_nl_head_1x.yaml",
}
ITSELF = "PyTorch, other kernels"  # the model after optimize_for_inference: what rounding does
# Small images, and few proposals and detections, for time's sake: no shape is left out by it
OPTS = (
    *("INPUT.MIN_SIZE_TEST", 160, "INPUT.MAX_SIZE_TEST", 240),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", 100, "TEST.DETECTIONS_PER_IMAGE", 30),
)
HEADERS = (
    *("model", "run by", "images", "detections", "the file's"),
    *("boxes (px)", "scores", "masks (IoU)", "keypoints (px)", ""),
)


@dataclass(frozen=True)
class Row:
    """One model by one format, over all images."""

    model: str
    format: str
    differences: Sequence[Difference]

    @property
    def passes(self) -> bool:
        return all(difference.passes for difference in self.differences)

    def cells(self) -> tuple[str, ...]:
        found = self.differences
        worst = [
            max(
                (getattr(row, name) for row in found if getattr(row, name) is not None),
                default=None,
            )
            for name in ("boxes", "scores", "keypoints")
        ]
        boxes, scores, keypoints = ("-" if value is None else f"{value:.1e}" for value in worst)
        masks = [row.masks for row in found if row.masks is not None]
        counts = (str(sum(row.counts[side] for row in found)) for side in range(2))
        return (
            *(self.model, self.format, str(len(found)), *counts, boxes, scores),
            *(f"{min(masks):.4f}" if masks else "-", keypoints),
            "ok" if self.passes else "DIFFERS",
        )


def rows(name: str, cfg: CfgNode, formats: Sequence[str]) -> Iterable[Row]:
    """A model of random weights by each format, the first row that of PyTorch against itself.

    Args:
        name: for the table.
        cfg: its config.
        formats: of :data:`nl_detectron.export.FORMATS`.
    """
    images = generated_images(people=cfg.MODEL.KEYPOINT_ON)
    inputs = [{"image": model_input(cfg, image)} for image in images]
    torch.manual_seed(0)
    model = decide(build_model(cfg), inputs)
    twin = optimize_for_inference(copy.deepcopy(model))
    checks = check_images(images[:1])
    yield Row(name, ITSELF, compare(predictor(cfg, model), predictor(cfg, twin), checks))
    del twin
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.yaml").write_text(cfg.dump(), encoding="utf-8")
        NonLocalCheckpointer(model, folder, cfg=cfg).save("model_final")
        weights = Path(folder) / "model_final.pth"
        for format in formats:
            export = export_model(weights, folder, format=format, images=images[:1])
            yield Row(name, format, export.differences)


def coco_cfg(name: str) -> CfgNode:
    """The config of one of :data:`MODELS`, on the CPU and without weights."""
    cfg = model_zoo.get_config(MODELS[name])
    cfg.defrost()
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.merge_from_list(list(OPTS))
    return cfg


def table(found: Iterable[Row]) -> str:
    return tabulate(
        [row.cells() for row in found], HEADERS, tablefmt="github", disable_numparse=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME")
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), metavar="FORMAT")
    args = parser.parse_args()
    for option, known in (("models", MODELS), ("formats", FORMATS)):
        for value in getattr(args, option):
            if value not in known:
                raise UsageError(
                    f"{option} must be some of {', '.join(known)}, got {value!r}",
                    arguments=[option],
                )
    found = [row for name in args.models for row in rows(name, coco_cfg(name), args.formats)]
    print(table(found))
    if not all(row.passes for row in found if row.format != ITSELF):
        raise SystemExit(1)


if __name__ == "__main__":
    with usage_errors():
        main()
