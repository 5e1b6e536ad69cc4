"""Detectron2's DefaultTrainer with evaluators by dataset type and the choice of optimizer."""

import os
import weakref
from collections import OrderedDict
from functools import partial
from unittest import mock

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, create_ddp_model, defaults, hooks
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
    verify_results,
)
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from torch import nn

from ..checkpoint import NonLocalCheckpointer
from ..evaluation import COCOEvaluator
from ..log import logger
from ..solver import build_optimizer
from .monitor import NonLocalMonitor


def _coco(cfg: CfgNode, name: str, folder: str) -> COCOEvaluator:
    return COCOEvaluator(name, output_dir=folder, kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS)


def _sem_seg(cfg: CfgNode, name: str, folder: str) -> SemSegEvaluator:
    return SemSegEvaluator(name, distributed=True, output_dir=folder)


# By the evaluator_type in a dataset's metadata: builders, called with the config, the dataset's
# name and the output folder
EVALUATORS = {
    "coco": (_coco,),
    "coco_panoptic_seg": (
        _sem_seg,
        _coco,
        lambda cfg, name, folder: COCOPanopticEvaluator(name, folder),
    ),
    "sem_seg": (_sem_seg,),
    "lvis": (lambda cfg, name, folder: LVISEvaluator(name, output_dir=folder),),
    "pascal_voc": (lambda cfg, name, folder: PascalVOCDetectionEvaluator(name),),
    "cityscapes_instance": (lambda cfg, name, folder: CityscapesInstanceEvaluator(name),),
    "cityscapes_sem_seg": (lambda cfg, name, folder: CityscapesSemSegEvaluator(name),),
}


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str | None = None
) -> DatasetEvaluator:
    """The evaluator that fits the ``evaluator_type`` in the dataset's metadata.

    Args:
        output_folder: where predictions and figures go; by default ``OUTPUT_DIR/inference``.

    Raises:
        KeyError: if there is no evaluator for the type.
    """
    folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
    builders = EVALUATORS[MetadataCatalog.get(dataset_name).evaluator_type]
    evaluators = [build(cfg, dataset_name, folder) for build in builders]
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


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
        self._loading = {"trust": trust_checkpoint, "allow_missing": allow_missing}
        if torch.device(cfg.MODEL.DEVICE).type != "cpu":
            super().__init__(cfg)
            return
        # DefaultTrainer gives DDP a device_ids, which DDP refuses for a model on the CPU, and has
        # no hook between the two.
        on_cpu = partial(create_ddp_model, device_ids=None)
        with mock.patch.object(defaults, "create_ddp_model", on_cpu):
            super().__init__(cfg)

    def resume_or_load(self, resume: bool = True) -> None:
        super().resume_or_load(resume)
        log_start(
            self.checkpointer,
            self.cfg.MODEL.WEIGHTS,
            self.cfg.MODEL.DEVICE,
            resume,
            self.start_iter,
        )

    def build_hooks(self) -> list[hooks.HookBase]:
        # The last step of super().__init__(), whose own checkpointer no hook has yet.
        self.checkpointer = NonLocalCheckpointer(
            self.model,
            self.cfg.OUTPUT_DIR,
            cfg=self.cfg,
            safetensors=self.cfg.SOLVER.CHECKPOINT_SAFETENSORS,
            trainer=weakref.proxy(self),
            **self._loading,
        )
        ret = super().build_hooks()
        ret.insert(0, NonLocalMonitor(self.model))  # before the hook that writes what it found
        if self.cfg.TEST.AUG.ENABLED:
            ret.append(hooks.EvalHook(0, lambda: self.test_with_tta(self.cfg, self.model)))
        return ret

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

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
        """Loads the weights and evaluates them on ``DATASETS.TEST`` (``--eval-only``).

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
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
        log_start(checkpointer, cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE, resume)
        results = cls.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results.update(cls.test_with_tta(cfg, model))
        if comm.is_main_process():
            verify_results(cfg, results)
        return results

    @classmethod
    def test_with_tta(cls, cfg: CfgNode, model: nn.Module) -> OrderedDict:
        """Evaluates with test-time augmentation; its figures' names end in ``_TTA``."""
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        evaluators = [cls.build_evaluator(cfg, name, folder) for name in cfg.DATASETS.TEST]
        results = cls.test(cfg, GeneralizedRCNNWithTTA(cfg, model), evaluators)
        return OrderedDict((f"{name}_TTA", figures) for name, figures in results.items())


def log_start(
    checkpointer: DetectionCheckpointer,
    weights: str,
    device: str,
    resume: bool,
    iteration: int | None = None,
) -> None:
    """Logs which weights a run starts from, on what device and, in training, at which iteration."""
    where = f" on {device}" + ("" if iteration is None else f" at iteration {iteration}")
    if resume and checkpointer.has_checkpoint():
        logger.info(f"Resumed{where} from {checkpointer.get_checkpoint_file()}")
        return
    if resume:
        logger.warning(f"--resume: there is no checkpoint in {checkpointer.save_dir} yet")
    logger.info(f"Starting{where} from {weights or 'random weights (no checkpoint is named)'}")
