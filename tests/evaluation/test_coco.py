import contextlib
import copy
import io
import json
import logging
import math
import os
from pathlib import Path

import detectron2.evaluation
import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dev.benchmark.detections import KINDS, generate, read_predictions
from nl_detectron.evaluation import COCOEvaluator, coco, evaluate

REAL = os.environ.get("NL_DETECTRON_COCO_CCBY")  # a folder: see test_real_images.py
TASKS = {"bbox": "instances", "segm": "instances", "keypoints": "person_keypoints"}

pytestmark = pytest.mark.skipif(
    coco.hotcoco is None, reason="hotcoco is not installed: requirements/base.txt"
)


@pytest.fixture(autouse=True)
def pycocotools_in_detectron2(monkeypatch):
    """In the place of compiled code, where there is some, whose sums are rounded otherwise."""
    monkeypatch.setattr(detectron2.evaluation.coco_evaluation, "COCOeval_opt", COCOeval)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Small sets with what real ones have: crowds, images of nothing, equal scores."""
    root = tmp_path_factory.mktemp("sets")
    for kind in KINDS:
        generate(root / kind, kind, num_images=24, seed=7, num_detections=60)
        truth = json.loads((root / kind / "annotations.json").read_text())
        annotations = [a for a in truth["annotations"] if a["image_id"] not in (4, 9)]
        annotations[3]["iscrowd"] = annotations[20]["iscrowd"] = 1
        annotations[5]["ignore"] = 1  # which pycocotools does not heed
        truth |= {"annotations": annotations, "images": truth["images"][::-1]}
        (root / kind / "annotations.json").write_text(json.dumps(truth))
    return {kind: root / kind for kind in KINDS}


@pytest.fixture
def dataset():
    """Registers annotations and says under what name."""
    names = []

    def register(file: Path) -> str:
        categories = json.loads(file.read_text())["categories"]
        names.append(f"evaluated_{len(names)}")
        MetadataCatalog.get(names[-1]).set(
            json_file=str(file),
            thing_classes=[category["name"] for category in categories],
            thing_dataset_id_to_contiguous_id={c["id"]: i for i, c in enumerate(categories)},
        )
        return names[-1]

    yield register
    for name in names:
        MetadataCatalog.remove(name)


def load(folder: Path) -> tuple[COCO, list[dict]]:
    """The annotations, and the predictions of all images but two in the dataset's categories."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "annotations.json"))
    results = [result for found in read_predictions(folder) for result in found]
    results = [{**r, "category_id": r["category_id"] + 1} for r in results]
    return truth, [result for result in results if result["image_id"] not in (2, 9)]


def reference(truth: COCO, results: list[dict], task: str, **params: object) -> COCOeval:
    """By pycocotools, in the steps of Detectron2's evaluator."""
    results = copy.deepcopy(results)
    if task == "segm":
        for result in results:
            del result["bbox"]
    truth = copy.deepcopy(truth)
    limits = params.get("maxDets", [1, 10, 100])
    cls = COCOeval if limits[2] == 100 else detectron2.evaluation.coco_evaluation.COCOevalMaxDets
    with contextlib.redirect_stdout(io.StringIO()):
        expected = cls(truth, truth.loadRes(results), task)
        for name, value in params.items():
            setattr(expected.params, name, value)
        expected.evaluate()
        expected.accumulate()
        expected.summarize()
    return expected


def assert_same(actual: COCOeval, expected: COCOeval) -> None:
    np.testing.assert_array_equal(actual.stats, expected.stats)
    for name in ("precision", "recall", "scores"):
        np.testing.assert_array_equal(actual.eval[name], expected.eval[name])


@pytest.mark.parametrize("task", TASKS)
def test_figures_are_those_of_pycocotools(task, folders):
    truth, results = load(folders[TASKS[task]])
    before = copy.deepcopy(results)
    scores = [result["score"] for result in results]
    assert len(set(scores)) < len(scores) / 2  # most are equal to others
    actual, expected = evaluate(truth, results, task), reference(truth, results, task)
    assert_same(actual, expected)
    assert results == before
    assert len(actual.stats) == (10 if task == "keypoints" else 12)
    assert 0.2 < actual.stats[0] < 0.7
    assert np.isfinite(actual.stats).all() and (actual.stats > 0).all()


@pytest.mark.skipif(not REAL, reason="NL_DETECTRON_COCO_CCBY names no folder of COCO images")
@pytest.mark.parametrize("task", TASKS)
def test_figures_on_real_annotations(task):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(Path(REAL, f"{TASKS[task]}.json")))
    assert any(annotation["iscrowd"] for annotation in truth.anns.values())
    rng, results = np.random.default_rng(0), []
    for annotation in [*truth.anns.values()] * 3:
        mask = mask_util.decode(truth.annToRLE(annotation))
        moved = mask_util.encode(np.asfortranarray(np.roll(mask, rng.integers(-6, 7, 2), (0, 1))))
        result = {key: annotation[key] for key in ("image_id", "category_id")}
        result |= {"score": round(rng.uniform(), 1), "segmentation": moved}
        result |= {"bbox": (annotation["bbox"] + rng.normal(0, 5, 4)).clip(1).tolist()}
        if task == "keypoints":
            points = np.reshape(annotation["keypoints"], (17, 3)) + rng.normal(0, 3, (17, 3))
            result |= {"keypoints": points.ravel().tolist()}
        results.append(result)
    actual = evaluate(truth, results, task)
    assert_same(actual, reference(truth, results, task))
    assert 0 < actual.stats[0] < 1


