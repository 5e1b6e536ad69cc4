"""Training and evaluation of LazyConfigs, as Detectron2's tools/lazyconfig_train_net.py does."""

import copy
import functools
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

from detectron2.config import instantiate
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.engine import hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ..checkpoint import NonLocalCheckpointer
from ..checkpoint.vocabulary import from_text
from ..data.mapper import ImageMapper
from ..data.seeds import SAMPLER, derive, drawing_from
from ..data.stream import as_it_is, stream_of, with_own_generator
from ..data.training import annotations_in_files, usable_for_training
from ..errors import UsageError
from ..evaluation import log_tables
from ..evaluation.memory import WithinMemory
from ..log import logger
from .averaging import WeightAveraging
from .best import may_end_early, with_best
from .buffers import SameBuffers
from .checks import check_model
from .config import load_cfg, load_lazy_cfg
from .finite import FiniteSteps
from .folder import only_training_in
from .launch import ddp
from .loop import build_loop, usage_errors_unlogged
from .metrics import build_writers
from .monitor import NonLocalMonitor
from .own_data import check_same_classes, dataset_names, describe
from .resume import run_seed, with_exact_resume
from .room import Room
from .settings import settings_of
from .signals import StopOnSignal
from .trainer import log_start


def build_model_of(config_file: str, opts: Sequence[str] = (), *, trust: bool = False) -> nn.Module:
    """The model of a config, YAML or LazyConfig, with random weights.

    Args:
        config_file, opts, trust: as for :func:`load_cfg` or :func:`load_lazy_cfg`.

    Raises:
        UsageError: if the config cannot be read or its model not be built.
    """
    if config_file.endswith(".py"):
        return _build(load_lazy_cfg(config_file, opts))
    cfg = load_cfg(config_file, opts, trust=trust)
    check_model(cfg)
    return build_model(cfg)


def evaluate(cfg: DictConfig, model: nn.Module, *, tables: bool = False) -> OrderedDict:
    """Evaluates a model on ``dataloader.test`` and logs the figures, for copying into a table.

    Args:
        tables: log AP by class and the kinds of error, too.
    """
    if "evaluator" not in cfg.dataloader:
        return OrderedDict()
    loader, evaluator = _loader(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator)
    within = WithinMemory(model)
    results = inference_on_dataset(within, loader, evaluator)
    within.report()
    print_csv_format(results)
    if tables:
        log_tables(evaluator)
    return results


def evaluate_weights(
    cfg: DictConfig, *, trust_checkpoint: bool = False, allow_missing: bool = False
) -> OrderedDict:
    """Loads ``train.init_checkpoint`` and evaluates it.

    Raises:
        CheckpointError: if a tensor is not in the checkpoint, unless ``allow_missing`` is set.
    """
    model = ddp(_build(cfg), cfg.train.device)
    checkpointer = NonLocalCheckpointer(
        model,
        cfg.train.output_dir,
        complete=True,
        trust=trust_checkpoint,
        allow_missing=allow_missing,
    )
    content = checkpointer.load(cfg.train.init_checkpoint)
    check_same_classes(from_text(content.get("vocabulary")), dataset_names(cfg, "test"))
    log_start(checkpointer, cfg.train.init_checkpoint, cfg.train.device, False)
    return evaluate(cfg, model, tables=True)


