"""Accumulated gradients are those of the large batch."""

import copy
from collections.abc import Iterator

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model
from detectron2.modeling.proposal_generator import proposal_utils
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from nl_detectron.engine.loop import AccumulatingAMPTrainer, AccumulatingTrainer, build_loop
from tests.models import leave_zero_start, zoo_cfg


class Regression(nn.Module):
    """Two losses, each a mean over the batch."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))

    def forward(self, batch: list[Tensor]) -> dict[str, Tensor]:
        outputs = self.layers(torch.stack(batch))
        return {"square": outputs.square().mean(), "first": outputs[:, 0].mean()}


def parts(batches: list[list], size: int) -> Iterator[list]:
    for batch in batches:
        for start in range(0, len(batch), size):
            yield batch[start : start + size]


def train(loop: SimpleTrainer, steps: int) -> dict[str, float]:
    """Trains, and returns the last losses that are written."""
    with EventStorage() as loop.storage:
        for loop.iter in range(steps):
            loop.run_step()
            loop.storage.step()
        return {name: value for name, (value, _) in loop.storage.latest().items()}


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01)


@pytest.mark.parametrize("amp", [False, True])  # which does without a scale on a CPU
@pytest.mark.filterwarnings("ignore:.*(CUDA is not available|GradScaler)")
def test_it_is_the_large_batch_in_parts(amp):
    whole = Regression().double()
    accumulated = copy.deepcopy(whole)
    batches = [list(torch.randn(12, 5, dtype=torch.float64)) for _ in range(5)]
    expected = train(build_loop(whole, batches, adam(whole), amp=False), 5)
    optimizer = adam(accumulated)
    loop = build_loop(accumulated, list(parts(batches, 3)), optimizer, amp=amp, accumulate=4)
    assert type(loop) is (AccumulatingAMPTrainer if amp else AccumulatingTrainer)
    losses = train(loop, 5)
    for ours, theirs in zip(accumulated.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    for name in ("square", "first", "total_loss"):
        assert losses[name] == pytest.approx(expected[name], rel=1e-12)


def test_one_part_is_detectron2s_own_loop():
    model = Regression()
    assert type(build_loop(model, [], adam(model), amp=False)) is SimpleTrainer


def test_a_detectors_gradients_are_those_of_the_large_batch(monkeypatch):
    """In double precision, where all that Detectron2 samples is taken, by equal numbers."""
    # NMS is for boxes of single precision, and leaves images with numbers that differ.
    monkeypatch.setattr(
        proposal_utils, "batched_nms", lambda _, scores, *__: scores.argsort(descending=True)
    )
    cfg = zoo_cfg("mask")
    cfg.MODEL.MASK_ON = False
    cfg.MODEL.BACKBONE.NAME = "build_non_local_resnet_fpn_backbone"
    cfg.MODEL.NON_LOCAL.NORM = ""
    cfg.MODEL.RESNETS.NORM, cfg.MODEL.BACKBONE.FREEZE_AT = "GN", 0
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 32
    cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE = cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 100_000
    model = leave_zero_start(build_model(cfg)).double().train()
    batch = []
    for _ in range(4):
        truth = Instances((64, 96))
        corners = torch.rand(2, 2, dtype=torch.float64) * 30
        truth.gt_boxes = Boxes(torch.cat([corners, corners + 25], dim=1).double())
        truth.gt_classes = torch.randint(0, 80, (2,))
        batch.append({"image": torch.rand(3, 64, 96).double() * 255, "instances": truth})
    gradients = []
    for size in (4, 1):
        copied = copy.deepcopy(model)
        for target in batch:  # which the constructor of Boxes makes single precision
            target["instances"].gt_boxes.tensor = target["instances"].gt_boxes.tensor.double()
        optimizer = torch.optim.SGD(copied.parameters(), lr=0.0)
        loop = build_loop(
            copied, list(parts([batch], size)), optimizer, amp=False, accumulate=4 // size
        )
        train(loop, 1)
        gradients.append({n: p.grad for n, p in copied.named_parameters() if p.requires_grad})
    whole, accumulated = gradients
    largest = max(gradient.abs().max().item() for gradient in whole.values())
    for name, gradient in whole.items():
        assert gradient.abs().max() > 0, name
        # that of phi.bias, which a softmax does not see, is nothing but rounding
        torch.testing.assert_close(
            accumulated[name], gradient, rtol=1e-9, atol=1e-13 * largest, msg=name
        )


def test_processes_exchange_gradients_once_a_step(tmp_path):
    distributed.init_process_group("gloo", f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        model = DistributedDataParallel(Regression())
        exchanges = []

        def count(_: object, bucket: distributed.GradBucket) -> torch.futures.Future[Tensor]:
            exchanges.append(bucket.index())
            future: torch.futures.Future[Tensor] = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

        model.register_comm_hook(None, count)
        batches = list(parts([list(torch.randn(12, 5)) for _ in range(3)], 3))
        train(build_loop(model, batches, adam(model), amp=False, accumulate=4), 3)
        assert exchanges == [0, 0, 0]
    finally:
        distributed.destroy_process_group()
