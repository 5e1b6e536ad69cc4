"""FLOPs in closed form: L queries, M keys, C channels of which D inside the block."""

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from nl_detectron import NonLocalBlock, model_zoo
from nl_detectron.analysis import (
    compare,
    count_activations,
    count_flops,
    count_non_local_flops,
    count_parameters,
    describe,
    largest_input,
)

N, C, D, HEIGHT, WIDTH = 2, 32, 16, 9, 14
L = HEIGHT * WIDTH


def operation(pairwise: str, m: int) -> int:
    """Multiply-adds of theta, phi, f and the sum over j for one image, as the kernels take them."""
    return {
        # no embeddings; values are padded to the C channels of the logits for one fused kernel
        "gaussian": 2 * L * m * C,
        "embedded_gaussian": 2 * L * C * D + 2 * L * m * D,
        # (phi^T g), then theta times that
        "dot_product": 2 * L * C * D + m * D * D + L * D * D,
        # w_f^T [theta, phi], prefix sums of g and phi g, and theta_i times one plus the other
        "concatenation": 2 * L * C * D + (L + m) * D + 2 * m * D + L * D,
    }[pairwise]


@pytest.mark.parametrize("sub_sample", [False, True])
@pytest.mark.parametrize(
    "pairwise", ["gaussian", "embedded_gaussian", "dot_product", "concatenation"]
)
def test_a_block_in_closed_form(pairwise, sub_sample):
    block = NonLocalBlock(C, pairwise=pairwise, sub_sample=sub_sample).eval()
    m = 5 * 7 if sub_sample else L
    embedding_and_out = 2 * L * C * D  # g and W_z
    flops = count_flops(block, torch.zeros(N, C, HEIGHT, WIDTH))
    assert flops.total() == N * (embedding_and_out + operation(pairwise, m))


def test_the_block_s_share_of_a_model():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.nl = nn.Conv2d(C, C, 3, padding=1), NonLocalBlock(C)

        def forward(self, x):
            return self.nl(self.conv(x))

    model, x = Model().eval(), torch.zeros(1, C, HEIGHT, WIDTH)
    flops = count_flops(model, x)
    share = count_non_local_flops(model, flops)
    assert share == 2 * L * C * D + operation("embedded_gaussian", 35)
    assert flops.total() - share == L * C * C * 9
    assert count_parameters(model) == C * C * 9 + C + 4 * C * D + 3 * D + C
    # the convolution, the embeddings in one product, what attention writes, and W_z
    assert count_activations(model, x).total() == L * (C + 3 * D + D + C)


def test_a_detector_by_the_most_work_that_its_config_allows():
    cfg = model_zoo.get_config("quick_schedules/mask_rcnn_shapes_nl.yaml")
    cfg.MODEL.DEVICE = "cpu"
    cfg.TEST.DETECTIONS_PER_IMAGE = 20
    model = build_model(cfg).eval()
    seen = {}
    model.roi_heads.box_head.register_forward_hook(lambda m, x, y: seen.update(boxes=len(y)))
    model.roi_heads.mask_head.predictor.register_forward_hook(
        lambda m, x, y: seen.update(masks=len(y))
    )
    model(largest_input(model, (128, 160)))
    assert seen == {"boxes": cfg.MODEL.RPN.POST_NMS_TOPK_TEST, "masks": 20}
    flops = count_flops(model, largest_input(model, (128, 160)))
    torch.manual_seed(3)  # other weights, same figures
    other = build_model(cfg).eval()
    assert count_flops(other, largest_input(other, (128, 160))).total() == flops.total()


def test_texts():
    cfg = model_zoo.get_config("quick_schedules/mask_rcnn_shapes_nl.yaml")
    cfg.MODEL.DEVICE = "cpu"
    cfg.TEST.DETECTIONS_PER_IMAGE = 5
    model = build_model(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    baseline = build_model(cfg)
    text = describe(model, ["flop", "activation", "parameter", "structure"], (64, 96))
    for part in ("scaled_dot_product_attention", "backbone.bottom_up.res4", "(nl4): NonLocalBlock"):
        assert part in text
    non_local = float(text.rpartition("GFLOPs in non-local blocks: ")[2].split()[0])
    table = compare(model, baseline, (64, 96))
    rows = {line.split("  ")[0]: line.split() for line in table.splitlines()}
    added = [float(x) for x in rows["parameters (M)"][2:5]]
    assert added[2] == pytest.approx(4 * 256 * 128 / 1e6, abs=0.01)
    assert added[1] - added[0] == pytest.approx(added[2], abs=0.011)
    assert non_local >= 0 and rows["GFLOPs"][-1].startswith("+")


@pytest.mark.slow
def test_the_tool(tool):
    name = "quick_schedules/mask_rcnn_shapes_nl.yaml"
    few = ("TEST.DETECTIONS_PER_IMAGE", "5")
    arguments = ("--config-file", name, "--compare", name, "--size", "64", "64", *few)
    code, out, errors = tool("analyze_model", *arguments)
    assert code == 0, errors[-2000:]
    assert [line.split()[-1] for line in out.splitlines()[2:]] == ["+0.00%"] * 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--config-file is missing"),
        (("--config-file", "mask_rcnn_nl"), "the closest are"),
        (
            ("--config-file", "quick_schedules/mask_rcnn_shapes_nl.yaml", "--size", "0", "5"),
            "1 pixel",
        ),
        (
            (
                "--config-file",
                "quick_schedules/mask_rcnn_shapes_nl.yaml",
                "MODEL.NON_LOCAL.AFTER",
                "['res4.6']",
            ),
            "res4.0 to res4.5",
        ),
    ],
)
def test_the_tool_refuses_in_one_line(tool, arguments, message):
    code, _, errors = tool("analyze_model", *arguments)
    assert code == 2
    assert message in errors.splitlines()[-1] and "Traceback" not in errors
