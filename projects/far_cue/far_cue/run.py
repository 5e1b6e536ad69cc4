"""Trains and measures: one run in a process of its own, and many of them side by side."""

import contextlib
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import detectron2
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from nl_detectron import Predictor
from nl_detectron.engine.launch import num_cpu_cores
from nl_detectron.errors import UsageError
from nl_detectron.files import replacing

from .datasets import VERSION
from .tasks import TASKS
from .training import BalancedTrainer
from .variants import build_cfg, options, variants_of

RESULT = "result.json"

# By variant, those of several seeds each
Results = Mapping[str, Sequence[Mapping]]


@dataclass(frozen=True)
class Run:
    """One training: a variant on a task with a seed, and config overrides."""

    task: str
    variant: str
    seed: int
    opts: tuple[str, ...] = ()

    def folder(self, output: Path) -> Path:
        return output / self.task / self.variant / f"seed_{self.seed}"

    def weights(self, output: Path) -> Path:
        return self.folder(output) / "model_final.pth"

    def cfg(self, output: Path) -> CfgNode:
        cfg = build_cfg(self.variant, self.task, self.seed)
        cfg.merge_from_list(list(self.opts))
        cfg.OUTPUT_DIR = str(self.folder(output))
        return cfg

    def predictor(self, output: Path) -> Predictor:
        """The trained model, on the CPU."""
        return Predictor(self.weights(output), self.cfg(output), device="cpu")

    def fingerprint(self) -> str:
        """By which a result is known to be of these settings."""
        config = TASKS[self.task].config.read_text(encoding="utf-8")
        settings = options(self.variant, self.task, self.seed)
        text = json.dumps([VERSION, config, settings, self.opts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def result(self, output: Path) -> dict | None:
        """What an earlier run with these very settings has found, if there is one."""
        try:
            result = json.loads((self.folder(output) / RESULT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return result if result.get("fingerprint") == self.fingerprint() else None


def read_results(output: Path, task: str, seeds: Sequence[int]) -> Results:
    """The results that are there, of these seeds and of the variants as they are now."""
    return {
        variant: [result for seed in seeds if (result := Run(task, variant, seed).result(output))]
        for variant in variants_of(task)
    }


def first_trained(
    output: Path, task: str, variants: Sequence[str], seeds: Sequence[int]
) -> Run | None:
    """The first run with a result and weights, of the first variant that has one."""
    runs = [Run(task, variant, seed) for variant in variants for seed in seeds]
    return next((run for run in runs if run.result(output) and run.weights(output).exists()), None)


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
        trainer = BalancedTrainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.train()
    for handler in logging.getLogger(detectron2.__name__).handlers[:]:
        logging.getLogger(detectron2.__name__).removeHandler(handler)
    setup_logger.cache_clear()  # the next run in this process has a log of its own

    detections = json.loads((folder / "inference/coco_instances_results.json").read_text())
    truth = json.loads(Path(MetadataCatalog.get(cfg.DATASETS.TEST[0]).json_file).read_text())
    measure = TASKS[run.task].measure
    result = {
        "fingerprint": run.fingerprint(),
        **measure.read(truth, detections, folder / "metrics.json"),
        "seconds": time.process_time() - start,
    }
    with replacing(folder / RESULT) as temporary:
        Path(temporary).write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result


def run_all(runs: Sequence[Run], output: Path, *, workers: int | None = None) -> None:
    """Does all runs that have no result yet, some at a time, each on one core, in the given order.

    Args:
        runs: what to do.
        output: folder for all results.
        workers: runs at a time; by default one for each core.
    """
    missing = [run for run in runs if run.result(output) is None]
    print(f"{len(runs) - len(missing)} of {len(runs)} runs are done already", flush=True)
    for task in (TASKS[name] for name in dict.fromkeys(run.task for run in missing)):
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
                    f"[{done}/{len(missing)}] {run.task} {run.variant} seed {run.seed}: "
                    f"{_summary(run, result)}; ETA {timedelta(seconds=round(left))}",
                    flush=True,
                )
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.kill()  # a trainer that is asked to end would, and the next run begin
        raise
    pool.shutdown()


def _summary(run: Run, result: dict) -> str:
    """The figures of a result in one line, such as "target AP 31.5"."""
    columns = TASKS[run.task].measure.columns
    names = {key: title.partition(", ") for title, key in columns.items()}
    return ", ".join(
        f"{name} {result[key]:.1f} {unit}".rstrip() for key, (name, _, unit) in names.items()
    )
