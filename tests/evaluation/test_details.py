import contextlib
import io
import json
import math

import pytest
from detectron2.data import MetadataCatalog
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from nl_detectron.evaluation import coco, evaluate_in_detail
from nl_detectron.evaluation.details import examine_results
from tests.people_results import results_of

LEFT_OUT = {
    "no area": {"keypoints"},
    "no masks": {"segm"},
    "no boxes": {"bbox", "keypoints"},
}


@pytest.fixture(params=["hotcoco", "pycocotools"], autouse=True)
def evaluator(request, monkeypatch):
    """By which of the two the figures are computed."""
    if request.param == "pycocotools":
        monkeypatch.setattr(coco, "hotcoco", None)
    elif coco.hotcoco is None:
        pytest.skip("hotcoco is not installed: requirements/base.txt")


def test_figures_are_those_of_pycocotools(truth):
    results = results_of(truth, jitter=0.5)
    found = {task.task: task for task in evaluate_in_detail(truth, results)}
    assert set(found) == {"bbox", "segm", "keypoints"}
    for task, names in (
        ("bbox", ("AP", "AP50", "AP75", "APs", "APm", "APl")),
        ("keypoints", ("AP", "AP50", "AP75", "APm", "APl")),
    ):
        with contextlib.redirect_stdout(io.StringIO()):
            expected = COCOeval(truth, truth.loadRes(json.loads(json.dumps(results))), task)
            expected.evaluate()
            expected.accumulate()
            expected.summarize()
        assert list(found[task].overall) == list(names)
        for name, value in zip(names, expected.stats, strict=False):
            actual = found[task].overall[name]
            assert math.isnan(actual) if value == -1 else actual == pytest.approx(100 * value)
        assert found[task].per_class == {"person": pytest.approx(100 * expected.stats[0])}
        assert 20 < found[task].overall["AP"] < 95
    # The masks are the truth's own, and areas are those of the masks.
    assert found["segm"].overall["AP"] == pytest.approx(100)
    assert found["segm"].precision.shape == (10, 101, 1)


def test_quality_ranks_images(truth):
    results = results_of(truth, jitter=0)
    spoiled, missed = 3, 7
    for result in results:
        if result["image_id"] == spoiled:
            result["bbox"] = [0, 0, 2, 2]
    results = [result for result in results if result["image_id"] != missed]
    extra = next(result for result in results if result["image_id"] == 1)
    results.append({**extra, "bbox": [0, 0, 9, 9]})
    results.append({**extra, "image_id": 2, "bbox": [0, 0, 9, 9], "score": 0.3})  # not sure
    quality = evaluate_in_detail(truth, results)[0].quality
    assert set(quality) == set(range(1, 13))
    assert quality[spoiled] == quality[missed] == 0
    count = len(truth.getAnnIds(imgIds=[1]))
    assert quality[1] == pytest.approx(2 * count / (2 * count + 1))
    assert quality[2] == 1


def test_sigmas(truth):
    results = results_of(truth, jitter=1)
    strict = evaluate_in_detail(truth, results, kpt_oks_sigmas=[0.001] * 17)[-1]
    loose = evaluate_in_detail(truth, results, kpt_oks_sigmas=[0.5] * 17)[-1]
    assert strict.overall["AP"] < 5 and loose.overall["AP"] > 95


@pytest.mark.parametrize(
    "change", ["nothing", "no iscrowd", "no area", "no masks", "no boxes", "id 0", "text ids"]
)
def test_the_report_has_the_figures_of_training(truth, evaluator, change, tmp_path, log):
    """Of the same annotations, whatever they lack: by the same evaluator."""
    content = json.loads(json.dumps(truth.dataset))
    for annotation in content["annotations"]:
        if change == "no iscrowd":
            del annotation["iscrowd"]
        if change == "no area":
            del annotation["area"]
        if change == "no masks":
            annotation["segmentation"] = None
        if change == "no boxes":
            del annotation["bbox"]
    if change == "id 0":
        content["annotations"][0]["id"] = 0
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps(content))
    name = f"evaluated_in_detail_{file}"
    MetadataCatalog.get(name).set(
        json_file=str(file),
        thing_classes=["person"],
        thing_dataset_id_to_contiguous_id={1: 0},
    )
    results = results_of(truth, jitter=0.5)
    if change == "text ids":
        for item in (*content["annotations"], *results):
            item["image_id"] = f"image {item['image_id']}"
        for image in content["images"]:
            image["id"] = f"image {image['id']}"
        file.write_text(json.dumps(content))
    training = coco.COCOEvaluator(name, ("bbox", "segm", "keypoints"), distributed=False)
    training.reset()
    for image_id in dict.fromkeys(r["image_id"] for r in results):
        found = [{**r, "category_id": 0} for r in results if r["image_id"] == image_id]
        training._predictions.append({"image_id": image_id, "instances": found})
    expected = training.evaluate()
    MetadataCatalog.remove(name)
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = COCO(str(file))
    tasks = {"bbox", "segm", "keypoints"} - LEFT_OUT.get(change, set())
    assert set(expected) == tasks
    in_detail = evaluate_in_detail(loaded, results)
    assert {task.task for task in in_detail} == tasks
    lines = examine_results(loaded, results)[0].left_out.values()
    assert {line.partition(" is not evaluated")[0] for line in lines} == LEFT_OUT.get(change, set())
    assert all(line in log.text for line in lines)
    assert ("so that no AP is by size" in log.text) == (change == "no area")
    for task in in_detail:
        figures = {k: v for k, v in expected[task.task].items() if k in task.overall}
        assert figures.keys() == task.overall.keys()
        assert task.overall == pytest.approx(figures, nan_ok=True)
        assert math.isnan(task.overall["APm"]) == (change == "no area")
        assert task.overall["AP"] > 20
        assert task.per_class["person"] == task.overall["AP"]
