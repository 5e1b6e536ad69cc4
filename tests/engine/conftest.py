import json

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from nl_detectron.data.builtin import register_generated
from nl_detectron.engine.launch import num_cpu_cores
from tests.gpus import needs_two_gpus

needs_two_cores = pytest.mark.skipif(
    num_cpu_cores() < 2 or torch.cuda.is_available(),
    reason="needs two CPU cores, and no CUDA device, which would be used instead",
)
# gloo, or NCCL
on_each_device = pytest.mark.parametrize(
    "device",
    [pytest.param("cpu", marks=needs_two_cores), pytest.param("cuda", marks=needs_two_gpus)],
)


@pytest.fixture
def dataset(tmp_path):
    """Registers a COCO-format dataset of an image from the content of its annotation file."""
    names = []

    def register(content: object, name: str = "test_dataset") -> str:
        json_file = tmp_path / f"{name}.json"
        text = content if isinstance(content, str) else json.dumps(content)
        json_file.write_text(text, encoding="utf-8")
        (tmp_path / "images").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "images/1.png"), np.zeros((8, 8, 3), np.uint8))
        register_coco_instances(name, {}, str(json_file), str(tmp_path / "images"))
        names.append(name)
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture(scope="session")
def small_sets(tmp_path_factory) -> dict[str, str]:
    """The names of datasets of eight images each, by kind."""
    names = {}
    for kind in ("shapes", "people"):
        names[kind] = f"small_{kind}"
        folder = tmp_path_factory.mktemp(kind)
        register_generated(names[kind], folder, kind=kind, num_images=8, seed=5)
        DatasetCatalog.get(names[kind])
    return names
