import json
import multiprocessing
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data.datasets.builtin_meta import COCO_PERSON_KEYPOINT_NAMES as NAMES
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from nl_detectron.data import (
    KINDS,
    MATCHING_KEY_CLASSES,
    ONE_KEY_CLASSES,
    SHAPE_CLASSES,
    draw_people,
    draw_shapes,
    generate,
)
from nl_detectron.data.drawing import MIN_PIXELS, Canvas, plain

SEED, NUM_IMAGES, SIZE = 7, 10, (128, 128)
# Number of objects in an image, at least and at most
OBJECTS = {
    "shapes": (2, 3),
    "people": (1, 2),
    "people_in_skirts": (1, 1),
    "far_cue_one_key": (3, 5),
    "far_cue_lone_key": (3, 5),
    "far_cue_matching_key": (6, 8),
}


@pytest.fixture(scope="module", params=sorted(KINDS))
def generated(request, tmp_path_factory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param) / "set"
    return request.param, generate(folder, kind=request.param, num_images=NUM_IMAGES, seed=SEED)


@pytest.fixture(scope="module")
def figures() -> list[tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]]:
    """Keypoints by name, the figure's mask and the mask of all other figures in the image."""
    result = []
    for i in range(80):
        scene = draw_people(np.random.default_rng([SEED, i]), SIZE)
        masks = np.array([instance.mask for instance in scene.instances])
        for k, instance in enumerate(scene.instances):
            keypoints = dict(zip(NAMES, instance.keypoints, strict=True))
            result.append((keypoints, instance.mask, np.delete(masks, k, axis=0).any(axis=0)))
    return result


def _contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_pycocotools_reads_the_set(generated):
    kind, json_file = generated
    coco = COCO(json_file)
    assert coco.dataset["info"] | {"description": "", "version": 0} == {
        "description": "",
        "version": 0,
        "kind": kind,
        "seed": SEED,
        "num_images": NUM_IMAGES,
        "size": list(KINDS[kind].size),
    }
    assert set(coco.dataset) == {"info", "licenses", "images", "annotations", "categories"}
    assert sorted(coco.imgs) == list(range(1, NUM_IMAGES + 1))
    assert sorted(coco.anns) == list(range(1, len(coco.anns) + 1))
    names = {"shapes": SHAPE_CLASSES, "far_cue_one_key": ONE_KEY_CLASSES}
    names = list(names.get(kind, MATCHING_KEY_CLASSES))
    if kind.startswith("people"):
        names = ["person"]
    assert [coco.cats[i + 1]["name"] for i in range(len(coco.cats))] == names
    if kind.startswith("people"):
        assert coco.cats[1]["keypoints"] == list(NAMES)
        bones = {frozenset((NAMES[a - 1], NAMES[b - 1])) for a, b in coco.cats[1]["skeleton"]}
        assert len(bones) == 19
        assert {"left_knee", "left_ankle"} in bones and {"left_hip", "right_knee"} not in bones


def test_annotations_are_exact(generated):
    kind, json_file = generated
    coco = COCO(json_file)
    for i, image in coco.imgs.items():
        scene = KINDS[kind].draw(np.random.default_rng([SEED, i]), KINDS[kind].size)
        on_disk = cv2.imread(str(json_file.parent / "images" / image["file_name"]))
        np.testing.assert_array_equal(on_disk, scene.image)
        annotations = coco.imgToAnns[i]
        low, high = OBJECTS[kind]
        assert low <= len(annotations) <= high
        masks = [coco.annToMask(annotation) for annotation in annotations]
        assert np.sum(masks, axis=0).max() == 1  # disjoint
        for annotation, mask, instance in zip(annotations, masks, scene.instances, strict=True):
            np.testing.assert_array_equal(mask, instance.mask)
            assert isinstance(annotation["segmentation"]["counts"], str)
            assert mask_util.area(annotation["segmentation"]) == annotation["area"] == mask.sum()
            assert annotation["area"] >= MIN_PIXELS
            y, x = np.nonzero(mask)
            x_size, y_size = np.ptp(x) + 1, np.ptp(y) + 1
            assert annotation["bbox"] == [x.min(), y.min(), x_size, y_size]
            assert annotation["category_id"] == instance.category_id
            assert annotation["iscrowd"] == 0
            if kind.startswith("people"):
                keypoints = np.reshape(annotation["keypoints"], (17, 3))
                np.testing.assert_array_equal(keypoints, instance.keypoints)
                assert annotation["num_keypoints"] == np.count_nonzero(keypoints[:, 2])
            else:
                assert "keypoints" not in annotation


