import math
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_model
from detectron2.modeling.backbone import Backbone

from nl_detectron import NonLocalBlock, Predictor, insert_non_local
from nl_detectron.errors import UsageError
from nl_detectron.inference import AttentionMap
from nl_detectron.layers import DISTRIBUTIONS
from nl_detectron.visualization import draw_attention, draw_attention_sheet, heat_map
from tests.models import base_cfg, make_narrow

STRIDE = 8


class Brightness(Backbone):
    """The mean brightness of cells of 8x8 pixels, and a non-local block that looks for it."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        node = cfg.MODEL.NON_LOCAL
        self.block = NonLocalBlock(
            1, inner_channels=1, pairwise=node.PAIRWISE, sub_sample=node.SUB_SAMPLE, use_scale=False
        )
        for layer in (self.block.theta, self.block.phi):
            if layer is not None:
                torch.nn.init.ones_(layer.weight)
        if self.block.w_f is not None:
            torch.nn.init.ones_(self.block.w_f)

    @property
    def size_divisibility(self) -> int:
        return 32

    @property
    def padding_constraints(self):
        return {"size_divisibility": 32}

    def forward(self, x):
        # The mean has been subtracted: 1 is added again, so that all queries look for light.
        x = F.avg_pool2d(x.mean(1, keepdim=True), STRIDE) + 1
        return {"p0": self.block(x)}

    def output_shape(self):
        return {"p0": ShapeSpec(channels=1, stride=STRIDE)}


@BACKBONE_REGISTRY.register()
def brightness_backbone(cfg, input_shape):
    return Brightness(cfg, input_shape)


def brightness_predictor(pairwise: str, sub_sample: bool, test_size: int, tmp_path) -> Predictor:
    cfg = base_cfg()
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.BACKBONE.NAME = "brightness_backbone"
    cfg.MODEL.NON_LOCAL.PAIRWISE, cfg.MODEL.NON_LOCAL.SUB_SAMPLE = pairwise, sub_sample
    cfg.MODEL.PIXEL_STD = [25.0] * 3
    cfg.MODEL.RPN.IN_FEATURES = cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p0"]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 1, 8
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = test_size, 2 * test_size
    file = tmp_path / "model.pth"
    torch.save({"model": build_model(cfg).state_dict()}, file)
    return Predictor(file, cfg)


@pytest.mark.parametrize("pairwise", ["gaussian", "embedded_gaussian", "dot_product"])
@pytest.mark.parametrize("sub_sample", [False, True])
@pytest.mark.parametrize(
    ("size", "test_size"),
    [((96, 96), 96), ((97, 131), 97), ((131, 75), 150), ((61, 40), 120), ((240, 320), 77)],
)
def test_the_peak_is_where_the_light_is(pairwise, sub_sample, size, test_size, tmp_path):
    """At all sizes: of the image, resized, padded, and of the map, odd and even."""
    predictor = brightness_predictor(pairwise, sub_sample, test_size, tmp_path)
    rng = np.random.default_rng(3)
    scale = predictor.input_size(np.zeros((*size, 3)))[0] / size[0]
    cell = STRIDE * (2 if sub_sample else 1) / scale  # in pixels of the image
    for _ in range(6):
        x, y = (float(rng.uniform(0.02, 0.98) * length) for length in size[::-1])
        image = np.full((*size, 3), 90, np.uint8)
        radius = math.ceil(STRIDE / scale / 2)
        cv2.circle(image, (int(x), int(y)), radius, (255, 255, 255), -1)
        query = (float(rng.uniform(0, size[1] - 1)), float(rng.uniform(0, size[0] - 1)))
        (found,) = predictor.attention(image, [query]).maps
        assert found.block == "backbone.block" and found.query == query
        ((peak_x, peak_y, weight),) = found.strongest(1)
        assert weight == found.weights.max()
        assert abs(peak_x - x) <= cell and abs(peak_y - y) <= cell
        heat = heat_map(found, size, size)
        heat_y, heat_x = np.unravel_index(np.nanargmax(heat), size)
        assert abs(heat_x - x) <= cell and abs(heat_y - y) <= cell


@pytest.mark.parametrize("pairwise", ["embedded_gaussian", "dot_product", "concatenation"])
@pytest.mark.parametrize("sub_sample", [False, True])
def test_is_the_row_of_the_query_and_only_that(pairwise, sub_sample, tmp_path, monkeypatch):
    predictor = brightness_predictor(pairwise, sub_sample, 75, tmp_path)
    image = np.random.default_rng(0).integers(0, 255, (75, 100, 3), np.uint8)
    inputs = []
    hook = predictor.model.backbone.block.register_forward_pre_hook(
        lambda _, args: inputs.append(args[0])
    )
    predictor(image)
    hook.remove()
    with torch.no_grad():
        whole = predictor.model.backbone.block.affinity(inputs[0])[0].cpu().numpy()  # (L, M)
    asked = []
    affinity = NonLocalBlock.affinity
    monkeypatch.setattr(
        NonLocalBlock,
        "affinity",
        lambda self, x, queries: asked.append(len(queries)) or affinity(self, x, queries),
    )
    columns = inputs[0].shape[3]
    points = [(0, 0), (8, 0), (99, 74), (50.5, 20.2)]
    attention = predictor.attention(image, points)
    assert sum(asked) == len(points)
    for (x, y), found in zip(points, attention.maps, strict=True):
        row = whole[int(y // STRIDE) * columns + int(x // STRIDE)]
        assert np.allclose(found.weights.ravel(), row, atol=1e-6)
        assert found.is_distribution == (pairwise in DISTRIBUTIONS)
        # The edges lie where the map's positions do; what was padded is beyond the image.
        step = STRIDE * (2 if sub_sample else 1)
        assert found.x_edges[:3].tolist() == [0, step, 2 * step]
        assert found.x_edges[-1] == columns * STRIDE >= 100


def test_stride_of_a_resnet_that_rounds_up(narrow_resnet_predictor):
    """100 pixels make 7 columns of stride 16, each of which is 16 pixels wide and not 100 / 7."""
    predictor = narrow_resnet_predictor
    attention = predictor.attention(np.zeros((52, 100, 3), np.uint8), [(99, 0), (0, 51)])
    assert attention.blocks == ["backbone.res3.nl0", "backbone.res4.nl4"]
    for found in attention.maps:
        stride = 8 if "res3" in found.block else 16
        assert np.allclose(np.diff(found.x_edges), stride)
        assert len(found.x_edges) == math.ceil(100 / stride) + 1


@pytest.fixture
def narrow_resnet_predictor(tmp_path):
    cfg = make_narrow(base_cfg(), stem=8)
    cfg.INPUT.MIN_SIZE_TEST = 0
    model = build_model(cfg)
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    predictor = Predictor(tmp_path / "model.pth", cfg)
    insert_non_local(predictor.model, ["res3.0", "res4.4"], sub_sample=False)
    return predictor


def test_all_places_of_a_model(weights, picture):
    predictor = Predictor(weights["people"], confidence_threshold=0, device="cpu")
    attention = predictor.attention(picture)
    heads = [f"roi_heads.keypoint_head.nl{i}" for i in (2, 4)]
    assert attention.blocks == ["backbone.bottom_up.res4.nl4", *heads]
    assert len(attention.points) == len(attention.instances) == 5
    assert not attention.instances.has("roi")
    boxes = attention.instances.pred_boxes.tensor.numpy()
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        assert attention.points[i] == pytest.approx(((x0 + x1) / 2, (y0 + y1) / 2), abs=1e-3)
        for block in heads:
            found = attention.of(i, block)
            assert found.instance == i and found.weights.shape == (7, 7)
            assert found.x_edges[[0, -1]] == pytest.approx([x0, x1])
            assert found.y_edges[[0, -1]] == pytest.approx([y0, y1])
            assert found.weights.sum() == pytest.approx(1, abs=1e-5)


def test_each_instance_sees_its_own_region(weights, picture):
    """Also where some of the head's instances are left out of what the model returns."""
    predictor = Predictor(weights["people"], confidence_threshold=0, device="cpu")
    everything = predictor.attention(picture)
    block = predictor.model.roi_heads.keypoint_head.nl2
    inputs = []
    hook = block.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    predictor(picture)
    hook.remove()
    # A box's centre is the corner of four cells, and of one of them by rounding.
    middle = torch.tensor([6 * 14 + 6, 6 * 14 + 7, 7 * 14 + 6, 7 * 14 + 7])
    with torch.no_grad():
        rows = block.affinity(inputs[0], middle).numpy().reshape(-1, 4, 7, 7)

    def is_of(found: AttentionMap, instance: int) -> bool:
        return any(np.allclose(found.weights, row, atol=1e-4) for row in rows[instance])

    for i in range(5):
        found = everything.of(i, "roi_heads.keypoint_head.nl2")
        assert [is_of(found, j) for j in range(5)] == [i == j for j in range(5)]
    inference = predictor.model.inference

    def only_the_last_two(model_inputs):
        return [{"instances": inference(model_inputs)[0]["instances"][3:]}]

    predictor.model.inference = only_the_last_two
    for i in range(2):
        found = predictor.attention(picture).of(i, "roi_heads.keypoint_head.nl2")
        assert is_of(found, i + 3)


