"""Puts non-local blocks into networks that are already built, without renaming any parameter."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from detectron2.layers import CNNBlockBase
from detectron2.modeling.backbone import ResNet
from torch import nn

from ..layers import BaseNonLocalBlock, BlockOptions, build_block
from ..layers.names import block_name
from ..log import logger
from .padding import make_masking

# What keeps a list of a model's parameters from the time when it was made; the last one is what
# fully_shard makes of a module.
WRAPPERS = (
    "DistributedDataParallel",
    "DataParallel",
    "FullyShardedDataParallel",
    "FSDPModule",
)


def insert_non_local(
    model: nn.Module,
    after: Sequence[str] = ("res4.-2",),
    *,
    options: BlockOptions | None = None,
    **changes: Any,
) -> list[BaseNonLocalBlock]:
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
        options: of the blocks; by default the paper's.
        changes: fields of :class:`BlockOptions` with other values than in ``options``.

    Returns:
        The new blocks, in the order of ``after``.

    Raises:
        TypeError: if one of ``changes`` is no option.
        ValueError: if ``model`` does not have exactly one ResNet, is or holds a wrapper for several
            processes or devices, if a place in ``after`` does not exist or is taken, if an option
            is out of its range, or if padding cannot be masked. The model is then unchanged.
    """
    options = replace(options or BlockOptions(), **changes)
    _check_unwrapped(model)
    resnet = _find_resnet(model)
    stages = dict(zip(resnet.stage_names, resnet.stages, strict=True))
    places = resolve_placement(
        after, {name: len(_residual_blocks(stage)) for name, stage in stages.items()}
    )
    taken = [
        f"{stage}.{index}" for stage, index in places if block_name(index) in _names(stages[stage])
    ]
    if taken:
        raise ValueError(f"there is already a non-local block after {', '.join(taken)}")
    blocks = [
        build_block(_residual_blocks(stages[stage])[index].out_channels, options=options)
        for stage, index in places
    ]
    if options.mask_padding:
        make_masking(resnet)
    for (stage, index), block in zip(places, blocks, strict=True):
        insert_after(stages[stage], str(index), block_name(index), block)
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


def insert_after(sequential: nn.Sequential, name: str, new_name: str, module: CNNBlockBase) -> None:
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


def _check_unwrapped(model: nn.Module) -> None:
    """Refuses what would neither synchronise nor shard the parameters of new blocks."""
    kinds = {kind.__name__ for module in model.modules() for kind in type(module).__mro__}
    wrapper = next((name for name in WRAPPERS if name in kinds), None)
    if wrapper is not None:
        raise ValueError(
            f"the model is wrapped in {wrapper}, which would not know of the new blocks: their "
            "gradients would not be synchronised. Insert blocks first and wrap the model then"
        )


def _find_resnet(model: nn.Module) -> ResNet:
    resnets = [module for module in model.modules() if isinstance(module, ResNet)]
    if len(resnets) != 1:
        raise ValueError(
            f"expected a model with one Detectron2 ResNet, {type(model).__name__} has "
            f"{len(resnets)}; pass the ResNet itself"
        )
    return resnets[0]


def _residual_blocks(stage: nn.Sequential) -> list[CNNBlockBase]:
    return [child for child in stage if not isinstance(child, BaseNonLocalBlock)]


def _names(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_children()]
