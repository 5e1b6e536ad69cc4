"""One reader: what training, evaluation and prediction make of each kind of image file."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import build_detection_test_loader
from detectron2.data.detection_utils import read_image as detectron2s
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from PIL import Image

from nl_detectron import Predictor
from nl_detectron.data import ImageError, ImageMapper, read_image
from nl_detectron.data.images import to_format
from tests.models import base_cfg

RAMP = np.tile(np.linspace(40, 200, 32).astype(np.uint8), (24, 1))
COLOUR = np.dstack([RAMP, RAMP[::-1] // 2, 255 - RAMP])  # RGB


def write(folder: Path) -> dict[str, Path]:
    """Files of one picture by kind."""
    rotated = Image.Exif()
    rotated[274] = 6
    rgb, grey = Image.fromarray(COLOUR), Image.fromarray(RAMP)
    alpha = Image.fromarray(np.dstack([COLOUR, np.full(RAMP.shape, 60, np.uint8)]))
    pillow = {
        "rgb.png": (rgb, {}),
        "rgb.jpg": (rgb, {}),
        "grey.png": (grey, {}),
        "grey.jpg": (grey, {}),
        "exif.jpg": (rgb, {"exif": rotated}),
        "exif.png": (rgb, {"exif": rotated}),
        "palette.png": (rgb.quantize(16), {}),
        "bits.png": (grey.convert("1"), {}),
        "cmyk.jpg": (rgb.convert("CMYK"), {}),
        "alpha.png": (alpha, {}),
        "grey_alpha.png": (alpha.convert("LA"), {}),
        "animated.gif": (rgb, {"save_all": True, "append_images": [grey.convert("RGB")]}),
        "animated.png": (rgb, {"save_all": True, "append_images": [grey.convert("RGB")]}),
        "float.tif": (Image.fromarray(RAMP.astype(np.float32) / 255), {}),
    }
    for name, (image, options) in pillow.items():
        image.save(folder / name, **options)
    deep = RAMP.astype(np.uint16)
    for name, values in (
        ("16bit.png", deep * 257),
        ("8bit_in_16.png", deep),
        ("12bit_in_16.png", deep * 16),
        ("16bit.tif", deep * 257),
        ("16bit_colour.png", COLOUR[:, :, ::-1].astype(np.uint16) * 257),
    ):
        cv2.imwrite(str(folder / name), values)
    return {file.name: file for file in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    return write(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module", params=["BGR", "RGB", "L"])
def predictor(request, tmp_path_factory) -> Predictor:
    """A model of an INPUT.FORMAT that resizes nothing."""
    cfg = base_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.INPUT.FORMAT = "RetinaNet", request.param
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 16, 4
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = 0, (0,), "none"
    if request.param == "L":
        cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [103.5], [57.4]
    weights = tmp_path_factory.mktemp("model") / "model.pth"
    torch.save({"model": build_model(cfg).state_dict()}, weights)
    return Predictor(weights, cfg, device="cpu")


def test_training_evaluation_and_prediction_see_the_same_pixels(files, predictor):
    train = ImageMapper(predictor.cfg, is_train=True)
    records = [{"file_name": str(file), "annotations": []} for file in files.values()]
    loader = build_detection_test_loader(records, mapper=ImageMapper(predictor.cfg, is_train=False))
    for (name, file), record, [evaluated] in zip(files.items(), records, loader, strict=True):
        predicted = predictor._model_input(predictor.load(file))["image"]
        trained = train(record)
        assert trained["image"].dtype == predicted.dtype == torch.uint8
        assert torch.equal(trained["image"], predicted), name
        assert torch.equal(evaluated["image"], predicted), name
        assert trained["file_name"] == evaluated["file_name"] == str(file)
        assert len(predicted) == (1 if predictor.cfg.INPUT.FORMAT == "L" else 3)


@pytest.mark.parametrize("format", ["BGR", "RGB", "L", "YUV-BT.601"])
@pytest.mark.parametrize(
    "name",
    ["rgb.png", "rgb.jpg", "grey.png", "grey.jpg", "exif.jpg", "palette.png", "cmyk.jpg"]
    + ["animated.gif"],
)
def test_ordinary_images_are_as_detectron2_reads_them(files, name, format):
    ours = to_format(read_image(files[name]), format)
    theirs = detectron2s(str(files[name]), format=format)
    assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)


def test_what_the_reader_makes_of_each_mode(files):
    grey, bgr = np.dstack([RAMP] * 3), COLOUR[:, :, ::-1]
    for name, expected in {
        "16bit.png": grey,
        "16bit.tif": grey,
        "8bit_in_16.png": grey,
        "float.tif": grey,
        "16bit_colour.png": bgr,
        "exif.png": np.rot90(bgr, -1),
        "animated.png": bgr,
    }.items():
        assert np.array_equal(read_image(files[name]), expected), name
    dark = read_image(files["12bit_in_16.png"])
    assert np.array_equal(dark, np.round(grey * (16 / 257)))
    on_white = np.round(255 + (bgr.astype(float) - 255) * 60 / 255)
    assert np.abs(read_image(files["alpha.png"]) - on_white).max() <= 1


def test_damaged_images_are_refused_and_named(tmp_path):
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 255, (12, 16, 3), np.uint8), (160, 120))
    mapper = ImageMapper(base_cfg(), is_train=False)

    def refused(name: str, data: bytes) -> None:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError, match=f"{name} cannot be read") as error:
            mapper({"file_name": str(tmp_path / name)})
        assert "\n" not in str(error.value)

    for suffix in ("png", "jpg"):
        Image.fromarray(picture).save(tmp_path / f"whole.{suffix}")
        data = (tmp_path / f"whole.{suffix}").read_bytes()
        for cut in np.linspace(700, len(data) - 100, 10, dtype=int):
            refused(f"cut_{cut}.{suffix}", data[:cut])
    Image.fromarray(picture).save(tmp_path / "whole.qoi")
    refused("cut.qoi", (tmp_path / "whole.qoi").read_bytes()[:700])
    data = (tmp_path / "whole.png").read_bytes()
    for place in np.linspace(60, len(data) - 60, 20, dtype=int):
        altered = bytes([data[place] ^ 0x55])
        refused(f"altered_{place}.png", data[:place] + altered + data[place + 1 :])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_one_line_from_a_loader_too(tmp_path, workers):
    file = tmp_path / "cut.png"
    Image.fromarray(COLOUR).save(file)
    file.write_bytes(file.read_bytes()[:-60])
    mapper = ImageMapper(base_cfg(), is_train=False)
    loader = build_detection_test_loader(
        [{"file_name": str(file)}], mapper=mapper, num_workers=workers
    )
    with pytest.raises(ImageError) as error:
        list(loader)
    assert str(error.value).startswith(f"{file} cannot be read") and "\n" not in str(error.value)


def test_an_image_of_another_size_than_its_record_is_refused(files):
    record = {"file_name": str(files["rgb.png"]), "width": 24, "height": 32}
    with pytest.raises(ImageError, match=r"rgb.png: Mismatched .* got \(32, 24\), expect \(24, 32"):
        ImageMapper(base_cfg(), is_train=False)(record)


def test_polygons_are_cropped(files):
    """By fvcore, which cuts them with shapely."""
    cfg = base_cfg()
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.RANDOM_FLIP, cfg.MODEL.MASK_ON = True, "none", True
    cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = "absolute", (24, 16)
    cfg.INPUT.MIN_SIZE_TRAIN = (0,)  # as it is
    annotation = {
        "bbox": [2.0, 4.0, 28.0, 16.0],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 0,
        "segmentation": [[2.0, 4.0, 30.0, 4.0, 30.0, 20.0, 2.0, 20.0]],
    }
    record = {"file_name": str(files["rgb.png"]), "annotations": [annotation]}
    mapped = ImageMapper(cfg, is_train=True)(record)
    assert mapped["image"].shape == (3, 24, 16)
    instances = mapped["instances"]
    [[polygon]] = instances.gt_masks.polygons
    x0, y0, x1, y1 = instances.gt_boxes.tensor[0].tolist()
    assert (polygon[::2].min(), polygon[1::2].min()) == (x0, y0)
    assert (polygon[::2].max(), polygon[1::2].max()) == (x1, y1)
    assert 0 <= x0 < x1 <= 16 and (y0, y1) == (4, 20)
