"""Puts non-local blocks into networks that are already built, without renaming any parameter."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from detectron2.layers import CNNBlockBase
from detectron2.modeling.backbone import ResNet
from torch import nn

from ..layers import BaseNonLocalBlock, BlockOptions, build_block
from ..layers.names import block_name
from .before_sum import has_block, insert_before_sum, last_convolution
from .joining import insert_after
from .padding import make_masking

POSITIONS = ("after_block", "before_sum")

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
    position: str = "after_block",
    options: BlockOptions | None = None,
    **changes: Any,
) -> list[BaseNonLocalBlock]:
    """Inserts non-local blocks into a ResNet, in place.

    A block after ``res4.4`` becomes the child ``nl4`` of ``res4``, between ``4`` and ``5``; one
    before the sum of ``res4.4`` becomes its ``conv3.activation.nl4``. So all parameters that were
    there keep their names and pretrained weights load as before. A block among parameters that are
    all frozen is frozen with them. Insert blocks before the optimizer is built, which would not
    know of them otherwise.

    Args:
        model: a Detectron2 ResNet, or any model that has exactly one inside.
        after: the residual blocks after each of which a block goes, ``"stage.index"``, where a
            negative index counts from the stage's end. ``"res4.-2"`` is right before the last
            residual block of res4, the paper's choice for COCO. ``"res4"`` is each of the stage.
        position: "after_block", or "before_sum": inside of the named residual blocks, between the
            last norm and the sum with the shortcut, where Global Context Networks have theirs.
        options: of the blocks; by default the paper's.
        changes: fields of :class:`BlockOptions` with other values than in ``options``.

    Returns:
        The new blocks, in the order of ``after``.

    Raises:
        TypeError: if one of ``changes`` is no option.
        ValueError: if ``model`` does not have exactly one ResNet, is or holds a wrapper for several
            processes or devices, if a place in ``after`` does not exist or is taken, if there is no
            such ``position`` there, if an option is out of its range, or if padding cannot be
            masked. The model is then unchanged.
    """
    options = replace(options or BlockOptions(), **changes)
    check_position(position, options)
    check_unwrapped(model)
    resnet = _find_resnet(model)
    stages = dict(zip(resnet.stage_names, resnet.stages, strict=True))
    places = resolve_placement(
        after, {name: len(_residual_blocks(stage)) for name, stage in stages.items()}
    )
    residuals = [_residual_blocks(stages[stage])[index] for stage, index in places]
    before_sum = position == "before_sum"
    for (stage, index), residual in zip(places, residuals, strict=True):
        if before_sum:
            last_convolution(residual)
        if has_block(residual) if before_sum else block_name(index) in _names(stages[stage]):
            where = "before the sum of" if before_sum else "after"
            raise ValueError(f"there is already a non-local block {where} {stage}.{index}")
    blocks = [build_block(residual.out_channels, options=options) for residual in residuals]
    if options.mask_padding:
        make_masking(resnet)
    for (stage, index), residual, block in zip(places, residuals, blocks, strict=True):
        if before_sum:
            insert_before_sum(residual, block_name(index), block)
        else:
            insert_after(stages[stage], str(index), block_name(index), block)
    return blocks


def check_position(position: str, options: BlockOptions) -> None:
    """Checks where blocks go, and that blocks of these options can go there.

    Raises:
        ValueError: naming the value and the allowed ones.
    """
    if position not in POSITIONS:
        raise ValueError(f"position must be one of {POSITIONS}, got {position!r}")
    if options.mask_padding and position == "before_sum":
        raise ValueError(
            "mask_padding=True needs position='after_block': before the sum Detectron2's residual "
            "block calls the block, which does not know the sizes of the images"
        )


def resolve_placement(
    after: Sequence[str], blocks_per_stage: Mapping[str, int]
) -> list[tuple[str, int]]:
    """Turns ``["res4.-2"]`` into ``[("res4", 4)]`` for stages of the given numbers of blocks.

    A stage's name alone is each of its residual blocks, named once more or not.

    Raises:
        ValueError: naming the value and the allowed ones, for anything that is neither
            ``"stage.index"`` nor a stage, an unknown stage, an index out of range, or a
            ``"stage.index"`` that is there twice.
    """
    allowed = "; ".join(
        f"{stage}.0 to {stage}.{count - 1} (or {stage}.{-count} to {stage}.-1)"
        for stage, count in blocks_per_stage.items()
    )
    allowed += f'; or whole stages, such as "{next(iter(blocks_per_stage), "res4")}"'
    places: list[tuple[str, int]] = []
    singly: list[tuple[str, int]] = []
    for value in map(str, after):
        found = _resolve(value, blocks_per_stage, allowed)
        if value not in blocks_per_stage:
            if found[0] in singly:
                raise ValueError(
                    f"{value!r} puts a second non-local block after {found[0][0]}.{found[0][1]}"
                )
            singly += found
        places += found
    return list(dict.fromkeys(places))


def _resolve(
    value: str, blocks_per_stage: Mapping[str, int], allowed: str
) -> list[tuple[str, int]]:
    """The places of one value."""
    if value in blocks_per_stage:
        return [(value, index) for index in range(blocks_per_stage[value])]
    stage, _, index = value.partition(".")
    try:
        position = int(index)
    except ValueError:
        raise ValueError(
            'a place for a non-local block is written "stage.index", such as "res4.-2", or '
            f'"stage" for each of its blocks; got {value!r}. This ResNet has {allowed}'
        ) from None
    count = blocks_per_stage.get(stage, 0)
    if not -count <= position < count:
        raise ValueError(
            f"no residual block {value!r} to put a non-local block after. This ResNet has {allowed}"
        )
    return [(stage, position % count)]


def check_unwrapped(model: nn.Module) -> None:
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
