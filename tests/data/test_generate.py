import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data.datasets.builtin_meta import COCO_PERSON_KEYPOINT_NAMES as NAMES
from pycocotools.coco import COCO

from nl_detectron.data import (
    KINDS,
    SHAPE_CLASSES,
    Kind,
    draw_people,
    draw_shapes,
    generate,
    register_kind,
)
from nl_detectron.data.drawing import Canvas, plain
from tests.data import kind_checks as checks
from tests.data.kind_checks import BUILTIN, contents

SEED, SIZE = checks.SEED, (128, 128)


@pytest.fixture(scope="module", params=sorted(BUILTIN))
def generated(request, tmp_path_factory) -> tuple[str, checks.Expected, Path]:
    kind = request.param
    folder = tmp_path_factory.mktemp(kind) / "set"
    return kind, BUILTIN[kind], checks.generated_set(kind, folder)


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


def test_pycocotools_reads_the_set(generated):
    checks.check_pycocotools_reads_the_set(*generated)


def test_annotations_are_exact(generated):
    checks.check_annotations_are_exact(*generated)


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


@pytest.mark.parametrize("kind", BUILTIN)
def test_images_depend_on_seed_and_number_only(kind, tmp_path):
    checks.check_images_depend_on_seed_and_number_only(kind, tmp_path)


@pytest.mark.parametrize("kind", BUILTIN)
@pytest.mark.parametrize("larger", checks.LARGER)
def test_sizes(kind, larger, tmp_path):
    checks.check_size(kind, larger, tmp_path / "set")


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
    assert contents(tmp_path / "set") == contents(tmp_path / "fresh")


def test_older_version_is_replaced(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(KINDS, "shapes", replace(KINDS["shapes"], version=0))
        generate(tmp_path / "set", kind="shapes", num_images=1, seed=1)
    json_file = generate(tmp_path / "set", kind="shapes", num_images=1, seed=1)
    assert json.loads(json_file.read_text())["info"]["version"] > 0


def test_a_set_with_missing_images_is_made_again(tmp_path):
    json_file = generate(tmp_path / "set", kind="shapes", num_images=2, seed=1)
    before = contents(tmp_path / "set")
    (json_file.parent / "images/000002.png").unlink()
    generate(tmp_path / "set", kind="shapes", num_images=2, seed=1)
    assert contents(tmp_path / "set") == before


@pytest.mark.parametrize("name", ["notes.txt", "instances.json"])
@pytest.mark.parametrize("text", ['{"images": []}', "<html>", "[1]"])
def test_other_folders_are_left_alone(name, text, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).write_text(text)
    with pytest.raises(FileExistsError, match="is in the way"):
        generate(tmp_path / "set", kind="shapes", num_images=1, seed=1)
    assert contents(tmp_path / "set") == {name: text.encode()}


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
    before, kept = contents(folder), 4

    with monkeypatch.context() as patch:
        patch.setitem(KINDS, "shapes", replace(KINDS["shapes"], draw=fail_at_third))
        with pytest.raises(error):
            generate(folder, kind="shapes", num_images=4, seed=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "set.lock"]
    assert contents(folder) == before


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
        ({"kind": "cars"}, "kind must be one of shapes, people, (.*, )?not 'cars'"),
        ({"num_images": 0}, "num_images must be at least 1, not 0"),
        ({"size": (128, 63)}, r"size must be at least \(64, 64\) .*, not \(128, 63\)"),
        ({"seed": -1}, "seed must not be negative, but is -1"),
    ],
)
def test_errors(change, message, tmp_path):
    asked = {"kind": "shapes", "num_images": 1, "seed": 1} | change
    with pytest.raises(ValueError, match=message):
        generate(tmp_path / "set", **asked)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def kinds():
    """What is registered in a test ends with it."""
    before = dict(KINDS)
    yield
    KINDS.clear()
    KINDS.update(before)


def test_a_registered_kind_is_generated(tmp_path, kinds):
    own = Kind(draw_shapes, "own.json", KINDS["shapes"].categories, (80, 96), version=7)
    register_kind("own", own)
    register_kind("own", replace(own))  # an equal one again
    json_file = generate(tmp_path / "set", kind="own", num_images=1, seed=1)
    assert json_file == tmp_path / "set/own.json"
    info = json.loads(json_file.read_text())["info"]
    assert (info["kind"], info["version"], info["size"]) == ("own", 7, [80, 96])
    assert cv2.imread(str(tmp_path / "set/images/000001.png")).shape == (80, 96, 3)


def test_another_kind_of_the_same_name_is_refused(kinds):
    shapes, people = KINDS["shapes"], KINDS["people"]
    with pytest.raises(ValueError, match="name 'shapes' is taken by another kind; taken are sh"):
        register_kind("shapes", people)
    with pytest.raises(ValueError, match="name 'shapes' is taken"):
        register_kind("shapes", replace(shapes, version=shapes.version + 1))
    assert KINDS["shapes"] is shapes
