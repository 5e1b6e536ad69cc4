"""Training and evaluation of LazyConfigs, as Detectron2's tools/lazyconfig_train_net.py does."""

from collections import OrderedDict
from collections.abc import Sequence

from detectron2.config import instantiate
from detectron2.engine import (
    AMPTrainer,
    SimpleTrainer,
    default_writers,
    hooks,
)
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.modeling import build_model
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from ..checkpoint import NonLocalCheckpointer
from ..errors import UsageError
from ..evaluation import log_tables
from .best import may_end_early, with_best
from .checks import check_model
from .config import load_cfg, load_lazy_cfg
from .launch import ddp
from .monitor import NonLocalMonitor
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
    loader, evaluator = instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator)
    results = inference_on_dataset(model, loader, evaluator)
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
    checkpointer.load(cfg.train.init_checkpoint)
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
    model = _build(cfg)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    model = ddp(model, cfg.train.device, **options.ddp)
    loop = AMPTrainer if options.amp.enabled else SimpleTrainer
    trainer = loop(model, instantiate(cfg.dataloader.train), optimizer)
    checkpointer = NonLocalCheckpointer(
        model,
        options.output_dir,
        trust=trust_checkpoint,
        allow_missing=allow_missing,
        trainer=trainer,
    )

    # Checkpoints before evaluations, so that one which fails loses no training; the writers last,
    # so that they write what the evaluation found.
    is_main = comm.is_main_process()
    writers = default_writers(options.output_dir, options.max_iter) if is_main else []
    trainer.register_hooks(
        with_best(
            [
                hooks.IterationTimer(),
                hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
                NonLocalMonitor(model),
                hooks.PeriodicCheckpointer(checkpointer, **options.checkpointer)
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
    )

    checkpointer.resume_or_load(options.init_checkpoint, resume=resume)
    resumed = resume and checkpointer.has_checkpoint()
    start = trainer.iter + 1 if resumed else 0  # a checkpoint holds the last iteration done
    log_start(checkpointer, options.init_checkpoint, options.device, resume, start)
    with may_end_early():
        trainer.train(start, options.max_iter)
    return trainer


def _build(cfg: DictConfig) -> nn.Module:
    try:
        return instantiate(cfg.model).to(cfg.train.device)
    except ValueError as error:  # such as a place for a block that is not there
        raise UsageError(f"the model of the config cannot be built: {error}") from error
