"""A whole detector with blocks in all places at once, and what looks at blocks by their names."""

import pytest
import torch
from detectron2.modeling import build_model

from nl_detectron import Predictor
from nl_detectron.analysis import count_flops, count_non_local_flops
from nl_detectron.checkpoint import NonLocalCheckpointer
from nl_detectron.engine.checks import check_model
from nl_detectron.engine.unused import unused_options
from nl_detectron.errors import UsageError
from nl_detectron.inference.attention import check_has_blocks
from nl_detectron.layers import non_local_blocks
from tests.models import (
    assert_same_losses,
    assert_same_predictions,
    leave_zero_start,
    settle,
    zoo_cfg,
)

BLOCKS = {
    "backbone.nl4": (16, 16),
    "backbone.bottom_up.res4.1.conv3.activation.nl1": (16, 16),
    "backbone.bottom_up.res4.4.conv3.activation.nl4": (16, 16),
    "roi_heads.box_head.nl2": None,
    "roi_heads.mask_head.nl1": None,
}


def stock_cfg():
    cfg = zoo_cfg("mask")
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    box, mask = cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD
    box.NUM_CONV, box.CONV_DIM, box.NUM_FC, box.FC_DIM = 2, 8, 1, 16
    mask.NUM_CONV, mask.CONV_DIM = 1, 8
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.INPUT.MIN_SIZE_TEST = 0
    return cfg


def everywhere_cfg():
    cfg = stock_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_non_local_pyramid_resnet_fpn_backbone"
    cfg.MODEL.NON_LOCAL.AFTER = ["res4.1", "res4.4"]
    cfg.MODEL.NON_LOCAL.POSITION = "before_sum"
    cfg.MODEL.ROI_BOX_HEAD.NAME = "NonLocalBoxHead"
    cfg.MODEL.ROI_BOX_HEAD.NON_LOCAL.AFTER = [2]
    cfg.MODEL.ROI_MASK_HEAD.NAME = "NonLocalMaskHead"
    cfg.MODEL.ROI_MASK_HEAD.NON_LOCAL.AFTER = [1]
    return cfg


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    cfg = everywhere_cfg()
    check_model(cfg)
    assert unused_options(cfg) == []
    stock = settle(build_model(stock_cfg()))
    twin = settle(build_model(cfg))
    keys = twin.load_state_dict(stock.state_dict(), strict=False)
    assert not keys.unexpected_keys and all(".nl" in key for key in keys.missing_keys)
    return stock, twin


def test_equals_the_stock_model(pair):
    stock, twin = pair
    assert non_local_blocks(twin).keys() == BLOCKS.keys()
    assert_same_predictions(stock, twin)
    assert_same_losses(stock, twin)


def test_costs_are_counted_by_block(pair):
    stock, twin = (model.eval().backbone for model in pair)
    costs, x = count_flops(twin, torch.randn(1, 3, 64, 96)), torch.randn(1, 3, 64, 96)
    # Resizing to the nearest counts as one for each element: p5 and p6 to p4, p4 to p2 and p3
    resizing = 16 * (24 + 24 + 384 + 96)
    added = costs.total() - count_flops(stock, x).total()
    assert added == count_non_local_flops(twin, costs) + resizing


def test_attention_of_all_but_the_box_head(tmp_path, log):
    cfg = everywhere_cfg()
    model = leave_zero_start(settle(build_model(cfg)))
    NonLocalCheckpointer(model, str(tmp_path), cfg=cfg).save("model")
    predictor = Predictor(str(tmp_path / "model.pth"), cfg, confidence_threshold=0)
    image = torch.randint(0, 256, (70, 100, 3), dtype=torch.uint8).numpy()
    attention = predictor.attention(image)
    assert set(attention.blocks) == BLOCKS.keys() - {"roi_heads.box_head.nl2"}
    assert "No attention of roi_heads.box_head.nl2: a box head sees proposals" in log.text
    for name, stride in BLOCKS.items():
        for i in range(len(attention.instances) if stride or "mask" in name else 0):
            found = attention.of(i, name)
            assert found.weights.sum() == pytest.approx(1, abs=1e-5)
            if stride:  # keys are sub-sampled
                assert (found.x_edges[1], found.y_edges[1]) == (2 * stride[0], 2 * stride[1])
            else:
                x0, _, x1, _ = attention.instances.pred_boxes.tensor[i].tolist()
                assert found.instance == i
                assert found.x_edges[[0, -1]] == pytest.approx([x0, x1])


def test_a_model_with_blocks_in_its_box_head_alone_has_no_attention(pair):
    cfg = stock_cfg()
    cfg.MODEL.ROI_BOX_HEAD.NAME = "NonLocalBoxHead"
    cfg.MODEL.ROI_BOX_HEAD.NON_LOCAL.AFTER = [1]
    with pytest.raises(UsageError, match=r"in its box head \(roi_heads.box_head.nl1\)"):
        check_has_blocks(build_model(cfg))


def test_other_options_than_in_training_are_noticed_in_each_part(tmp_path, log):
    cfg = everywhere_cfg()
    NonLocalCheckpointer(build_model(cfg), str(tmp_path), cfg=cfg).save("model")
    path = str(tmp_path / "model.pth")
    NonLocalCheckpointer(build_model(cfg), complete=True, cfg=cfg).load(path)
    assert "trained with" not in log.text
    cfg.MODEL.FPN.NON_LOCAL.ADD_MEAN = True
    cfg.MODEL.ROI_BOX_HEAD.NON_LOCAL.USE_SCALE = False
    cfg.MODEL.ROI_MASK_HEAD.NON_LOCAL.SUB_SAMPLE = False
    cfg.MODEL.ROI_KEYPOINT_HEAD.NON_LOCAL.SUB_SAMPLE = False  # which this model has not
    NonLocalCheckpointer(build_model(cfg), complete=True, cfg=cfg).load(path)
    for key in ("FPN.NON_LOCAL.ADD_MEAN False", "ROI_BOX_HEAD.NON_LOCAL.USE_SCALE True"):
        assert f"trained with MODEL.{key}, but the config has" in log.text
    assert "trained with MODEL.ROI_MASK_HEAD.NON_LOCAL.SUB_SAMPLE True" in log.text
    assert "KEYPOINT" not in log.text
