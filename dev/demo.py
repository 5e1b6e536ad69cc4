"""The demo: trains, evaluates and pictures a small model on each generated dataset.

python dev/demo.py [--output output/demo] [KEY VALUE ...]
"""

import argparse
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from detectron2.data import DatasetCatalog
from tabulate import tabulate

from nl_detectron.engine import check_cfg, load_cfg
from nl_detectron.engine.launch import num_cpu_cores
from nl_detectron.errors import UsageError, usage_errors
from nl_detectron.files import write_image
from nl_detectron.inference import Predictor
from nl_detectron.report import find_chromium, screenshot, write_report
from nl_detectron.visualization import (
    contact_sheet,
    draw_attention_sheet,
    draw_predictions,
    plot_training_curves,
    read_metrics,
)

TRAIN_NET = Path(__file__).resolve().parents[1] / "tools/train_net.py"
CONFIGS = {
    "shapes": "quick_schedules/mask_rcnn_shapes_nl.yaml",
    "people": "quick_schedules/keypoint_rcnn_people_nl.yaml",
}
SHEET_ROWS = 4  # pictures of each model in predictions.jpg
ATTENTION_IMAGES = 16  # validation images out of which one is chosen for attention.jpg


def run_demo(
    train_net: Path, configs: Mapping[str, str], output: Path, opts: Sequence[str] = ()
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Trains all models side by side, and writes what came of it.

    ``output`` then holds ``metrics.json``, ``predictions.jpg`` and for each model a folder with
    Detectron2's own output, ``curves.png``, ``attention.jpg``, ``predictions/`` and
    ``report.html``, with its picture ``report.jpg`` where Chromium is installed.

    Args:
        train_net: the training script.
        configs: config files, or names of our model zoo, by the models' names.
        output: folder for all results.
        opts: ``KEY VALUE`` pairs for all models.

    Returns:
        What is in ``metrics.json``: figures by model, task ("bbox", "segm", "keypoints") and name
        ("AP", "AP50", ...), in percent; None where there is none.

    Raises:
        UsageError: if a config cannot work, or if a training fails.
    """
    start = time.time()
    cfgs, commands = {}, {}
    for name, config in configs.items():
        options = [*opts, "OUTPUT_DIR", str(output / name)]
        cfgs[name] = load_cfg(config, options)
        for file in ("metrics.json", "last_checkpoint"):  # of a demo before this one
            (output / name / file).unlink(missing_ok=True)
        check_cfg(cfgs[name])  # makes the datasets, too
        commands[name] = [sys.executable, str(train_net), "--config-file", config, *options]
    _run_side_by_side(commands, output)

    results, sheet = {}, []
    for name, cfg in cfgs.items():
        folder = output / name
        dataset = cfg.DATASETS.TEST[0]
        predictor = Predictor(folder / "model_final.pth", device=cfg.MODEL.DEVICE)
        pictures = draw_predictions(predictor, dataset, folder / "predictions", height=256)
        sheet.append(pictures[:SHEET_ROWS])
        _draw_attention(predictor, dataset, folder / "attention.jpg")
        plot_training_curves(folder / "metrics.json", folder / "curves.png", title=name)
        report = write_report(folder, folder / "report.html", device=cfg.MODEL.DEVICE)
        if find_chromium():
            with contextlib.suppress(UsageError):  # the report itself is what counts
                screenshot(report, folder / "report.jpg")
        results[name] = read_results(folder / "metrics.json")
    # One column for each model
    contact_sheet(
        [picture for row in zip(*sheet, strict=False) for picture in row],
        output / "predictions.jpg",
        columns=len(sheet),
    )
    text = json.dumps(results, indent=2, allow_nan=False)
    (output / "metrics.json").write_text(text + "\n", encoding="utf-8")
    print(f"\n{format_results(results)}\n\nDone in {time.time() - start:.0f} s. In {output}:")
    print("  metrics.json               the figures above and more")
    print("  predictions.jpg            ground truth beside predictions on validation images")
    for name in configs:
        print(f"  {name + '/':<26} what training left, predictions/, curves.png, and")
        print("    attention.jpg            what the non-local blocks relate")
        print("    report.html              all of it on a page (report.jpg if there is Chromium)")
    return results


def read_results(metrics_file: Path) -> dict[str, dict[str, float | None]]:
    """The last evaluation in a ``metrics.json`` of Detectron2, by task and figure."""
    results: dict[str, dict[str, float | None]] = {}
    for record in read_metrics(metrics_file):
        for key, value in record.items():
            task, _, figure = key.partition("/")
            if task in ("bbox", "segm", "keypoints"):
                results.setdefault(task, {})[figure] = value if math.isfinite(value) else None
    return results


def format_results(results: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> str:
    """A table with a row for each model and task, and columns AP, AP50 and AP75 in percent."""
    figures = ("AP", "AP50", "AP75")
    rows = [
        (name, task, *(values.get(figure) for figure in figures))
        for name, tasks in results.items()
        for task, values in tasks.items()
    ]
    return tabulate(rows, headers=("model", "task", *figures), floatfmt=".1f", missingval="-")


def _draw_attention(predictor: Predictor, dataset: str, file: Path) -> None:
    """Draws what the model's blocks relate on the validation image with the surest detections."""
    records = DatasetCatalog.get(dataset)[:ATTENTION_IMAGES]
    found = [predictor.attention(record["file_name"]) for record in records]
    best = max(found, key=lambda attention: attention.instances.scores.sum())
    write_image(file, draw_attention_sheet(best, predictor.metadata, max_points=2))


def _run_side_by_side(commands: Mapping[str, Sequence[str]], output: Path) -> None:
    """Runs commands at once, the cores shared out among them, and shows their progress lines."""
    threads = max(num_cpu_cores() // len(commands), 1)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    processes: dict[str, subprocess.Popen] = {}
    for name, command in commands.items():
        print(f"[{name}] {' '.join(command)}", flush=True)
        processes[name] = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
    with ThreadPoolExecutor(len(processes)) as pool:
        try:
            followers = [pool.submit(_follow, *item, output) for item in processes.items()]
            for follower in as_completed(followers):
                follower.result()
        finally:  # also when interrupted, or when one of them fails
            for process in processes.values():
                process.terminate()


def _follow(name: str, process: subprocess.Popen, output: Path) -> None:
    """Copies a training's console to a file and its progress to ours, until it ends."""
    log = output / name / "console.txt"
    with open(log, "w", encoding="utf-8") as console:
        for line in process.stdout or ():
            console.write(line)
            if "eta: " in line or "Inference done" in line:
                print(f"[{name}] {line.split(']: ', 1)[-1].strip()[:140]}", flush=True)
    if process.wait() != 0:
        raise UsageError(f"training failed for {name}; see {log}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/demo"), metavar="FOLDER")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config options for both models")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which ends the trainings, too
    with usage_errors():
        run_demo(TRAIN_NET, CONFIGS, arguments.output, arguments.opts)


if __name__ == "__main__":
    main()
