"""The optimizer that the config names, with learning rates of their own for non-local blocks."""

import math

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

from .layers import non_local_blocks
from .layers.names import PAIRWISE_LAYERS, within_block
from .log import logger

OPTIMIZERS = ("SGD", "AdamW")


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Detectron2's SGD, or AdamW with the same handling of weight decay and gradient clipping.

    ``SOLVER.NON_LOCAL_PAIRWISE_LR_FACTOR`` multiplies the learning rate of the layers in each
    non-local block that say where it looks (:data:`PAIRWISE_LAYERS`: theta, phi and w_f in that of
    the paper), ``SOLVER.NON_LOCAL_OTHERS_LR_FACTOR`` that of its others (g, out and norm). Where
    both are 1, the optimizer is the one without them.
    ``SOLVER.REFERENCE_IMS_PER_BATCH``, unless 0, scales all learning rates to the batch.

    Raises:
        ValueError: if ``SOLVER.OPTIMIZER`` is not one of :data:`OPTIMIZERS`, or a factor negative.
    """
    check_lr_factors(cfg)
    cfg = _scaled_to_batch(cfg)
    build = build_sgd if cfg.SOLVER.OPTIMIZER == "SGD" else _build_adamw
    optimizer = build(cfg, model)
    _scale_learning_rates(optimizer, _non_local_lr_factors(cfg, model))
    return optimizer


def check_lr_factors(cfg: CfgNode) -> None:
    """Checks the factors on the learning rates of non-local blocks.

    Raises:
        ValueError: if one is negative or no number.
    """
    for key in ("NON_LOCAL_PAIRWISE_LR_FACTOR", "NON_LOCAL_OTHERS_LR_FACTOR"):
        if not 0 <= cfg.SOLVER[key] < math.inf:
            raise ValueError(f"SOLVER.{key} must be 0 or more, got {cfg.SOLVER[key]}")


def non_local_lr_factor(name: str, *, pairwise: float = 1.0, others: float = 1.0) -> float:
    """The same factors by a parameter's name, for a LazyConfig's ``lr_factor_func``.

    Args:
        name: of a parameter of a model, whose blocks have the names that insertion gives them.
        pairwise: as ``SOLVER.NON_LOCAL_PAIRWISE_LR_FACTOR``.
        others: as ``SOLVER.NON_LOCAL_OTHERS_LR_FACTOR``.
    """
    layer = within_block(name)
    if layer is None:
        return 1.0
    return _factor(layer, pairwise, others)


def _scaled_to_batch(cfg: CfgNode) -> CfgNode:
    """The config with BASE_LR in proportion to the batch, where it says of which one it is."""
    reference, batch = cfg.SOLVER.REFERENCE_IMS_PER_BATCH, cfg.SOLVER.IMS_PER_BATCH
    if reference == 0:
        return cfg
    scaled = cfg.clone()
    scaled.defrost()
    scaled.SOLVER.BASE_LR = cfg.SOLVER.BASE_LR * batch / reference
    logger.info(
        f"SOLVER.BASE_LR {cfg.SOLVER.BASE_LR:g} of {reference} images is "
        f"{scaled.SOLVER.BASE_LR:g} for SOLVER.IMS_PER_BATCH {batch}"
    )
    return scaled


def _factor(name: str, pairwise: float, others: float) -> float:
    """The factor of a parameter by its name within a block."""
    return pairwise if name.partition(".")[0] in PAIRWISE_LAYERS else others


def _non_local_lr_factors(cfg: CfgNode, model: nn.Module) -> dict[nn.Parameter, float]:
    """The factors on the learning rates of all parameters of a model's non-local blocks."""
    solver = cfg.SOLVER
    factors = solver.NON_LOCAL_PAIRWISE_LR_FACTOR, solver.NON_LOCAL_OTHERS_LR_FACTOR
    return {
        parameter: _factor(name, *factors)
        for block in non_local_blocks(model).values()
        for name, parameter in block.named_parameters()
    }


def _scale_learning_rates(
    optimizer: torch.optim.Optimizer, factors: dict[nn.Parameter, float]
) -> None:
    """Moves parameters whose factor is not 1 into groups of their own, with learning rates so."""
    for group in list(optimizer.param_groups):
        own = {p: factors[p] for p in group["params"] if factors.get(p, 1.0) != 1.0}
        group["params"] = [p for p in group["params"] if p not in own]
        for factor in sorted(set(own.values())):
            chosen = [p for p in own if own[p] == factor]
            optimizer.add_param_group({**group, "params": chosen, "lr": group["lr"] * factor})
    optimizer.param_groups = [group for group in optimizer.param_groups if group["params"]]


def _build_adamw(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    if cfg.SOLVER.OPTIMIZER != "AdamW":
        raise ValueError(
            f"SOLVER.OPTIMIZER must be one of {OPTIMIZERS}, got {cfg.SOLVER.OPTIMIZER!r}"
        )
    parameters = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    optimizer = torch.optim.AdamW(
        parameters, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY
    )
    return maybe_add_gradient_clipping(cfg, optimizer)
