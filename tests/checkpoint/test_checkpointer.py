"""What loads into which model, under which names, and when a run stops."""

import functools
import pickle
import re
import signal
import subprocess
import textwrap
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone, build_model
from safetensors import safe_open
from torch import nn

from nl_detectron.checkpoint import CheckpointError, NonLocalCheckpointer, read_config
from nl_detectron.checkpoint.writing import write_safetensors
from nl_detectron.files import replacing
from tests import models
from tests.models import assert_same_predictions, make_non_local, settle


def zoo_cfg(name: str) -> CfgNode:
    cfg = models.zoo_cfg(name)
    cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 32
    return cfg


@functools.lru_cache
def stock(name: str) -> nn.Module:
    """A model of Detectron2's zoo, narrow, with random weights."""
    torch.manual_seed(0)
    return settle(build_model(zoo_cfg(name)))


def twin_cfg(name: str) -> CfgNode:
    cfg = zoo_cfg(name)
    make_non_local(cfg)
    return cfg


def twin(name: str) -> nn.Module:
    torch.manual_seed(1)
    return build_model(twin_cfg(name))


def arrays(weights: dict[str, torch.Tensor]) -> dict:
    return {name: value.numpy() for name, value in weights.items()}


def write(path: Path, weights: dict[str, torch.Tensor]) -> str:
    """A checkpoint as Detectron2 (.pkl of the zoo, .pth) or this package (.safetensors) has it."""
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps({"model": arrays(weights), "__author__": "a zoo"}))
    elif path.suffix == ".pth":
        torch.save({"model": weights}, path)
    else:
        write_safetensors(str(path), weights, {})
    return str(path)


def assert_loaded(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    state = model.state_dict()
    for name, value in weights.items():
        assert torch.equal(state[name], value), name


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".safetensors"])
@pytest.mark.parametrize("name", ["mask", "keypoint"])
def test_a_finished_model_in_its_non_local_twin(tmp_path, log, name, suffix):
    model, path = stock(name), write(tmp_path / f"model_final{suffix}", stock(name).state_dict())
    with_blocks = twin(name)
    checkpointer = NonLocalCheckpointer(with_blocks)
    checkpointer.load(path)
    assert_same_predictions(model, with_blocks)
    report = checkpointer.report
    assert set(report.loaded) == set(model.state_dict())
    assert set(report.new_non_local) == set(with_blocks.state_dict()) - set(model.state_dict())
    assert not (report.missing or report.unexpected or report.mismatched or report.new_part)
    count = 8 if name == "mask" else 5 * 8
    assert re.search(rf"new non-local \(zero start\) +{count}  \S*\.nl\d\.theta\.weight", log.text)
    assert re.search(rf"\nloaded +{len(report.loaded)}  \S+", log.text)

    # For an evaluation that would be blocks at zero, taken for trained ones.
    evaluated = NonLocalCheckpointer(twin(name), complete=True)
    with pytest.raises(CheckpointError, match=rf"{count} non-local tensors are missing .*\.nl\d\."):
        evaluated.load(path)


CAFFE2_NORM = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}


def caffe2_name(name: str) -> str:
    """The name in Caffe2 of a tensor of a ResNet, which is "res2.0.conv1.weight" here."""
    name = name.replace("stem.conv1.norm.", "res_conv1_bn_").replace("stem.conv1.", "conv1_")
    name = re.sub(r"(res\d)\.(\d+)\.", r"\1_\2_", name)
    for ours, theirs in ("shortcut", "1"), ("conv1", "2a"), ("conv2", "2b"), ("conv3", "2c"):
        name = re.sub(rf"(res\d_\d+_){ours}\.", rf"\1branch{theirs}_", name)
    name = name.replace("norm.", "bn_").replace("bn_running_mean", "bn_rm")
    name = name.replace("bn_running_var", "bn_riv").replace("bn_weight", "bn_s")
    return name.replace("bn_bias", "bn_b").removesuffix("eight").removesuffix("ias")


def resnet_of(model: nn.Module, *prefixes: str) -> dict[str, torch.Tensor]:
    """The tensors of a model's ResNet, without the prefixes that they have in the model."""
    return {
        name.removeprefix(prefix): value
        for name, value in model.state_dict().items()
        for prefix in prefixes
        if name.startswith(prefix + "stem") or name.startswith(prefix + "res")
        if not name.endswith("num_batches_tracked")
    }


