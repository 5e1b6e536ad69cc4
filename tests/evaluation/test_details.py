import contextlib
import io
import json
import math

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from nl_detectron.evaluation import coco, evaluate_in_detail
from tests.people_results import results_of


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


def test_what_training_evaluates_the_report_does(truth, evaluator):
    """Without iscrowd and area, which hotcoco needs not; and with an annotation of id 0."""
    results = results_of(truth, jitter=0.5)
    expected = evaluate_in_detail(truth, results)
    bare = COCO()
    bare.dataset = json.loads(json.dumps(truth.dataset))
    if coco.hotcoco is None:
        bare.dataset["annotations"][0]["id"] = 0
    else:
        for annotation in bare.dataset["annotations"]:
            del annotation["iscrowd"]
    with contextlib.redirect_stdout(io.StringIO()):
        bare.createIndex()
    found = evaluate_in_detail(bare, results)
    for one, other in zip(found, expected, strict=True):
        assert one.quality == other.quality or coco.hotcoco is None
        assert one.per_class.keys() == other.per_class.keys()
        assert one.overall["AP"] == other.overall["AP"] or coco.hotcoco is None
