"""Trains and measures: one run in a process of its own, and many of them side by side."""

import contextlib
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import detectron2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from pycocotools import mask as mask_util

from ..checkpoint.writing import replacing
from ..data.generate import VERSION
from ..engine import Trainer, UsageError
from ..engine.launch import num_cpu_cores
from ..model_zoo import get_config_file
from ..visualization import read_metrics
from .variants import CONFIG, DIFFICULTIES, build_cfg, options

RESULT = "result.json"


@dataclass(frozen=True)
class Run:
    """One training: a variant on a difficulty of far_cue with a seed, and config overrides."""

    difficulty: str
    variant: str
    seed: int
    opts: tuple[str, ...] = ()

    def folder(self, output: Path) -> Path:
        return output / self.difficulty / self.variant / f"seed_{self.seed}"

    def weights(self, output: Path) -> Path:
        return self.folder(output) / "model_final.pth"

    def cfg(self, output: Path) -> CfgNode:
        cfg = build_cfg(self.variant, self.difficulty, self.seed)
        cfg.merge_from_list(list(self.opts))
        cfg.OUTPUT_DIR = str(self.folder(output))
        return cfg

    def fingerprint(self) -> str:
        """By which a result is known to be of these settings."""
        config = Path(get_config_file(CONFIG)).read_text(encoding="utf-8")
        settings = options(self.variant, self.difficulty, self.seed)
        text = json.dumps([VERSION, config, settings, self.opts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def result(self, output: Path) -> dict | None:
        """What an earlier run with these very settings has found, if there is one."""
        try:
            result = json.loads((self.folder(output) / RESULT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return result if result.get("fingerprint") == self.fingerprint() else None


def is_target(class_name: str) -> bool:
    """Whether a class of far_cue is one of targets, not of keys."""
    return class_name.startswith("target")


def target_accuracy(truth: dict, detections: Iterable[dict]) -> tuple[float, float]:
    """Whether a target's answer is told rightly, where the target is found at all.

    A target is found by the detection with the highest score among those of the target classes
    that overlap it by an IoU of at least 0.5. The answer, a or b, in that one's class counts.

    Args:
        truth: the annotations, in COCO's format.
        detections: COCO's results, as in Detectron2's ``coco_instances_results.json``.

    Returns:
        The fraction of found targets that are told rightly (NaN without any), and the fraction of
        targets that are found.
    """
    names = {category["id"]: category["name"] for category in truth["categories"]}
    answers = {i: name[-1] for i, name in names.items() if is_target(name)}
    by_image = defaultdict(list)
    for detection in detections:
        if detection["category_id"] in answers:
            by_image[detection["image_id"]].append(detection)
    targets = [a for a in truth["annotations"] if a["category_id"] in answers]
    told = []
    for target in targets:
        candidates = by_image[target["image_id"]]
        boxes = np.array([d["bbox"] for d in candidates], np.float64).reshape(-1, 4)
        ious = np.ravel(mask_util.iou(boxes, np.array([target["bbox"]], np.float64), [0]))
        hits = [d for d, iou in zip(candidates, ious, strict=True) if iou >= 0.5]
        if hits:
            best = max(hits, key=lambda d: d["score"])
            told.append(answers[best["category_id"]] == answers[target["category_id"]])
    accuracy = float(np.mean(told)) if told else float("nan")
    return accuracy, len(told) / max(len(targets), 1)


def train_and_measure(run: Run, output: Path) -> dict:
    """Trains one model on one core, evaluates it and writes ``result.json`` into its folder."""
    torch.set_num_threads(1)
    cfg, folder = run.cfg(output), run.folder(output)
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
    folder.mkdir(parents=True)
    start = time.process_time()  # which does not count what others do on this core
    with (
        open(folder / "console.txt", "w", encoding="utf-8") as console,
        contextlib.redirect_stdout(console),
        contextlib.redirect_stderr(console),
    ):
        setup_logger(cfg.OUTPUT_DIR, name=detectron2.__name__, configure_stdout=False)
        seed_all_rng(cfg.SEED)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.train()
    for handler in logging.getLogger(detectron2.__name__).handlers[:]:
        logging.getLogger(detectron2.__name__).removeHandler(handler)
    setup_logger.cache_clear()  # the next run in this process has a log of its own

    detections = json.loads((folder / "inference/coco_instances_results.json").read_text())
    truth = json.loads(Path(MetadataCatalog.get(cfg.DATASETS.TEST[0]).json_file).read_text())
    accuracy, found = target_accuracy(truth, detections)
    curve = read_curve(folder / "metrics.json", [c["name"] for c in truth["categories"]])
    result = {
        "fingerprint": run.fingerprint(),
        "target_accuracy": 100 * accuracy,
        "targets_found": 100 * found,
        "target_AP": curve[-1][1],
        "key_AP": curve[-1][2],
        "seconds": time.process_time() - start,
        "curve": curve,
    }
    with replacing(str(folder / RESULT)) as temporary:
        Path(temporary).write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result


def read_curve(metrics_file: Path, class_names: Sequence[str]) -> list[tuple[int, float, float]]:
    """Iteration, target AP and key AP (means over classes, in percent) of each evaluation.

    Where a model predicts nothing, COCO's AP is NaN; here it is 0.
    """
    targets = [name for name in class_names if is_target(name)]
    keys = [name for name in class_names if not is_target(name)]

    def mean(record: dict, names: Sequence[str]) -> float:
        return float(np.nan_to_num([record[f"bbox/AP-{name}"] for name in names]).mean())

    evaluated = [r for r in read_metrics(metrics_file) if f"bbox/AP-{keys[0]}" in r]
    return [(r["iteration"], mean(r, targets), mean(r, keys)) for r in evaluated]


def run_all(runs: Sequence[Run], output: Path, *, workers: int | None = None) -> None:
    """Does all runs that have no result yet, some at a time, each on one core, in the given order.

    Args:
        runs: what to do.
        output: folder for all results.
        workers: runs at a time; by default one for each core.
    """
    missing = [run for run in runs if run.result(output) is None]
    print(f"{len(runs) - len(missing)} of {len(runs)} runs are done already", flush=True)
    for task in (DIFFICULTIES[name] for name in dict.fromkeys(run.difficulty for run in missing)):
        for name in (*task.train, task.test):  # generated here, once, with its own progress bar
            DatasetCatalog.get(name)
    workers = min(workers or num_cpu_cores(), max(len(missing), 1))
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes to come, which share the cores
    start, done = time.time(), 0
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=spawn)
    try:
        futures = {pool.submit(train_and_measure, run, output): run for run in missing}
        while futures:
            finished, _ = wait(futures, return_when=FIRST_COMPLETED)
            for future in finished:
                run = futures.pop(future)
                try:
                    result = future.result()
                except Exception as error:
                    folder = run.folder(output)
                    raise UsageError(f"the run in {folder} failed: {error!r}") from error
                done += 1
                left = (time.time() - start) / done * len(futures)
                print(
                    f"[{done}/{len(missing)}] {run.difficulty} {run.variant} seed {run.seed}: "
                    f"target accuracy {result['target_accuracy']:.1f} %, target AP "
                    f"{result['target_AP']:.1f}, key AP {result['key_AP']:.1f}, "
                    f"{result['seconds']:.0f} s; ETA {timedelta(seconds=round(left))}",
                    flush=True,
                )
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    pool.shutdown()
