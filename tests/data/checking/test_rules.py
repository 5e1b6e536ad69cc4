"""Each kind of fault is found, and what can be corrected without guessing is."""

import math
import tracemalloc
from functools import partial

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_util

from nl_detectron.data.annotations import read_annotations, write_annotations
from nl_detectron.data.checking import Effect, check_file
from nl_detectron.data.json_parts import read_parts
from nl_detectron.data.prepare import write_corrected
from tests.data.own_data import H, W, make, spoil, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    return folder


@pytest.fixture(scope="module")
def good(folder) -> dict:
    return make(folder)


@pytest.fixture(scope="module")
def good_keypoints(folder) -> dict:
    return make(folder, keypoints=True)


@pytest.fixture
def check(tmp_path, folder):
    def check(content: dict, **options: object):
        return check_file(write(content, tmp_path / "a.json"), str(folder / "images"), **options)

    return check


def annotations_of(checked) -> list[dict]:
    return list(checked.annotations())


def effects(checked) -> dict[str, Effect]:
    return {f"{f.kind.of}: {f.kind.what}": f.kind.effect for f in checked.findings}


def assert_finds(checked, text: str, effect: Effect, count: int | None = None) -> None:
    found = [f for f in checked.findings if text in f"{f.kind.of}: {f.kind.what}"]
    assert found, effects(checked)
    assert found[0].kind.effect is effect and found[0].examples
    assert count is None or found[0].count == count


def test_nothing_is_found_in_good_files(check, good, good_keypoints):
    for content in (good, good_keypoints):
        checked = check(content, decode=True)
        assert checked.findings == []
        assert annotations_of(checked) == content["annotations"]
    assert checked.visibilities == [0, 0, 40] and checked.objects.keypoints == 8
    assert checked.sizes == {"thing": [8, 0, 0]}


def setting(**values: object):
    return lambda entry: entry.update(values)


def without(*keys: str):
    return lambda entry: [entry.pop(key) for key in keys]


def changing(key: str, change):
    return lambda entry: entry.update({key: change(entry[key])})


