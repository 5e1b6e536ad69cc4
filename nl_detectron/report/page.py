"""The parts of a report, and the page that a template makes of them."""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader


@dataclass(frozen=True)
class Picture:
    """A picture within the page.

    Attributes:
        source: all of it, as a ``data:`` address.
        width, height: in pixels.
        caption: below it.
    """

    source: str
    width: int
    height: int
    caption: str


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading of its own; what is empty is left out.

    Attributes:
        title: the heading.
        text: a paragraph.
        note: another one, in grey.
        header: of a table.
        rows: of the table; numbers are shown with one decimal, and a dash for NaN.
        pictures: one below the other.
        folded: summaries, and the text that each unfolds to.
    """

    title: str
    text: str = ""
    note: str = ""
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str | float]] = ()
    pictures: Sequence[Picture] = field(default_factory=list)
    folded: Sequence[tuple[str, str]] = ()


def render(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The page in HTML, in which nothing that a text holds is markup."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["figure"] = _figure
    template = environment.get_template("report.html.j2")
    return template.render(title=title, subtitle=subtitle, sections=sections)


def picture(image: np.ndarray, caption: str, *, quality: int | None = None) -> Picture:
    """A BGR image, as JPEG of a quality from 1 to 100 or, without one, as PNG."""
    if quality is None:
        kind, data = "png", cv2.imencode(".png", image)[1]
    else:
        kind, data = "jpeg", cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    source = f"data:image/{kind};base64,{base64.b64encode(data.tobytes()).decode()}"
    height, width = image.shape[:2]
    return Picture(source, width, height, caption)


def _figure(cell: str | float) -> str:
    if isinstance(cell, str):
        return cell
    return "–" if math.isnan(cell) else f"{cell:.1f}"
