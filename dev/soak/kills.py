"""Trainings killed at chosen moments and resumed, compared bit by bit with one never stopped.

    python -m dev.soak.kills FOLDER [long | short | cuda | two_gpus]

prints a table as JSON, a row for each training.
"""

import json
import math
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nl_detectron.data import generate
from nl_detectron.engine.metrics import TIMES

from . import moments as at
from .row import Row

ROOT = Path(__file__).parents[2]
YAML = ROOT / "configs/quick_schedules/mask_rcnn_shapes_nl.yaml"
ITERATIONS, CHECKPOINTS, EVALUATIONS = 8, 2, 3  # so that both come after iteration 5, from 0
NARROW = {
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "MODEL.DEVICE": "cpu",
    "TEST.DETECTIONS_PER_IMAGE": 5,
    "INPUT.MIN_SIZE_TRAIN": "(64,72,80)",
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.MAX_ITER": ITERATIONS,
    "SOLVER.CHECKPOINT_PERIOD": CHECKPOINTS,
    "TEST.EVAL_PERIOD": EVALUATIONS,
}
# A narrow Mask R-CNN on the CPU, which is then to be told its data and its iterations
NARROW_LAZY = """
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.resnet import BottleneckBlock, ResNet

from nl_detectron import model_zoo

zoo = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_nl_1x.py")
dataloader, lr_multiplier, model = zoo.dataloader, zoo.lr_multiplier, zoo.model
optimizer, train = zoo.optimizer, zoo.train
del zoo

for loader in (dataloader.train, dataloader.test):
    loader.mapper.augmentations[0].short_edge_length = 64
    loader.num_workers = 0
del loader
dataloader.train.mapper.instance_mask_format = "bitmask"
model.backbone.bottom_up.freeze_at = 0
model.backbone.bottom_up.stem.update(out_channels=16, norm="BN")
model.backbone.bottom_up.stages = [
    L(ResNet.make_stage)(
        block_class=BottleneckBlock,
        num_blocks=num_blocks,
        stride_per_block=[stride] + [1] * (num_blocks - 1),
        in_channels=max(16, channels // 2),
        out_channels=channels,
        bottleneck_channels=channels // 4,
        norm="BN",
    )
    for num_blocks, stride, channels in ((3, 1, 16), (4, 2, 32), (6, 2, 64), (3, 2, 128))
]
model.backbone.out_channels = model.proposal_generator.head.in_channels = 16
model.roi_heads.box_head.input_shape = ShapeSpec(channels=16, height=7, width=7)
model.roi_heads.box_head.fc_dims = [32, 32]
model.roi_heads.box_predictor.input_shape = ShapeSpec(channels=32)
model.roi_heads.mask_head.input_shape = ShapeSpec(channels=16, width=14, height=14)
model.roi_heads.mask_head.conv_dims = [16] * 5
model.roi_heads.batch_size_per_image = 16
model.roi_heads.box_predictor.test_score_thresh = 0.0
model.proposal_generator.post_nms_topk = (50, 50)
optimizer.lr = 0.001
train.init_checkpoint = ""
"""
LAZY = f"""{NARROW_LAZY}
dataloader.train.total_batch_size = 4
model.roi_heads.box_predictor.test_topk_per_image = 5
train.update(max_iter={ITERATIONS}, eval_period={EVALUATIONS}, seed=1)
train.checkpointer.period = {CHECKPOINTS}
"""
# As in docs/reliability.md
DETERMINISTIC = """
import torch

torch.use_deterministic_algorithms(True, warn_only=True)  # the log names what cannot be
torch.backends.cudnn.benchmark = False
"""


@dataclass(frozen=True)
class Case:
    """A training, and when it is killed, each time after it has been resumed."""

    kills: Sequence[tuple[Callable[[int], None], int]]
    tool: str = "train_net"
    options: dict[str, Any] = field(default_factory=dict)
    processes: int = 1

    @property
    def name(self) -> str:
        moments = [f"{kill.__name__.replace('_', ' ')}, {i}" for kill, i in self.kills]
        return "; ".join(moments)


