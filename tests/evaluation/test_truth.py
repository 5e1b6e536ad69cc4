"""Annotations as people write them: hotcoco's path beside pycocotools', and what is left out."""

import contextlib
import copy
import io

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from nl_detectron.errors import UsageError
from nl_detectron.evaluation import coco, evaluate
from nl_detectron.evaluation.parts import KEYS
from nl_detectron.evaluation.truth import examine

NUM_KEYPOINTS = 3
SIGMAS = [0.1] * NUM_KEYPOINTS
TASKS = ("bbox", "segm", "keypoints")
NAN = float("nan")

pytestmark = pytest.mark.skipif(
    coco.hotcoco is None, reason="hotcoco is not installed: requirements/base.txt"
)


def annotations_of(rng: np.random.Generator, *, image_ids: list, category_ids: list) -> dict:
    """A small set whose objects are of all sizes, each with a box, a mask and keypoints."""
    images = [{"id": i, "height": 300, "width": 400, "file_name": f"{i}.jpg"} for i in image_ids]
    annotations = []
    for image in images:
        for _ in range(rng.integers(0, 6)):
            side = float(rng.choice([8, 20, 40, 110]))
            x, y = rng.uniform(0, 250, 2).round(1)
            box = [x, y, side, side * 0.8]
            polygon = [x, y, x + side, y, x + side, y + side * 0.8, x, y + side * 0.8]
            points = [
                [x + side * f, y + side * 0.5, int(rng.integers(0, 3))] for f in (0.1, 0.5, 1)
            ]
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image["id"],
                "category_id": category_ids[int(rng.integers(0, max(len(category_ids) - 1, 1)))],
                "bbox": box,
                "area": side * side * 0.8,
                "iscrowd": 0,
                "segmentation": [polygon],
                "keypoints": [value for point in points for value in point],
                "num_keypoints": sum(point[2] > 0 for point in points),
            }
            annotations.append(annotation)
    names = "abcdef"
    categories = [{"id": c, "name": names[i]} for i, c in enumerate(category_ids)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def results_near(content: dict, rng: np.random.Generator) -> list[dict]:
    """Detections that are more or less right, some of them twice, and some of nothing."""
    results = []
    for annotation in [*content["annotations"]] * 2:
        moved = rng.normal(0, 2, 2)
        x, y, w, h = annotation["bbox"]
        x, y = x + moved[0], y + moved[1]
        points = np.reshape(annotation["keypoints"], (-1, 3)).astype(float)
        points[:, :2] += moved
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        rle = coco_mask([polygon])
        category = annotation["category_id"]
        if rng.uniform() < 0.2:
            category = content["categories"][-1]["id"]
        results.append(
            {"image_id": annotation["image_id"], "category_id": category}
            | {"score": round(rng.uniform(), 1), "bbox": [x, y, w, h], "segmentation": rle}
            | {"keypoints": points.ravel().tolist()}
        )
    return results


def coco_mask(polygons: list) -> dict:
    rle = mask_util.merge(mask_util.frPyObjects(polygons, 300, 400))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def set_to(key: str, value: object):
    def change(annotation: dict) -> None:
        annotation[key] = copy.deepcopy(value)

    return change


def without(key: str):
    def change(annotation: dict) -> None:
        annotation.pop(key, None)

    return change


def changed(key: str, function):
    def change(annotation: dict) -> None:
        if key in annotation:
            annotation[key] = function(annotation)

    return change


# By what it does to one annotation; all of them occur in files that tools write
CHANGES = {
    "crowd": set_to("iscrowd", 1),
    "crowd, true": set_to("iscrowd", True),
    "crowd, 2": set_to("iscrowd", 2),
    "crowd, text": set_to("iscrowd", "0"),
    "no iscrowd": without("iscrowd"),
    "iscrowd null": set_to("iscrowd", None),
    "ignore": set_to("ignore", 1),
    "ignore 0": set_to("ignore", 0),
    "no area": without("area"),
    "area 0": set_to("area", 0),
    "area tiny": set_to("area", 1e-9),
    "area negative": set_to("area", -5.0),
    "area huge": set_to("area", 1e11),
    "area at a limit": set_to("area", 1024),
    "area null": set_to("area", None),
    "area text": set_to("area", "100"),
    "area NaN": set_to("area", NAN),
    "no box": without("bbox"),
    "box null": set_to("bbox", None),
    "box empty": set_to("bbox", []),
    "box of three": set_to("bbox", [1, 2, 3]),
    "box of zero": set_to("bbox", [5, 5, 0, 0]),
    "box negative": set_to("bbox", [50, 50, -20, -10]),
    "box outside": set_to("bbox", [900, 900, 20, 10]),
    "box NaN": set_to("bbox", [NAN, 5, 5, 5]),
    "box text": set_to("bbox", ["1", "2", "3", "4"]),
    "no mask": without("segmentation"),
    "mask null": set_to("segmentation", None),
    "mask empty": set_to("segmentation", []),
    "mask empty in list": set_to("segmentation", [[]]),
    "mask of two points": set_to("segmentation", [[10, 10, 30, 40]]),
    "mask flat": set_to("segmentation", [[10, 10, 30, 10, 50, 10]]),
    "mask odd": set_to("segmentation", [[10, 10, 30, 10, 50, 40, 7]]),
    "mask of two": changed(
        "segmentation",
        lambda a: (
            [*a["segmentation"], [200, 200, 220, 200, 220, 230]]
            if isinstance(a["segmentation"], list)
            else a["segmentation"]
        ),
    ),
    "mask and a point": set_to("segmentation", [[10, 10, 90, 10, 50, 80], [3, 3]]),
    "mask outside": set_to("segmentation", [[900, 900, 950, 900, 950, 950]]),
    "mask far": set_to("segmentation", [[1e9, 1e9, -1e9, 5, 7, 8]]),
    "mask a box": set_to("segmentation", [10, 10, 30, 40]),
    "mask RLE": changed(
        "segmentation",
        lambda a: coco_mask([[10, 10, 90, 10, 50, 80]]),
    ),
    "mask RLE in numbers": set_to(
        "segmentation", {"size": [300, 400], "counts": [300 * 30, 200, 300 * 370 - 200]}
    ),
    "mask RLE of another size": set_to("segmentation", {"size": [2, 3], "counts": [2, 4]}),
    "mask RLE too long": set_to("segmentation", {"size": [300, 400], "counts": [9, 10**7]}),
    "mask RLE empty": set_to("segmentation", {"size": [300, 400], "counts": [300 * 400]}),
    "mask text": set_to("segmentation", "nothing"),
    "no keypoints": without("keypoints"),
    "no keypoints nor number": lambda a: (a.pop("keypoints", 0), a.pop("num_keypoints", 0)),
    "no number of keypoints": without("num_keypoints"),
    "keypoints null": set_to("keypoints", None),
    "keypoints empty": lambda a: a.update(keypoints=[], num_keypoints=0),
    "keypoints empty, counted": set_to("keypoints", []),
    "keypoints empty alone": lambda a: (a.update(keypoints=[]), a.pop("num_keypoints", 0)),
    "keypoints zero": lambda a: a.update(keypoints=[0] * 9, num_keypoints=0),
    "keypoints zero, counted": set_to("keypoints", [0] * 9),
    "keypoints short": set_to("keypoints", [1, 2, 2]),
    "keypoints NaN": set_to("keypoints", [NAN] * 9),
    "keypoints of other visibility": set_to("keypoints", [10, 10, 3, 20, 20, -1, 30, 30, 1]),
    "keypoints not counted": set_to("num_keypoints", 0),
    "keypoints counted wrong": set_to("num_keypoints", 7),
    "no such category": set_to("category_id", 999),
    "id repeated": set_to("id", 1),
    "id 0": set_to("id", 0),
    "id negative": set_to("id", -3),
    "id text": set_to("id", "7"),
    "id large": set_to("id", 2**40),
    "other keys": set_to("attributes", {"occluded": True}),
}
# After which every task can be evaluated
HARMLESS = {
    *("crowd", "crowd, true", "no iscrowd", "iscrowd null", "ignore", "ignore 0", "other keys"),
    *("area 0", "area tiny", "area negative", "area huge", "area at a limit", "no such category"),
    *("box of zero", "box negative", "box outside", "mask flat", "mask odd", "mask of two"),
    *("mask outside", "mask RLE", "mask RLE in numbers", "mask RLE empty", "keypoints zero"),
    *("no number of keypoints", "keypoints empty", "keypoints empty, counted", "keypoints zero"),
    *("keypoints empty alone", "keypoints zero, counted", "keypoints of other visibility"),
    *("keypoints not counted", "keypoints counted wrong"),
}
CONTENT_CHANGES = {
    "nothing": lambda content: None,
    "no info": lambda content: content.pop("info"),
    "no sizes": lambda content: [image.pop("height") for image in content["images"]],
    "sizes as text": lambda content: [image.update(height="300") for image in content["images"]],
    "a category twice": lambda content: content["categories"].append(content["categories"][0]),
    "an image twice": lambda content: content["images"].append(content["images"][0]),
}
IMAGE_IDS = ([1, 2, 3, 4], [7, 3, 200, 5], [0, 1, 2, 3], [10**12, 5, 6, 7], ["b", "a", "c", "10"])
IMAGE_IDS += ([-4, 1, 2, 3],)
CATEGORY_IDS = ([1, 2, 3], [0, 10, 12], [1], [90, 4, 7, 2], [-1, 5])


def loaded(content: dict) -> COCO:
    truth = COCO()
    truth.dataset = copy.deepcopy(content)
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


def by_pycocotools(truth: COCO, results: list[dict], task: str) -> COCOeval:
    keys = {"image_id", "category_id", "score", *KEYS[task]}
    results = [{k: v for k, v in copy.deepcopy(r).items() if k in keys} for r in results]
    truth = loaded(truth.dataset)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(results), task)
        if task == "keypoints":
            evaluation.params.kpt_oks_sigmas = np.array(SIGMAS)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def ours(truth: COCO, results: list[dict], task: str) -> COCOeval:
    sigmas = SIGMAS if task == "keypoints" else ()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return evaluate(truth, results, task, kpt_oks_sigmas=sigmas)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
