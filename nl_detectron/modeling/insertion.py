"""Puts non-local blocks into networks that are already built, without renaming any parameter."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from detectron2.modeling.backbone import ResNet
from torch import nn

from ..layers import NonLocalBlock
from ..log import logger


def insert_non_local(
    model: nn.Module,
    after: Sequence[str] = ("res4.-2",),
    *,
    pairwise: str = "embedded_gaussian",
    inner_ratio: float = 0.5,
    sub_sample: bool = True,
    use_scale: bool = True,
    norm: str | Callable[[int], nn.Module] = "",
    init: str = "normal",
    zero_init: bool = True,
    checkpoint: bool = False,
) -> list[NonLocalBlock]:
    """Inserts non-local blocks into a ResNet, in place.

    A block after ``res4.4`` becomes the child ``nl4`` of ``res4``, between ``4`` and ``5``, so all
    parameters that were there keep their names and pretrained weights load as before. A block in a
    stage whose parameters are all frozen is frozen with it. Insert blocks before the optimizer is
    built, which would not know of them otherwise.

    Args:
        model: a Detectron2 ResNet, or any model that has exactly one inside.
        after: the residual blocks after each of which a block goes, ``"stage.index"``, where a
            negative index counts from the stage's end. ``"res4.-2"`` is right before the last
            residual block of res4, the paper's choice for COCO.
        inner_ratio: the blocks' inner channels as a fraction of the stage's channels.
        pairwise, sub_sample, use_scale, norm, init, zero_init, checkpoint: see
            :class:`NonLocalBlock`.

    Returns:
        The new blocks, in the order of ``after``.

    Raises:
        ValueError: if ``model`` does not have exactly one ResNet, if a place in ``after`` does not
            exist or is taken, or if an option is out of its range. The model is then unchanged.
    """
    resnet = _find_resnet(model)
    stages = dict(zip(resnet.stage_names, resnet.stages, strict=True))
    places = resolve_placement(
        after, {name: len(_residual_blocks(stage)) for name, stage in stages.items()}
    )
    taken = [f"{stage}.{index}" for stage, index in places if f"nl{index}" in _names(stages[stage])]
    if taken:
        raise ValueError(f"there is already a non-local block after {', '.join(taken)}")
    blocks = [
        build_block(
            _residual_blocks(stages[stage])[index].out_channels,
            inner_ratio=inner_ratio,
            pairwise=pairwise,
            sub_sample=sub_sample,
            use_scale=use_scale,
            norm=norm,
            init=init,
            zero_init=zero_init,
            checkpoint=checkpoint,
        )
        for stage, index in places
    ]
    for (stage, index), block in zip(places, blocks, strict=True):
        insert_after(stages[stage], str(index), f"nl{index}", block)
    return blocks


def resolve_placement(
    after: Sequence[str], blocks_per_stage: Mapping[str, int]
) -> list[tuple[str, int]]:
    """Turns ``["res4.-2"]`` into ``[("res4", 4)]`` for stages of the given numbers of blocks.

    Raises:
        ValueError: naming the value and the allowed ones, for anything that is not
            ``"stage.index"``, an unknown stage, an index out of range, or a place named twice.
    """
    allowed = "; ".join(
        f"{stage}.0 to {stage}.{count - 1} (or {stage}.{-count} to {stage}.-1)"
        for stage, count in blocks_per_stage.items()
    )
    places: list[tuple[str, int]] = []
    for value in after:
        stage, _, index = str(value).partition(".")
        try:
            position = int(index)
        except ValueError:
            raise ValueError(
                f'a place for a non-local block is written "stage.index", such as "res4.-2"; got '
                f"{value!r}. This ResNet has {allowed}"
            ) from None
        count = blocks_per_stage.get(stage, 0)
        if not -count <= position < count:
            raise ValueError(
                f"no residual block {value!r} to put a non-local block after. This ResNet has "
                f"{allowed}"
            )
        place = (stage, position % count)
        if place in places:
            raise ValueError(f"{value!r} puts a second non-local block after {stage}.{place[1]}")
        places.append(place)
    return places


def insert_after(sequential: nn.Sequential, name: str, new_name: str, module: nn.Module) -> None:
    """Makes ``module`` the child ``new_name`` right after child ``name``, in place.

    It takes the device and dtype of the sequential's parameters, its training mode, and is frozen
    if all of those parameters are.
    """
    parameters = list(sequential.parameters())
    module.to(parameters[0]).train(sequential.training)
    if not any(p.requires_grad for p in parameters):
        logger.warning(
            f"The non-local block {new_name} ({module.in_channels} channels) is frozen like all "
            "layers around it: it does nothing unless trained weights are loaded into it"
        )
        module.freeze()
    children = list(sequential.named_children())
    for child_name, _ in children:
        delattr(sequential, child_name)
    for child_name, child in children:
        sequential.add_module(child_name, child)
        if child_name == name:
            sequential.add_module(new_name, module)


def build_block(channels: int, *, inner_ratio: float = 0.5, **options: Any) -> NonLocalBlock:
    """A block for maps of ``channels`` channels, with at least one inner channel.

    Args:
        inner_ratio: the inner channels as a fraction of ``channels``.
        options: the other arguments of :class:`NonLocalBlock`.

    Raises:
        ValueError: if an option is out of its range.
    """
    if not inner_ratio > 0:
        raise ValueError(f"inner_ratio must be above 0, got {inner_ratio}")
    return NonLocalBlock(channels, inner_channels=max(int(channels * inner_ratio), 1), **options)


def _find_resnet(model: nn.Module) -> ResNet:
    resnets = [module for module in model.modules() if isinstance(module, ResNet)]
    if len(resnets) != 1:
        raise ValueError(
            f"expected a model with one Detectron2 ResNet, {type(model).__name__} has "
            f"{len(resnets)}; pass the ResNet itself"
        )
    return resnets[0]


def _residual_blocks(stage: nn.Sequential) -> list[nn.Module]:
    return [child for child in stage if not isinstance(child, NonLocalBlock)]


def _names(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_children()]
