from .builders import EVALUATORS, build_evaluator
from .coco import COCOEvaluator, Outcome, evaluate
from .details import TaskResult, evaluate_in_detail
from .errors import Errors, find_errors
from .tables import log_tables
from .truth import Examined, examine

__all__ = [
    "EVALUATORS",
    "COCOEvaluator",
    "Errors",
    "Examined",
    "Outcome",
    "TaskResult",
    "build_evaluator",
    "evaluate",
    "evaluate_in_detail",
    "examine",
    "find_errors",
    "log_tables",
]
