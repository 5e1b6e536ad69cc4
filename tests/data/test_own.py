import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from nl_detectron.data.own import classes_of, forget, register_coco
from nl_detectron.errors import UsageError
from tests.own import BOARD, CORNERS, FRUIT, make_set, renumbered, write_set


@pytest.fixture
def own(tmp_path):
    """Registers a set of this content."""
    names = []

    def register(content: dict, name: str = "mine", **options: object):
        names.append(name)
        return register_coco(*write_set(tmp_path, content, name=name), **options)

    yield register
    for name in names:
        forget(name)


def test_all_that_follows_from_the_file_is_known_at_once(own):
    metadata = own(make_set(FRUIT))
    assert metadata.thing_classes == ["apple", "pear", "plum"] == classes_of("mine")
    assert metadata.thing_dataset_id_to_contiguous_id == {0: 0, 10: 1, 12: 2}
    assert metadata.evaluator_type == "coco" and metadata.get("keypoint_names") is None
    records = DatasetCatalog.get("mine")
    assert len(records) == 8 and records[0]["file_name"].endswith("images/1.png")
    assert [a["category_id"] for a in records[0]["annotations"]] == [1, 2]


def test_categories_are_matched_by_name_whatever_their_ids(own):
    content = renumbered(make_set(FRUIT), {0: 12, 10: 7, 12: 9})
    metadata = own(content, classes=["apple", "pear", "plum"])
    assert metadata.thing_dataset_id_to_contiguous_id == {12: 0, 7: 1, 9: 2}
    assert [a["category_id"] for a in DatasetCatalog.get("mine")[0]["annotations"]] == [1, 2]


def test_a_file_may_lack_a_category(own):
    metadata = own(renumbered(make_set(FRUIT), {10: 1, 12: 2}), classes=["apple", "pear", "plum"])
    ids = metadata.thing_dataset_id_to_contiguous_id
    assert (ids[1], ids[2]) == (1, 2) and sorted(ids.values()) == [0, 1, 2]


def test_a_category_that_the_model_does_not_know_is_refused_where_it_occurs(own):
    content = make_set(FRUIT)
    with pytest.raises(UsageError, match="annotations of 'plum'.*its classes are 'apple', 'pear'"):
        own(content, classes=["apple", "pear"])
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 12]
    assert own(content, classes=["apple", "pear"]).thing_classes == ["apple", "pear"]


def test_keypoints_have_their_names_lines_and_pairs(own):
    metadata = own(make_set(BOARD, keypoints=True))
    assert metadata.keypoint_names == list(CORNERS)
    assert metadata.keypoint_flip_map == [
        ("left_top", "right_top"),
        ("left_bottom", "right_bottom"),
    ]
    lines = [(start, end) for start, end, _ in metadata.keypoint_connection_rules]
    assert lines == [("left_top", "right_top"), ("left_bottom", "right_bottom")]
    given = own(make_set(BOARD, keypoints=True), keypoint_flip_pairs=[("left_top", "centre")])
    assert given.keypoint_flip_map == [("left_top", "centre")]


@pytest.mark.parametrize(
    ("categories", "options", "message"),
    [
        (BOARD, {"keypoint_flip_pairs": [("left_top", "tR")]}, "FLIP_PAIRS names 'tR'.*left_top"),
        ((*BOARD, {"id": 4, "name": "cat", "keypoints": ["nose"]}), {}, "'board' and 'cat'"),
        (({"id": 1, "name": "x", "keypoints": ["a", "a"]},), {}, "two keypoints have one name"),
    ],
)
def test_keypoints_that_cannot_work(own, categories, options, message):
    with_keypoints = categories[0]["keypoints"] == list(CORNERS)
    content = make_set(BOARD, keypoints=with_keypoints) | {"categories": list(categories)}
    for annotation in content["annotations"]:
        annotation["category_id"] = categories[0]["id"]
    with pytest.raises(UsageError, match=message):
        own(content, **options)


def test_a_name_can_be_used_again_for_own_data_only(own, tmp_path):
    own(make_set(FRUIT))
    assert own(make_set(FRUIT[:2])).thing_classes == ["apple", "pear"]
    with pytest.raises(UsageError, match="'shapes_val': there is one of this name"):
        register_coco("shapes_val", tmp_path / "mine.json", tmp_path / "images")
    assert MetadataCatalog.get("shapes_val").get("generated")


def test_files_that_are_not_there_are_named(tmp_path):
    _, file, images = write_set(tmp_path, make_set(FRUIT))
    with pytest.raises(UsageError, match="'mine': there is no annotation file .*nothing.json"):
        register_coco("mine", tmp_path / "nothing.json", images)
    with pytest.raises(UsageError, match="'mine': there is no folder of images .*nowhere"):
        register_coco("mine", file, tmp_path / "nowhere")
    assert "mine" not in DatasetCatalog
