"""Detectors of torchvision, converted, compute what they computed there."""

import copy
from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from torch import nn

from nl_detectron.checkpoint import CheckpointError, NonLocalCheckpointer, read_config
from nl_detectron.checkpoint.converters import convert_file, convert_rcnn

from .models import KEYPOINT, MASK, base_cfg, randomize

HEIGHT, WIDTH = 128, 192  # multiples of 64: what torchvision takes for strides are quotients
DETECTIONS = 10


def rcnn(name: str) -> nn.Module:
    """torchvision's, with weights that find things and tell them apart."""
    torch.manual_seed(0)
    builder = getattr(torchvision.models.detection, name)
    model = builder(
        weights=None,
        weights_backbone=None,
        box_detections_per_img=DETECTIONS,
        min_size=HEIGHT,
        max_size=WIDTH,
        box_score_thresh=0.0,
    )
    randomize(model.backbone.body)
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)) and ".body." not in name:
            spread = {"cls_logits": 2, "bbox_pred": 0.3, "cls_score": 2, "mask_fcn_logits": 2}
            spread_to(layer, spread.get(name.rpartition(".")[2], 1))
    with torch.no_grad():
        model.eval()([random_image()])
    return model


@pytest.fixture(scope="module")
def mask_rcnn() -> nn.Module:
    return rcnn("maskrcnn_resnet50_fpn")


def spread_to(layer: nn.Module, deviation: float) -> None:
    """Scales a layer, when it is first used, so that its outputs have a standard deviation."""

    def scale(_, inputs, output):
        handle.remove()
        factor = deviation / output.std()
        layer.weight.data *= factor
        layer.bias.data *= factor
        return output * factor

    handle = layer.register_forward_hook(scale)


def random_image() -> torch.Tensor:
    return torch.rand(3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(3))


def published(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Under the names of the files that torchvision publishes."""
    old = {}
    for name, tensor in weights.items():
        parts = name.split(".")
        if name.startswith("backbone.fpn."):
            del parts[4]
        elif name.startswith("rpn.head.conv."):
            del parts[3:5]
        elif name.startswith("roi_heads.mask_head."):
            parts = [*parts[:2], f"mask_fcn{int(parts[2]) + 1}", parts[4]]
        if "num_batches_tracked" not in name:
            old[".".join(parts)] = tensor
    return old


def ours(peer: nn.Module, tmp_path: Path, config: str, weights: dict | None = None, **options):
    source, target = tmp_path / "peer.pth", tmp_path / "ours.safetensors"
    torch.save(weights or peer.state_dict(), source)
    cfg = base_cfg(config)
    cfg.MODEL.BACKBONE.NAME = "build_non_local_resnet_fpn_backbone"
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.TEST.DETECTIONS_PER_IMAGE = DETECTIONS
    convert_file(str(source), str(target), library="torchvision", cfg=cfg, **options)
    stored = base_cfg()
    stored.merge_from_other_cfg(CfgNode.load_cfg(read_config(str(target))))
    stored.MODEL.DEVICE = "cpu"
    model = build_model(stored).eval()
    NonLocalCheckpointer(model).load(str(target))
    return model


def detections(model: nn.Module, peer: nn.Module) -> tuple[dict, dict]:
    """Of both for one image, with the peer's mask probabilities before they are pasted."""
    image = random_image()
    inputs = [{"image": image * 255, "height": HEIGHT, "width": WIDTH}]
    with torch.no_grad():
        found = model.inference(inputs, do_postprocess=False)[0]
        images, _ = peer.transform([image])
        features = peer.backbone(images.tensors)
        proposals, _ = peer.rpn(images, features)
        expected, _ = peer.roi_heads(features, proposals, images.image_sizes)
    return found.get_fields(), expected[0]


def assert_same_boxes(found: dict, expected: dict) -> None:
    assert len(expected["scores"]) == DETECTIONS
    assert expected["scores"].std() > 0.01
    torch.testing.assert_close(found["scores"], expected["scores"], rtol=1e-3, atol=1e-4)
    assert torch.equal(found["pred_classes"], expected["labels"] - 1)
    torch.testing.assert_close(found["pred_boxes"].tensor, expected["boxes"], rtol=1e-3, atol=0.05)


@pytest.mark.parametrize("names", ["built", "published"])
def test_torchvision_mask_rcnn(tmp_path, names, mask_rcnn):
    peer = mask_rcnn
    weights = published(peer.state_dict()) if names == "published" else None
    model = ours(peer, tmp_path, MASK, weights)
    found, expected = detections(model, peer)
    assert_same_boxes(found, expected)
    assert expected["masks"].std() > 0.01
    torch.testing.assert_close(found["pred_masks"], expected["masks"], rtol=1e-3, atol=1e-3)


def test_torchvision_mask_rcnn_with_80_classes(tmp_path, mask_rcnn):
    """Equal to a torchvision model whose other 10 classes are impossible."""
    ids = MetadataCatalog.get("coco_2017_val").thing_dataset_id_to_contiguous_id
    unused = [label for label in range(1, 91) if label not in ids]
    assert len(unused) == 10
    model = ours(mask_rcnn, tmp_path, MASK, coco_80=True)
    peer = copy.deepcopy(mask_rcnn)  # which other tests convert, too
    with torch.no_grad():
        peer.roi_heads.box_predictor.cls_score.weight[unused] = 0
        peer.roi_heads.box_predictor.cls_score.bias[unused] = -1e4
    found, expected = detections(model, peer)
    by_label = torch.tensor([ids.get(label, -1) for label in range(91)])
    assert_same_boxes(found, {**expected, "labels": by_label[expected["labels"]] + 1})


def test_torchvision_keypoint_rcnn(tmp_path):
    peer = rcnn("keypointrcnn_resnet50_fpn")
    model = ours(peer, tmp_path, KEYPOINT)
    found, expected = detections(model, peer)
    assert_same_boxes(found, expected)
    positions = found["pred_keypoints"][..., :2]
    # where two cells of a heatmap are equally high, either may win
    distance = (positions - expected["keypoints"][..., :2]).norm(dim=-1)
    assert (distance < 0.1).float().mean() > 0.99


def test_torchvision_models_that_are_not_converted():
    with torch.device("meta"):
        detection = torchvision.models.detection
        for name in ("maskrcnn_resnet50_fpn_v2", "retinanet_resnet50_fpn"):
            peer = getattr(detection, name)(weights=None, weights_backbone=None)
            with pytest.raises(CheckpointError, match="have no place in Detectron2's model"):
                convert_rcnn(peer.state_dict())
        faster = detection.fasterrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=5
        )
    weights = {n: torch.empty_like(w, device="cpu") for n, w in faster.state_dict().items()}
    converted = convert_rcnn(weights)
    assert converted.overrides["MODEL.MASK_ON"] is False
    assert converted.overrides["MODEL.ROI_HEADS.NUM_CLASSES"] == 4
    with pytest.raises(CheckpointError, match="4 classes are not COCO's 90"):
        convert_rcnn(weights, coco_80=True)
