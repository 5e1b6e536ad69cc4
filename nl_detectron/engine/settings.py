"""What a training was begun with, and what a resumed one has in its place."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf

from ..errors import UsageError
from ..log import logger

PROCESSES = "processes (--num-gpus, --num-machines)"
# What decides which weights a training comes to
TRAINING = (
    "DATALOADER.",
    "DATASETS.",
    "INPUT.",
    "MODEL.",
    "MODEL_EMA.",
    "SEED",
    "SOLVER.",
    "dataloader.train.",
    "lr_multiplier.",
    "model.",
    "optimizer.",
    "train.accumulate",
    "train.amp.",
    "train.model_ema.",
    "train.seed",
)
# What among it does not
WITHOUT_EFFECT = (
    "DATALOADER.NUM_WORKERS",
    "DATASETS.TEST",
    "INPUT.MAX_SIZE_TEST",
    "INPUT.MIN_SIZE_TEST",
    "MODEL.DEVICE",
    "MODEL.WEIGHTS",
    "SOLVER.CHECKPOINT_",
    "dataloader.train.num_workers",
)
OPTIMIZERS = ("SOLVER.OPTIMIZER", "optimizer._target_")
# What the optimizer's state holds, which a resumed training loads, and the seed
FROM_CHECKPOINT = (
    "SEED",
    "SOLVER.BASE_LR",
    "SOLVER.BIAS_LR_FACTOR",
    "SOLVER.MOMENTUM",
    "SOLVER.NESTEROV",
    "SOLVER.NON_LOCAL_OTHERS_LR_FACTOR",
    "SOLVER.NON_LOCAL_PAIRWISE_LR_FACTOR",
    "SOLVER.REFERENCE_IMS_PER_BATCH",
    "SOLVER.WEIGHT_DECAY",
    "optimizer.",
    "train.seed",
)


def settings_of(cfg: CfgNode | DictConfig) -> dict[str, str]:
    """What decides which weights a training with this config comes to: values by full key."""
    content = cfg
    if isinstance(cfg, DictConfig):
        content = OmegaConf.to_container(cfg, resolve=False)
    settings = {
        key: value
        for key, value in _leaves(content)
        if key.startswith(TRAINING) and not key.startswith(WITHOUT_EFFECT)
    }
    return settings | {PROCESSES: str(comm.get_world_size())}


def compare_settings(begun: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Warns of each setting that is not what the training was begun with.

    Raises:
        UsageError: if the optimizer is another one, whose state the checkpoint lacks.
    """
    for key in sorted(begun.keys() | now.keys()):
        then, value = begun.get(key, "(not set)"), now.get(key, "(not set)")
        if then == value:
            continue
        if key in OPTIMIZERS:
            raise UsageError(
                f"{key} is {value}, but the training was begun with {then}, whose state the "
                f"checkpoint holds: resume with {key} {then}, or start a new training from its "
                "weights in another folder"
            )
        if key.startswith(FROM_CHECKPOINT):
            logger.warning(
                f"resume: {key} {value} has no effect, it stays {then} as in the checkpoint; for "
                "another one start a new training from its weights in another folder"
            )
        else:
            logger.warning(
                f"resume: {key} is {value}, but the training was begun with {then}: from here on "
                "it is another training"
            )


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Full keys and values as text, the same text in each process that reads the config."""
    if isinstance(node, Mapping):
        items: Sequence[tuple[Any, Any]] = list(node.items())
    elif isinstance(node, Sequence) and not isinstance(node, str) and _has_nodes(node):
        items = list(enumerate(node))
    else:
        name = getattr(node, "__qualname__", None)  # of a class or a function
        yield path, f"{node.__module__}.{name}" if name else str(node)
        return
    for key, value in items:
        yield from _leaves(value, f"{path}.{key}" if path else str(key))


def _has_nodes(values: Sequence[Any]) -> bool:
    return any(isinstance(value, Mapping) or callable(value) for value in values)
