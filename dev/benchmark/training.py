"""What one block adds to a Mask R-CNN, in training and inference, and what checkpointing saves."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from nl_detectron import model_zoo
from nl_detectron.layers import PAIRWISE_FUNCTIONS, NonLocalBlock

from .measure import alternate, held_memory
from .table import Table, text_of

CONFIG = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_{}1x.yaml"
GOAL_OVERHEAD = 1.06  # times the time of the plain model
NUM_INSTANCES = 8


def tables(*, quick: bool, device: str) -> Iterator[Table]:
    """The overhead of a block, then its activation checkpointing."""
    yield overhead_table(
        size=(128, 160) if quick else (800, 1333), seconds=2 if quick else 90, device=device
    )
    yield checkpoint_table(
        channels=64 if quick else 1024,
        size=(13, 21) if quick else (50, 84),
        seconds=0.2 if quick else 6,
        device=device,
    )


def overhead_table(
    *, size: tuple[int, int], seconds: float, device: str, opts: Sequence[object] = ()
) -> Table:
    """Mask R-CNN R50-FPN with the paper's one block beside the plain one.

    Args:
        size: (H, W) of the image, in pixels.
        seconds: at most, for each row.
        opts: KEY, value and so on, in the place of the configs'.
    """
    models = {}
    for name, infix in {"plain": "", "one block": "nl_"}.items():
        models[name] = build_model(config_of(infix, device, opts))
    # The same weights: the block starts at zero, so that both models do the same work around it.
    models["one block"].load_state_dict(models["plain"].state_dict(), strict=False)
    inputs = example(size)

    rows = []
    for mode, make in {"training step": _training_step, "inference": _inference}.items():
        times = alternate(
            {name: make(model, inputs) for name, model in models.items()},
            seconds=seconds,
            device=device,
        )
        plain, ours = times.values()
        ratio = f"{ours / plain:.3f}"
        rows.append((mode, f"{plain:.2f}", f"{ours:.2f}", ratio, f"≤ {GOAL_OVERHEAD}"))
    title = "Overhead of one block"
    text = text_of(title, size=size, instances=NUM_INSTANCES)
    header = ("", "plain, s", "one block, s", "ratio", "goal")
    return Table(title, text, header, rows)


def checkpoint_table(*, channels: int, size: tuple[int, int], seconds: float, device: str) -> Table:
    """Each pairwise function with and without activation checkpointing.

    Args:
        size: (H, W) of the block's map.
        seconds: at most, for each row.
    """
    rows = []
    for pairwise in PAIRWISE_FUNCTIONS:
        x = torch.randn(1, channels, *size, device=device, requires_grad=True)
        held, steps = [], {}
        for name, checkpoint in {"plain": False, "checkpointed": True}.items():
            block = NonLocalBlock(channels, pairwise=pairwise, grad_checkpoint=checkpoint).to(
                device
            )
            held.append(held_memory(partial(block, x), device=device))
            steps[name] = _block_step(block, x)
        times = alternate(steps, seconds=seconds, device=device)
        cells = [f"{value / 1e6:.1f}" for value in held]
        ratio = f"{times['checkpointed'] / times['plain']:.2f}"
        rows.append((pairwise, *cells, f"{held[1] / held[0]:.2f}", ratio))
    title = "Activation checkpointing"
    text = text_of(title, channels=channels, size=size)
    header = ("pairwise", "held, MB", "with checkpointing, MB", "ratio", "time, ratio")
    return Table(title, text, header, rows)


def config_of(infix: str, device: str, opts: Sequence[object] = ()) -> CfgNode:
    cfg = model_zoo.get_config(CONFIG.format(infix))
    cfg.defrost()
    cfg.MODEL.DEVICE = device
    cfg.MODEL.WEIGHTS = ""
    cfg.merge_from_list(list(opts))
    return cfg


def example(size: tuple[int, int]) -> list[dict]:
    """A random image with instances, as Detectron2's models take it."""
    generator = torch.Generator().manual_seed(0)
    height, width = size
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
    corners = torch.rand(NUM_INSTANCES, 2, 2, generator=generator).sort(1).values
    # At least a quarter of the image wide and high
    corners = corners * 0.75 + torch.tensor([[0.0], [0.25]])
    boxes = corners.flatten(1) * torch.tensor([width, height, width, height])
    masks = torch.zeros(NUM_INSTANCES, *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.long().tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
    instances = Instances(size, gt_boxes=Boxes(boxes), gt_masks=BitMasks(masks))
    instances.gt_classes = torch.randint(0, 80, (NUM_INSTANCES,), generator=generator)
    return [{"image": image, "height": height, "width": width, "instances": instances}]


def _training_step(model: nn.Module, inputs: list[dict]) -> Callable[[], None]:
    # No learning rate: all steps are then alike.
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=0.9)

    def step() -> None:
        model.train()
        torch.manual_seed(0)  # proposals are sampled
        with EventStorage():
            losses = model(inputs)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()

    return step


def _inference(model: nn.Module, inputs: list[dict]) -> Callable[[], None]:
    def predict() -> None:
        model.eval()
        with torch.inference_mode():
            model(inputs)

    return predict


def _block_step(block: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    gradient = torch.randn_like(x)
    return lambda: block(x).backward(gradient)