STOPS, LEFT_OUT, REPAIRED = Effect.STOPS, Effect.LEFT_OUT, Effect.REPAIRED
CORRECTED, SUSPICIOUS, FINE = Effect.CORRECTED, Effect.SUSPICIOUS, Effect.FINE
SQUARE = [1.0, 1, 9, 1, 9, 9, 1, 9]
FULL = {"size": [H, W], "counts": [0, H * W]}
FAULTS = [
    ("categories", without("id"), "no usable id", STOPS),
    ("categories", setting(id=1), "id of two categories", STOPS),
    ("categories", setting(name="x"), "name of another category", SUSPICIOUS),
    ("categories", without("name"), "name missing", REPAIRED),
    ("categories", setting(name="a\x1b[2J\n"), "what cannot be printed", CORRECTED),
    ("categories", changing("id", str), "category: id of another type", REPAIRED),
    ("categories", changing("id", lambda id: id - 1), "ids that are not 1, 2, 3", FINE),
    ("categories", changing("id", lambda id: id * 7), "category_id of no category", STOPS),
    ("categories", setting(keypoints=None), "keypoints that are no list", CORRECTED),
    ("categories", setting(skeleton=[[1, 9]], keypoints=["a"]), "skeleton", SUSPICIOUS),
    ("images", without("id"), "no usable id", STOPS),
    ("images", setting(id=1), "id of two images", STOPS),
    ("images", changing("id", str), "image: id of another type", REPAIRED),
    ("images", changing("id", float), "image: id of another type", REPAIRED),
    ("images", setting(file_name=None), "file_name missing", STOPS),
    ("images", setting(file_name="gone.png"), "file is not there", STOPS),
    ("images", setting(file_name="\0"), "file is not there", STOPS),
    ("images", changing("file_name", lambda n: f"images\\{n}"), "file_name with back", REPAIRED),
    ("images", changing("file_name", lambda n: f"images/{n}"), "file_name with back", REPAIRED),
    ("images", changing("file_name", lambda n: f"D:\\x\\{n}"), "file_name with back", REPAIRED),
    ("images", changing("file_name", lambda n: f"/far/away/{n}"), "file_name with b", REPAIRED),
    ("images", changing("file_name", lambda n: f"../images/{n}"), "leads out", SUSPICIOUS),
    ("images", setting(file_name="1.png"), "file that another image has", SUSPICIOUS),
    ("images", without("width", "height"), "width or height missing", REPAIRED),
    ("images", setting(width=None), "width or height missing", REPAIRED),
    ("images", setting(width=-1, height=-1), "width or height missing", REPAIRED),
    ("images", setting(width=H, height=W), "width and height swapped", REPAIRED),
    ("images", setting(width=str(W)), "width or height as text", REPAIRED),
    ("images", setting(width=2 * W, height=2 * H), "that are not the file's", STOPS),
    ("annotations", without("id"), "id missing", REPAIRED),
    ("annotations", setting(id=0), "id 0", CORRECTED),
    ("annotations", setting(id=5), "id that another one has", REPAIRED),
    ("annotations", setting(id="x"), "id missing or no number", REPAIRED),
    ("annotations", without("image_id"), "no usable image_id", STOPS),
    ("annotations", setting(image_id=[1]), "no usable image_id", STOPS),
    ("annotations", changing("image_id", str), "image_id of another type", REPAIRED),
    ("annotations", setting(image_id=77), "image_id of no image", LEFT_OUT),
    ("annotations", changing("category_id", str), "category_id of another type", REPAIRED),
    ("annotations", setting(category_id=77), "category_id of no category", STOPS),
    ("annotations", setting(category_id=None), "category_id of no category", STOPS),
    ("annotations", without("iscrowd"), "iscrowd missing", CORRECTED),
    ("annotations", setting(iscrowd=False), "iscrowd as truth value", CORRECTED),
    ("annotations", setting(iscrowd="0"), "iscrowd as text", REPAIRED),
    ("annotations", setting(iscrowd=2), "iscrowd other", STOPS),
    ("annotations", setting(iscrowd=1), "iscrowd 1", LEFT_OUT),
    ("annotations", setting(ignore=1), "ignore 1", STOPS),
    ("annotations", setting(ignore=None), "ignore as text or null", REPAIRED),
    ("annotations", without("area"), "area missing", CORRECTED),
    ("annotations", setting(area=math.nan), "area missing", CORRECTED),
    ("annotations", without("bbox"), "taken from the mask", REPAIRED),
    ("annotations", setting(bbox=[]), "taken from the mask", REPAIRED),
    ("annotations", lambda a: (a.pop("bbox"), a.pop("segmentation")), "no bbox", STOPS),
    ("annotations", changing("bbox", lambda b: [str(v) for v in b]), "bbox with numb", REPAIRED),
    ("annotations", setting(bbox=["a", 1, 2, 3]), "not four numbers", STOPS),
    ("annotations", setting(bbox=[1, 2, 3]), "not four numbers", STOPS),
    ("annotations", setting(bbox=[None, 1, 2, 3]), "not four numbers", STOPS),
    ("annotations", setting(bbox=[math.nan, 1, 2, 3]), "NaN or infinity", STOPS),
    ("annotations", setting(bbox=[1, 1, math.inf, 3]), "NaN or infinity", STOPS),
    ("annotations", setting(bbox=[1, 10**400, 2, 3]), "NaN or infinity", STOPS),
    ("annotations", setting(bbox=[5, 5, 0, 3]), "no width or height", LEFT_OUT),
    ("annotations", setting(bbox=[5, 5, -4, 3]), "negative width", LEFT_OUT),
    ("annotations", setting(bbox=[500, 5, 4, 3]), "wholly outside", LEFT_OUT),
    ("annotations", setting(bbox=[5, 5, 9, 300]), "leaves its image", SUSPICIOUS),
    ("annotations", setting(bbox=[0.1, 0.1, 0.5, 0.5]), "fractions", SUSPICIOUS),
    ("annotations", setting(bbox=[0, 0, 3, 3]), "disagrees with its mask", SUSPICIOUS),
    (
        "annotations",
        changing("bbox", lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]),
        "x1, y1, x2, y2",
        SUSPICIOUS,
    ),
    ("annotations", setting(segmentation=None), "empty segmentation", CORRECTED),
    ("annotations", setting(segmentation=[]), "empty segmentation", CORRECTED),
    ("annotations", setting(segmentation=[[]]), "fewer than three points", CORRECTED),
    ("annotations", setting(segmentation=[[1, 2, 3, 4]]), "fewer than three points", CORRECTED),
    ("annotations", setting(segmentation=[SQUARE + [3]]), "odd number", CORRECTED),
    ("annotations", setting(segmentation=[[1, 1, 5, 5, 9, 9]]), "flat polygon", CORRECTED),
    ("annotations", setting(segmentation=SQUARE), "other brackets", REPAIRED),
    ("annotations", setting(segmentation=[[1, 1], [9, 1], [9, 9]]), "other brackets", REPAIRED),
    ("annotations", setting(segmentation=[[[1, 1], [9, 1], [9, 9]]]), "other brackets", REPAIRED),
    ("annotations", setting(segmentation=[list("199199")]), "polygon with numbers", REPAIRED),
    ("annotations", setting(segmentation=[SQUARE[:-1] + [math.nan]]), "polygon with NaN", STOPS),
    ("annotations", setting(segmentation=[SQUARE[:-1] + [1e9]]), "far outside", STOPS),
    ("annotations", setting(segmentation=[SQUARE[:-1] + [None]]), "neither polygons", STOPS),
    ("annotations", setting(segmentation="mask.png"), "neither polygons", STOPS),
    ("annotations", setting(segmentation={"counts": [1]}), "neither polygons", STOPS),
    ("annotations", setting(segmentation=FULL | {"size": [10**6] * 2}), "another size", STOPS),
    ("annotations", setting(segmentation=FULL | {"size": [W, H]}), "another size", STOPS),
    ("annotations", setting(segmentation=FULL | {"counts": [5, 5]}), "not add up", STOPS),
    ("annotations", setting(segmentation=FULL | {"counts": "~~~"}), "not add up", STOPS),
    ("annotations", setting(segmentation=FULL | {"counts": "0"}), "not add up", STOPS),
    ("annotations", setting(segmentation=FULL | {"counts": [H * W]}), "without pixels", LEFT_OUT),
]
KEYPOINT_FAULTS = [
    (setting(keypoints=[]), "keypoints missing", CORRECTED),
    (without("keypoints", "num_keypoints"), "keypoints missing", CORRECTED),
    (setting(keypoints=[1, 2, 2]), "another number than the category", STOPS),
    (setting(keypoints=[1, 2] * 5), "without visibility", STOPS),
    (setting(keypoints=[0] * 15), "none is labelled", FINE),
    (setting(keypoints=["1", "2", "2"] * 5), "keypoints with numbers as text", REPAIRED),
    (setting(keypoints=[math.nan, 2, 2] * 5), "keypoints with NaN", STOPS),
    (setting(keypoints=[None, 2, 2] * 5), "what is no number", STOPS),
    (setting(keypoints=[None, math.nan, 0] * 5), "without a place", REPAIRED),
    (setting(keypoints=[1, 2, 3] * 5), "visibility other", SUSPICIOUS),
    (setting(keypoints=[500, 2, 2] * 5), "keypoint outside", SUSPICIOUS),
    (setting(num_keypoints=3), "num_keypoints missing or wrong", CORRECTED),
    (without("num_keypoints"), "num_keypoints missing or wrong", CORRECTED),
]


