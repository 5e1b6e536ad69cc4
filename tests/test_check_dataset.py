import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from nl_detectron.data.annotations import read_annotations
from nl_detectron.data.checking import check_file
from nl_detectron.data.checking.split import split, write_parts
from nl_detectron.errors import UsageError
from tests.data.own_data import make, spoil, write


@pytest.fixture
def check(tool, tmp_path, monkeypatch):
    """Runs the tool on a content's file, or on the file itself."""
    monkeypatch.chdir(tmp_path)

    def run(content: dict | str, *arguments: object) -> tuple[int, str, str]:
        file = content if isinstance(content, str) else write(content, tmp_path / "own.json")
        return tool("check_dataset", "--annotations", file, "--images", "images", *arguments)

    return run


def test_a_table_of_a_good_set(check, tmp_path):
    code, out, _ = check(make(tmp_path, keypoints=True))
    assert code == 0
    assert "4 images, 8 annotations" in out and "Nothing was found" in out
    assert out.split("\n\n")[1].splitlines()[-1].split() == ["thing", "8", "0", "0", "8"]
    assert out.split("\n\n")[2].splitlines()[-1].split() == ["0", "0", "40"]


def test_findings_say_what_training_does(check, tmp_path):
    content = spoil(make(tmp_path), lambda a: a.pop("iscrowd"), of="annotations", every=2)
    code, out, _ = check(content)
    assert code == 0
    assert [line.split() for line in out.splitlines() if "iscrowd" in line] == [
        ["4", "annotation:", "iscrowd", "missing:", "0", "1,", "3,", "5", "corrected"]
    ]
    content["annotations"][1]["bbox"] = [1, 2, 3]
    code, out, _ = check(content)
    assert code == 1 and "stops" in out


def test_damaged_images_are_found_unless_only_their_heads_are_read(check, tmp_path):
    content = make(tmp_path)
    data = (tmp_path / "images/2.png").read_bytes()
    (tmp_path / "images/2.png").write_bytes(data[:-30])
    code, out, _ = check(content)
    assert code == 1 and "damaged" in out
    assert check(content, "--quick")[0] == 0


def test_a_corrected_copy_lists_each_correction(check, tmp_path):
    content = spoil(make(tmp_path), lambda a: a.pop("iscrowd"), of="annotations")
    file = write(content, tmp_path / "own.json")
    before = Path(file).read_bytes()
    code, out, _ = check(file, "--fix", "fixed.json")
    assert code == 0 and "fixed.json" in out and Path(file).read_bytes() == before
    fixed = json.loads((tmp_path / "fixed.json").read_text())
    correction = fixed["info"]["corrections"][0]
    assert correction["what"] == "annotation: iscrowd missing: 0"
    assert correction["of"] == [str(i) for i in range(1, 9)]
    assert len(fixed["annotations"]) == 8
    code, out, _ = check("fixed.json")
    assert code == 0 and "Nothing was found" in out
    for same in (file, "own.json", "images/../own.json"):
        code, _, error = check(file, "--fix", same)
        assert code == 2 and "is the file itself" in error
    assert Path(file).read_bytes() == before


def test_pictures_of_the_most_suspicious_come_first(check, tmp_path):
    content = make(tmp_path, num_images=12)
    content["annotations"][10]["bbox"] = [1, 1, 60, 200]  # of image 6
    content["annotations"][11]["segmentation"] = {"size": [48, 64], "counts": [100, 9, 2963]}
    content["images"][7]["file_name"] = "gone.png"
    code, out, _ = check(content, "--pictures", 4, "--output", "out")
    assert code == 1 and "out/pictures.png" in out
    sheet = cv2.imread("out/pictures.png")
    assert sheet.shape == (2 * (384 + 24 + 8), 2 * (384 + 8), 3)
    first, second = sheet[:384, :384], sheet[:384, 392:776]
    assert (first == 255).mean() > 0.9  # no picture: the file is not there
    assert (second[:200] != 255).mean() > 0.5
    code, _, error = check(content, "--pictures", 4)
    assert code == 2 and "--output" in error


def test_pictures_of_anything(check, tmp_path):
    content = make(tmp_path, keypoints=True)
    annotations = content["annotations"]
    annotations[0] |= {"segmentation": "x", "bbox": "y", "keypoints": [None] * 15}
    annotations[1] |= {"segmentation": [[1, 2, None]], "bbox": [1, float("nan"), 2, 3]}
    annotations[2] |= {"segmentation": {"size": [10**6] * 2, "counts": "x"}, "category_id": [1]}
    annotations[3] |= {"segmentation": [[1, 2, 1e9]], "bbox": [1e9] * 4}
    annotations[4] |= {"image_id": [3], "bbox": [5, 5, -3, -3]}
    Image.new("I;16", (64, 48)).save(tmp_path / "images/2.png")
    assert check(content, "--pictures", 9, "--output", "out")[0] == 1
    assert cv2.imread("out/pictures.png") is not None


