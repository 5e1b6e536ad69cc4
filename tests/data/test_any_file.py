"""Files with any faults, combined at random: one line, or all is counted and can be read.

``HYPOTHESIS_PROFILE=long`` makes 1,000 of them; by default there are 100.
"""

import contextlib
import copy
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from nl_detectron.data.prepare import prepare
from nl_detectron.data.training import check_usable, usable_for_training
from nl_detectron.errors import UsageError
from nl_detectron.log import logger
from tests.data.own_data import H, W, make, write

settings.register_profile("short", max_examples=100)
settings.register_profile("long", max_examples=1000)

# What may stand where something else should, of any key
JUNK = st.one_of(
    st.sampled_from(
        (None, True, False, 0, 1, -1, 2.5, 10**400, 1e9, "", "x", "1", "é", "\0", "\ud800", [], {})
    ),
    st.sampled_from((math.nan, math.inf, [[]], [None], [[1, 2], [3]], {"size": [H, W]})),
    st.integers(-3, 12),
    st.text(max_size=5),
)
NUMBER = st.one_of(
    st.integers(-5, 70),
    st.floats(-5, 70),
    st.sampled_from((math.nan, math.inf, 1e9, -1e5, 10**30, None, "7", "a", True, [])),
    st.integers(0, 40).map(float),
)
LIKELY = st.one_of(st.integers(0, 60), st.floats(0, 60))
BOX = st.one_of(
    st.lists(LIKELY, min_size=4, max_size=4),
    st.lists(NUMBER, max_size=5),
    st.lists(LIKELY.map(str), min_size=4, max_size=4),
)
COUNTS = st.one_of(
    st.integers(0, H * W).map(lambda n: [n, H * W - n]),
    st.sampled_from(([H * W], [0, H * W], [5, 5], [-1, H * W + 1], [], None, 7)),
    st.text("0123456789:;<=>?@ABCabcdefo`~é", max_size=12),
)
SIZE = st.sampled_from(([H, W], [H, W], [W, H], [10**6, 10**6], [H], [0, 0], None, "x", [1.0, 2]))
POLYGON = st.one_of(
    st.lists(LIKELY, min_size=6, max_size=10),
    st.lists(NUMBER, max_size=9),
    st.lists(st.lists(LIKELY, min_size=2, max_size=2), min_size=2, max_size=5),
    st.just([5, 5, 5, 5, 5, 5]),
)
MASK = st.one_of(
    st.lists(POLYGON, max_size=3), POLYGON, st.fixed_dictionaries({"size": SIZE, "counts": COUNTS})
)
KEYPOINTS = st.one_of(
    st.lists(st.one_of(LIKELY, st.just(0)), min_size=15, max_size=15),
    st.lists(NUMBER, min_size=14, max_size=16),
    st.just([0] * 15),
    st.just([]),
)
FLAG = st.sampled_from((0, 0, 1, 1, False, True, None, "0", "1", 2, "x", 1.0))
NAME = st.sampled_from(
    ("1.png", "images\\2.png", "images/3.png", "/nowhere/4.png", "../images/1.png", "gone.png")
    + ("", ".", "alpha.png", "broken.png", "turned.jpg", "C:\\a\\2.png", "sub/5.png")
)
LENGTH = st.sampled_from((W, H, str(W), 64.0, -1, 0, None, 1000, 1e400))
VALUES = {
    "annotations": {
        "id": JUNK,
        "image_id": JUNK,
        "category_id": JUNK,
        "bbox": BOX,
        "segmentation": MASK,
        "keypoints": KEYPOINTS,
        "num_keypoints": JUNK,
        "iscrowd": FLAG,
        "ignore": FLAG,
        "area": NUMBER,
    },
    "images": {"id": JUNK, "file_name": NAME, "width": LENGTH, "height": LENGTH},
    "categories": {"id": JUNK, "name": JUNK, "keypoints": JUNK, "skeleton": JUNK},
}
OF = st.sampled_from(("annotations",) * 4 + ("images", "categories"))


@st.composite
def fault(draw):
    """Which list, key, entries and value; KeyError stands for a key that is not there."""
    of = draw(OF)
    key = draw(st.sampled_from(sorted(VALUES[of])))
    value = draw(st.one_of(VALUES[of][key], VALUES[of][key], st.just(KeyError), JUNK))
    return of, key, draw(st.integers(0, 7)), draw(st.sampled_from((1, 2, 3, 8))), value


