"""The experiment behind docs/evidence.md: what models do with non-local blocks and without."""

from .report import write_report
from .run import Run, run_all
from .variants import DIFFICULTIES, VARIANTS, variants_of

__all__ = ["DIFFICULTIES", "VARIANTS", "Run", "run_all", "variants_of", "write_report"]