def test_the_same_point_twice(weights, picture):
    predictor = Predictor(weights["people"], confidence_threshold=0, device="cpu")
    attention = predictor.attention(picture, [(60, 40), (3, 4), (60, 40)])
    assert [found.point for found in attention.maps if "res4" in found.block] == [0, 1, 2]
    first, again = attention.of(0, attention.blocks[0]), attention.of(2, attention.blocks[0])
    assert first is not again and np.array_equal(first.weights, again.weights)


def test_a_point_in_no_box_has_no_map_in_the_head(weights, picture):
    predictor = Predictor(weights["people"], confidence_threshold=1, device="cpu")
    attention = predictor.attention(picture, [(3, 4)])
    assert len(attention.instances) == 0
    assert [found.block for found in attention.maps] == ["backbone.bottom_up.res4.nl4"]
    assert predictor.attention(picture).points == []
    for found in (attention, predictor.attention(picture)):
        sheet = draw_attention_sheet(found, predictor.metadata)
        assert sheet.dtype == np.uint8 and sheet.std() > 5


@pytest.mark.parametrize("point", [(120, 0), (0, 80), (-1, 5), (float("nan"), 0)])
def test_a_point_outside_is_named(predictor, picture, point):
    with pytest.raises(UsageError, match=r"is outside the image, .* from 0 to 119 .* 0 to 79"):
        predictor.attention(picture, [point])


