"""Detectron2's DefaultTrainer with evaluators by dataset type and the choice of optimizer."""

import logging
import os
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from functools import partial

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import (
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.engine import DefaultTrainer, hooks
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.utils.data import Sampler

from ..checkpoint import NonLocalCheckpointer
from ..checkpoint.vocabulary import from_text
from ..data.mapper import ImageMapper
from ..data.seeds import SAMPLER, derive, drawing_from
from ..data.stream import as_it_is, stream_of, with_own_generator
from ..data.training import annotations_in_files, usable_for_training
from ..evaluation import build_evaluator, log_tables
from ..evaluation.memory import WithinMemory
from ..log import logger
from ..solver import build_optimizer
from .averaging import WeightAveraging
from .best import may_end_early, with_best
from .buffers import SameBuffers
from .finite import FiniteSteps
from .folder import only_training_in
from .launch import ddp
from .loop import build_loop, usage_errors_unlogged
from .metrics import build_writers
from .monitor import NonLocalMonitor
from .own_data import check_same_classes, describe
from .resume import SameImages, run_seed, with_exact_resume
from .room import Room
from .settings import settings_of
from .signals import StopOnSignal


class Trainer(DefaultTrainer):
    """Trains and evaluates as Detectron2's ``tools/train_net.py`` does, on GPUs or on CPUs."""

    def __init__(
        self, cfg: CfgNode, *, trust_checkpoint: bool = False, allow_missing: bool = False
    ):
        """
        Args:
            trust_checkpoint, allow_missing: ``trust`` and ``allow_missing`` of
                :class:`NonLocalCheckpointer`.
        """
        # In the place of DefaultTrainer's own, which gives DDP device_ids that DDP refuses for a
        # model on the CPU, and another checkpointer.
        super(DefaultTrainer, self).__init__()
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        seed = run_seed(cfg.SEED)
        data_loader = self._build_train_loader(cfg, seed)
        model = ddp(model, cfg.MODEL.DEVICE, broadcast_buffers=False)
        self._trainer = build_loop(
            model,
            data_loader,
            optimizer,
            amp=cfg.SOLVER.AMP.ENABLED,
            accumulate=cfg.SOLVER.ACCUMULATE,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = NonLocalCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            cfg=cfg,
            metadata=MetadataCatalog.get(cfg.DATASETS.TRAIN[0]),
            safetensors=cfg.SOLVER.CHECKPOINT_SAFETENSORS,
            on_error=cfg.SOLVER.CHECKPOINT_ON_ERROR,
            trainer=weakref.proxy(self),
            trust=trust_checkpoint,
            allow_missing=allow_missing,
        )
        self.start_iter, self.max_iter, self.cfg = 0, cfg.SOLVER.MAX_ITER, cfg
        registered = with_exact_resume(
            self.build_hooks(),
            seed=seed,
            settings=settings_of(cfg),
            build_loader=partial(self._build_train_loader, cfg),
        )
        self.register_hooks(registered)
        for name in dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)):
            logger.info(describe(MetadataCatalog.get(name)))

    def resume_or_load(self, resume: bool = True) -> None:
        super().resume_or_load(resume)
        log_start(
            self.checkpointer,
            self.cfg.MODEL.WEIGHTS,
            self.cfg.MODEL.DEVICE,
            resume,
            self.start_iter,
            self.max_iter,
        )

    def build_hooks(self) -> list[hooks.HookBase]:
        ret = super().build_hooks()
        ret = [*(SameImages(h) for h in ret if isinstance(h, hooks.PreciseBN)), *ret]
        ret.insert(0, NonLocalMonitor(self.model))  # before the hook that writes what it found
        if self.cfg.TEST.AUG.ENABLED:
            ret.append(hooks.EvalHook(0, lambda: self.test_with_tta(self.cfg, self.model)))
        test = self.cfg.TEST
        ret = with_best(
            ret,
            self.checkpointer,
            eval_period=test.EVAL_PERIOD,
            metric=test.BEST_METRIC,
            patience=test.EARLY_STOPPING_PATIENCE,
        )
        room = Room(
            self.cfg.OUTPUT_DIR,
            period=self.cfg.SOLVER.CHECKPOINT_PERIOD,
            keep=self.cfg.SOLVER.CHECKPOINT_KEEP,
            go_on=self.cfg.SOLVER.CHECKPOINT_ON_ERROR == "continue",
            averages=self.cfg.MODEL_EMA.ENABLED,
            keys=("SOLVER.CHECKPOINT_KEEP", "SOLVER.CHECKPOINT_ON_ERROR"),
        )
        ret += [room, StopOnSignal(self.checkpointer)]
        if self.cfg.MODEL_EMA.ENABLED:  # around all that evaluates and saves
            averaging = WeightAveraging(self.model, decay=self.cfg.MODEL_EMA.DECAY)
            ret = [averaging, *ret, averaging.last()]
        periods = test.EVAL_PERIOD, self.cfg.SOLVER.CHECKPOINT_PERIOD
        first = FiniteSteps(self.checkpointer, self.cfg.OUTPUT_DIR)
        return [first, SameBuffers(self.model, periods), *ret]

    def train(self) -> OrderedDict | None:
        # In the place of DefaultTrainer's own, whose last lines an early end would leave out
        folder = only_training_in("OUTPUT_DIR", self.cfg.OUTPUT_DIR)
        with folder, usage_errors_unlogged(), may_end_early():
            super(DefaultTrainer, self).train(self.start_iter, self.max_iter)
        if not self.cfg.TEST.EXPECTED_RESULTS or not comm.is_main_process():
            return None
        verify(self.cfg, self._last_eval_results)
        return self._last_eval_results

    def build_writers(self) -> list[EventWriter]:
        return build_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    @classmethod
    def _build_train_loader(cls, cfg: CfgNode, seed: int) -> Iterable[list[dict]]:
        seeded = cfg.clone()
        seeded.defrost()
        seeded.SEED = seed
        return cls.build_train_loader(seeded)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict]]:
        """Detectron2's, of what the model can be trained on, and by ``SEED`` alone."""
        head, filter_empty = cfg.MODEL.ROI_KEYPOINT_HEAD, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        dicts = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN,
            filter_empty=filter_empty,
            min_keypoints=head.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0,
            proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
        )
        dicts = usable_for_training(
            dicts,
            masks=cfg.MODEL.MASK_ON,
            keypoints=cfg.MODEL.KEYPOINT_ON,
            # Weighted samplers count the images for themselves.
            filter_empty=filter_empty and not cfg.DATALOADER.SAMPLER_TRAIN.startswith("Weighted"),
            total=annotations_in_files(cfg.DATASETS.TRAIN),
        )
        size = cfg.SOLVER.IMS_PER_BATCH // cfg.SOLVER.ACCUMULATE
        seed = run_seed(cfg.SEED)
        with drawing_from(derive(seed, SAMPLER)):
            plan = build_detection_train_loader(
                cfg,
                dataset=dicts,
                sampler=cls.build_train_sampler(cfg, dicts),
                mapper=as_it_is,
                total_batch_size=size,
            )
        return with_own_generator(
            build_detection_train_loader(
                stream_of(plan, ImageMapper(cfg, is_train=True), dicts, seed=seed),
                mapper=None,
                total_batch_size=size,
                aspect_ratio_grouping=False,  # which the stream does
                num_workers=cfg.DATALOADER.NUM_WORKERS,
            )
        )

    @classmethod
    def build_train_sampler(cls, cfg: CfgNode, dicts: list[dict]) -> Sampler[int] | None:
        """Which images are trained on, to be overridden; None: by ``DATALOADER.SAMPLER_TRAIN``.

        Args:
            cfg: of the training.
            dicts: its images, to whose indices the sampler's endless ones refer.
        """
        return None

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict]]:
        images_only = cfg.clone()
        images_only.defrost()
        images_only.MODEL.KEYPOINT_ON = False  # whose flips are those of a training set
        mapper = ImageMapper(images_only, is_train=False)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name, output_folder)

    @classmethod
    def evaluate(
        cls,
        cfg: CfgNode,
        *,
        resume: bool,
        trust_checkpoint: bool = False,
        allow_missing: bool = False,
    ) -> OrderedDict:
        """Loads the weights and evaluates them on ``DATASETS.TEST``.

        Raises:
            CheckpointError: if a tensor is not in the checkpoint, unless ``allow_missing`` is set.
        """
        model = cls.build_model(cfg)
        checkpointer = NonLocalCheckpointer(
            model,
            save_dir=cfg.OUTPUT_DIR,
            complete=True,
            cfg=cfg,
            trust=trust_checkpoint,
            allow_missing=allow_missing,
        )
        content = checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
        check_same_classes(from_text(content.get("vocabulary")), cfg.DATASETS.TEST)
        log_start(checkpointer, cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE, resume)
        evaluators = [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
        results = cls.test(cfg, model, evaluators)
        for evaluator in evaluators:
            log_tables(evaluator)
        if cfg.TEST.AUG.ENABLED:
            results.update(cls.test_with_tta(cfg, model))
        if comm.is_main_process():
            verify(cfg, results)
        return results

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: list[DatasetEvaluator] | None = None
    ) -> OrderedDict:
        """As DefaultTrainer's; what does not fit into memory is tried smaller, and named."""
        within = WithinMemory(model)
        results = super().test(cfg, within, evaluators)
        within.report()
        return results

    @classmethod
    def test_with_tta(cls, cfg: CfgNode, model: nn.Module) -> OrderedDict:
        """Evaluates with test-time augmentation; its figures' names end in ``_TTA``."""
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        evaluators = [cls.build_evaluator(cfg, name, folder) for name in cfg.DATASETS.TEST]
        results = cls.test(cfg, GeneralizedRCNNWithTTA(cfg, model), evaluators)
        return OrderedDict((f"{name}_TTA", figures) for name, figures in results.items())