PREFIXES = {
    "mask": ("backbone.bottom_up.",),
    "retinanet": ("backbone.bottom_up.",),
    "c4": ("backbone.", "roi_heads."),
}


@pytest.mark.parametrize("name", PREFIXES)
@pytest.mark.parametrize("kind", ["caffe2", "torchvision"])
def test_pretrained_resnet(tmp_path, name, kind):
    """As MSRA/R-50.pkl, FAIR/X-101-32x8d.pkl, X-152 (Caffe2 names) and torchvision/R-50.pkl are."""
    weights = resnet_of(stock(name), *PREFIXES[name])
    assert len(weights) == 53 * 5  # convolutions, each with a norm of four tensors
    rest = {"weight": torch.zeros(1000, 2048), "bias": torch.zeros(1000)}
    path = tmp_path / "R-50.pkl"
    if kind == "caffe2":
        blobs = {caffe2_name(name): value for name, value in weights.items()}
        blobs |= {"fc1000_w": rest["weight"], "fc1000_b": rest["bias"], "conv1_b": torch.zeros(64)}
        momentum = {"conv1_w_momentum": torch.zeros(1)}
        path.write_bytes(pickle.dumps(arrays(blobs | momentum), protocol=2))
    else:
        named = weights | {f"stem.fc.{key}": value for key, value in rest.items()}
        content = {"model": arrays(named), "__author__": kind, "matching_heuristics": True}
        path.write_bytes(pickle.dumps(content))
    model = twin(name)
    checkpointer = NonLocalCheckpointer(model)
    checkpointer.load(str(path))
    loaded = {
        full: value
        for full, value in stock(name).state_dict().items()
        for prefix in PREFIXES[name]
        if full.removeprefix(prefix) in weights
    }
    assert_loaded(model, loaded)
    report = checkpointer.report
    assert len(report.new_non_local) == 8 and not report.missing and not report.mismatched
    assert {part.split(".")[0] for part in report.new_part} >= (
        {"head"} if name == "retinanet" else {"proposal_generator", "roi_heads"}
    )
    assert len(report.unexpected) == (3 if kind == "caffe2" else 2)
    with pytest.raises(CheckpointError, match="tensors are missing"):
        NonLocalCheckpointer(twin(name), complete=True).load(str(path))


def test_resnet_with_its_norms_folded(tmp_path):
    """As FAIR/X-101 and X-152 of Detectron1: scale and shift only, for FrozenBN and no other."""
    weights = resnet_of(stock("mask"), *PREFIXES["mask"])
    folded = {caffe2_name(n): w for n, w in weights.items() if "running" not in n}
    path = tmp_path / "X-152-32x8d-IN5k.pkl"
    path.write_bytes(pickle.dumps(arrays(folded), protocol=2))
    cfg = twin_cfg("mask")
    with pytest.raises(CheckpointError, match=r"missing \(\S+norm.running_mean"):
        NonLocalCheckpointer(build_model(cfg)).load(str(path))  # with BN
    cfg.MODEL.RESNETS.NORM = "FrozenBN"
    model = build_model(cfg)
    checkpointer = NonLocalCheckpointer(model)
    checkpointer.load(str(path))
    assert len(checkpointer.report.loaded) >= 53 * 5
    stem = model.backbone.bottom_up.stem.conv1.norm
    assert torch.equal(stem.weight, weights["stem.conv1.norm.weight"])
    assert torch.equal(stem.running_mean, torch.zeros_like(stem.running_mean))


def detectron1_name(name: str) -> str:
    """The blob in Detectron1 of a tensor of a Mask R-CNN with FPN."""
    if match := re.fullmatch(r"backbone\.fpn_(lateral|output)(\d)\.(\w)\w+", name):
        level = f"res{match[2]}_{ {'2': 2, '3': 3, '4': 5, '5': 2}[match[2]] }_sum"
        top = match[1] == "lateral" and match[2] == "5"
        inner = f"fpn_inner_{level}" + ("" if top else "_lateral")
        return f"{inner if match[1] == 'lateral' else f'fpn_{level}'}_{match[3]}"
    for ours, theirs in {
        "backbone.bottom_up.": "",
        "proposal_generator.rpn_head.conv.": "conv_rpn_fpn2_",
        "proposal_generator.rpn_head.objectness_logits.": "rpn_cls_logits_fpn2_",
        "proposal_generator.rpn_head.anchor_deltas.": "rpn_bbox_pred_fpn2_",
        "roi_heads.box_head.fc1.": "fc6_",
        "roi_heads.box_head.fc2.": "fc7_",
        "roi_heads.box_predictor.": "",
        "cls_score.": "cls_score_",
        "bbox_pred.": "bbox_pred_",
        "roi_heads.mask_head.mask_fcn": "_[mask]_fcn",
        "roi_heads.mask_head.deconv.": "conv5_mask_",
        "roi_heads.mask_head.predictor.": "mask_fcn_logits_",
    }.items():
        name = name.replace(ours, theirs)
    name = re.sub(r"(_\[mask\]_fcn\d)\.", r"\1_", name)
    return caffe2_name(name)