def test_a_model_without_blocks(tmp_path, weights, picture):
    content = torch.load(weights["shapes"], weights_only=True)
    content["model"] = {k: v for k, v in content["model"].items() if ".nl4." not in k}
    torch.save(content, tmp_path / "plain.pth")
    opts = ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"]
    predictor = Predictor(tmp_path / "plain.pth", device="cpu", opts=opts)
    with pytest.raises(UsageError, match="no non-local blocks"):
        predictor.attention(picture)


def attention_map(pairwise: str, weights: np.ndarray, box=(0, 0, 80, 40)) -> AttentionMap:
    height, width = weights.shape
    x_edges = np.linspace(box[0], box[2], width + 1)
    y_edges = np.linspace(box[1], box[3], height + 1)
    return AttentionMap(
        0, "a.res4.nl4", pairwise, (5, 5), weights.astype(np.float32), x_edges, y_edges
    )


def test_strongest_leaves_out_the_padding():
    found = attention_map("gaussian", np.array([[0.1, 0.2, 0.7]]), box=(0, 0, 120, 40))
    assert found.strongest(2) == [
        (100, 20, pytest.approx(0.7)),
        (60, 20, pytest.approx(0.2)),
    ]
    assert [key[0] for key in found.strongest(5, (40, 80))] == [60, 20]


