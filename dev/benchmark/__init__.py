from .suites import SUITES, benchmark

__all__ = ["SUITES", "benchmark"]