@given(
    seed=st.integers(0, 10**6),
    task=st.sampled_from(TASKS),
    image_ids=st.sampled_from(IMAGE_IDS),
    category_ids=st.sampled_from(CATEGORY_IDS),
    content_change=st.sampled_from(sorted(CONTENT_CHANGES)),
    changes=st.lists(st.tuples(st.sampled_from(sorted(CHANGES)), st.floats(0, 1)), max_size=3),
)
def test_figures_are_those_of_pycocotools_or_there_are_none(
    seed, task, image_ids, category_ids, content_change, changes
):
    rng = np.random.default_rng(seed)
    content = annotations_of(rng, image_ids=image_ids, category_ids=category_ids)
    results = results_near(content, rng)
    if not results:
        return
    for name, share in changes:
        for annotation in content["annotations"]:
            if rng.uniform() <= share:
                CHANGES[name](annotation)
    CONTENT_CHANGES[content_change](content)
    truth = loaded(content)
    before = copy.deepcopy(truth.dataset)
    try:
        actual = ours(truth, results, task)
    except UsageError as error:
        sizes_are_there = content_change not in ("no sizes", "sizes as text")
        harmless = sizes_are_there and {name for name, _ in changes} <= HARMLESS
        assert not harmless, error
        assert str(error).startswith(f"{task} is not evaluated: ") and "\n" not in str(error)
        return
    np.testing.assert_equal(truth.dataset, before)
    examined = examine(truth, [task], num_keypoints=NUM_KEYPOINTS, num_sigmas=NUM_KEYPOINTS)
    assert_same(actual, by_pycocotools(examined.truth, results, task), examined.has_sizes)
    if {"mask far", "mask RLE too long"} & {name for name, _ in changes}:
        return  # pycocotools may crash
    # What was filled in makes no difference where pycocotools does without.
    try:
        expected = by_pycocotools(truth, results, task)
    except Exception:  # of many kinds: what it asks for is not there
        return
    assert_same(actual, expected, examined.has_sizes)


