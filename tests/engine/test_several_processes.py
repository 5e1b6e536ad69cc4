"""Two processes with half the batch each are one with all of it."""

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest
import torch

from nl_detectron.data import generate
from tests.places import ROOT

from .conftest import on_each_device

SCRIPT = Path(__file__).parent / "detectors.py"
# Rounding: of a GPU, whose sums have no fixed order, it is more. Its short floats are not for this.
CLOSE = {"cpu": 1e-5, "cuda": 1e-4}
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "NVIDIA_TF32_OVERRIDE": "0"}


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, Path]:
    """By kind, an annotation file of four images with two objects each, in a folder with them."""
    files = {}
    for kind in ("shapes", "people"):
        source = generate(tmp_path_factory.mktemp(kind), kind=kind, num_images=16, seed=5)
        files[kind] = source.with_name("two_each.json")
        files[kind].write_text(json.dumps(two_each(json.loads(source.read_text()))))
    return files


@pytest.fixture
def run(python, sets, tmp_path):
    def run(kind: str, processes: int, *opts: object, options: tuple = ()) -> Path:
        """Its output folder."""
        output = tmp_path / f"{kind}{processes}{''.join(options)}"
        command = [python, SCRIPT, "--num-gpus", processes, *options, kind, sets[kind]]
        command += [sets[kind].parent / "images", "OUTPUT_DIR", output, *opts]
        result = subprocess.run(
            [str(word) for word in command],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
        assert (output / "log.txt.rank1").exists() == (processes == 2)
        return output

    return run


def two_each(content: dict) -> dict:
    """Four images with two objects each."""
    images, annotations = [], []
    for image in content["images"]:
        objects = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        if len(objects) >= 2 and len(images) < 4:
            images.append(image)
            annotations += objects[:2]
    assert len(images) == 4
    return content | {"images": images, "annotations": annotations}


@pytest.mark.slow
@on_each_device
def test_two_processes_train_a_whole_detector_as_one(run, device):
    """With masks and keypoints, and blocks in the backbone and in the keypoint head."""
    close = CLOSE[device]
    found = []
    for processes in (1, 2):
        output = run("people", processes)
        model = weights_of(output)
        figures: dict[str, float] = {}
        for line in (output / "metrics.json").read_text().splitlines():
            figures |= json.loads(line)
        found.append((model, figures))
    (one, figures), (two, others) = found
    weights = [torch.cat([t.double().flatten() for t in m.values()]) for m in (one, two)]
    assert (weights[1] - weights[0]).norm() < close * weights[0].norm()
    # What started at zero is all update: it tells half a batch from a whole one.
    started_at_zero = [name for name in one if name.endswith((".bias", ".nl4.out.weight"))]
    updates = [
        torch.cat([m[name].double().flatten() for name in started_at_zero]) for m in (one, two)
    ]
    assert updates[0].norm() > 0
    assert (updates[1] - updates[0]).norm() < 100 * close * updates[0].norm()
    losses = [name for name in figures if "loss" in name]
    assert len(losses) >= 6
    for name in losses:
        assert others[name] == pytest.approx(figures[name], rel=close), name
    for name in figures:
        if "/AP" in name:
            none = figures[name] is None  # as where there is nothing to find
            assert others[name] == (None if none else pytest.approx(figures[name], rel=close)), name


@pytest.mark.slow
@on_each_device
def test_two_machines_train_as_two_processes_of_one_do(python, sets, tmp_path, device):
    """Started one by one, with the addresses of each other, or by torchrun for each machine."""
    own = [str(word) for word in (*NARROW, "TEST.EVAL_PERIOD", 0, "DATASETS.TEST", "()")]
    data = ["shapes", str(sets["shapes"]), str(sets["shapes"].parent / "images")]
    env = {**ENVIRONMENT, "OMP_NUM_THREADS": "1"}
    weights = []
    for name in ("one", "two", "torchrun"):
        output = ["OUTPUT_DIR", str(tmp_path / name)]
        arguments = [*data, *output, *own]
        url = free_address()
        machines = ["--num-machines", "2", "--dist-url", f"tcp://{url}", "--machine-rank"]
        torchrun = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        torchrun += ["--master-addr", "127.0.0.1", "--master-port", url.split(":")[1]]
        commands = {
            "one": [[SCRIPT, "--num-gpus", "2"]],
            "two": [[SCRIPT, *machines, rank] for rank in "01"],
            "torchrun": [[*torchrun, "--node-rank", rank, SCRIPT] for rank in "01"],
        }[name]
        gpus = ["0,1"] if len(commands) == 1 else ["0", "1"]  # where there are some
        started = [
            subprocess.Popen(
                [python, *command, *arguments],
                env={**env, "CUDA_VISIBLE_DEVICES": gpu},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for command, gpu in zip(commands, gpus, strict=True)
        ]
        for process in started:
            said, _ = process.communicate(timeout=300)
            assert process.returncode == 0, said[-4000:]
        assert (tmp_path / name / "log.txt.rank1").exists()
        weights.append(weights_of(tmp_path / name))
    for name, value in weights[0].items():
        for other in weights[1:]:
            if device == "cpu":
                assert torch.equal(other[name], value), name
            else:
                torch.testing.assert_close(other[name], value, rtol=1e-3, atol=CLOSE[device])


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    file = folder / "model_final.pth"
    return torch.load(file, map_location="cpu", weights_only=True)["model"]


def free_address() -> str:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.slow
@on_each_device
def test_two_processes_evaluate_as_one(run, weights, device):
    """Boxes, masks and keypoints, with weights that find something everywhere."""
    own = QUICK_WIDTH + ("MODEL.WEIGHTS", weights["people"])
    results = []
    for processes in (1, 2):
        output = run("people", processes, *own, options=("--eval-only",))
        detections = json.loads((output / "inference/coco_instances_results.json").read_text())
        results.append(sorted(json.dumps(detection) for detection in detections))
    assert len(results[0]) == 20
    assert results[0] == results[1]


@pytest.mark.slow
@on_each_device
def test_an_evaluation_in_training_is_of_the_checkpoint(run, device):
    """Of trained norms each process has other statistics until then."""
    own = (*QUICK_WIDTH, "SOLVER.CHECKPOINT_PERIOD", 2)
    output = run("shapes", 2, *own)
    of_training = (output / "inference/coco_instances_results.json").read_text()
    checkpoint = ("MODEL.WEIGHTS", output / "model_final.pth")
    alone = run("shapes", 1, *own, *checkpoint, options=("--eval-only",))
    of_checkpoint = (alone / "inference/coco_instances_results.json").read_text()
    found = [sorted(map(json.dumps, json.loads(t))) for t in (of_training, of_checkpoint)]
    assert len(found[0]) > 0 and found[0] == found[1]


# What the weights of the fixture have
QUICK_WIDTH = ("MODEL.RESNETS.NORM", "BN", "MODEL.FPN.NORM", "BN")
QUICK_WIDTH += ("MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.RESNETS.WIDTH_PER_GROUP", 16)
QUICK_WIDTH += ("TEST.DETECTIONS_PER_IMAGE", 5, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
NARROW = ("MODEL.RESNETS.STEM_OUT_CHANNELS", 32, "MODEL.RESNETS.RES2_OUT_CHANNELS", 32)
NARROW += ("MODEL.RESNETS.WIDTH_PER_GROUP", 32, "MODEL.FPN.OUT_CHANNELS", 32)
