import json

import pytest
import torch
from detectron2.data.catalog import Metadata
from torch import nn

from nl_detectron.checkpoint import NonLocalCheckpointer, read_vocabulary
from nl_detectron.checkpoint.vocabulary import from_text, to_text

METADATA = Metadata(
    name="mine",
    thing_classes=["apple", "pear"],
    thing_dataset_id_to_contiguous_id={12: 0, 7: 1},
    keypoint_names=["a", "b"],
    keypoint_flip_map=[("a", "b")],
    keypoint_connection_rules=[("a", "b", (255, 0, 7))],
)
KEPT = {key: value for key, value in METADATA.as_dict().items() if key != "name"}


def test_names_ids_and_lines_come_back():
    assert from_text(to_text(METADATA)) == KEPT
    assert from_text(to_text(Metadata(name="unnamed"))) == {}


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_they_are_kept_with_the_weights(tmp_path, ending):
    model = nn.Linear(2, 2)
    checkpointer = NonLocalCheckpointer(model, str(tmp_path), metadata=METADATA, safetensors=True)
    checkpointer.save("model")
    assert read_vocabulary(str(tmp_path / f"model.{ending}")) == KEPT
    content = NonLocalCheckpointer(model).load(str(tmp_path / f"model.{ending}"))
    assert from_text(content["vocabulary"]) == KEPT


def test_weights_that_do_not_say_have_none(tmp_path):
    torch.save({"model": {"weight": torch.zeros(2)}}, tmp_path / "model.pth")
    assert read_vocabulary(str(tmp_path / "model.pth")) == {}
    (tmp_path / "model.pth").write_bytes(b"PK")
    assert read_vocabulary(str(tmp_path / "model.pth")) == {}


@pytest.mark.parametrize(
    "change",
    [
        {"thing_classes": "apple"},
        {"thing_classes": [1, 2]},
        {"thing_classes": None},
    ],
)
def test_what_a_stranger_wrote_instead_of_names_is_left_out(change):
    assert from_text(json.dumps(json.loads(to_text(METADATA)) | change)) == {}


@pytest.mark.parametrize(
    ("key", "value", "lacks"),
    [
        ("category_ids", [1], "thing_dataset_id_to_contiguous_id"),
        ("category_ids", [1, 1], "thing_dataset_id_to_contiguous_id"),
        ("category_ids", [1, "2"], "thing_dataset_id_to_contiguous_id"),
        ("category_ids", {"a": 1}, "thing_dataset_id_to_contiguous_id"),
        ("keypoint_flip_map", [["a", "x"]], "keypoint_flip_map"),
        ("keypoint_flip_map", ["ab"], "keypoint_flip_map"),
        ("keypoint_connection_rules", [["a", "x", [0, 0, 0]]], "keypoint_connection_rules"),
        ("keypoint_connection_rules", [["a", "b", [0, 0, 999]]], "keypoint_connection_rules"),
        ("keypoint_connection_rules", [["a", "b"]], "keypoint_connection_rules"),
    ],
)
def test_what_does_not_fit_the_names_is_left_out(key, value, lacks):
    kept = from_text(json.dumps(json.loads(to_text(METADATA)) | {key: value}))
    assert set(kept) == set(KEPT) - {lacks}


@pytest.mark.parametrize("text", ["", "{", "[]", "3", None, 7, '{"thing_classes": {}}'])
def test_what_is_no_text_of_ours_is_nothing(text):
    assert from_text(text) == {}


def test_names_cannot_steer_a_terminal_or_break_a_line():
    names = {"thing_classes": ["a\x1b]0;title\x07", "b\nERROR"], "keypoint_names": ["\x9b2J"]}
    kept = from_text(json.dumps(names))
    assert kept["thing_classes"] == ["a\\x1b]0;title\\x07", "b\\nERROR"]
    assert kept["keypoint_names"] == ["\\x9b2J"]


def test_lists_nested_for_ever_are_nothing():
    assert from_text("[" * 1_000_000) == {}
    assert from_text('{"thing_classes": ["a"], "x": ' + "[" * 900 + "]" * 900 + "}") in (
        {},
        {"thing_classes": ["a"]},
    )