def test_canvas_masks_are_the_visible_pixels():
    canvas = Canvas(np.random.default_rng(SEED), (64, 80))

    def square(number, low, high, colour, shows=()):
        outline = np.array([(low, low), (high, low), (high, high), (low, high)])
        canvas.paint([outline], plain(colour), number, shows)

    canvas.place(lambda number: square(number, 10, 30, (255, 0, 0), ("nose",)))
    canvas.place(lambda number: square(number, 20, 40, (0, 255, 0)))
    first, second = np.zeros((2, 64, 80), bool)
    first[10:31, 10:31] = second[20:41, 20:41] = True
    first &= ~second
    np.testing.assert_array_equal(canvas.mask(1), first)
    np.testing.assert_array_equal(canvas.mask(2), second)
    assert canvas.shows(1, "nose", np.array([12.0, 12.0]))
    assert not canvas.shows(1, "mouth", np.array([12.0, 12.0]))
    assert not canvas.shows(1, "nose", np.array([25.0, 25.0]))  # hidden by the second
    assert canvas.image()[25, 12].argmax() == 0 and canvas.image()[35, 35].argmax() == 1


def test_canvas_undoes_what_hides_too_much():
    canvas = Canvas(np.random.default_rng(SEED), (64, 80))
    square = np.array([(0, 0), (1, 0), (1, 1), (0, 1)])
    canvas.place(lambda number: canvas.paint([20 * square + 10], plain((255, 0, 0)), number))
    before = canvas.mask(1)
    # All of the first, nine tenths of it, outside of the image, too small; then it is fine.
    offsets = iter([(10, 10), (12, 10), (90, 10), (-50, -50), (79, 63), (40, 30)])
    offset = canvas.place(lambda number: _painted(canvas, number, 20 * square, next(offsets)))
    assert offset == (40, 30)
    np.testing.assert_array_equal(canvas.mask(1), before)
    assert canvas.mask(2).sum() == 21 * 21


def _painted(canvas, number, outline, offset):
    canvas.paint([outline + offset], plain((0, 255, 0)), number)
    return offset


def test_every_class_is_drawn():
    counts = np.zeros(len(SHAPE_CLASSES), int)
    for i in range(60):
        for instance in draw_shapes(np.random.default_rng([SEED, i]), SIZE).instances:
            counts[instance.category_id - 1] += 1
    assert counts.min() > 0.1 * counts.sum()


def test_keypoints_are_in_the_image_and_on_their_figure(figures):
    found = {0: 0, 1: 0, 2: 0}
    for keypoints, own, others in figures:
        distance = cv2.distanceTransform((~own).astype(np.uint8), cv2.DIST_L2, 5)
        inside_others = cv2.erode(others.astype(np.uint8), np.ones((3, 3)))
        for x, y, visibility in keypoints.values():
            found[int(visibility)] += 1
            if visibility == 0:
                assert x == y == 0
                continue
            assert 0 <= x <= SIZE[1] - 1 and 0 <= y <= SIZE[0] - 1
            if visibility == 2:
                assert distance[round(y), round(x)] <= 2
                assert not inside_others[round(y), round(x)]
    assert min(found.values()) > 0.02 * sum(found.values())


def test_left_and_right_follow_from_the_view(figures):
    backs = 0
    for keypoints, _, _ in figures:
        pairs = [
            (keypoints[f"left_{name}"], keypoints[f"right_{name}"])
            for name in ("eye", "ear", "shoulder", "hip")
        ]
        fronts = {bool(left[0] > right[0]) for left, right in pairs if left[2] and right[2]}
        assert len(fronts) <= 1
        back = fronts == {False}
        backs += back
        if any(keypoints[name][2] == 2 for name in ("nose", "left_eye", "right_eye")):
            assert not back
    assert 0.1 < backs / len(figures) < 0.3


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_images_depend_on_seed_and_number_only(kind, tmp_path):
    few = generate(tmp_path / "few", kind=kind, num_images=2, seed=1).parent
    again = generate(tmp_path / "again", kind=kind, num_images=2, seed=1).parent
    many = generate(tmp_path / "many", kind=kind, num_images=4, seed=1).parent
    other = generate(tmp_path / "other", kind=kind, num_images=2, seed=2).parent
    assert _contents(few) == _contents(again)
    images, more, others = (_contents(folder / "images") for folder in (few, many, other))
    assert sorted(more) == ["000001.png", "000002.png", "000003.png", "000004.png"]
    assert images.items() <= more.items()
    assert len({*more.values(), *others.values()}) == 6


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("larger", [(0, 0), (33, 147), (86, 7)])
def test_sizes(kind, larger, tmp_path):
    size = tuple(np.add(KINDS[kind].min_size, larger).tolist())
    coco = COCO(generate(tmp_path / "set", kind=kind, num_images=2, size=size, seed=3))
    for image in coco.imgs.values():
        assert (image["height"], image["width"]) == size
        assert cv2.imread(str(tmp_path / "set/images" / image["file_name"])).shape == (*size, 3)
    for annotation in coco.anns.values():
        assert tuple(annotation["segmentation"]["size"]) == size
        for x, y, visibility in np.reshape(annotation.get("keypoints", []), (-1, 3)):
            assert (0 <= x <= size[1] - 1 and 0 <= y <= size[0] - 1) or visibility == 0


