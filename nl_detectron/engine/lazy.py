"""Training and evaluation of LazyConfigs, as Detectron2's tools/lazyconfig_train_net.py does."""

import argparse
from collections import OrderedDict

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import (
    AMPTrainer,
    SimpleTrainer,
    create_ddp_model,
    default_writers,
    hooks,
)
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.modeling import build_model
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ..checkpoint import NonLocalCheckpointer
from ..errors import UsageError, did_you_mean
from .monitor import NonLocalMonitor
from .setup import (
    check_dataset_files,
    check_model,
    check_output_dir,
    check_weights,
    load_cfg,
    resolve_config_file,
)
from .trainer import log_start

# What Detectron2's default_setup reads from `train` although configs/common/train.py lacks it
OPTIONAL_TRAIN_KEYS = ("seed", "cudnn_benchmark", "float32_precision")


def load_lazy_cfg(args: argparse.Namespace) -> DictConfig:
    """The LazyConfig of ``--config-file`` with the trailing ``key=value`` overrides.

    ``train.device`` becomes ``cpu`` where there is no CUDA, unless an override sets it.

    Args:
        args: as parsed by :func:`detectron2.engine.default_argument_parser`. Where ``config_file``
            is a name of :mod:`nl_detectron.model_zoo`, the path of that config takes its place.

    Raises:
        UsageError: if the file does not exist or is no LazyConfig, or if an override names a key
            that nothing reads.
    """
    resolve_config_file(args)
    if not args.config_file.endswith(".py"):
        raise UsageError(
            f"--config-file {args.config_file!r} is no LazyConfig (a .py file); for YAML configs "
            "use tools/train_net.py"
        )
    try:
        cfg = LazyConfig.load(args.config_file)
        for override in args.opts:
            _check_override(cfg, override)
        cfg = LazyConfig.apply_overrides(cfg, args.opts)
    except UsageError:
        raise
    except Exception as error:  # a config is code, and hydra's grammar has errors of its own
        message = " ".join(str(error).split())
        raise UsageError(f"cannot read the config from {args.config_file}: {message}") from error
    missing = [key for key in ("model", "dataloader", "train") if key not in cfg]
    if missing:
        raise UsageError(f"{args.config_file} does not define {', '.join(missing)}")
    if not torch.cuda.is_available() and not any(o.startswith("train.device=") for o in args.opts):
        cfg.train.device = "cpu"
    return cfg


def build_model_of(args: argparse.Namespace) -> nn.Module:
    """The model of ``--config-file``, YAML or LazyConfig, with random weights.

    Raises:
        UsageError: if the config cannot be read or its model not be built.
    """
    if args.config_file.endswith(".py"):
        cfg = load_lazy_cfg(args)
        return _build(cfg)
    cfg = load_cfg(args)
    check_model(cfg)
    return build_model(cfg)


def check_lazy_cfg(cfg: DictConfig, args: argparse.Namespace) -> None:
    """Checks what a run with this config needs, before it starts.

    Raises:
        UsageError: naming the value that cannot work and what to do.
    """
    check_output_dir("train.output_dir", cfg.train.output_dir)
    check_weights("train.init_checkpoint", cfg.train.init_checkpoint, cfg.train.output_dir, args)
    for loader in ("test",) if args.eval_only else ("train", "test"):
        names = OmegaConf.select(cfg.dataloader, f"{loader}.dataset.names") or ()
        for name in (names,) if isinstance(names, str) else names:
            check_dataset_files(name)


def evaluate(cfg: DictConfig, model: nn.Module) -> OrderedDict:
    """Evaluates a model on ``dataloader.test`` and logs the figures, for copying into a table."""
    if "evaluator" not in cfg.dataloader:
        return OrderedDict()
    loader, evaluator = instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator)
    results = inference_on_dataset(model, loader, evaluator)
    print_csv_format(results)
    return results


def evaluate_weights(
    cfg: DictConfig, *, trust_checkpoint: bool = False, allow_missing: bool = False
) -> OrderedDict:
    """Loads ``train.init_checkpoint`` and evaluates it (``--eval-only``).

    Raises:
        CheckpointError: if a tensor is not in the checkpoint, unless ``allow_missing`` is set.
    """
    model = _ddp(_build(cfg), cfg)
    checkpointer = NonLocalCheckpointer(
        model,
        cfg.train.output_dir,
        complete=True,
        trust=trust_checkpoint,
        allow_missing=allow_missing,
    )
    checkpointer.load(cfg.train.init_checkpoint)
    log_start(checkpointer, cfg.train.init_checkpoint, cfg.train.device, False)
    return evaluate(cfg, model)


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
    model = _ddp(model, cfg, **options.ddp)
    loop = AMPTrainer if options.amp.enabled else SimpleTrainer
    trainer = loop(model, instantiate(cfg.dataloader.train), optimizer)
    checkpointer = NonLocalCheckpointer(
        model,
        options.output_dir,
        trust=trust_checkpoint,
        allow_missing=allow_missing,
        trainer=trainer,
    )

    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            NonLocalMonitor(model),
        ]
    )
    # Checkpoints before evaluations, so that one which fails loses no training; the writers last,
    # so that they write what the evaluation found.
    if comm.is_main_process():
        trainer.register_hooks([hooks.PeriodicCheckpointer(checkpointer, **options.checkpointer)])
    trainer.register_hooks([hooks.EvalHook(options.eval_period, lambda: evaluate(cfg, model))])
    if comm.is_main_process():
        writers = default_writers(options.output_dir, options.max_iter)
        trainer.register_hooks([hooks.PeriodicWriter(writers, period=options.log_period)])

    checkpointer.resume_or_load(options.init_checkpoint, resume=resume)
    resumed = resume and checkpointer.has_checkpoint()
    start = trainer.iter + 1 if resumed else 0  # a checkpoint holds the last iteration done
    log_start(checkpointer, options.init_checkpoint, options.device, resume, start)
    trainer.train(start, options.max_iter)
    return trainer


def _build(cfg: DictConfig) -> nn.Module:
    try:
        return instantiate(cfg.model).to(cfg.train.device)
    except ValueError as error:  # such as a place for a block that is not there
        raise UsageError(f"the model of the config cannot be built: {error}") from error


def _ddp(model: nn.Module, cfg: DictConfig, **options: object) -> nn.Module:
    """The model for several processes; DDP refuses device_ids for a model on the CPU."""
    if torch.device(cfg.train.device).type == "cpu":
        options["device_ids"] = None
    return create_ddp_model(model, **options)


def _check_override(cfg: DictConfig, override: str) -> None:
    """Refuses new keys but for arguments of what gets instantiated, which checks them itself."""
    key = override.partition("=")[0].lstrip("+~")
    node, path = cfg, ""
    for name in key.split("."):
        if not isinstance(node, DictConfig):  # an item of a list, or a value: not for us to judge
            return
        if name not in node:
            if "_target_" in node or (path == "train." and name in OPTIONAL_TRAIN_KEYS):
                return
            raise UsageError(f"the config has no key {key}{did_you_mean(name, map(str, node))}")
        node, path = node[name], f"{path}{name}."
