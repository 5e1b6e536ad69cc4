"""The suppression that is recorded is the one that is run."""

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import boxes as box_ops

from nl_detectron.export.nms import recordable_nms

from .formats import needs

pytestmark = pytest.mark.filterwarnings("ignore")
THRESHOLD = 0.5


class Suppression(nn.Module):
    def forward(self, boxes, scores, classes):
        return box_ops.batched_nms(boxes, scores, classes, THRESHOLD)


def candidates(count: int, *, size: float = 1333.0):
    """Pairs of boxes whose overlap is the threshold within 1e-5, of up to 80 classes."""
    generator = torch.Generator().manual_seed(count)
    corners = torch.rand(count // 2, 2, generator=generator) * (size - 40)
    sizes = torch.rand(count // 2, 2, generator=generator) * 30 + 8
    shares = THRESHOLD + (torch.rand(count // 2, generator=generator) - 0.5) * 2e-5
    first = torch.cat([corners, corners + sizes], 1)
    second = first.clone()
    second[:, 2] = first[:, 0] + sizes[:, 0] * shares  # within the first: the share is the overlap
    boxes = torch.cat([first, second])
    classes = torch.randint(80, (count // 2,), generator=generator).repeat(2)
    scores = torch.randn(count, generator=generator)  # as logits, the lower ones negative
    return boxes, scores, classes


def by_class(boxes, scores, classes):
    """Each class alone, the rule itself."""
    kept = [
        torch.nonzero(classes == one)[:, 0][
            box_ops.nms(boxes[classes == one], scores[classes == one], THRESHOLD)
        ]
        for one in classes.unique()
    ]
    kept = torch.cat([*kept, classes.new_zeros(0)])
    return kept[scores[kept].argsort(descending=True)]


def traced():
    with recordable_nms():
        return torch.jit.trace(Suppression(), candidates(10), check_trace=False)


def in_onnx(folder):
    needs("onnx")
    import onnxruntime

    path = str(folder / "nms.onnx")
    names = ["boxes", "scores", "classes"]
    with recordable_nms():
        torch.onnx.export(
            *(Suppression(), candidates(10), path),
            **{"dynamo": False, "opset_version": 17, "input_names": names},
            dynamic_axes={name: {0: "candidates"} for name in names},
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(*values):
        given = dict(zip(names, (value.numpy() for value in values), strict=True))
        return torch.from_numpy(np.asarray(session.run(None, given)[0]))

    return run


@pytest.mark.parametrize("format", ["torchscript", "onnx"])
def test_what_is_recorded_keeps_what_each_class_keeps(format, tmp_path):
    run = traced() if format == "torchscript" else in_onnx(tmp_path)
    for count in (3000, 20, 2, 0):
        values = candidates(count)
        assert torch.equal(run(*values), by_class(*values))


def test_torchvisions_own_trick_does_not():
    """What the recorder would take otherwise: single precision far from the origin."""
    values = candidates(3000)
    kept = box_ops._batched_nms_coordinate_trick(*values, THRESHOLD)
    assert not torch.equal(kept.sort()[0], by_class(*values).sort()[0])


def test_torchvision_is_itself_again():
    before = box_ops.batched_nms
    with pytest.raises(KeyError), recordable_nms():
        assert box_ops.batched_nms is not before
        raise KeyError
    assert box_ops.batched_nms is before