def test_heat_is_bilinear_between_centres_and_ends_with_the_box():
    found = attention_map("gaussian", np.array([[0.0, 1.0]]), box=(20, 10, 60, 30))
    heat = heat_map(found, (40, 80), (40, 80))
    assert np.isnan(heat[:, :20]).all() and np.isnan(heat[:, 60:]).all()
    assert np.isnan(heat[:10]).all() and np.isnan(heat[30:]).all()
    expected = np.clip((np.arange(20, 60) + 0.5 - 30) / 20, 0, 1)
    assert np.allclose(heat[10:30, 20:60], expected, atol=0.02)


def test_pictures_of_distributions_and_of_signed_affinities():
    image = np.full((40, 80, 3), 128, np.uint8)
    weights = np.array([[1.0, 0.0, -1.0]])
    heat = draw_attention(image, attention_map("gaussian", np.abs(weights)), strongest=0)
    signed = draw_attention(image, attention_map("dot_product", weights), strongest=0)

    def near(picture: np.ndarray, x: float) -> np.ndarray:
        """BGR of the picture where the image's column x is."""
        columns = np.flatnonzero((picture < 250).any(2).mean(0) > 0.5)
        right = columns[np.flatnonzero(np.diff(columns, append=10**6) > 1)[0]]
        return picture[len(picture) // 2, int(columns[0] + (right - columns[0]) * x)].astype(int)

    # Both ends of a distribution look the same; those of a signed affinity are red and blue.
    assert np.abs(near(heat, 0.05) - near(heat, 0.95)).max() < 12
    red, blue = near(signed, 0.05), near(signed, 0.95)
    assert red[2] > red[0] + 40 and blue[0] > blue[2] + 40
    arrows = draw_attention(image, attention_map("gaussian", np.abs(weights)), strongest=3)
    assert ((arrows[:, :, 1] > 150) & (arrows[:, :, 2] < 100)).sum() > 50


def test_the_tool(tool, weights, picture, tmp_path):
    options = ["--weights", weights["people"], "--input", picture, "--confidence-threshold", "0"]
    out = tmp_path / "out"
    code, printed, err = tool(
        "visualize_attention", *options, "--output", out, "--point", "3,4", "--point", "60,40"
    )
    assert code == 0 and "1 written" in printed, err
    sheet = cv2.imread(str(out / "picture.png"))
    names = sorted(file.name for file in (out / "picture.png.blocks").iterdir())
    assert "1_x3_y4_backbone.bottom_up.res4.nl4.png" in names
    assert "2_x60_y40_roi_heads.keypoint_head.nl4.png" in names
    code, *_ = tool(
        "visualize_attention", *options, "--output", out, "--per-instance", "--max-instances", "3"
    )
    assert code == 0
    assert cv2.imread(str(out / "picture.png")).shape[0] == pytest.approx(sheet.shape[0] * 1.5, 9)
    (tmp_path / "text.jpg").write_text("text")
    options += [tmp_path / "text.jpg", "--output", out]
    for arguments, message in (
        (("--per-instance",), "text.jpg is no image"),
        (("--point", "120,0"), "picture.png: point 120,0 is outside the image"),
    ):
        options = ["--weights", weights["people"], "--input", picture, tmp_path / "text.jpg"]
        code, _, err = tool("visualize_attention", *options, "--output", out, *arguments)
        assert code == 1 and message in err and "Traceback" not in err
    code, _, err = tool("visualize_attention", *options, "--output", out, "--point", "x")
    assert code == 2 and "--point" in err


def test_several_threads_do_not_mix_up_images(predictor):
    """As in a web server, with predictions on other images in between."""
    rng = np.random.default_rng(0)
    images = [
        cv2.resize(rng.integers(0, 255, (8, 12, 3), np.uint8), size)
        for size in ((120, 80), (80, 120), (96, 96), (120, 80), (60, 90), (100, 50))
    ]

    def look(image: np.ndarray) -> list[AttentionMap]:
        predictor(image[::-1].copy())
        return predictor.attention(image, [(30, 30)]).maps

    alone = [look(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(look, images * 4))
    for ours, theirs in zip(together, alone * 4, strict=True):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert one.block == other.block
            assert np.allclose(one.weights, other.weights, rtol=1e-4, atol=1e-7)
            assert np.array_equal(one.x_edges, other.x_edges)
