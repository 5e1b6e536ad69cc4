from functools import partial

import pytest
import torch
from detectron2.config import LazyCall, get_cfg, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import build_resnet_backbone
from detectron2.solver import build_lr_scheduler, get_default_optimizer_params
from detectron2.solver import build_optimizer as detectron2_build_optimizer
from torch import nn

from nl_detectron import NonLocalBlock, add_non_local_config, insert_non_local
from nl_detectron.layers import PAIRWISE_FUNCTIONS
from nl_detectron.solver import build_optimizer, non_local_lr_factor

C = 8
PAIRWISE = "SOLVER.NON_LOCAL_PAIRWISE_LR_FACTOR"
OTHERS = "SOLVER.NON_LOCAL_OTHERS_LR_FACTOR"


def make_cfg(*opts):
    cfg = get_cfg()
    add_non_local_config(cfg)
    cfg.merge_from_list(["SOLVER.BASE_LR", 0.1, *opts])
    return cfg


def make_model(pairwise="concatenation", norm="BN"):
    torch.manual_seed(0)
    blocks = NonLocalBlock(C, pairwise=pairwise, norm=norm, zero_init=False)
    return nn.Sequential(nn.Conv2d(C, C, 1), blocks)


def learning_rates(optimizer, model) -> dict[str, float]:
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == sum(len(group["params"]) for group in optimizer.param_groups)
    return {name: rates[p] for name, p in model.named_parameters()}


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_each_layer_has_its_learning_rate(optimizer, clip):
    opts = ["SOLVER.OPTIMIZER", optimizer, "SOLVER.CLIP_GRADIENTS.ENABLED", clip]
    factors = [
        PAIRWISE,
        0.03,
        OTHERS,
        2.0,
    ]
    cfg, model = make_cfg(*opts, *factors), make_model()
    built = build_optimizer(cfg, model)
    for name, rate in learning_rates(built, model).items():
        layer = name.split(".")[1]
        if not name.startswith("1."):
            assert rate == pytest.approx(0.1), name
        elif layer in ("theta", "phi", "w_f"):
            assert rate == pytest.approx(0.003), name
        else:
            assert layer in ("g", "out", "norm") and rate == pytest.approx(0.2), name
    # Weight decay is as without factors, and the schedule keeps the ratios.
    plain = build_optimizer(make_cfg(*opts), model)
    decays = [
        {p: group["weight_decay"] for group in o.param_groups for p in group["params"]}
        for o in (built, plain)
    ]
    assert decays[0] == decays[1]
    scheduler = build_lr_scheduler(cfg, built)
    model(torch.randn(2, C, 3, 5)).square().mean().backward()
    for _ in range(3):
        built.step()
        scheduler.step()
    rates = learning_rates(built, model)
    assert rates["1.theta.weight"] == pytest.approx(0.03 * rates["0.weight"])
    assert rates["1.out.weight"] == pytest.approx(2 * rates["0.weight"])


def test_a_factor_of_zero_freezes():
    model = make_model()
    optimizer = build_optimizer(make_cfg(PAIRWISE, 0.0), model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(torch.randn(2, C, 3, 5)).square().sum().backward()
    optimizer.step()
    kept = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert kept == {n for n in before if n.split(".")[1] in ("theta", "phi", "w_f")}


@pytest.mark.parametrize("pairwise", ["embedded_gaussian", "concatenation"])
def test_without_factors_sgd_is_bitwise_detectron2_s(pairwise):
    weights = []
    for build in (detectron2_build_optimizer, build_optimizer):
        cfg, model = make_cfg(), make_model(pairwise)
        optimizer = build(cfg, model)
        scheduler = build_lr_scheduler(cfg, optimizer)
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(2, C, 5, 7)).square().mean().backward()
            optimizer.step()
            scheduler.step()
        weights.append(model.state_dict())
        groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        weights[-1]["groups"] = groups
    assert weights[0].pop("groups") == weights[1].pop("groups")
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_model_that_is_all_block():
    model = NonLocalBlock(C)
    cfg = make_cfg(PAIRWISE, 0.5, OTHERS, 0.5)
    optimizer = build_optimizer(cfg, model)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05]


@pytest.mark.parametrize("key", ["NON_LOCAL_PAIRWISE_LR_FACTOR", "NON_LOCAL_OTHERS_LR_FACTOR"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_errors(key, value):
    with pytest.raises(ValueError, match=f"SOLVER.{key} must be 0 or more, got {value}"):
        build_optimizer(make_cfg(f"SOLVER.{key}", value), make_model())


@pytest.mark.parametrize("pairwise", PAIRWISE_FUNCTIONS)
def test_a_lazy_config_gives_the_same_learning_rates(pairwise):
    cfg = make_cfg(PAIRWISE, 0.03, OTHERS, 2.0)
    cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.RESNETS.DEPTH = 0, 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    model = build_resnet_backbone(cfg, ShapeSpec(channels=3))
    insert_non_local(model, ["res4.0"], pairwise=pairwise, norm="GN")
    lazy = LazyCall(torch.optim.SGD)(params=LazyCall(get_default_optimizer_params)(), lr=0.1)
    factor = partial(non_local_lr_factor, pairwise=0.03, others=2.0)
    lazy.params.update(model=model, base_lr="${..lr}", lr_factor_func=factor)
    rates = learning_rates(instantiate(lazy), model)
    assert rates == pytest.approx(learning_rates(build_optimizer(cfg, model), model))
    assert {round(rate, 6) for rate in rates.values()} == {0.1, 0.003, 0.2} - (
        {0.003} if pairwise == "gaussian" else set()
    )
