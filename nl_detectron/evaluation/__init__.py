from .builders import EVALUATORS, build_evaluator
from .coco import COCOEvaluator, evaluate
from .details import TaskResult, evaluate_in_detail

__all__ = [
    "EVALUATORS",
    "COCOEvaluator",
    "TaskResult",
    "build_evaluator",
    "evaluate",
    "evaluate_in_detail",
]