LONG = (
    Case([(at.in_the_forward_pass, 4)]),
    Case([(at.in_the_forward_pass, 1)]),  # before the first checkpoint
    Case([(at.in_the_backward_pass, 6)]),
    Case([(at.checkpoint_half_written, 3)]),
    Case([(at.checkpoint_not_renamed, 3)]),
    Case([(at.checkpoint_not_yet_last, 3)]),
    Case([(at.evaluation_half_done, 2)]),
    Case([(at.evaluation_half_done, 5)]),
    Case([(at.evaluation_done, 5)]),
    Case([(at.evaluation_not_written, 5)]),
    Case([(at.in_the_forward_pass, 6)]),  # after an evaluation that is not to be made up for
    Case([(at.evaluation_half_done, ITERATIONS)]),
    Case([(at.evaluation_done, ITERATIONS)]),
    Case([(at.in_the_backward_pass, 4), (at.evaluation_done, 5), (at.evaluation_half_done, 5)]),
)
VARIANTS: tuple[dict[str, Any], ...] = (
    {"DATALOADER.NUM_WORKERS": 2},
    {"SOLVER.ACCUMULATE": 2, "MODEL_EMA.ENABLED": True, "DATALOADER.NUM_WORKERS": 1},
    {"DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler", "DATALOADER.REPEAT_THRESHOLD": 1.0},
    {"DATALOADER.ASPECT_RATIO_GROUPING": False, "SOLVER.OPTIMIZER": "SGD"},
)
TWICE = [(at.in_the_forward_pass, 3), (at.evaluation_half_done, 5)]
VARIED = (
    *(Case(TWICE, options=options) for options in VARIANTS),
    Case([(at.evaluation_done, 5)], options={"SEED": -1}),
    Case(TWICE, processes=2),
    # which ends early after iteration 1, in the evaluation that follows
    Case(
        [(at.evaluation_half_done, 1), (at.evaluation_done, 2)],
        options={"TEST.EARLY_STOPPING_PATIENCE": 1, "TEST.EVAL_PERIOD": 1},
    ),
)
LAZILY = tuple(
    Case(kills, "lazyconfig_train_net", {"dataloader.train.num_workers": workers})
    for workers in (0, 2)
    for kills in ([(at.in_the_backward_pass, 4)], [(at.evaluation_done, 5)], TWICE)
)
SHORT = (
    Case([(at.in_the_backward_pass, 4), (at.evaluation_done, 5)], options=VARIANTS[0]),
    Case([(at.checkpoint_half_written, 3), (at.evaluation_half_done, ITERATIONS)]),
    LAZILY[2],
)
ON_CUDA = {"MODEL.DEVICE": "cuda"}
CUDA = (
    Case([], options=ON_CUDA),  # of the kernels alone: the same once more
    Case(TWICE, options={**ON_CUDA, "DATALOADER.NUM_WORKERS": 2}),
    Case(TWICE, options={**ON_CUDA, "SOLVER.AMP.ENABLED": True}),
)
TWO_GPUS = (
    Case([], options=ON_CUDA, processes=2),
    Case(TWICE, options=ON_CUDA, processes=2),
    Case(TWICE, options={**ON_CUDA, "MODEL.FPN.NORM": "SyncBN"}, processes=2),
)
CASES = {"long": (*LONG, *VARIED, *LAZILY), "short": SHORT, "cuda": CUDA, "two_gpus": TWO_GPUS}


def rows(*, short: bool) -> Iterator[Row]:
    """A row for each training, from a process of its own."""
    found: list[dict[str, Any]] = []
    gpus = ("cuda", "two_gpus")[: torch.cuda.device_count()]
    for cases in ("short" if short else "long", *gpus):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", __name__, folder, cases]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
        found += json.loads(done.stdout)
    for row in found:
        options = ", ".join(f"{key} {value}" for key, value in row["options"].items())
        options += f"{row['processes']} processes" * (row["processes"] > 1)
        killed = f"killed {row['case']}" + (f"; {options}" if options else "")
        figures = "equal bit for bit" if row["equal"] else f"differs in {row['differs']}"
        yield Row(f"{row['tool']}, {killed}", row["killed"], row["equal"], figures)


def kill_and_compare(folder: Path, cases: Sequence[Case]) -> list[dict]:
    """A row for each case: its name and settings, ``killed``, ``equal``, ``differs``.

    Args:
        folder: an empty one, for the data and the runs.
    """
    data = _datasets(folder)
    straight: dict[str, Path] = {}
    rows = []
    for number, case in enumerate(cases):
        # The number of workers changes nothing, so one straight run serves them all.
        options = {k: v for k, v in case.options.items() if "workers" not in k.lower()}
        key = f"{case.tool} {options} {case.processes}"
        of_all = ["--num-gpus", str(case.processes)]
        if key not in straight:
            straight[key] = folder / f"straight_{len(straight)}"
            _expect(0, _run(folder, case.tool, options, straight[key], data, of_all))
        output = folder / f"killed_{number}"
        killed = 0
        if options.get("SEED") == -1:  # no other run is the same: this one goes on from its middle
            shutil.copytree(straight[key], output)
            (output / "last_checkpoint").write_text("model_0000003.pth")
        for done, kill in enumerate(case.kills):
            flags = [*of_all, *["--resume"] * (done > 0 or output.exists())]
            code = _run(folder, case.tool, case.options, output, data, flags, kill)
            killed += code == (-signal.SIGKILL if case.processes == 1 else 1)
        _expect(0, _run(folder, case.tool, case.options, output, data, [*of_all, "--resume"]))
        differs = differences(straight[key], output)
        row: dict[str, object]
        row = {"case": case.name, "tool": case.tool, "options": case.options}
        row |= {"processes": case.processes, "killed": killed}
        rows.append(row | {"equal": not differs, "differs": differs[:5]})
    return rows


