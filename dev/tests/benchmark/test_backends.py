"""The table of backends and precisions."""

import sys

from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor

from dev.benchmark import backends
from dev.benchmark.prediction import make_images
from dev.benchmark.table import NOT_MEASURED
from nl_detectron.engine.config import cfg_of_weights


def test_what_cannot_be_made_here_is_not_measured(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(backends, "FILES", (("torchscript", "float32"), ("openvino", "int8")))
    monkeypatch.setattr(backends, "dtypes", lambda device: ("float32",))
    monkeypatch.setitem(sys.modules, "nncf", None)
    cfg = cfg_of_weights(str(weights["shapes"]), None, ())
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(weights["shapes"])
    stock = DefaultPredictor(cfg)

    def loop(files):
        return [stock(read_image(str(file), format="BGR")) for file in files]

    table = backends.backends_table(
        loop, weights["shapes"], make_images(tmp_path, 1), size=128, seconds=0, threshold=0.1
    )
    assert [row[:2] for row in table.rows] == [
        ("DefaultPredictor", "float32"),
        ("PyTorch", "float32"),
        ("TorchScript", "float32"),
        ("OpenVINO", "int8"),
    ]
    assert table.rows[0][3] == table.rows[0][5] == "1.00"
    assert all(float(row[2]) > 0 and float(row[5]) > 0 for row in table.rows[:3])
    assert table.rows[3][2] == NOT_MEASURED
