"""What a check found, as text for people."""

from tabulate import tabulate

from ...errors import one_line
from .check import Checked


def tables(checked: Checked) -> str:
    """Images, annotations by class and size, keypoints by visibility, and the findings."""
    rows = [[one_line(name), *counts, sum(counts)] for name, counts in checked.sizes.items()]
    if len(rows) > 1:
        rows.append(["all", *map(sum, zip(*(row[1:] for row in rows), strict=True))])
    parts = [
        f"{checked.num_images:,} images, {checked.num_annotations:,} annotations",
        _table(rows, ("class", "small", "medium", "large", "all")),
    ]
    if any(checked.visibilities):
        seen = ("not labelled", "labelled, not visible", "visible")
        parts.append(_table([checked.visibilities], tuple(f"keypoints {name}" for name in seen)))
    if not checked.findings:
        return "\n\n".join([*parts, "Nothing was found that is out of order."])
    rows = [
        [
            f"{finding.count:,}",
            f"{finding.kind.of}: {finding.kind.what}",
            ", ".join(example[:60] for example in finding.examples[:3]),
            finding.kind.effect.value,
        ]
        for finding in checked.findings
    ]
    widths = [None, 44, 50, 24]
    headers = ("count", "finding", "first of them", "what training does")
    return "\n\n".join([*parts, _table(rows, headers, widths)])


def _table(rows: list[list], headers: tuple[str, ...], widths: list | None = None) -> str:
    return tabulate(
        rows, headers, "simple", disable_numparse=True, maxcolwidths=widths, colalign=None
    )