def test_detectron1_mask_rcnn(tmp_path):
    """Names, and the class order, in which Detectron1 has the background first."""
    weights = {n: v for n, v in stock("mask").state_dict().items() if "num_batches" not in n}
    blobs = {detectron1_name(name): value.clone() for name, value in weights.items()}
    assert len(blobs) == len(weights)
    cls, box, mask = (b for b in ("cls_score", "bbox_pred", "mask_fcn_logits"))
    for end in "wb":
        blobs[f"{cls}_{end}"] = blobs[f"{cls}_{end}"].roll(1, dims=0)
        for blob, rows in ((box, 4), (mask, 1)):
            value = blobs[f"{blob}_{end}"]
            blobs[f"{blob}_{end}"] = torch.cat([torch.zeros_like(value[:rows]), value])
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"blobs": arrays(blobs), "cfg": "MODEL: {}"}, protocol=2))
    model = twin("mask")
    checkpointer = NonLocalCheckpointer(model)
    checkpointer.load(str(path))
    assert_loaded(model, weights)
    report = checkpointer.report
    assert not (report.missing or report.unexpected or report.mismatched or report.new_part)
    assert_same_predictions(stock("mask"), model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.pop("backbone.bottom_up.res4.3.conv2.weight"),
            r"1 tensors are missing \(back",
        ),
        # a whole part of a detector is no pretrained ResNet's
        (lambda w: [w.pop(n) for n in list(w) if "mask_head" in n], "12 tensors are missing"),
        (lambda w: [w.pop(n) for n in list(w) if "roi_heads" in n], "tensors are missing"),
        (lambda w: [w.pop(n) for n in list(w) if ".res5." in n], "tensors are missing"),
        (
            lambda w: w.update({"roi_heads.box_head.fc1.bias": torch.zeros(4)}),
            r"1 tensors have another shape \(roi_heads.box_head.fc1.bias\)",
        ),
        (
            lambda w: w.update({"backbone.bottom_up.res4.nl4.g.bias": torch.zeros(256)}),
            r"tensors are missing \(backbone.bottom_up.res4.nl4",  # a part of a block
        ),
        (
            lambda w: [w.pop(n) for n in list(w)] and w.update(x=torch.ones(1)),
            "no tensor in it fits",
        ),
    ],
)
def test_what_stops_a_training(tmp_path, log, change, message):
    weights = dict(stock("mask").state_dict())
    change(weights)
    path = write(tmp_path / "model.pth", weights)
    checkpointer = NonLocalCheckpointer(twin("mask"))
    with pytest.raises(CheckpointError, match=message) as error:
        checkpointer.load(path)
    assert "allow_missing=True goes on" in str(error.value)
    assert "--allow-missing goes on" in error.value.on_command_line()
    allowed = twin("mask")
    NonLocalCheckpointer(allowed, allow_missing=True).load(path)
    assert "Going on as allow_missing says" in log.text
    kept = {n: v for n, v in weights.items() if n in allowed.state_dict()}
    kept = {n: v for n, v in kept.items() if v.shape == allowed.state_dict()[n].shape}
    assert_loaded(allowed, kept)


def test_a_deeper_resnet_is_not_cut_to_size(tmp_path):
    """R-101's weights fill an R-50, and would leave it half of itself."""
    weights = resnet_of(stock("mask"), *PREFIXES["mask"])
    weights |= {
        name.replace("res4.5", "res4.6"): v for name, v in weights.items() if "res4.5" in name
    }
    content = {"model": arrays(weights), "__author__": "x", "matching_heuristics": True}
    path = tmp_path / "R-101.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match="tensors are missing"):
        NonLocalCheckpointer(twin("mask")).load(str(path))


