"""A row of the table that `make soak` prints."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """What was promised, how often it was tried, and what came of it.

    Attributes:
        promise: in words.
        tried: how often.
        kept: whether it was kept each time.
        figures: what was measured, in words.
    """

    promise: str
    tried: int
    kept: bool
    figures: str = ""

    def cells(self) -> tuple[str, str, str, str]:
        return self.promise, f"{self.tried:,}", "yes" if self.kept else "NO", self.figures