@pytest.mark.parametrize("limit", [3, 30, 300])
@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_other_limits_of_detections(limit, task, folders):
    truth, results = load(folders["instances"])
    actual = evaluate(truth, results, task, max_dets_per_image=[1, 10, limit])
    assert_same(actual, reference(truth, results, task, maxDets=[1, 10, limit]))
    assert actual.params.maxDets == sorted([1, 10, limit])


def test_own_sigmas(folders):
    truth, results = load(folders["person_keypoints"])
    sigmas = np.linspace(0.02, 0.2, 17)
    actual = evaluate(truth, results, "keypoints", kpt_oks_sigmas=sigmas.tolist())
    assert_same(actual, reference(truth, results, "keypoints", kpt_oks_sigmas=sigmas))
    assert actual.stats[0] != evaluate(truth, results, "keypoints").stats[0]


@pytest.mark.parametrize("task", TASKS)
def test_some_of_the_images(task, folders):
    truth, results = load(folders[TASKS[task]])
    ids = [11, 2, 8, 9, 8]
    expected = reference(truth, results, task, imgIds=ids)
    assert_same(evaluate(truth, results, task, img_ids=ids), expected)


@pytest.mark.parametrize("task", TASKS)
def test_without_annotations(task, folders):
    truth, results = load(folders[TASKS[task]])
    truth.dataset["annotations"] = []
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    actual = evaluate(truth, results, task)
    assert_same(actual, reference(truth, results, task))
    assert (actual.stats == -1).all()


def test_classes_that_the_annotations_have_not(folders):
    truth, results = load(folders["instances"])
    truth.dataset["categories"] = truth.dataset["categories"][2:60]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    actual = evaluate(truth, results, "bbox")
    assert_same(actual, reference(truth, results, "bbox"))
    assert actual.eval["precision"].shape[2] == 58


def test_what_cannot_be_evaluated_is_named(folders):
    truth, results = load(folders["person_keypoints"])
    with pytest.raises(ValueError, match="the annotations have not: \\[77\\]"):
        evaluate(truth, [*results, {**results[0], "image_id": 77}], "bbox")
    with pytest.raises(ValueError, match="16 in TEST.KEYPOINT_OKS_SIGMAS, 17 in predictions, 17"):
        evaluate(truth, results, "keypoints", kpt_oks_sigmas=[0.1] * 16)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluator_gives_what_detectron2_gives(kind, folders, dataset, tmp_path, log, capsys):
    file = folders[kind] / "annotations.json"
    found = {}
    for name, build in (
        ("ours", COCOEvaluator),
        ("pycocotools", lambda *a, **k: COCOEvaluator(*a, use_fast_impl=False, **k)),
        ("detectron2", detectron2.evaluation.COCOEvaluator),
    ):
        folder = tmp_path / name
        evaluator = build(dataset(file), output_dir=str(folder))
        evaluator.reset()
        for results in read_predictions(folders[kind]):
            image_id = results[0]["image_id"]
            evaluator._predictions.append({"image_id": image_id, "instances": results})
        found[name] = evaluator.evaluate()
        saved = json.loads((folder / "coco_instances_results.json").read_text())
        assert len(saved) == 24 * 60
        progress = capsys.readouterr().err
        assert ("evaluating bbox: 100%" in progress) == (name == "ours")
    tasks = {"bbox", "segm"} if kind == "instances" else {"bbox", "keypoints"}
    assert set(found["ours"]) == tasks
    np.testing.assert_equal(found["ours"], found["detectron2"])  # NaN, too
    np.testing.assert_equal(found["pycocotools"], found["detectron2"])
    if kind == "instances":
        assert len(found["ours"]["segm"]) == 6 + 80
    assert "COCO evaluation by hotcoco 1." in log.text


def test_no_detections(folders, dataset):
    evaluator = COCOEvaluator(
        dataset(folders["instances"] / "annotations.json"), ("bbox", "segm"), distributed=False
    )
    evaluator.reset()
    assert evaluator.evaluate() == {}
    evaluator._predictions.append({"image_id": 1, "instances": []})
    figures = evaluator.evaluate()
    assert list(figures) == ["bbox", "segm"]
    assert all(math.isnan(value) for task in figures.values() for value in task.values())


def test_without_hotcoco(folders, dataset, monkeypatch, log, capsys):
    found = []
    name = dataset(folders["instances"] / "annotations.json")
    for module in (coco.hotcoco, None):
        monkeypatch.setattr(coco, "hotcoco", module)
        evaluator = COCOEvaluator(name, distributed=False)
        evaluator.reset()
        for results in read_predictions(folders["instances"]):
            evaluator._predictions.append({"image_id": 1, "instances": results})
        found.append(evaluator.evaluate())
    np.testing.assert_equal(found[0], found[1])
    assert "pip install hotcoco" in log.text
    assert capsys.readouterr().err.count("evaluating bbox:   0%") == 1


def test_annotation_id_0_is_left_to_pycocotools(folders, dataset, tmp_path, log):
    truth = json.loads((folders["instances"] / "annotations.json").read_text())
    for annotation in truth["annotations"]:
        annotation["id"] -= 1
    file = tmp_path / "from_0.json"
    file.write_text(json.dumps(truth))
    evaluator = COCOEvaluator(dataset(file), ("bbox",), distributed=False)
    assert any(
        record.levelno == logging.WARNING and "An annotation has id 0" in record.message
        for record in log.records
    )
    evaluator.reset()
    for results in read_predictions(folders["instances"]):
        evaluator._predictions.append({"image_id": 1, "instances": results})
    official = detectron2.evaluation.COCOEvaluator(dataset(file), ("bbox",), distributed=False)
    official._predictions = copy.deepcopy(evaluator._predictions)
    np.testing.assert_equal(evaluator.evaluate(), official.evaluate())