def test_blocks_that_the_model_does_not_have_stop_an_evaluation(tmp_path):
    path = write(tmp_path / "model.pth", twin("mask").state_dict())
    model = build_model(zoo_cfg("mask"))
    checkpointer = NonLocalCheckpointer(model)
    checkpointer.load(path)
    assert len(checkpointer.report.unexpected) == 8
    with pytest.raises(CheckpointError, match="8 tensors of non-local blocks have no place"):
        NonLocalCheckpointer(model, complete=True).load(path)


def test_names_match_by_suffix_as_in_detectron2(tmp_path):
    weights = {name.split(".", 1)[1]: value for name, value in stock("mask").state_dict().items()}
    model = twin("mask")
    NonLocalCheckpointer(model).load(
        write(tmp_path / "a.pth", weights) + "?matching_heuristics=True"
    )
    expected = align_and_update_state_dicts(model.state_dict(), weights, c2_conversion=False)
    assert set(expected) == set(stock("mask").state_dict())
    assert_loaded(model, expected)
    with pytest.raises(CheckpointError, match="no tensor in it fits"):
        NonLocalCheckpointer(model).load(str(tmp_path / "a.pth"))
    with pytest.raises(CheckpointError, match="unknown heuristics"):
        NonLocalCheckpointer(model).load(str(tmp_path / "a.pth") + "?heuristics=True")


@pytest.mark.parametrize(
    "strange",
    [
        # of the shape of one layer, where several have the name
        {"conv1.weight": "backbone.bottom_up.stem.conv1.weight"},
        # whose name ends that of a block's layer
        {"out.weight": "backbone.bottom_up.res4.nl4.out.weight"},
        {
            "nl4.out.weight": "backbone.bottom_up.res4.nl4.out.weight",
            "nl4.x": "backbone.fpn_lateral2.bias",
        },
        # of one module there, and of two here
        {
            "head.fc1.weight": "roi_heads.box_head.fc1.weight",
            "head.fc2.weight": "roi_heads.box_head.fc2.weight",
            "norm.weight": "backbone.bottom_up.stem.conv1.norm.weight",
        },
    ],
)
def test_no_tensor_goes_to_another_layer(tmp_path, strange):
    model = twin("mask")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = {name: torch.full_like(before[layer], 7) for name, layer in strange.items()}
    path = write(tmp_path / "a.pth", weights) + "?matching_heuristics=True"
    checkpointer = NonLocalCheckpointer(model, allow_missing=True)
    checkpointer.load(path)
    placed = {"nl4.out.weight"} & strange.keys()  # the block is told by its name
    assert set(checkpointer.report.unexpected) == strange.keys() - placed
    for name, value in before.items():
        if name not in {strange[n] for n in placed}:
            assert torch.equal(model.state_dict()[name], value), name


def test_a_checkpoint_of_another_library_says_so(tmp_path):
    path = tmp_path / "mmdet.pth"
    torch.save({"state_dict": {"w": torch.ones(1)}, "meta": {"epoch": 1}}, path)
    with pytest.raises(CheckpointError, match="convert_checkpoint.py"):
        NonLocalCheckpointer(nn.Linear(1, 1)).load(str(path))


@pytest.mark.parametrize(
    "content",
    [
        {"model": [1, 2], "__author__": "x"},
        {"model": {1: torch.ones(1).numpy()}, "__author__": "x"},
        {"blobs": [1]},
        {1: 2},
        {"cls_score_w": torch.tensor(1.0).numpy()},
        {"a_w": torch.ones(1).numpy(), "a.w": torch.ones(1).numpy()},
    ],
)
def test_a_pickle_of_something_else(tmp_path, content):
    path = tmp_path / "other.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError):
        NonLocalCheckpointer(nn.Linear(1, 1)).load(str(path))


def test_a_trained_norm_is_frozen_as_it_is(tmp_path):
    norm = nn.BatchNorm2d(4)
    nn.init.constant_(norm.running_var, 0.01)
    frozen = nn.Sequential(FrozenBatchNorm2d(4))
    for suffix in (".pth", ".safetensors", ".pkl"):
        path = write(tmp_path / f"norm{suffix}", nn.Sequential(norm).state_dict())
        NonLocalCheckpointer(frozen, complete=True).load(path)
        assert torch.equal(frozen[0].running_var, norm.running_var)


