import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from nl_detectron.data.builtin import register_generated
from nl_detectron.engine import load_cfg
from nl_detectron.errors import UsageError
from nl_detectron.report import find_chromium, screenshot, write_report
from nl_detectron.report.page import Picture, Section, render
from tests.models import base_cfg, leave_zero_start
from tests.people_results import results_of
from tests.places import CONFIGS


@pytest.fixture(scope="module")
def run(tmp_path_factory, truth):
    """A run's folder as training and evaluation leave it; its predictions are near the truth."""
    folder = tmp_path_factory.mktemp("runs") / "a <run>"
    (folder / "inference").mkdir(parents=True)
    name = "reported"
    register_generated(name, folder.parent / "set", kind="people", num_images=12, seed=5)
    cfg = base_cfg(CONFIGS / "quick_schedules/keypoint_rcnn_people_nl.yaml")
    cfg.DATASETS.TEST = (name,)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.TEST.DETECTIONS_PER_IMAGE = 5
    torch.manual_seed(0)
    model = leave_zero_start(build_model(cfg))
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    records = [
        {"iteration": i, "total_loss": 2.0 / (i + 1), "loss_mask": 1.0 / (i + 1), "lr": 0.1}
        for i in range(0, 100, 20)
    ]
    (folder / "metrics.json").write_text("\n".join(map(json.dumps, records)))
    results = results_of(truth, jitter=1)
    (folder / "inference/coco_instances_results.json").write_text(json.dumps(results))
    yield folder
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.fixture
def copied(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copy")


def headings(text: str) -> list[str]:
    return re.findall("<h2>(.*?)</h2>", text)


@pytest.mark.slow
def test_in_a_browser(run, tmp_path, browser):
    file = write_report(run, tmp_path / "new/report.html", num_images=2)
    assert file.stat().st_size < 3_000_000
    page = browser.new_page(viewport={"width": 1000, "height": 1200})
    troubles, requests = [], []
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(file.as_uri())
    assert page.title() == "Training report: a <run>"
    # Nothing but the page itself and what is embedded in it
    assert [url for url in requests if not url.startswith("data:")] == [file.as_uri()]
    widths = page.eval_on_selector_all("img", "all => all.map(image => image.naturalWidth)")
    assert len(widths) >= 2 + 2 + 2 and min(widths) > 300
    rows = page.eval_on_selector_all(
        "tbody tr", "all => all.map(row => [...row.children].map(cell => cell.innerText))"
    )
    assert [row[0] for row in rows] == ["bbox", "segm", "keypoints", "person"]
    assert rows[1][1] == "100.0" and rows[3][2] == "100.0"
    assert 0 < float(rows[0][1]) < 100
    shot = cv2.imdecode(np.frombuffer(page.screenshot(full_page=True), np.uint8), cv2.IMREAD_COLOR)
    assert shot.shape[0] > 3000 and shot.std() > 20
    # The page scrolls down, not to the side.
    assert page.evaluate("document.documentElement.scrollWidth") <= 1000
    assert troubles == []
    page.close()


@pytest.mark.slow
def test_what_is_in_it(run, tmp_path):
    text = write_report(run, tmp_path / "report.html", num_images=1).read_text()
    assert headings(text) == [
        "Training",
        "Evaluation",
        "AP by class",
        "Precision and recall",
        "Errors",
        "Best images",
        "Worst images",
        "Attention",
        "Config and versions",
    ]
    assert "MODEL:\n" in text and "torch" in text and "a &lt;run&gt;" in text
    assert not re.search(r'(src|href)="(?!data:)', text) and "<script" not in text


def test_a_task_that_the_truth_does_not_allow_is_said(run, tmp_path):
    name = load_cfg(run / "config.yaml").DATASETS.TEST[0]
    DatasetCatalog.get(name)  # makes it
    file = Path(MetadataCatalog.get(name).json_file)
    whole = file.read_text()
    content = json.loads(whole)
    del content["annotations"][0]["segmentation"]
    file.write_text(json.dumps(content))
    try:
        text = write_report(run, tmp_path / "report.html", num_images=1).read_text()
    finally:
        file.write_text(whole)
    assert "segm is not evaluated: no mask in 1 of" in text and "<td>keypoints</td>" in text
    assert "<td>segm</td>" not in text


def test_the_best_checkpoint_is_named(copied, tmp_path):
    (copied / "model_final.pth").rename(copied / "model_best.pth")
    record = {"metric": "bbox/AP", "value": 41.234, "iteration": 60, "evaluations_since": 1}
    (copied / "model_best.json").write_text(json.dumps(record))
    text = write_report(copied, tmp_path / "report.html", num_images=1).read_text()
    assert "The best checkpoint is model_best.pth: bbox/AP 41.23 at iteration 60." in text


def test_nothing_that_a_text_holds_is_markup():
    evil = "<script>alert(1)</script>"
    section = Section(
        evil,
        evil,
        evil,
        [evil],
        [[evil], [float("nan")]],
        [Picture(evil, 1, 1, evil)],
        [[evil] * 2],
    )
    page = render(evil, evil, [section])
    assert "<script" not in page and page.count("&lt;script&gt;") == 13
    assert "<td>–</td>" in page


def test_stays_below_the_size(run, tmp_path):
    large = write_report(run, tmp_path / "large.html", num_images=2).stat().st_size
    small = write_report(run, tmp_path / "small.html", num_images=2, max_bytes=large // 2)
    assert small.stat().st_size <= large // 2


def test_what_a_run_lacks_is_said(copied, tmp_path):
    (copied / "model_final.pth").unlink()
    (copied / "inference/coco_instances_results.json").write_text("[]")
    text = write_report(copied, tmp_path / "report.html").read_text()
    assert "The model found nothing in the 12 images" in text and "There are no weights" in text
    shutil.rmtree(copied / "inference")
    text = write_report(copied, tmp_path / "report.html").read_text()
    assert "There are no predictions" in text and "--eval-only" in text
    assert headings(text) == ["Training", "Evaluation", "Attention", "Config and versions"]


@pytest.mark.parametrize("missing", ["config.yaml", "metrics.json"])
def test_a_folder_without_a_run(copied, missing, tool):
    (copied / missing).unlink()
    code, _, err = tool("report", copied)
    assert code == 2 and f"it has no {missing}; give its OUTPUT_DIR" in err


def test_predictions_of_another_dataset(copied):
    file = copied / "inference/coco_instances_results.json"
    results = json.loads(file.read_text())
    file.write_text(json.dumps([{**results[0], "image_id": 99}]))
    with pytest.raises(UsageError, match="image 99, which is not in reported"):
        write_report(copied, copied / "report.html")


def test_the_tool_and_its_screenshot(run, tmp_path, tool):
    if find_chromium() is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    picture, file = tmp_path / "shot.jpg", tmp_path / "report.html"
    code, out, err = tool(
        "report", run, "--output", file, "--num-images", 1, "--screenshot", picture
    )
    assert code == 0 and str(file) in out, err
    image = cv2.imread(str(picture))
    assert image.shape == (1500, 1100, 3) and image.std() > 20


def test_a_screenshot_without_a_browser(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="needs one of chromium"):
        screenshot(tmp_path / "page.html", tmp_path / "shot.png")
