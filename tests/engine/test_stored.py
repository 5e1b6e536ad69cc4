"""A config that came with weights neither runs, reads nor builds what it should not."""

import resource
import time

import pytest
import torch
import yaml

from nl_detectron.checkpoint.safety.texts import read_yaml
from nl_detectron.engine.config import cfg_from_text, cfg_of_weights
from nl_detectron.errors import UsageError

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


@pytest.fixture
def stored(weights, tmp_path):
    """Puts a changed config into a checkpoint, and reads it as prediction does."""
    content = torch.load(weights["people"], weights_only=True)

    def read(change: str | dict) -> object:
        text = change
        if isinstance(change, dict):
            config = read_yaml(content["config"])
            for key, value in change.items():
                *path, last = key.split(".")
                node = config
                for name in path:
                    node = node[name]
                node[last] = value
            text = yaml.dump(config, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper))
        file = tmp_path / "changed.pth"
        torch.save(content | {"config": text}, file)
        return cfg_of_weights(str(file))

    return read


def peak_memory() -> float:
    """Of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def refused(read, change) -> str:
    """The line in which it is refused, in little time and memory."""
    began, before = time.perf_counter(), peak_memory()
    with pytest.raises(UsageError) as error:
        read(change)
    assert time.perf_counter() - began < 20 and peak_memory() - before < 300
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_training_writes_is_taken(stored, weights):
    assert stored({}).MODEL.KEYPOINT_ON
    assert cfg_of_weights(str(weights["shapes"])).MODEL.ROI_HEADS.NUM_CLASSES == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("_BASE_: http://localhost:9/a.yaml\nMODEL: {}", "_BASE_"),
        ("_BASE_: /dev/zero", "_BASE_"),
        ("MODEL: !!python/object/apply:os.system [echo]", "could run any code"),
        (LAUGHS, "stands for more than 50,000 keys"),
        ("a: &a [*a]", "stands for more than|recursive|undefined alias"),
        ("a: " + "[" * 5000, "cannot read the config"),
        ("#" * 600_000, "has 600,000 characters, more than 500,000"),
        ("- 1\n- 2", "cannot read the config"),
        ("MODEL: {MASK_ON: \x1b[31mred}", "cannot read the config"),
    ],
)
def test_texts_that_are_no_config(stored, change, message):
    line = refused(stored, change)
    assert any(part in line for part in message.split("|")), line
    assert "\x1b" not in line


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.ROI_HEADS.NUM_CLASSES", 10**9),
        ("MODEL.ROI_HEADS.NUM_CLASSES", 10**6),
        ("MODEL.ROI_MASK_HEAD.NUM_CONV", 10**6),
        ("MODEL.ROI_BOX_HEAD.NUM_FC", 10**5),
        ("MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", [64] * 2000),
        ("MODEL.FPN.OUT_CHANNELS", 10**6),
        ("MODEL.RESNETS.RES2_OUT_CHANNELS", 2**16),
        ("MODEL.RPN.PRE_NMS_TOPK_TEST", 10**12),
        ("MODEL.RPN.POST_NMS_TOPK_TEST", 10**6),
        ("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 10**4),
        ("MODEL.ROI_KEYPOINT_HEAD.POOLER_SAMPLING_RATIO", 10**4),
        ("INPUT.MAX_SIZE_TEST", 10**5),
        ("TEST.DETECTIONS_PER_IMAGE", 10**6),
    ],
)
def test_sizes_that_the_weights_do_not_have(stored, key, value):
    line = refused(stored, {key: value})
    assert "more than any model has" in line or "parameters, which a file of" in line, line


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.META_ARCHITECTURE", "GeneralisedRCNN", "did you mean GeneralizedRCNN"),
        ("MODEL.BACKBONE.NAME", "build_resnet", "is not registered"),
        ("MODEL.PROPOSAL_GENERATOR.NAME", "RNP", "MODEL.PROPOSAL_GENERATOR.NAME 'RNP' is not"),
        ("MODEL.ROI_HEADS.NAME", "Heads", "MODEL.ROI_HEADS.NAME 'Heads' is not registered"),
        ("MODEL.ROI_BOX_HEAD.NAME", "Head", "MODEL.ROI_BOX_HEAD.NAME 'Head' is not registered"),
        ("MODEL.ROI_MASK_HEAD.NAME", "Head", "MODEL.ROI_MASK_HEAD.NAME 'Head' is not"),
        ("MODEL.ANCHOR_GENERATOR.NAME", "Anchors", "is not registered"),
        ("MODEL.RPN.HEAD_NAME", "Head", "is not registered"),
        ("MODEL.RESNETS.NORM", "XN", "MODEL.RESNETS.NORM must be one of"),
        ("MODEL.FPN.NORM", "bn", "MODEL.FPN.NORM must be one of"),
        ("MODEL.RESNETS.DEPTH", 51, "must be one of 18, 34, 50, 101, 152, got 51"),
        ("MODEL.RESNETS.RES5_DILATION", 7, "its model cannot be built"),
    ],
)
def test_names_and_values_that_do_not_exist(stored, key, value, message):
    assert message in refused(stored, {key: value})


def test_lists_that_are_written_once_and_named_twice_are_read():
    assert read_yaml("a: &a [1, 2]\nb: *a") == {"a": [1, 2], "b": [1, 2]}
    assert read_yaml("") is None
    text = "INPUT:\n  MIN_SIZE_TRAIN: &s [64]\nDATASETS:\n  TRAIN: []\n"
    assert cfg_from_text(text, source="a test").INPUT.MIN_SIZE_TRAIN == (64,)
