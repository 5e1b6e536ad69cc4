"""Evaluators by the kind of dataset."""

import os

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)

from .coco import COCOEvaluator


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
