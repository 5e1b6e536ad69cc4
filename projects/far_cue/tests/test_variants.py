import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from far_cue import TASKS, VARIANTS, variants_of
from far_cue.skirts import FIGURE_SIZE
from far_cue.strips import STRIP_SIZE
from far_cue.variants import build_cfg
from nl_detectron import NonLocalBlock
from nl_detectron.analysis import count_flops, count_parameters, largest_input
from nl_detectron.engine.checks import check_model
from nl_detectron.engine.unused import unused_options
from nl_detectron.layers import NON_LOCAL_BLOCK_REGISTRY, non_local_blocks

FAMILY = [name for name, variant in VARIANTS.items() if "MODEL.NON_LOCAL.BLOCK" in variant.options]


def built(variant, task="one_key"):
    return build_model(build_cfg(variant, task, seed=1)).eval()


def costs(variant, task="one_key") -> tuple[int, int]:
    model = built(variant, task)
    size = FIGURE_SIZE if task == "hidden_legs" else STRIP_SIZE
    return count_parameters(model), count_flops(model, largest_input(model, size)).total()


def test_each_task_has_five_seeds():
    """As many as any other: run.py takes them in turns."""
    assert all(len(set(task.seeds)) == 5 for task in TASKS.values())


@pytest.mark.parametrize("task", TASKS)
def test_all_variants_have_the_same_data_and_schedule(task):
    cfgs = [build_cfg(variant, task, seed=7) for variant in variants_of(task)]
    for cfg in cfgs:
        check_model(cfg)
        assert cfg.DATASETS == cfgs[0].DATASETS and cfg.INPUT == cfgs[0].INPUT
        assert cfg.SEED == 7
        kind = "people_in_skirts" if task == "hidden_legs" else f"far_cue_{task}"
        assert cfg.DATASETS.TEST[0] == f"{kind}_val"
        assert f"{kind}_train" in cfg.DATASETS.TRAIN
        [meta] = [MetadataCatalog.get(name) for name in cfg.DATASETS.TEST]
        assert len(meta.thing_classes) == cfg.MODEL.ROI_HEADS.NUM_CLASSES
        solver, first = cfg.SOLVER.clone(), cfgs[0].SOLVER.clone()
        for node in (solver, first):
            del node["NON_LOCAL_OTHERS_LR_FACTOR"], node["NON_LOCAL_PAIRWISE_LR_FACTOR"]
        assert solver == first


def test_the_deeper_model_costs_at_least_what_a_block_does():
    parameters, flops = costs("deeper")
    for name in ("embedded_gaussian_full", "concatenation"):
        with_block = costs(name)
        assert with_block[0] <= parameters < 1.03 * with_block[0] and flops >= with_block[1], name


def test_the_wider_head_costs_at_least_what_four_blocks_do():
    parameters, flops = costs("wider_head", "hidden_legs")
    names = [name for name in variants_of("hidden_legs") if name not in ("plain", "wider_head")]
    for name in names:
        with_blocks = costs(name, "hidden_legs")
        assert parameters >= with_blocks[0] and flops >= with_blocks[1], name


@pytest.mark.parametrize("variant", variants_of("hidden_legs"))
def test_blocks_for_hidden_legs_are_in_the_head_only(variant):
    model = built(variant, "hidden_legs")
    names = [name for name, m in model.named_modules() if isinstance(m, NonLocalBlock)]
    expected = [] if variant in ("plain", "wider_head") else [1, 2, 3, 4]
    assert names == [f"roi_heads.keypoint_head.nl{i}" for i in expected]


def test_deeper_has_one_more_residual_block_before_the_last():
    plain, deeper = built("plain").backbone.res4, built("deeper").backbone.res4
    names = [name for name, _ in deeper.named_children()]
    assert names == ["0", "1", "2", "3", "4", "4_deeper", "5"]
    assert len(plain) == 6
    assert sum(p.numel() for p in deeper[5].parameters()) > 33_000


@pytest.mark.parametrize(
    ("variant", "task"), [("uniform", "one_key"), ("uniform_head", "hidden_legs")]
)
def test_uniform_attention_is_a_global_average(variant, task):
    model = built(variant, task)
    block = next(m for m in model.modules() if isinstance(m, NonLocalBlock))
    x = torch.randn(1, block.in_channels, 4, 6)
    torch.testing.assert_close(block.affinity(x), torch.full((1, 24, 6), 1 / 6))
    with torch.no_grad():
        block.out.weight.normal_()
        added = block(x) - x
    torch.testing.assert_close(added, added[..., :1, :1].expand_as(added), rtol=1e-4, atol=1e-5)


def test_all_blocks_are_trained_alike_but_in_the_ablation():
    for name, variant in VARIANTS.items():
        if "MODEL.NON_LOCAL.PAIRWISE" in variant.options:
            cfg = build_cfg(name, variant.tasks[0], seed=1)
            ablated = name.endswith(("_one_rate", "_released", "_neither"))
            rates = cfg.SOLVER.NON_LOCAL_PAIRWISE_LR_FACTOR, cfg.SOLVER.NON_LOCAL_OTHERS_LR_FACTOR
            assert rates == ((1, 1) if name.endswith(("_one_rate", "_neither")) else (0.1, 2))
            settings = cfg.MODEL.NON_LOCAL.INIT, *rates
            assert (settings == ("similarity", 0.1, 2)) == (not ablated), name


@pytest.mark.parametrize(
    "name",
    [name for name, variant in VARIANTS.items() if "MODEL.NON_LOCAL.BLOCK" in variant.options],
)
def test_other_kinds_of_blocks_are_tried_on_both_tasks_and_use_all_that_is_set(name):
    assert VARIANTS[name].tasks == ("one_key", "matching_key")
    cfg = build_cfg(name, "one_key", seed=1)
    assert unused_options(cfg) == []
    [block] = non_local_blocks(built(name)).values()
    assert type(block).__name__ == cfg.MODEL.NON_LOCAL.BLOCK
    rates = cfg.SOLVER.NON_LOCAL_PAIRWISE_LR_FACTOR, cfg.SOLVER.NON_LOCAL_OTHERS_LR_FACTOR
    assert rates == (0.1, 2)


def test_every_kind_of_block_is_tried():
    kinds = {
        cfg.MODEL.NON_LOCAL.BLOCK
        for cfg in (build_cfg(v, "one_key", 1) for v in variants_of("one_key"))
    }
    assert kinds == {name for name, _ in NON_LOCAL_BLOCK_REGISTRY}


def test_numbers_of_blocks():
    for name, expected in (("plain", 0), ("deeper", 0), ("gaussian", 1), ("two_blocks", 2)):
        assert sum(isinstance(m, NonLocalBlock) for m in built(name).modules()) == expected
