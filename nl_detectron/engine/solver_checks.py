"""What a training's schedule needs is checked before it starts."""

import math

from detectron2.config import CfgNode
from omegaconf import DictConfig, OmegaConf

from ..errors import UsageError
from ..log import logger

ON_ERROR = ("stop", "continue")  # where a checkpoint cannot be written


def check_solver(cfg: CfgNode, *, processes: int = 1) -> None:
    """Checks learning rate, iterations and batch of a training; warns of what cannot be meant.

    Args:
        processes: that train together.

    Raises:
        UsageError: naming the key, its value and what is allowed.
    """
    solver = cfg.SOLVER
    _check_batch(
        ("SOLVER.IMS_PER_BATCH", solver.IMS_PER_BATCH),
        ("SOLVER.ACCUMULATE", solver.ACCUMULATE),
        processes,
    )
    _check_positive("SOLVER.MAX_ITER", solver.MAX_ITER)
    if not 0 < solver.BASE_LR < math.inf:
        raise UsageError(f"SOLVER.BASE_LR must be a finite number above 0, got {solver.BASE_LR}")
    if solver.LR_SCHEDULER_NAME == "WarmupCosineLR":
        if not 0 <= solver.BASE_LR_END <= solver.BASE_LR:
            raise UsageError(
                f"SOLVER.BASE_LR_END must be from 0 to SOLVER.BASE_LR {solver.BASE_LR:g}, got "
                f"{solver.BASE_LR_END}"
            )
    elif solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        _check_steps(tuple(solver.STEPS), solver.MAX_ITER)
    if solver.WARMUP_ITERS > solver.MAX_ITER:
        logger.warning(
            f"SOLVER.WARMUP_ITERS {solver.WARMUP_ITERS} is longer than the run, SOLVER.MAX_ITER "
            f"{solver.MAX_ITER}: the learning rate never gets to SOLVER.BASE_LR"
        )
    if solver.REFERENCE_IMS_PER_BATCH < 0:
        raise UsageError(
            "SOLVER.REFERENCE_IMS_PER_BATCH must be 0 (off) or a number of images, got "
            f"{solver.REFERENCE_IMS_PER_BATCH}"
        )
    if solver.REFERENCE_IMS_PER_BATCH and solver.REFERENCE_WORLD_SIZE:
        raise UsageError(
            "SOLVER.REFERENCE_IMS_PER_BATCH and SOLVER.REFERENCE_WORLD_SIZE both scale the "
            "learning rate; set one of them to 0"
        )
    if solver.CHECKPOINT_KEEP < 0:
        raise UsageError(
            f"SOLVER.CHECKPOINT_KEEP must be 0 (all) or a number, got {solver.CHECKPOINT_KEEP}"
        )
    _check_on_error("SOLVER.CHECKPOINT_ON_ERROR", solver.CHECKPOINT_ON_ERROR)
    if cfg.MODEL_EMA.ENABLED:
        _check_decay("MODEL_EMA.DECAY", cfg.MODEL_EMA.DECAY)


def check_lazy_solver(cfg: DictConfig) -> None:
    """The same of a LazyConfig, whose learning rates are code.

    Raises:
        UsageError: naming the key, its value and what is allowed.
    """
    _check_positive("train.max_iter", cfg.train.max_iter)
    batch = OmegaConf.select(cfg.dataloader, "train.total_batch_size")
    parts = ("train.accumulate", cfg.train.get("accumulate", 1))
    if batch is not None:
        _check_batch(("dataloader.train.total_batch_size", batch), parts, 1)
    elif parts[1] != 1:
        raise UsageError("train.accumulate needs dataloader.train.total_batch_size, which is not")
    _check_on_error("train.checkpoint_on_error", cfg.train.get("checkpoint_on_error", "stop"))
    if OmegaConf.select(cfg.train, "model_ema.enabled"):
        _check_decay("train.model_ema.decay", cfg.train.model_ema.get("decay", 0.999))


def _check_batch(batch: tuple[str, int], parts: tuple[str, int], processes: int) -> None:
    for key, value in (batch, parts):
        _check_positive(key, value)
    if batch[1] % processes:
        raise UsageError(
            f"{batch[0]} {batch[1]} cannot be shared out evenly among {processes} processes"
        )
    if batch[1] // processes % parts[1]:
        shares = f", {batch[1] // processes} for each of {processes} processes," * (processes > 1)
        raise UsageError(
            f"{batch[0]} {batch[1]}{shares} cannot be taken in {parts[0]} {parts[1]} parts of "
            f"one size; use a divisor"
        )


def _check_steps(steps: tuple[int, ...], max_iter: int) -> None:
    ascending = all(a < b for a, b in zip((0, *steps), steps, strict=False))
    if not ascending:
        raise UsageError(f"SOLVER.STEPS must be iterations above 0 in rising order, got {steps}")
    if late := [step for step in steps if step >= max_iter]:
        logger.warning(
            f"SOLVER.STEPS {', '.join(map(str, late))}: the run ends before, at SOLVER.MAX_ITER "
            f"{max_iter}, so the learning rate does not fall there"
        )


def _check_on_error(key: str, value: str) -> None:
    if value not in ON_ERROR:
        raise UsageError(f"{key} must be one of {', '.join(ON_ERROR)}, got {value!r}")


def _check_positive(key: str, value: int) -> None:
    if value < 1:
        raise UsageError(f"{key} must be at least 1, got {value}")


def _check_decay(key: str, decay: float) -> None:
    if not 0 <= decay < 1:
        raise UsageError(f"{key} must be from 0 to below 1, got {decay}")