FAULTS = st.lists(fault(), max_size=4)
WHOLE = st.sampled_from(("",) * 6 + ("ids_as_text", "twice", "no_info", "no_annotations", "text"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With images to which entries may come to point."""
    folder = tmp_path_factory.mktemp("any")
    (folder / "images/sub").mkdir(parents=True)
    Image.new("RGBA", (W, H)).save(folder / "images/alpha.png")
    (folder / "images/broken.png").write_bytes(b"no image")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (W, H)).save(folder / "images/turned.jpg", exif=exif)
    Image.new("RGB", (W, H)).save(folder / "images/sub/5.png")
    return folder


@pytest.fixture(scope="module")
def contents(folder) -> list[dict]:
    """Without and with keypoints."""
    return [make(folder, keypoints=keypoints) for keypoints in (False, True)]


def spoilt(content: dict, faults: list, whole: str) -> dict:
    content = copy.deepcopy(content)
    for of, key, start, step, value in faults:
        for entry in content[of][start % len(content[of]) :: step]:
            if value is KeyError:
                entry.pop(key, None)
            else:
                entry[key] = copy.deepcopy(value)
    if whole == "ids_as_text":
        for annotation in content["annotations"]:
            annotation["image_id"] = str(annotation.get("image_id"))
    elif whole == "twice":
        content["annotations"] += copy.deepcopy(content["annotations"][:3])
        content["images"] += copy.deepcopy(content["images"][:1])
    elif whole in ("no_info", "no_annotations"):
        del content[whole.removeprefix("no_")]
    elif whole == "text":
        content["categories"] = "x"
    return content


@settings(
    settings.get_profile(os.getenv("HYPOTHESIS_PROFILE", "short")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=os.getenv("HYPOTHESIS_PROFILE") is None,  # in CI the same each time
)
@given(
    st.booleans(),
    FAULTS,
    WHOLE,
    st.sampled_from(("utf-8", "utf-8", "utf-8-sig", "utf-16")),
    st.booleans(),
)
def test_any_file_is_refused_in_one_line_or_used_with_all_counted(
    folder, contents, keypoints, faults, whole, encoding, masks
):
    content = spoilt(contents[keypoints], faults, whole)
    file = write(content, folder / "a.json", encoding)
    images = str(folder / "images")
    try:
        prepared = prepare(file, images)
        prepared.stop(corrected=True)
    except UsageError as error:
        assert_one_line(error)
        event("refused")
        return
    event("used as it is" if prepared.json_file == file else "corrected")
    # It can be read, its masks decode, and each annotation is in it or counted.
    truth = COCO(prepared.json_file)
    gone = sum(f.count for f in prepared.findings if "image_id of no image" in f.kind.what)
    annotations = truth.dataset.get("annotations", [])
    annotations = [a for a in annotations if a["image_id"] in truth.imgs]
    total = len(content.get("annotations", []))
    assert len(annotations) + gone == total == prepared.num_annotations
    for annotation in annotations:
        image = truth.imgs[annotation["image_id"]]
        if "segmentation" in annotation:
            assert truth.annToMask(annotation).shape == (image["height"], image["width"])
    MetadataCatalog.pop("any_file", None)
    dicts = load_coco_json(prepared.json_file, images, "any_file")
    assert all(Path(record["file_name"]).is_file() for record in dicts)
    loaded = sum(len(record["annotations"]) for record in dicts)
    assert loaded == len(annotations)
    for record in dicts:
        for annotation in record["annotations"]:
            assert 0 <= annotation["category_id"] < len(prepared.categories)
            box = BoxMode.convert(annotation["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
            assert all(map(math.isfinite, box))
    assert_counted(prepared, dicts, masks, keypoints)
    # What was corrected is found no more.
    again = prepare(prepared.json_file, images)
    assert again == prepared


def assert_counted(prepared, dicts: list[dict], masks: bool, keypoints: bool) -> None:
    """What is trained on, and what is left out, make all annotations."""
    try:
        check_usable([prepared], mask_format="bitmask" if masks else None, keypoints=keypoints)
    except UsageError as error:
        assert_one_line(error)
        return
    with logged() as lines:
        usable = usable_for_training(
            dicts, masks=masks, keypoints=keypoints, total=prepared.num_annotations
        )
    trained = sum(len(record["annotations"]) for record in usable)
    assert trained > 0
    numbers = [int(word) for word in lines[0].replace(",", "").split() if word.isdigit()]
    assert numbers[:2] == [trained, prepared.num_annotations]
    left_out = lines[0].partition("left out: ")[2].partition(";")[0]
    counted = sum(int(part.split()[0]) for part in left_out.split(", ") if part)
    assert trained + counted == prepared.num_annotations
    if keypoints:
        assert len({len(a["keypoints"]) for r in usable for a in r["annotations"]}) == 1


@contextlib.contextmanager
def logged() -> Iterator[list[str]]:
    """What is logged, of each example of its own, as no fixture is."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(handler)


def assert_one_line(error: UsageError) -> None:
    assert str(error) and len(str(error).splitlines()) == 1
