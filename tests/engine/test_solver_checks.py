"""What cannot work in a schedule is refused before the run, in one line."""

import pytest
from detectron2.config import CfgNode
from omegaconf import DictConfig, OmegaConf
from torch import nn

from nl_detectron.engine.solver_checks import check_lazy_solver, check_solver
from nl_detectron.errors import UsageError
from nl_detectron.solver import build_optimizer
from tests.models import base_cfg


def solver(*opts: object) -> CfgNode:
    cfg = base_cfg()
    cfg.merge_from_list(["SOLVER.MAX_ITER", 100, "SOLVER.STEPS", (60, 80), *opts])
    cfg.SOLVER.WARMUP_ITERS = min(cfg.SOLVER.WARMUP_ITERS, 10)
    return cfg


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("SOLVER.MAX_ITER", 0), "SOLVER.MAX_ITER must be at least 1, got 0"),
        (("SOLVER.MAX_ITER", -5), "SOLVER.MAX_ITER must be at least 1, got -5"),
        (("SOLVER.BASE_LR", 0.0), "SOLVER.BASE_LR must be a finite number above 0, got 0.0"),
        (("SOLVER.BASE_LR", -0.1), "above 0, got -0.1"),
        (("SOLVER.BASE_LR", float("nan")), "above 0, got nan"),
        (("SOLVER.BASE_LR", float("inf")), "above 0, got inf"),
        (("SOLVER.STEPS", (80, 60)), r"SOLVER.STEPS must be .* rising order, got \(80, 60\)"),
        (("SOLVER.STEPS", (60, 60)), "SOLVER.STEPS"),
        (("SOLVER.STEPS", (0, 60)), "SOLVER.STEPS"),
        (("SOLVER.IMS_PER_BATCH", 0), "SOLVER.IMS_PER_BATCH must be at least 1, got 0"),
        (("SOLVER.ACCUMULATE", 0), "SOLVER.ACCUMULATE must be at least 1, got 0"),
        (
            ("SOLVER.ACCUMULATE", 3),
            "SOLVER.IMS_PER_BATCH 16 cannot be taken in SOLVER.ACCUMULATE 3 parts",
        ),
        (
            ("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.BASE_LR_END", 0.1),
            "SOLVER.BASE_LR_END must be from 0 to SOLVER.BASE_LR 0.001, got 0.1",
        ),
        (("SOLVER.REFERENCE_IMS_PER_BATCH", -1), "REFERENCE_IMS_PER_BATCH must be 0 .* got -1"),
        (
            ("SOLVER.REFERENCE_IMS_PER_BATCH", 16, "SOLVER.REFERENCE_WORLD_SIZE", 8),
            "both scale the learning rate",
        ),
        (("MODEL_EMA.ENABLED", True, "MODEL_EMA.DECAY", 1.0), "MODEL_EMA.DECAY .* got 1.0"),
    ],
)
def test_what_cannot_work_is_refused(opts, message):
    with pytest.raises(UsageError, match=message) as error:
        check_solver(solver(*opts))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("opts", "warning"),
    [
        ((), None),
        (("SOLVER.ACCUMULATE", 16), None),
        (("SOLVER.STEPS", ()), None),
        (("SOLVER.REFERENCE_WORLD_SIZE", 8), None),
        (("SOLVER.STEPS", (60, 200)), "SOLVER.STEPS 200: the run ends before"),
    ],
)
def test_what_can_work_passes(opts, warning, log):
    check_solver(solver(*opts))
    assert (warning in log.text) if warning else not log.text


def test_a_warm_up_longer_than_the_run_is_warned_of(log):
    cfg = solver()
    cfg.SOLVER.WARMUP_ITERS = 101
    check_solver(cfg)
    assert "SOLVER.WARMUP_ITERS 101 is longer than the run" in log.text


def test_processes_share_a_batch_and_its_parts():
    cfg = solver("SOLVER.ACCUMULATE", 4)
    check_solver(cfg, processes=4)
    with pytest.raises(UsageError, match="16, 2 for each of 8 processes, cannot be taken in"):
        check_solver(cfg, processes=8)
    with pytest.raises(UsageError, match="16 cannot be shared out evenly among 3 processes"):
        check_solver(cfg, processes=3)


def lazy(**train: object) -> DictConfig:
    return OmegaConf.create(
        {"train": {"max_iter": 10, **train}, "dataloader": {"train": {"total_batch_size": 8}}}
    )


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"max_iter": 0}, "train.max_iter must be at least 1, got 0"),
        ({"accumulate": 3}, "total_batch_size 8 cannot be taken in train.accumulate 3 parts"),
        ({"model_ema": {"enabled": True, "decay": 2}}, "train.model_ema.decay .* got 2"),
    ],
)
def test_lazy_configs_are_checked_too(train, message):
    check_lazy_solver(lazy(accumulate=4, model_ema={"enabled": True}))
    with pytest.raises(UsageError, match=message):
        check_lazy_solver(lazy(**train))


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize(("reference", "rate"), [(0, 0.02), (16, 0.005), (4, 0.02), (1, 0.08)])
def test_the_learning_rate_is_scaled_to_the_batch_when_asked(optimizer, reference, rate, log):
    cfg = solver("SOLVER.BASE_LR", 0.02, "SOLVER.OPTIMIZER", optimizer, "SOLVER.IMS_PER_BATCH", 4)
    cfg.SOLVER.REFERENCE_IMS_PER_BATCH = reference
    groups = build_optimizer(cfg, nn.Linear(2, 2)).param_groups
    assert {group["lr"] for group in groups} == {rate}
    assert cfg.SOLVER.BASE_LR == 0.02
    line = f"SOLVER.BASE_LR 0.02 of {reference} images is {rate:g} for SOLVER.IMS_PER_BATCH 4"
    assert (line in log.text) == (reference != 0)