def test_objects_scale_with_the_image():
    small, large = (
        np.mean(
            [
                instance.mask.mean()
                for i in range(10)
                for instance in draw_shapes(np.random.default_rng([SEED, i]), size).instances
            ]
        )
        for size in ((96, 96), (288, 288))
    )
    assert large == pytest.approx(small, rel=0.25)


def test_same_set_is_reused(tmp_path, capsys):
    folder = tmp_path / "set"
    json_file = generate(folder, kind="shapes", num_images=2, seed=1)
    assert "generating shapes" in capsys.readouterr().err
    before = [(path, path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.rglob("*")]
    assert generate(folder, kind="shapes", num_images=2, seed=1) == json_file
    after = [(path, path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.rglob("*")]
    assert after == before
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "change", [{"num_images": 1}, {"seed": 2}, {"size": (64, 80)}, {"kind": "people"}]
)
def test_different_set_is_replaced(change, tmp_path):
    asked = {"kind": "shapes", "num_images": 2, "seed": 1} | change
    generate(tmp_path / "set", kind="shapes", num_images=2, seed=1)
    generate(tmp_path / "set", **asked)
    generate(tmp_path / "fresh", **asked)
    assert _contents(tmp_path / "set") == _contents(tmp_path / "fresh")


def test_older_version_is_replaced(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[generate.__module__], "VERSION", 0)
        generate(tmp_path / "set", kind="shapes", num_images=1, seed=1)
    json_file = generate(tmp_path / "set", kind="shapes", num_images=1, seed=1)
    assert json.loads(json_file.read_text())["info"]["version"] > 0


def test_a_set_with_missing_images_is_made_again(tmp_path):
    json_file = generate(tmp_path / "set", kind="shapes", num_images=2, seed=1)
    before = _contents(tmp_path / "set")
    (json_file.parent / "images/000002.png").unlink()
    generate(tmp_path / "set", kind="shapes", num_images=2, seed=1)
    assert _contents(tmp_path / "set") == before


@pytest.mark.parametrize("name", ["notes.txt", "instances.json"])
@pytest.mark.parametrize("text", ['{"images": []}', "<html>", "[1]"])
def test_other_folders_are_left_alone(name, text, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).write_text(text)
    with pytest.raises(FileExistsError, match="is in the way"):
        generate(tmp_path / "set", kind="shapes", num_images=1, seed=1)
    assert _contents(tmp_path / "set") == {name: text.encode()}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_interruption_leaves_nothing_behind(error, tmp_path, monkeypatch):
    def fail_at_third(rng, size):
        if len(list(tmp_path.rglob("*.png"))) - kept == 2:
            raise error
        return draw_shapes(rng, size)

    folder, kept = tmp_path / "set", 0
    with monkeypatch.context() as patch:
        patch.setitem(KINDS, "shapes", replace(KINDS["shapes"], draw=fail_at_third))
        with pytest.raises(error):
            generate(folder, kind="shapes", num_images=4, seed=1)
        assert [path.name for path in tmp_path.iterdir()] == ["set.lock"]
    generate(folder, kind="shapes", num_images=4, seed=1)
    before, kept = _contents(folder), 4

    with monkeypatch.context() as patch:
        patch.setitem(KINDS, "shapes", replace(KINDS["shapes"], draw=fail_at_third))
        with pytest.raises(error):
            generate(folder, kind="shapes", num_images=4, seed=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "set.lock"]
    assert _contents(folder) == before


@pytest.fixture
def single_threaded_opencv():
    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)
    yield
    cv2.setNumThreads(threads)


@pytest.mark.usefixtures("single_threaded_opencv")  # its threads would not survive the fork
def test_two_processes_at_once(tmp_path):
    fork = multiprocessing.get_context("fork")  # quicker than importing all in two new processes
    asked = {"kind": "shapes", "num_images": 150, "seed": 1}
    processes = [
        fork.Process(target=generate, args=(tmp_path / "set",), kwargs=asked) for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "set.lock"]
    assert len(COCO(tmp_path / "set/instances.json").imgs) == 150
    assert len(list((tmp_path / "set/images").iterdir())) == 150


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "cars"}, "kind must be one of shapes, people, .*, not 'cars'"),
        ({"num_images": 0}, "num_images must be at least 1, not 0"),
        ({"size": (128, 63)}, r"size must be at least \(64, 64\) .*, not \(128, 63\)"),
        (
            {"kind": "far_cue_one_key", "size": (64, 128)},
            r"at least \(64, 320\) \(height, width\) for far_cue_one_key, not \(64, 128\)",
        ),
        ({"seed": -1}, "seed must not be negative, but is -1"),
    ],
)
def test_errors(change, message, tmp_path):
    asked = {"kind": "shapes", "num_images": 1, "seed": 1} | change
    with pytest.raises(ValueError, match=message):
        generate(tmp_path / "set", **asked)
    assert not list(tmp_path.iterdir())