def verify(cfg: CfgNode, results: OrderedDict) -> None:
    """Detectron2's check of ``TEST.EXPECTED_RESULTS``, of which a task may have no figures."""
    expected: dict[str, dict] = {task: {} for task, *_ in cfg.TEST.EXPECTED_RESULTS}
    verify_results(cfg, {**expected, **results})


def log_start(
    checkpointer: DetectionCheckpointer,
    weights: str,
    device: str,
    resume: bool,
    iteration: int | None = None,
    max_iter: int | None = None,
) -> None:
    """Logs which weights a run starts from, on what device and, in training, at which iteration.

    Where the training has reached its last iteration already, a line says so.
    """
    if iteration is not None and max_iter is not None and iteration >= max_iter:
        logger.warning(
            f"Nothing is left to train: {iteration} iterations are done, and the config asks for "
            f"{max_iter}. What it asks to evaluate at the end is evaluated; to train on, raise "
            "SOLVER.MAX_ITER (train.max_iter in a LazyConfig)"
        )
    where = f" on {device}" + ("" if iteration is None else f" at iteration {iteration}")
    if resume and checkpointer.has_checkpoint():
        logger.info(f"Resumed{where} from {checkpointer.get_checkpoint_file()}")
        return
    if resume:
        logger.warning(f"resume: there is no checkpoint in {checkpointer.save_dir} yet")
    logger.info(f"Starting{where} from {weights or 'random weights (no checkpoint is named)'}")