@pytest.mark.parametrize(("of", "change", "text", "effect"), FAULTS)
def test_fault(of, change, text, effect, good, check):
    checked = check(spoil(good, change, of=of, every=2))
    assert_finds(checked, text, effect)
    assert_settled(checked, check)


@pytest.mark.parametrize(("change", "text", "effect"), KEYPOINT_FAULTS)
def test_fault_of_keypoints(change, text, effect, good_keypoints, check):
    checked = check(spoil(good_keypoints, change, of="annotations", every=3))
    assert_finds(checked, text, effect, 3)
    assert_settled(checked, check)
    if effect in (CORRECTED, REPAIRED):
        assert all(len(a["keypoints"]) == 15 for a in annotations_of(checked))


def assert_settled(checked, check) -> None:
    """Corrections are found once: the corrected copy has nothing to correct."""
    again = check(checked.corrected() | {"annotations": annotations_of(checked)})
    assert not {CORRECTED, REPAIRED} & set(effects(again).values()), effects(again)
    assert annotations_of(again) == annotations_of(checked)


@pytest.mark.parametrize("key", ["info", "categories"])
def test_what_the_file_lacks(key, good, check):
    if key == "info":
        assert_finds(check({k: good[k] for k in good if k != key}), "no info", CORRECTED)
    else:
        assert_finds(check(good | {key: []}), "no categories", STOPS)