def train(
    cfg: DictConfig, *, resume: bool, trust_checkpoint: bool = False, allow_missing: bool = False
) -> TrainerBase:
    """Trains ``model`` for ``train.max_iter`` iterations, with evaluations on the way.

    Args:
        cfg: with the nodes model, dataloader, optimizer, lr_multiplier and train of Detectron2's
            LazyConfigs.
        resume: go on from the last checkpoint in ``train.output_dir``, if there is one.
        trust_checkpoint, allow_missing: ``trust`` and ``allow_missing`` of
            :class:`NonLocalCheckpointer`.

    Returns:
        The trainer, its training done.

    Raises:
        UsageError: if the model cannot be built.
    """
    options = cfg.train
    settings, seed = settings_of(cfg), run_seed(options.get("seed", -1))
    model = _build(cfg)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    model = ddp(model, cfg.train.device, **options.ddp)
    accumulate = options.get("accumulate", 1)
    build_loader = functools.partial(_build_train_loader, cfg.dataloader.train, parts=accumulate)
    trainer = build_loop(
        model,
        build_loader(seed),
        optimizer,
        amp=options.amp.enabled,
        accumulate=accumulate,
    )
    trained_on = dataset_names(cfg, "train")
    for name in dict.fromkeys((*trained_on, *dataset_names(cfg, "test"))):
        logger.info(describe(MetadataCatalog.get(name)))
    checkpointer = NonLocalCheckpointer(
        model,
        options.output_dir,
        metadata=MetadataCatalog.get(trained_on[0]) if trained_on else None,
        trust=trust_checkpoint,
        allow_missing=allow_missing,
        on_error=options.get("checkpoint_on_error", "stop"),
        trainer=trainer,
    )

    # Checkpoints before evaluations, so that one which fails loses no training; the writers last,
    # so that they write what the evaluation found.
    is_main = comm.is_main_process()
    writers = build_writers(options.output_dir, options.max_iter) if is_main else []
    registered = with_best(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            NonLocalMonitor(model),
            hooks.PeriodicCheckpointer(checkpointer, options.checkpointer.period)
            if is_main
            else None,
            hooks.EvalHook(options.eval_period, lambda: evaluate(cfg, model)),
            hooks.PeriodicWriter(writers, period=options.log_period) if is_main else None,
        ],
        checkpointer,
        eval_period=options.eval_period,
        metric=options.get("best_metric", ""),
        patience=options.get("early_stopping_patience", 0),
    )
    room = Room(
        options.output_dir,
        period=options.checkpointer.period,
        keep=options.checkpointer.get("max_to_keep") or 0,
        go_on=checkpointer.on_error == "continue",
        averages=bool(OmegaConf.select(options, "model_ema.enabled")),
        keys=("train.checkpointer.max_to_keep", "train.checkpoint_on_error"),
    )
    registered += [room, StopOnSignal(checkpointer)]
    if OmegaConf.select(options, "model_ema.enabled"):  # around all that evaluates and saves
        averaging = WeightAveraging(model, decay=options.model_ema.get("decay", 0.999))
        registered = [averaging, *registered, averaging.last()]
    periods = options.eval_period, options.checkpointer.period
    registered = [SameBuffers(model, periods), *registered]
    registered = with_exact_resume(
        [FiniteSteps(checkpointer, options.output_dir), *registered],
        seed=seed,
        settings=settings,
        build_loader=build_loader,
    )
    trainer.register_hooks(registered)

    checkpointer.resume_or_load(options.init_checkpoint, resume=resume)
    resumed = resume and checkpointer.has_checkpoint()
    start = trainer.iter + 1 if resumed else 0  # a checkpoint holds the last iteration done
    log_start(
        checkpointer, options.init_checkpoint, options.device, resume, start, options.max_iter
    )
    folder = only_training_in("train.output_dir", options.output_dir)
    with folder, usage_errors_unlogged(), may_end_early():
        # Learning rates end at max_iter; a checkpoint can be beyond it.
        trainer.train(start, max(start, options.max_iter))
    return trainer


def _loader(node: DictConfig, **changed: Any) -> Iterable[list[dict]]:
    """The loader of a config's node, with our reader of images where Detectron2's mapper stands.

    Args:
        changed: arguments of the loader in the place of the node's.
    """
    node = _with_our_reader(node)
    arguments: dict[str, Any] = {str(key): value for key, value in node.items()}
    return instantiate(arguments | changed)


def _with_our_reader(node: DictConfig) -> DictConfig:
    node = copy.deepcopy(node)
    target = OmegaConf.select(node, "mapper._target_")
    if (locate(target) if isinstance(target, str) else target) is DatasetMapper:
        node.mapper._target_ = ImageMapper
    return node


def _build_train_loader(node: DictConfig, seed: int = 0, *, parts: int = 1) -> Iterable[list[dict]]:
    """What the node describes, of what the model can be trained on, and by the seed alone.

    Args:
        parts: that each of its batches is given in.
    """
    size: dict[str, Any] = {"total_batch_size": node.total_batch_size // parts} if parts > 1 else {}
    names = OmegaConf.select(node, "dataset.names")
    if names is None:  # not Detectron2's registered datasets
        return _loader(node, **size)
    dicts = usable_for_training(
        instantiate(node.dataset),
        masks=bool(OmegaConf.select(node, "mapper.use_instance_mask")),
        keypoints=bool(OmegaConf.select(node, "mapper.use_keypoint")),
        filter_empty=node.dataset.get("filter_empty", True),
        total=annotations_in_files([names] if isinstance(names, str) else names),
    )
    if "mapper" not in node:
        return _loader(node, dataset=dicts, **size)
    with drawing_from(derive(seed, SAMPLER)):
        plan = _loader(node, dataset=dicts, mapper=as_it_is, **size)
    mapper = instantiate(_with_our_reader(node).mapper)
    stream = stream_of(plan, mapper, dicts, seed=seed)
    if stream is None:  # of a builder of the config's own
        return _loader(node, dataset=dicts, **size)
    alone = {"mapper": None, "sampler": None, "aspect_ratio_grouping": False}
    return with_own_generator(_loader(node, dataset=stream, **alone, **size))


def _build(cfg: DictConfig) -> nn.Module:
    try:
        return instantiate(cfg.model).to(cfg.train.device)
    except ValueError as error:  # such as a place for a block that is not there
        raise UsageError(f"the model of the config cannot be built: {error}") from error