def test_split_by_image_with_the_same_mix_of_classes(check, tmp_path):
    content = make(tmp_path, num_images=60)
    # A rare class, and images of no object
    for annotation in content["annotations"][:20:2]:
        annotation["category_id"] = 4
    content["categories"].append({"id": 4, "name": "rare"})
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] <= 50]
    code, out, _ = check(content, "--split", 0.8, "--output", "parts")
    assert code == 0 and "parts/own_train.json: 48 images" in out
    parts = [json.loads(Path(f"parts/own_{name}.json").read_text()) for name in ("train", "val")]
    ids = [{image["id"] for image in part["images"]} for part in parts]
    assert ids[0] | ids[1] == set(range(1, 61)) and not ids[0] & ids[1]
    for part, of in zip(parts, ids, strict=True):
        assert {a["image_id"] for a in part["annotations"]} <= of
        assert part["categories"] == content["categories"]
    assert sum(len(part["annotations"]) for part in parts) == 100
    with_class = [
        [
            len({a["image_id"] for a in part["annotations"] if a["category_id"] == c})
            for part in parts
        ]
        for c in (1, 2, 3, 4)
    ]
    shares = np.array(with_class)[:, 0] / np.array(with_class).sum(1)
    assert np.abs(shares - 0.8).max() < 0.07 and with_class[3] == [8, 2]
    code, _, error = check(content, "--split", 0.8, "--output", "parts")
    assert code == 2 and "own_train.json is there already" in error
    lists = content["images"], content["annotations"]
    assert split(*lists, 0.8) == split(*lists, 0.8) != split(*lists, 0.8, seed=1)


def test_images_of_one_file_stay_together(tmp_path):
    content = make(tmp_path, num_images=10)
    for image in content["images"][5:]:
        image["file_name"] = "1.png"
    for seed in range(5):
        first = split(content["images"], content["annotations"], 0.5, seed=seed)
        checked = check_file(write(content, tmp_path / "a.json"), str(tmp_path / "images"))
        names = tmp_path / "first.json", tmp_path / "second.json"
        counts = write_parts(checked, first, names)
        parts = [read_annotations(str(name)) for name in names]
        files = [{image["file_name"] for image in part["images"]} for part in parts]
        assert files[0] == first and not files[0] & files[1] and len(files[0] | files[1]) == 5
        assert sum(counts) == 10 and sum(len(part["annotations"]) for part in parts) == 20


@pytest.mark.parametrize("fraction", [0, 1, 1.5, -1, 0.01])
def test_a_split_of_which_a_part_is_empty(fraction, tmp_path):
    with pytest.raises(UsageError, match=f"split {fraction}: of 4 image files"):
        content = make(tmp_path)
        split(content["images"], content["annotations"], fraction)


def test_a_split_needs_a_file_that_can_be_used(check, tmp_path):
    content = spoil(make(tmp_path), lambda a: a.update(bbox="x"), of="annotations")
    code, _, error = check(content, "--split", 0.5, "--output", "parts")
    assert code == 2 and "nothing stops" in error
    assert not list(Path("parts").glob("*"))


def test_registered_datasets(tool, generated_sets, tmp_path, monkeypatch, small):
    code, out, _ = tool("check_dataset", "--dataset", small, "--quick")
    assert code == 0 and "8 images" in out
    code, _, error = tool("check_dataset", "--dataset", "shape_tiny")
    assert code == 2 and "did you mean shapes_tiny" in error


@pytest.fixture
def small(tmp_path):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from nl_detectron.data import register_generated

    register_generated("small_set", tmp_path / "set", kind="people", num_images=8, seed=5)
    yield "small_set"
    DatasetCatalog.remove("small_set")
    MetadataCatalog.remove("small_set")


def test_mistakes_in_the_call(tool, check, tmp_path):
    code, _, error = tool("check_dataset", "--annotations", "a.json")
    assert code == 2 and "give --annotations and --images, or --dataset" in error
    code, _, error = check("nowhere.json")
    assert code == 2 and "--images images is no folder" in error
    make(tmp_path)
    code, _, error = check("nowhere.json")
    assert code == 2 and "nowhere.json" in error and len(error.splitlines()) == 1


def test_a_large_file_is_checked_in_seconds(tmp_path):
    content = make(tmp_path)
    content["annotations"] = [
        annotation | {"id": 8 * i + annotation["id"]}
        for i in range(2500)
        for annotation in content["annotations"]
    ]
    checked = check_file(write(content, tmp_path / "large.json"), str(tmp_path / "images"))
    assert checked.num_annotations == 20_000 and checked.findings == []