def differences(one: Path, other: Path) -> list[str]:
    """Where two runs' weights, states and figures are not the same, bit for bit."""
    found = list(_differences(_load(one), _load(other)))
    found += _differences(_records(one), _records(other), "metrics")
    return found + _differences(_best(one), _best(other), "best")


def _differences(one: Any, other: Any, where: str = "") -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [k for k in {**one, **other} if k not in TIMES]
        missing = object()
        pairs = [(one.get(k, missing), other.get(k, missing), f"{where}/{k}") for k in keys]
        return [difference for pair in pairs for difference in _differences(*pair)]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = [(a, b, f"{where}/{i}") for i, (a, b) in enumerate(zip(one, other, strict=True))]
        return [difference for pair in pairs for difference in _differences(*pair)]
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        equal = torch.equal(one, other)
    else:
        both_nan = all(isinstance(v, float) and math.isnan(v) for v in (one, other))
        equal = both_nan or (type(one) is type(other) and one == other)
    return [] if equal else [where]


def _load(run: Path) -> dict[str, Any]:
    content = torch.load(run / "model_final.pth", map_location="cpu", weights_only=True)
    content.pop("config", None)  # which holds the folder
    content["trainer"]["hooks"]["ExactResume"].pop("settings")
    return content


def _best(run: Path) -> dict[str, Any]:
    file = run / "model_best.json"
    return json.loads(file.read_text()) if file.exists() else {}


def _records(run: Path) -> dict[int, dict[str, Any]]:
    file = run / "metrics.json"
    records: dict[int, dict[str, Any]] = {}
    for line in file.read_text().splitlines():
        record = json.loads(line, parse_constant=_no_json)
        assert record["iteration"] not in records, f"{file} has {record['iteration']} twice"
        records[record["iteration"]] = record
    return records


def _no_json(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _datasets(folder: Path) -> list[str]:
    """Words of the command line: two sets to train on, of wide and of high images, and one more."""
    words = []
    for name, size, num_images in (
        ("wide_train", (64, 96), 7),
        ("high_train", (96, 64), 6),
        ("val", (64, 96), 3),
    ):
        file = generate(folder / name, kind="shapes", num_images=num_images, seed=1, size=size)
        words += ["--dataset", name, str(file), str(file.parent / "images")]
    (folder / "lazy.py").write_text(LAZY)
    (folder / "deterministic.py").write_text(DETERMINISTIC)
    return words


def _run(
    folder: Path,
    tool: str,
    options: dict[str, Any],
    output: Path,
    data: list[str],
    flags: Sequence[str],
    kill: tuple[Callable[[int], None], int] | None = None,
) -> int:
    """Runs a tool in a process of its own; returns its exit code."""
    if tool == "train_net":
        opts = NARROW | options | {"OUTPUT_DIR": output}
        words = [str(word) for pair in opts.items() for word in pair]
        config = str(YAML)
    else:
        words = [f"{key}={value}" for key, value in options.items()]
        words += [f"train.output_dir={output}", "train.device=cpu"]
        config = str(folder / "lazy.py")
    if kill is not None and flags[:2] != ["--num-gpus", "1"]:  # in the processes that it starts
        file = folder / "kill.py"
        file.write_text(f"from {at.__name__} import {kill[0].__name__} as at\nat({kill[1]})\n")
        flags, kill = [*flags, "--import", str(file)], None
    on_cuda = options.get("MODEL.DEVICE") == "cuda"
    if on_cuda:
        flags = [*flags, "--import", str(folder / "deterministic.py")]
    call = [str(ROOT / f"tools/{tool}.py"), "--config-file", config, *data, *flags, *words]
    # Forked, for which no thread may have been started here: it spares it all the imports. CUDA
    # does not work in a fork.
    make: Any = multiprocessing.get_context("spawn" if on_cuda else "fork")
    process = make.Process(target=_call, args=(call, f"{output}.txt", kill))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _call(call: list[str], log: str, kill: tuple[Callable[[int], None], int] | None) -> None:
    sys.stdout = sys.stderr = open(log, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
    for number in (1, 2):  # also of the processes that it starts
        os.dup2(sys.stdout.fileno(), number)
    sys.argv = call
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for deterministic kernels
    torch.set_num_threads(1)
    if kill is not None:
        kill[0](kill[1])
    runpy.run_path(call[0], run_name="__main__")


def _expect(code: int, actual: int) -> None:
    if code != actual:
        raise RuntimeError(f"a training ended with exit code {actual}")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    where, which = Path(sys.argv[1]), (*sys.argv[2:], "long")[0]
    print(json.dumps(kill_and_compare(where, CASES[which]), indent=1))