def test_any_model_and_any_prefix_of_ddp(tmp_path):
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    weights = {f"module.{name}": value for name, value in model.state_dict().items()}
    NonLocalCheckpointer(other).load(write(tmp_path / "a.pth", weights))
    assert_loaded(other, model.state_dict())
    del weights["module.bias"]
    with pytest.raises(CheckpointError, match=r"1 tensors are missing \(bias\)"):
        NonLocalCheckpointer(other).load(write(tmp_path / "b.pth", weights))


def test_after_an_error_the_checkpointer_still_works(tmp_path):
    model = nn.Linear(2, 2)
    checkpointer = NonLocalCheckpointer(model)
    (tmp_path / "broken.pth").write_bytes(b"broken")
    for path in ("broken.pth", "nowhere.pth"):
        with pytest.raises(CheckpointError):
            checkpointer.load(str(tmp_path / path))
    checkpointer.load(write(tmp_path / "fine.pth", model.state_dict()))
    with pytest.raises(CheckpointError, match="cannot be had"):
        checkpointer.load("https://127.0.0.1:9/model.pth")
    assert checkpointer.load("") == {}


def test_saves_weights_config_and_versions(tmp_path):
    cfg = twin_cfg("mask")
    model = twin("mask")
    state = nn.Linear(2, 2)
    checkpointer = NonLocalCheckpointer(
        model, str(tmp_path), cfg=cfg, safetensors=True, state=state
    )
    checkpointer.save("model_0000001", iteration=1)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    assert not list(tmp_path.glob("*.tmp"))
    for suffix in (".pth", ".safetensors"):
        path = str(tmp_path / f"model_0000001{suffix}")
        assert read_config(path) == cfg.dump()
        other = build_model(cfg)
        extra = NonLocalCheckpointer(other, complete=True).load(path)
        assert_loaded(other, model.state_dict())
        assert extra["versions"]["torch"] == torch.__version__
    resumed = NonLocalCheckpointer(build_model(cfg), str(tmp_path), state=nn.Linear(2, 2))
    extra = resumed.resume_or_load("", resume=True)
    assert extra["iteration"] == 1
    assert_loaded(resumed.checkpointables["state"], state.state_dict())


def test_other_blocks_of_the_same_tensors_are_noticed(tmp_path, log):
    cfg = twin_cfg("mask")
    NonLocalCheckpointer(twin("mask"), str(tmp_path), cfg=cfg).save("model_final")
    path = str(tmp_path / "model_final.pth")
    NonLocalCheckpointer(twin("mask"), complete=True, cfg=cfg).load(path)
    assert "trained with" not in log.text
    other = twin_cfg("mask")
    other.MODEL.NON_LOCAL.PAIRWISE = "dot_product"
    NonLocalCheckpointer(build_model(other), complete=True, cfg=other).load(path)
    assert "trained with MODEL.NON_LOCAL.PAIRWISE embedded_gaussian, but the config" in log.text


def test_resuming_needs_every_tensor(tmp_path):
    NonLocalCheckpointer(stock("mask"), str(tmp_path), state=nn.Linear(1, 1)).save("model_final")
    checkpointer = NonLocalCheckpointer(twin("mask"), str(tmp_path), state=nn.Linear(1, 1))
    with pytest.raises(CheckpointError, match="non-local tensors are missing"):
        checkpointer.resume_or_load("", resume=True)
    # as a start of something new it will do
    checkpointer.resume_or_load(str(tmp_path / "model_final.pth"), resume=False)


def test_predictor_needs_no_config_file(tmp_path):
    cfg = twin_cfg("mask")
    NonLocalCheckpointer(twin("mask"), str(tmp_path), cfg=cfg).save("model_final")
    path = str(tmp_path / "model_final.pth")
    read = zoo_cfg("mask")
    read.merge_from_other_cfg(CfgNode.load_cfg(read_config(path)))
    read.MODEL.WEIGHTS = path
    image = torch.zeros(64, 64, 3, dtype=torch.uint8).numpy()
    assert "instances" in DefaultPredictor(read)(image)  # Detectron2's reads our files


def test_shared_tensors_as_safetensors(tmp_path):
    weight = torch.arange(4.0)
    path = tmp_path / "a.safetensors"
    write_safetensors(
        str(path), {"a": weight, "b": weight, "c": weight[1:], "t": weight.view(2, 2).T}, {}
    )
    with safe_open(path, framework="pt") as file:
        assert torch.equal(file.get_tensor("a"), file.get_tensor("b"))
        assert torch.equal(file.get_tensor("c"), weight[1:])
        assert torch.equal(file.get_tensor("t"), weight.view(2, 2).T)