def test_entries_listed_twice_are_kept_once(good, check):
    checked = check(good | {k: good[k] + good[k][:1] for k in ("images", "categories")})
    assert_finds(checked, "category: listed twice", REPAIRED, 1)
    assert_finds(checked, "image: listed twice", CORRECTED, 1)
    assert checked.content["images"] == good["images"]
    assert checked.content["categories"] == good["categories"]


def test_ids_of_mixed_types_become_text(good, check):
    content = spoil(good, lambda image: image.update(id=f"img_{image['id']}"), of="images", every=3)
    for annotation in content["annotations"]:
        if annotation["image_id"] in (1, 4):
            annotation["image_id"] = f"img_{annotation['image_id']}"
    checked = check(content)
    assert [image["id"] for image in checked.content["images"]] == ["img_1", "2", "3", "img_4"]
    assert len(annotations_of(checked)) == 8
    assert_finds(checked, "image_id of another type", REPAIRED, 4)


def test_a_file_found_for_two_images_is_missing(good, check):
    content = spoil(good, lambda image: None, of="images")
    content["images"][0]["file_name"] = "a/2.png"
    content["images"][2]["file_name"] = "b/2.png"
    assert_finds(check(content), "file is not there", STOPS, 2)


def test_swapped_sizes_are_left_where_boxes_say_otherwise(good, check):
    content = spoil(good, setting(width=H, height=W), of="images")
    content["annotations"][0]["bbox"] = [2, 50, 10, 10]  # within 48 x 64 only
    assert_finds(check(content), "that are not the file's", STOPS, 1)


def test_boxes_and_areas_from_masks(good, check):
    square = {**good["annotations"][0], "segmentation": [SQUARE]}
    mask = np.zeros((H, W), np.uint8, order="F")
    mask[3:7, 5:15] = 1
    rle = mask_util.encode(mask)
    rle["counts"] = rle["counts"].decode()
    compressed = {**square, "id": 2, "segmentation": rle}
    counts = [
        int(n) for n in np.diff(np.flatnonzero(np.diff(mask.T.ravel(), prepend=0)), prepend=0)
    ]
    counts.append(H * W - sum(counts))
    plain = {**square, "id": 3, "segmentation": {"size": [H, W], "counts": counts}}
    annotations = [square, compressed, plain]
    for annotation in annotations:
        del annotation["bbox"], annotation["area"]
    fixed = annotations_of(check(good | {"annotations": annotations}))
    assert [a["bbox"] for a in fixed] == [[1, 1, 8, 8], [5, 3, 10, 4], [5, 3, 10, 4]]
    assert [a["area"] for a in fixed] == [64, 40, 40]


def test_no_area_is_made_up_for_keypoints(good_keypoints, check):
    """pycocotools would score them on it, and on the bbox's they look better than they are."""
    content = spoil(good_keypoints, without("area"), of="annotations")
    assert all("area" in a for a in annotations_of(check(content)))  # the masks'
    content = spoil(content, without("segmentation"), of="annotations")
    checked = check(content)
    assert_finds(checked, "keypoints are not evaluated", FINE, 8)
    assert not any("area" in a for a in annotations_of(checked))


