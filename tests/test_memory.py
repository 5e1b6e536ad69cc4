"""An image that needs more memory than there is is tried smaller, and named."""

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from nl_detectron.errors import UsageError
from nl_detectron.evaluation.memory import WithinMemory
from nl_detectron.memory import is_out_of_memory, predict_within_memory
from tests.gpus import needs_gpu

ON_CPU = "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory"
ERRORS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cpu": RuntimeError(ON_CPU),
    "python": MemoryError(),
}


class Detector(nn.Module):
    """Finds the image; has memory for so many pixels of a batch."""

    def __init__(self, pixels, error=ERRORS["cpu"]):
        super().__init__()
        self.pixels, self.error, self.batches = pixels, error, []

    def forward(self, batch):
        self.batches.append(len(batch))
        if sum(x["image"][0].numel() for x in batch) > self.pixels:
            raise self.error
        outputs = []
        for x in batch:
            height, width = x["image"].shape[1:]
            instances = Instances((x["height"], x["width"]))
            instances.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, width, height]]))
            instances.scores = x["image"].float().mean()[None] / 255
            instances.pred_classes = torch.zeros(1, dtype=torch.int64)
            outputs.append({"instances": instances})
        return outputs


def image(height, width, name="a.jpg"):
    pixels = torch.full((3, height, width), 51, dtype=torch.uint8)
    return {"image": pixels, "height": 2 * height, "width": 2 * width, "file_name": name}


def test_what_the_machine_itself_says_is_known():
    for code in (lambda: torch.empty(2**48), lambda: np.empty(2**48), lambda: bytearray(2**60)):
        with pytest.raises((RuntimeError, MemoryError)) as error:
            code()
        assert is_out_of_memory(error.value)
    assert is_out_of_memory(cv2.error("OpenCV(4) alloc.cpp: (-4:Insufficient memory) Failed to"))
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
    assert not is_out_of_memory(KeyboardInterrupt("out of memory"))


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize(("pixels", "divisor"), [(800, 1), (799, 2), (199, 4), (49, 4)])
def test_an_image_is_tried_at_half_and_at_a_quarter_of_its_sides(error, pixels, divisor):
    outputs, found = predict_within_memory(Detector(pixels, error), image(20, 40))
    assert found == divisor
    if pixels == 49:
        assert outputs is None
        return
    instances = outputs["instances"]
    assert instances.image_size == (40, 80)
    assert instances.pred_boxes.tensor.tolist() == [[0, 0, 40 / divisor, 20 / divisor]]
    assert instances.scores.item() == pytest.approx(0.2)


@needs_gpu
def test_what_a_gpu_has_no_memory_for_is_tried_smaller_and_nothing_stays_there():
    class OnGpu(Detector):
        """Needs all memory that is free for 400 pixels."""

        def forward(self, batch):
            height, width = batch[0]["image"].shape[1:]
            torch.empty(height * width * free // 400, dtype=torch.uint8, device="cuda")
            return super().forward(batch)

    held = torch.cuda.memory_allocated()
    free, _ = torch.cuda.mem_get_info()
    outputs, divisor = predict_within_memory(OnGpu(800), image(20, 40))  # twice of what is free
    assert divisor == 2 and outputs["instances"].image_size == (40, 80)
    assert torch.cuda.memory_allocated() == held


def test_other_errors_are_no_reason_to_try_again():
    model = Detector(0, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        predict_within_memory(model, image(20, 40))
    assert model.batches == [1]


def test_an_evaluation_goes_on_and_names_the_images(log):
    model = Detector(810)
    within = WithinMemory(model.eval())
    assert not within.training
    batches = [[image(20, 40), image(2, 20, "small.jpg")], [image(50, 60, "b.jpg")]]
    batches += [[image(90, 90, "c.jpg")], [image(500, 600, "d.jpg")]]
    found = [len(outputs["instances"]) for batch in batches for outputs in within(batch)]
    assert found == [1, 1, 1, 1, 0]
    assert model.batches == [2, *[1] * 10]  # both at once, if they fitted
    within.report()
    assert "b.jpg does not fit into memory: predicted at 1/2 of its sides" in log.text
    report = log.records[-1].getMessage()
    assert report.startswith("3 images did not fit into memory, so the figures are not those of")
    assert "counted so: b.jpg, c.jpg. " in report and "counted as missed: d.jpg. " in report


def test_an_evaluation_that_fits_says_nothing(log):
    within = WithinMemory(Detector(900))
    within([image(20, 40)])
    within.report()
    assert not log.records


def test_pixels_are_not_made_up():
    model = Detector(0)
    model.sem_seg_head = nn.Identity()
    with pytest.raises(UsageError, match="a.jpg does not fit into memory, and each of its pixels"):
        WithinMemory(model)([image(20, 40)])