KILLED = """
    import os, signal, sys
    import nl_detectron
    import torch
    from nl_detectron.checkpoint import NonLocalCheckpointer
    from nl_detectron.checkpoint import writing

    checkpointer = NonLocalCheckpointer(torch.nn.Linear(100, 100), sys.argv[1], safetensors=True)
    checkpointer.save("model_final")
    save, save_file = torch.save, writing.save_file

    def die(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)

    def half(data, file):
        save(data, file)
        file.truncate(file.tell() // 2)
        file.flush()
        die()

    def half_file(tensors, path, **kwargs):
        open(path, "wb").write(b"half")
        die()

    torch.nn.init.zeros_(checkpointer.model.weight)
    if sys.argv[2] == "pth":
        torch.save = half
    elif sys.argv[2] == "safetensors":
        writing.save_file = half_file
    else:  # after the weights, before last_checkpoint
        checkpointer.tag_last_checkpoint = die
    checkpointer.save(sys.argv[3])
"""


@pytest.mark.parametrize("name", ["model_final", "model_0000009"])
@pytest.mark.parametrize("moment", ["pth", "safetensors", "last_checkpoint"])
def test_a_kill_during_the_write_leaves_the_last_good_one(python, tmp_path, name, moment):
    command = [str(python), "-c", textwrap.dedent(KILLED), str(tmp_path), moment, name]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == -signal.SIGKILL, result.stderr[-2000:]
    checkpointer = NonLocalCheckpointer(nn.Linear(100, 100), str(tmp_path), complete=True)
    last = checkpointer.get_checkpoint_file()
    expected = name if moment == "safetensors" else "model_final"
    assert last == str(tmp_path / f"{expected}.pth")
    checkpointer.resume_or_load("", resume=True)
    is_new = last.endswith(f"{name}.pth") and moment != "pth"
    assert (checkpointer.model.weight.abs().sum() == 0) == is_new
    checkpointer.load(str(tmp_path / "model_final.safetensors"))
    assert checkpointer.model.weight.abs().sum() > 0
    # and the next write goes through
    checkpointer.save(name)
    assert checkpointer.get_checkpoint_file() == str(tmp_path / f"{name}.pth")


def test_an_error_during_the_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"), replacing(str(path)) as temporary:
        Path(temporary).write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_backbone_alone(tmp_path):
    cfg = twin_cfg("mask")
    backbone = build_backbone(cfg)
    path = write(tmp_path / "a.pth", resnet_of(stock("mask"), *PREFIXES["mask"]))
    checkpointer = NonLocalCheckpointer(backbone)
    checkpointer.load(path + "?matching_heuristics=True")
    assert len(checkpointer.report.new_part) == 16  # of the FPN


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".safetensors"])
def test_weights_that_are_no_numbers_are_named(tmp_path, log, suffix):
    weights = {f"{i}.weight": torch.ones(2, 3, 1, 1) for i in range(4)}
    weights |= {f"{i}.bias": torch.zeros(2) for i in range(4)}
    weights["1.weight"][0, 1] = torch.nan
    weights["2.bias"][1] = torch.inf
    weights["3.bias"][0] = -torch.inf
    # .pkl without a zoo's "__author__" would be of Caffe2
    path = write(tmp_path / f"model{suffix}", weights)
    model = nn.Sequential(*(nn.Conv2d(3, 2, 1) for _ in range(4)))
    before = model[0].weight.clone()
    words = "3 of 8 tensors of the weights hold NaN or infinity"
    with pytest.raises(CheckpointError, match=words) as error:
        NonLocalCheckpointer(model).load(path)
    assert "1.weight, 2.bias, ... 1 more" in str(error.value)
    assert torch.equal(model[0].weight, before)  # nothing was loaded
    NonLocalCheckpointer(model, allow_missing=True).load(path)
    assert f"Going on as allow_missing says, although {words}" in log.text
    assert torch.isnan(model[1].weight).sum() == 1


def test_names_of_tensors_cannot_steer_a_terminal(tmp_path, log):
    weights = {"weight": torch.ones(2, 3, 1, 1), "bias": torch.ones(2), "\x1b[2J\nx": torch.ones(1)}
    torch.save({"model": weights}, tmp_path / "model.pth")
    NonLocalCheckpointer(nn.Conv2d(3, 2, 1)).load(str(tmp_path / "model.pth"))
    assert "\x1b" not in log.text and "\\x1b[2J\\nx" in log.text
