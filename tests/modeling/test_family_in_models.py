"""What uses blocks, in a whole detector, works for each kind of block."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from nl_detectron.analysis import count_flops, count_non_local_flops
from nl_detectron.checkpoint import NonLocalCheckpointer
from nl_detectron.inference.attention import attend
from nl_detectron.layers import NON_LOCAL_BLOCK_REGISTRY, non_local_blocks
from nl_detectron.layers.names import PAIRWISE_LAYERS
from nl_detectron.solver import build_optimizer
from nl_detectron.visualization import draw_attention
from tests.models import leave_zero_start, make_non_local, zoo_cfg

KINDS = [name for name, _ in NON_LOCAL_BLOCK_REGISTRY]
NAME = "backbone.bottom_up.res4.nl4"


@pytest.fixture(params=KINDS)
def cfg(request):
    cfg = zoo_cfg("mask")
    make_non_local(cfg)
    cfg.MODEL.NON_LOCAL.BLOCK = request.param
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 64, 96
    cfg.SOLVER.NON_LOCAL_PAIRWISE_LR_FACTOR = 0.1
    return cfg


def predicts(model: nn.Module):
    def predict(image: np.ndarray):
        height, width = image.shape[:2]
        tensor = torch.as_tensor(image.transpose(2, 0, 1).copy())
        with torch.no_grad():
            return model([{"image": tensor, "height": height, "width": width}])[0]["instances"]

    return predict


def test_each_kind_of_block_in_a_detector(cfg, tmp_path, log):
    model = build_model(cfg).eval()
    kind = cfg.MODEL.NON_LOCAL.BLOCK
    [(name, block)] = non_local_blocks(model).items()
    assert name == NAME and type(block).__name__ == kind and not block.last_weight().any()

    # Weights of a detector without blocks, and the block's own learning rates
    file = tmp_path / "plain.pth"
    others = {n: w for n, w in model.state_dict().items() if not n.startswith(NAME)}
    torch.save({"model": others}, file)
    checkpointer = NonLocalCheckpointer(model)
    checkpointer.load(str(file))
    assert sorted(checkpointer.report.new_non_local) == sorted(
        f"{NAME}.{parameter}" for parameter in block.state_dict()
    )
    rates = {p: g["lr"] for g in build_optimizer(cfg, model).param_groups for p in g["params"]}
    lower = {
        n
        for n, p in block.named_parameters()
        if rates[p] == pytest.approx(0.1 * cfg.SOLVER.BASE_LR)
    }
    assert lower == {
        n for n, _ in block.named_parameters() if n.partition(".")[0] in PAIRWISE_LAYERS
    }
    assert lower and "out.weight" not in lower

    if kind == "GlobalContextBlock":  # FLOPs of one kind are counted as those of all are
        flops = count_flops(model.backbone, torch.zeros(1, 3, 64, 96))
        single = count_flops(block, torch.randn(1, block.in_channels, 4, 6))
        assert count_non_local_flops(model.backbone, flops) == single.total() > 0

    # Attention, of the map with a stride of 16 and its keys
    leave_zero_start(model)
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    attention = attend(model, image, [(10.0, 20.0)], predicts(model), (64, 96))
    [found] = attention.maps
    assert found.weights.shape == ((2, 3) if block.sub_sample else (4, 6))
    assert found.is_distribution and found.weights.sum() == pytest.approx(1, abs=1e-5)
    assert found.pairwise == block.label
    assert draw_attention(attention.image, found).ndim == 3
