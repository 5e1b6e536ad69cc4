"""Each LazyConfig is the model of the YAML config of its name, weight for weight."""

import re

import pytest
import torch
from detectron2 import model_zoo as detectron2_zoo
from detectron2.config import instantiate
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.utils.events import EventStorage
from omegaconf import ListConfig, OmegaConf
from torch import nn

from nl_detectron import model_zoo
from nl_detectron.engine import Trainer

from .examples import example

NAMES = [name for name in model_zoo.list_configs() if name.endswith(".py")]
NL = ("", "nl_", "nl_head_")


def settle(model: nn.Module) -> nn.Module:
    """Makes random weights of use: no activation explodes, there are some detections, but few."""
    for name, module in model.named_modules():
        if isinstance(module, FrozenBatchNorm2d) and name.endswith("conv3.norm"):
            module.weight.fill_(0.1)
        if isinstance(module, FastRCNNOutputLayers):
            module.test_score_thresh, module.test_topk_per_image = 0.0, 5
    model.proposal_generator.post_nms_topk = {True: 30, False: 30}
    model.roi_heads.batch_size_per_image = 16
    return model


def test_there_is_one_for_each_row_of_the_paper():
    rows = [f"mask_rcnn_{r}_FPN_{nl}1x" for r in ("R_50", "R_101", "X_152_32x8d") for nl in NL[:2]]
    rows += [f"keypoint_rcnn_{r}_FPN_{nl}1x" for r in ("R_50", "R_101") for nl in NL]
    assert sorted(name.rpartition("/")[2] for name in NAMES) == sorted(f"{r}.py" for r in rows)


def flatten(node: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(node, dict | list):
        return {prefix: node}
    flat = {}
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


@pytest.mark.parametrize("name", NAMES)
def test_equals_its_twin_but_for_the_keys_we_mean(name):
    """The twin is Detectron2's LazyConfig of the R50 baseline, the only one that it has."""
    twin = re.sub("(R_50|R_101|X_152_32x8d)_FPN(_nl)?(_head)?", "R_50_FPN", name)
    configs = [zoo.get_config(n) for zoo, n in ((model_zoo, name), (detectron2_zoo, twin))]
    ours, theirs = (flatten(OmegaConf.to_container(cfg, resolve=False)) for cfg in configs)
    difference = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
    resnet, head = "model.backbone.bottom_up", "model.roi_heads.keypoint_head"
    expected = {"dataloader.evaluator._target_"}
    if "R_101" in name:
        expected |= {f"{resnet}.stages.depth", "train.init_checkpoint"}
    if "X_152" in name:
        expected |= {"train.init_checkpoint"}
        difference = {key for key in difference if not key.startswith(f"{resnet}.stages.")}
    if "_nl_" in name and "head" not in name:
        expected |= {f"{resnet}._target_", f"{resnet}.non_local_after.0"}
    if "_nl_" in name and "keypoint" in name:
        expected |= {f"{head}._target_"} | {f"{head}.non_local_after.{i}" for i in range(4)}
    assert difference == expected


def settings(model: nn.Module) -> dict[str, object]:
    """What tells how each module computes, but for its weights: its class and its plain values."""

    def is_plain(value: object) -> bool:
        if isinstance(value, tuple | list | ListConfig):
            return all(map(is_plain, value))
        return value is None or isinstance(value, bool | int | float | str)

    return {
        name: (
            type(module),
            {key: value for key, value in vars(module).items() if is_plain(value)},
            {key: value.shape for key, value in module.named_buffers(recurse=False)},
        )
        for name, module in model.named_modules()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_is_built_as_the_model_of_the_yaml_config(name):
    """Without memory for weights: those of the same names and sizes would give the same."""
    cfg = model_zoo.get_config(name.replace(".py", ".yaml"))
    cfg.MODEL.DEVICE = "meta"
    cfg.INPUT.MASK_FORMAT = "bitmask"
    with torch.device("meta"):
        of_yaml, lazy = build_model(cfg), instantiate(model_zoo.get_config(name).model)
    assert settings(of_yaml) == settings(lazy)
    assert [(n, p.shape, p.requires_grad) for n, p in of_yaml.named_parameters()] == [
        (n, p.shape, p.requires_grad) for n, p in lazy.named_parameters()
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if "R_50" in name])
def test_is_the_model_of_the_yaml_config(name):
    cfg = model_zoo.get_config(name.replace(".py", ".yaml"))
    cfg.MODEL.DEVICE = "cpu"
    # what the examples hold; both mask formats are of the data, not of the model
    cfg.INPUT.MASK_FORMAT = "bitmask"
    lazy_cfg = model_zoo.get_config(name)
    of_yaml, lazy = build_model(cfg), instantiate(lazy_cfg.model)
    assert of_yaml.state_dict().keys() == lazy.state_dict().keys()
    assert [n for n, p in of_yaml.named_parameters() if p.requires_grad] == [
        n for n, p in lazy.named_parameters() if p.requires_grad
    ]
    for parameter in of_yaml.parameters():  # so that blocks and outputs do something
        nn.init.normal_(parameter, std=0.01) if not parameter.any() else None
    lazy.load_state_dict(of_yaml.state_dict())

    image, ground_truth = example(training=False), example(training=True)
    outputs = []
    for model in (settle(of_yaml), settle(lazy)):
        with torch.no_grad():
            outputs.append(model.eval()(image)[0]["instances"].get_fields())
    assert outputs[0].keys() == outputs[1].keys() and len(outputs[0]["scores"]) > 0
    for key, value in outputs[0].items():
        value, other = (getattr(v, "tensor", v) for v in (value, outputs[1][key]))
        assert torch.equal(value, other), key

    losses = []
    for model in (of_yaml, lazy):
        torch.manual_seed(1)  # of the sampling of proposals
        with EventStorage():
            losses.append(model.train()(ground_truth))
    assert losses[0].keys() == losses[1].keys()
    for key, value in losses[0].items():
        assert torch.equal(value, losses[1][key]), key

    # The same step by both optimizers
    lazy_cfg.optimizer.params.model = lazy
    optimizers = Trainer.build_optimizer(cfg, of_yaml), instantiate(lazy_cfg.optimizer)
    for loss, optimizer in zip(losses, optimizers, strict=True):
        sum(loss.values()).backward()
        optimizer.step()
    for (key, value), other in zip(of_yaml.named_parameters(), lazy.parameters(), strict=True):
        assert torch.equal(value, other), key


@pytest.mark.parametrize("name", NAMES)
def test_has_the_schedule_weights_and_data_of_the_yaml_config(name):
    cfg, lazy = model_zoo.get_config(name.replace(".py", ".yaml")), model_zoo.get_config(name)
    assert lazy.train.init_checkpoint == cfg.MODEL.WEIGHTS
    assert lazy.train.max_iter == cfg.SOLVER.MAX_ITER
    assert (lazy.dataloader.train.dataset.names,) == cfg.DATASETS.TRAIN
    assert (lazy.dataloader.test.dataset.names,) == cfg.DATASETS.TEST
    assert lazy.dataloader.train.total_batch_size == cfg.SOLVER.IMS_PER_BATCH
    assert list(lazy.model.pixel_std) == cfg.MODEL.PIXEL_STD
    multiplier = instantiate(lazy.lr_multiplier)
    for step in (*cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER - 1):
        ratio = multiplier((step - 1) / cfg.SOLVER.MAX_ITER) / multiplier(
            step / cfg.SOLVER.MAX_ITER
        )
        assert ratio == pytest.approx(10 if step in cfg.SOLVER.STEPS else 1)
