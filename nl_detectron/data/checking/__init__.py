from .annotations import Objects
from .check import Checked, check_file, having
from .findings import Effect, Finding, Findings, Kind

__all__ = ["Checked", "Effect", "Finding", "Findings", "Kind", "Objects", "check_file", "having"]
