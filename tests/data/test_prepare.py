"""Corrected copies, which Detectron2 and pycocotools read."""

import json
import os
from pathlib import Path

import pytest
from detectron2.data.datasets import load_coco_json
from pycocotools.coco import COCO

from nl_detectron.data.annotations import read_annotations
from nl_detectron.errors import UsageError
from tests.data.own_data import H, W, make, prepare_annotations, spoil, write


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Prepares a content; returns the file, and what is read in its place."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def prepare(content: dict, encoding: str = "utf-8") -> tuple[str, str]:
        file = write(content, tmp_path / "a.json", encoding)
        return file, prepare_annotations(file, str(tmp_path / "images"))

    return prepare


def load(file: str, folder: Path) -> list[dict]:
    return load_coco_json(file, str(folder / "images"))


def test_a_good_file_is_read_itself(prepared, tmp_path):
    file, read = prepared(make(tmp_path))
    assert read == file


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_files_in_other_encodings_are_read(encoding, prepared, tmp_path):
    content = make(tmp_path)
    content["categories"][0]["name"] = "räctangle"
    file, read = prepared(content, encoding)
    assert read != file and read_annotations(file) == content
    assert json.loads(Path(read).read_bytes())["categories"][0]["name"] == "räctangle"
    assert sum(len(record["annotations"]) for record in load(read, tmp_path)) == 8


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('{"name": "é"}'.encode("cp1252"), "no JSON file in UTF-8: byte 0xe9 at 10.*save it as"),
        (b'{"images": [{"id": 1}, {"i', "a.json is no JSON file: .*it ends early"),
        (b"", "a.json is no JSON file"),
        (b"[" * 100_000, "a.json is no JSON file"),
        (b"[]", "no list of objects 'images'"),
        (b'{"images": [], "annotations": [1], "categories": []}', "of objects 'annotations'"),
        (b'{"images": []}', "no list of objects 'annotations'"),
    ],
)
def test_files_that_cannot_be_read_are_named_in_one_line(data, message, tmp_path):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(UsageError, match=message) as error:
        read_annotations(str(tmp_path / "a.json"))
    assert "\n" not in str(error.value)


def test_what_is_no_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("pipe", "is no file"), ("gone", "No such file"), (".", "is no file")):
        with pytest.raises(UsageError, match=message):
            read_annotations(str(tmp_path / name))


@pytest.mark.parametrize(
    ("of", "change"),
    [
        ("annotations", lambda a: a.update(id=0)),
        ("annotations", lambda a: a.update(category_id=str(a["category_id"]))),
        ("annotations", lambda a: a.update(image_id=str(a["image_id"]))),
        ("annotations", lambda a: a.pop("iscrowd")),
        ("annotations", lambda a: a.pop("area")),
        ("annotations", lambda a: a.pop("bbox")),
        ("annotations", lambda a: a.update(segmentation=[])),
        ("images", lambda i: i.pop("width")),
        ("images", lambda i: i.update(width=H, height=W)),
        ("images", lambda i: i.update(width=-1, height=-1)),
        ("images", lambda i: i.update(id=str(i["id"]))),
        ("images", lambda i: i.update(file_name="images\\" + i["file_name"])),
        ("images", lambda i: i.update(file_name="images/" + i["file_name"])),
    ],
)
def test_corrected_copies_lose_nothing(of, change, prepared, tmp_path, log):
    good = make(tmp_path)
    file, read = prepared(spoil(good, change, of=of))
    assert read != file and f"{file}: {of[:-1]} " in log.text
    records = load(read, tmp_path)
    assert [r["image_id"] for r in records] == [1, 2, 3, 4]
    assert all(Path(r["file_name"]).is_file() and r["width"] == W for r in records)
    assert sum(len(r["annotations"]) for r in records) == 8
    truth = COCO(read)
    for annotation, old in zip(truth.dataset["annotations"], good["annotations"], strict=True):
        assert annotation["bbox"] == old["bbox"] and annotation["iscrowd"] == 0
        assert annotation["image_id"] == old["image_id"]
        if "segmentation" in annotation:
            assert truth.annToMask(annotation).sum() > 0


def test_text_as_image_ids_is_kept(prepared, tmp_path):
    content = spoil(make(tmp_path), lambda i: i.update(id=f"img_{i['id']}"), of="images")
    for annotation in content["annotations"]:
        annotation["image_id"] = f"img_{annotation['image_id']}"
    file, read = prepared(content)
    assert read == file
    assert [record["image_id"] for record in load(read, tmp_path)][0] == "img_1"


def test_one_line_names_the_first_that_cannot_be_corrected(prepared, tmp_path):
    content = spoil(make(tmp_path), lambda a: a.update(bbox="x"), of="annotations", every=3)
    with pytest.raises(UsageError, match="annotation 1: bbox that is not .*: x .2 more.*") as error:
        prepared(content)
    assert "\n" not in str(error.value) and "check_dataset.py --annotations" in str(error.value)


def test_a_file_is_checked_once_until_it_or_the_folder_changes(prepared, tmp_path, monkeypatch):
    content = spoil(make(tmp_path), lambda a: a.pop("iscrowd"), of="annotations")
    file, read = prepared(content)
    first = os.stat(read).st_mtime_ns
    images = str(tmp_path / "images")
    with monkeypatch.context() as patch:
        patch.setattr("nl_detectron.data.prepare.check_file", None)
        assert prepare_annotations(file, images) == read
        assert prepare_annotations(read, images) == read  # the copy needs no other
    assert os.stat(read).st_mtime_ns == first
    content["annotations"][0]["area"] = 5
    write(content, Path(file))
    changed = prepare_annotations(file, images)
    assert changed != read
    (tmp_path / "images/1.png").unlink()
    with pytest.raises(UsageError, match="image 1: file is not there"):
        prepare_annotations(file, images)


def test_a_file_is_checked_again_when_a_folder_within_the_images_changes(tmp_path):
    content = make(tmp_path)
    folder = tmp_path / "images/sub"
    folder.mkdir()
    for image in content["images"]:
        (tmp_path / "images" / image["file_name"]).rename(folder / image["file_name"])
        image["file_name"] = f"sub/{image['file_name']}"
    file, images = write(content, tmp_path / "b.json"), str(tmp_path / "images")
    assert prepare_annotations(file, images) == file
    (folder / "1.png").unlink()
    with pytest.raises(UsageError, match="image 1: file is not there"):
        prepare_annotations(file, images)


def test_the_copy_says_what_was_corrected(prepared, tmp_path):
    content = spoil(make(tmp_path), lambda a: a.pop("iscrowd"), of="annotations", every=2)
    _, read = prepared(content)
    corrections = json.loads(Path(read).read_text())["info"]["corrections"]
    assert corrections[0]["what"] == "annotation: iscrowd missing: 0"
    assert corrections[0]["count"] == 4 and corrections[0]["of"][0] == "1"


def test_a_cache_that_cannot_be_written(prepared, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    good = make(tmp_path)
    file = write(good, tmp_path / "b.json")
    assert prepare_annotations(file, str(tmp_path / "images")) == file
    del good["annotations"][0]["iscrowd"]
    file = write(good, tmp_path / "b.json")
    with pytest.raises(UsageError, match="name another folder with XDG_CACHE_HOME"):
        prepare_annotations(file, str(tmp_path / "images"))
