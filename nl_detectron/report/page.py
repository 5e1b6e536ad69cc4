"""HTML of one self-contained page: no scripts, no fonts and no pictures from elsewhere."""

import base64
import math
from collections.abc import Sequence
from html import escape

import cv2
import numpy as np

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1000px; margin: 2em auto;
       padding: 0 1em; }
h1 { margin-bottom: 0; } h2 { border-bottom: 1px solid #ccc; margin-top: 2em; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { padding: .25em .9em; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1em 0; } img { max-width: 100%; height: auto; }
figcaption, .note { color: #555; }
pre { background: #f5f5f5; padding: 1em; overflow-x: auto; font-size: 12px; }
"""


def page(title: str, body: Sequence[str]) -> str:
    """A whole page of sections, which are HTML already."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(title)}</title>\n<link rel="icon" href="data:,">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    return "\n".join([f"<h2>{escape(title)}</h2>", *parts])


def paragraph(text: str, *, note: bool = False) -> str:
    return f'<p class="note">{escape(text)}</p>' if note else f"<p>{escape(text)}</p>"


def details(summary: str, text: str) -> str:
    """Text as it is, which unfolds."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"


def table(header: Sequence[str], rows: Sequence[Sequence[str | float]]) -> str:
    """Numbers with one decimal, a dash for NaN."""

    def line(cells: Sequence[str | float], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(_text(c))}</{tag}>" for c in cells) + "</tr>"

    body = "\n".join(line(row, "td") for row in rows)
    return f"<table>\n<thead>{line(header, 'th')}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def figure(image: np.ndarray, caption: str, *, quality: int | None = None) -> str:
    """A BGR picture within the page, as JPEG of a quality from 1 to 100 or, without one, as PNG."""
    if quality is None:
        kind, data = "png", cv2.imencode(".png", image)[1]
    else:
        kind, data = "jpeg", cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    height, width = image.shape[:2]
    return (
        f'<figure><img src="{source}" width="{width}" height="{height}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _text(cell: str | float) -> str:
    if isinstance(cell, str):
        return cell
    return "–" if math.isnan(cell) else f"{cell:.1f}"