def assert_same(actual: COCOeval, expected: COCOeval, has_sizes: bool) -> None:
    for name in ("precision", "recall", "scores"):
        found, reference = actual.eval[name], expected.eval[name]
        if has_sizes:
            np.testing.assert_array_equal(found, reference, err_msg=name)
        else:
            np.testing.assert_array_equal(found[..., 0, :], reference[..., 0, :], err_msg=name)
            assert (found[..., 1:, :] == -1).all()


def small(*names: str, every: int = 2) -> tuple[COCO, list[dict]]:
    """A set of which every other annotation is changed, and detections near the unchanged."""
    rng = np.random.default_rng(3)
    content = annotations_of(rng, image_ids=[1, 2, 3, 4], category_ids=[1, 2, 3])
    results = results_near(content, rng)
    for annotation in content["annotations"][::every]:
        for name in names:
            CHANGES[name](annotation)
    return loaded(content), results


@pytest.mark.parametrize("library", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize(
    ("task", "change", "reason"),
    [
        ("segm", "no mask", "no mask"),
        ("segm", "mask null", "no mask"),
        ("segm", "mask empty", "no mask"),
        ("segm", "mask empty in list", "no mask"),
        ("segm", "mask of two points", "no mask"),
        ("segm", "mask RLE of another size", "no mask"),
        ("segm", "mask far", "no mask"),
        ("keypoints", "no keypoints", "no keypoints"),
        ("keypoints", "keypoints null", "no keypoints"),
        ("keypoints", "keypoints short", "not 3 keypoints of three numbers"),
        ("keypoints", "keypoints NaN", "not 3 keypoints of three numbers"),
        ("keypoints", "no area", "no area, by which distances are judged,"),
        ("keypoints", "area NaN", "no area, by which distances are judged,"),
        ("keypoints", "no box", "no box of four numbers"),
        ("bbox", "no box", "no box of four numbers"),
        ("bbox", "box null", "no box of four numbers"),
        ("bbox", "box NaN", "no box of four numbers"),
        ("bbox", "crowd, text", "iscrowd is neither 0 nor 1"),
    ],
)
def test_a_task_whose_truth_is_not_there_has_no_figure(task, change, reason, library, monkeypatch):
    if library == "pycocotools":
        monkeypatch.setattr(coco, "hotcoco", None)
    truth, results = small(change)
    line = f"{task} is not evaluated: {reason} in 8 of 15 annotations (id 1, 3, 5, 7, 9, ...)"
    with pytest.raises(UsageError) as caught:
        ours(truth, results, task)
    assert str(caught.value) == line
    assert examine(truth, TASKS, num_keypoints=3, num_sigmas=3).left_out[task] == line


@pytest.mark.parametrize("change", ["keypoints empty", "keypoints empty alone"])
def test_no_keypoints_in_a_list_are_as_many_zeros(change):
    truth, results = small(change)
    zeros, _ = small("keypoints zero")
    assert ours(truth, results, "keypoints").stats.tolist() == (
        by_pycocotools(zeros, results, "keypoints").stats.tolist()
    )


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_without_areas_there_are_no_figures_by_size(task):
    truth, results = small("no area")
    whole, _ = small()
    stats = ours(truth, results, task).stats
    expected = by_pycocotools(whole, results, task).stats
    assert stats[:3].tolist() == expected[:3].tolist() and stats[0] > 0.1
    assert stats[3:6].tolist() == [-1] * 3 and (expected[3:6] >= 0).all()


@pytest.mark.parametrize("change", ["no iscrowd", "iscrowd null"])
@pytest.mark.parametrize("task", TASKS)
def test_what_is_not_called_a_crowd_is_none(task, change):
    truth, results = small(change)
    whole, _ = small()
    expected = by_pycocotools(whole, results, task).stats
    assert ours(truth, results, task).stats.tolist() == expected.tolist()


@pytest.mark.parametrize("library", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize("value", [NAN, float("inf"), 0.0])
def test_keypoints_that_are_no_numbers_are_found_nowhere(value, library, monkeypatch):
    if library == "pycocotools":
        monkeypatch.setattr(coco, "hotcoco", None)
    truth, results = small()
    spoiled = [{**result, "keypoints": [value] * 9} for result in results]
    assert ours(truth, spoiled, "keypoints").stats[0] == 0
    # One of three: what the others are worth
    partly = [{**r, "keypoints": [value, *r["keypoints"][1:]]} for r in results]
    far = [{**r, "keypoints": [-1e6, *r["keypoints"][1:]]} for r in results]
    if value != 0:
        stats = ours(truth, partly, "keypoints").stats
        assert stats.tolist() == ours(truth, far, "keypoints").stats.tolist()


def test_only_annotations_that_count_are_looked_at():
    truth, results = small()
    last = truth.dataset["annotations"][-1]
    del last["segmentation"]
    with pytest.raises(UsageError, match=f"in 1 of 15 annotations .id {last['id']}."):
        ours(truth, results, "segm")
    others = [image for image in truth.imgs if image != last["image_id"]]
    with contextlib.redirect_stdout(io.StringIO()):
        stats = evaluate(truth, results, "segm", img_ids=others).stats
    assert 0 < stats[0] < 1
    last["category_id"] = 999
    assert 0 < ours(loaded(truth.dataset), results, "segm").stats[0] < 1