def test_a_figure_of_eight_is_not_flat(good, check):
    eight = [1, 1, 9, 9, 9, 1, 1, 9]
    checked = check(spoil(good, setting(segmentation=[eight, SQUARE]), of="annotations"))
    assert annotations_of(checked)[0]["segmentation"] == [eight, SQUARE]


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        ("I;16", "16 bits"),
        ("CMYK", "CMYK"),
        ("P", "palette"),
        ("RGBA", "alpha"),
        ("1", "1 bit"),
        ("animated", "animated"),
    ],
)
def test_kinds_of_images(mode, text, tmp_path):
    content = make(tmp_path, num_images=1)
    kind = {"CMYK": "tif", "animated": "gif"}.get(mode, "png")
    image = Image.new("L" if mode == "animated" else mode, (W, H))
    others = {"save_all": True, "append_images": [Image.new("L", (W, H), 200)]}
    image.save(tmp_path / f"images/1.{kind}", **(others if mode == "animated" else {}))
    content["images"][0]["file_name"] = f"1.{kind}"
    file = write(content, tmp_path / "a.json")
    checked = check_file(file, str(tmp_path / "images"), decode=True)
    assert text in "".join(effects(checked))
    assert Effect.STOPS not in effects(checked).values()


def test_images_that_are_turned(tmp_path):
    content = make(tmp_path, num_images=2)
    for i, orientation in ((1, 3), (2, 6)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new("RGB", (W, H)).save(tmp_path / f"images/{i}.jpg", exif=exif)
        content["images"][i - 1]["file_name"] = f"{i}.jpg"
    checked = check_file(write(content, tmp_path / "a.json"), str(tmp_path / "images"))
    assert_finds(checked, "file that is turned", FINE, 2)
    assert_finds(checked, "before it is turned", STOPS, 1)


def test_damaged_images(tmp_path):
    content = make(tmp_path, num_images=2)
    data = (tmp_path / "images/1.png").read_bytes()
    (tmp_path / "images/1.png").write_bytes(data[: len(data) * 2 // 3])
    (tmp_path / "images/2.png").write_bytes(b"<html>")
    file = write(content, tmp_path / "a.json")
    assert_finds(check_file(file, str(tmp_path / "images")), "cannot be read", STOPS, 1)
    checked = check_file(file, str(tmp_path / "images"), decode=True)
    assert_finds(checked, "damaged or cut off", STOPS, 1)


def test_keypoints_of_several_categories(good_keypoints, check):
    content = spoil(good_keypoints, lambda a: a.update(category_id=2), of="annotations", every=2)
    content["categories"].append({"id": 2, "name": "other", "keypoints": ["a", "b"]})
    assert_finds(check(content), "another number than the category", STOPS, 4)
    content["categories"][1] = {"id": 2, "name": "other"}
    assert_finds(check(content), "that its category does not name", SUSPICIOUS, 4)


def test_memory_does_not_grow_with_the_annotations(good, folder, tmp_path, monkeypatch):
    small_parts = partial(read_parts, block=20_000)
    monkeypatch.setattr("nl_detectron.data.annotations.read_parts", small_parts)

    def peak(count: int) -> int:
        """Of reading, checking, and writing the corrected copy, in bytes."""
        content = {key: value for key, value in good.items() if key != "annotations"}
        first = good["annotations"][0] | {"iscrowd": "0"}
        annotations = (first | {"id": i} for i in range(1, count + 1))
        write_annotations(content, annotations, tmp_path / "a.json")
        tracemalloc.start()
        checked = check_file(str(tmp_path / "a.json"), str(folder / "images"))
        write_corrected(checked, tmp_path / "b.json")
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert checked.num_annotations == count
        assert_finds(checked, "iscrowd as text", REPAIRED, count)
        return highest

    peak(100)
    fewer = peak(1000)
    assert peak(5000) < fewer + 4000 * 16  # an id of 8 bytes each, in an array that grows
    copy = read_annotations(str(tmp_path / "b.json"))
    assert [a["id"] for a in copy["annotations"]] == [*range(1, 5001)]
    assert {a["iscrowd"] for a in copy["annotations"]} == {0}
