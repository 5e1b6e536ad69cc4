import numpy as np
import pytest
from detectron2.data.datasets.builtin_meta import COCO_PERSON_KEYPOINT_NAMES as NAMES
from detectron2.modeling import build_model

from far_cue.receptive_field import keypoint_reach, reach
from far_cue.skirts import ANKLE, ARMS, FIGURE, FIGURE_SIZE, draw_people_in_skirts
from far_cue.strips import GAP, NEAREST_TARGET, STRIP_SIZE
from far_cue.variants import build_cfg


def built(variant="plain", *opts):
    cfg = build_cfg(variant, "one_key", seed=1)
    cfg.merge_from_list(list(opts))
    return build_model(cfg)


def analytic_reach(blocks_in_res4: int) -> int:
    """How far one position of res4 sees, in pixels to either side of its own centre.

    (kernel, stride) of the 7x7 stem, its max-pool, and each 3x3 convolution, the first of a stage
    with its stride (Araujo et al., Computing Receptive Fields of CNNs).
    """
    layers = [(7, 2), (3, 2)] + [(3, 1)] * 3 + [(3, 2)] + [(3, 1)] * 3
    layers += [(3, 2)] + [(3, 1)] * (blocks_in_res4 - 1)
    size, jump = 1, 1
    for kernel, stride in layers:
        size, jump = size + (kernel - 1) * jump, jump * stride
    return (size - 1) // 2


@pytest.mark.parametrize(("variant", "blocks"), [("plain", 6), ("deeper", 7)])
def test_against_the_formula(variant, blocks):
    """RoIAlign and the RPN's 3x3 convolution see a position or so beyond those within the box."""
    seen = reach(built(variant), STRIP_SIZE, NEAREST_TARGET)
    assert analytic_reach(blocks) <= seen <= analytic_reach(blocks) + 2 * 16


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("variant", ["plain", "deeper"])
def test_no_model_without_attention_sees_the_keys(variant, mirrored):
    """With all heads on, from wherever a target is."""
    heads = ["MODEL.MASK_ON", True, "MODEL.KEYPOINT_ON", True]
    heads += ["MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", [8]]
    model = built(variant, *heads)
    for offset in (0, 15):  # from one cell of res4 to the next
        x0, y0, x1, y1 = NEAREST_TARGET
        x0, x1 = x0 + offset, x1 + offset
        if mirrored:
            x0, x1 = STRIP_SIZE[1] - x1, STRIP_SIZE[1] - x0
        assert 0 < reach(model, STRIP_SIZE, (x0, y0, x1, y1)) < GAP + offset


@pytest.mark.parametrize("variant", ["uniform", "embedded_gaussian", "embedded_gaussian_full"])
def test_a_non_local_block_sees_everything(variant):
    assert reach(built(variant), STRIP_SIZE, NEAREST_TARGET) == NEAREST_TARGET[0]


def test_each_head_counts():
    """A pooler that takes more context sees farther."""
    model = built("plain", "MODEL.MASK_ON", True)
    plain = reach(model, STRIP_SIZE, NEAREST_TARGET)
    pooler = model.roi_heads.mask_pooler

    class Wide(type(pooler)):
        def forward(self, features, boxes):
            wide = [box.clone() for box in boxes]
            for box in wide:
                box.tensor[:, 0] -= 32
            return super().forward(features, wide)

    pooler.__class__ = Wide
    assert reach(model, STRIP_SIZE, NEAREST_TARGET) == plain + 32


@pytest.fixture(scope="module")
def head_models():
    names = ("plain", "wider_head", "embedded_gaussian_head", "uniform_head")
    # Their heads are on res2: what comes after it is for the RPN, which is not looked at here.
    within_res2 = ["MODEL.RPN.IN_FEATURES", ["res2"], "MODEL.RESNETS.OUT_FEATURES", ["res2"]]
    models = {}
    for name in names:
        cfg = build_cfg(name, "hidden_legs", seed=1)
        cfg.merge_from_list(within_res2)
        models[name] = build_model(cfg)
    return models


def skirted(seed) -> tuple[np.ndarray, np.ndarray, float]:
    """The box and the ankles (2, 2) of a figure, and the last row of what tells of them."""
    [figure] = draw_people_in_skirts(np.random.default_rng([3, seed]), FIGURE_SIZE).instances
    y, x = np.nonzero(figure.mask)
    box = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1], np.float32)
    shoulders, ankles = (
        figure.keypoints[[NAMES.index(f"{side}_{joint}") for side in ("left", "right")], :2]
        for joint in ("shoulder", "ankle")
    )
    return box, ankles + 0.5, shoulders[:, 1].max() + 6  # as is tested of the set


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("variant", ["plain", "wider_head"])
def test_no_head_without_attention_sees_from_an_ankle_to_an_arm(variant, seed, head_models):
    """In boxes that are off by some pixels, too."""
    box, ankles, last_row = skirted(seed)
    for offset in (0, 4):
        found = box + np.float32([-offset, -offset, offset, offset])
        for ankle in ankles[: 2 - offset // 4]:
            seen = keypoint_reach(head_models[variant], FIGURE_SIZE, found, ankle)
            assert 30 < seen < ankle[1] - last_row


@pytest.mark.parametrize("variant", ["plain", "wider_head"])
def test_nor_in_the_largest_figure(variant, head_models):
    assert keypoint_reach(head_models[variant], FIGURE_SIZE, FIGURE, ANKLE) < ANKLE[1] - ARMS


@pytest.mark.parametrize("variant", ["embedded_gaussian_head", "uniform_head"])
def test_a_head_with_blocks_sees_everything(variant, head_models):
    x, y = ANKLE
    assert keypoint_reach(head_models[variant], FIGURE_SIZE, FIGURE, ANKLE) == max(
        x, y, FIGURE_SIZE[1] - x, FIGURE_SIZE[0] - y
    )
