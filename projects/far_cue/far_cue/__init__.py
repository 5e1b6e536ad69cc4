"""An experiment: what models with and without non-local blocks do where the answer lies far away.

Importing it registers its datasets and the models that are no choice of nl_detectron's config.
"""

from . import datasets as _  # only registration
from .page import write_page
from .run import Run, run_all
from .tasks import TASKS
from .variants import VARIANTS, variants_of

__all__ = ["TASKS", "VARIANTS", "Run", "run_all", "variants_of", "write_page"]
