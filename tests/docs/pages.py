"""The pages of the documentation, and what is in them."""

import re
from dataclasses import dataclass

from tests.places import ROOT

PAGES = [
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "projects/*/README.md")
    for path in sorted(ROOT.glob(pattern))
]
FENCE = re.compile(
    r"(?:^<!-- (?P<note>.*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: the path of its page in the repository.
        line: that of its first line there, from 1.
        language: what stands behind the fence; it may be empty.
        text: what is inside.
        note: the comment right before it, for its reader in the tests; it may be empty.
    """

    page: str
    line: int
    language: str
    text: str
    note: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_run(self) -> bool:
        """Whether the page gives no reason why it is not run."""
        return not self.note.startswith("not run: ")


def cells_of(row: str) -> list[str]:
    """What is in a row of a table."""
    return [cell.strip() for cell in row.strip("|").split("|")]


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose(page: str) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", read(page))


def blocks(page: str) -> list[Block]:
    text = read(page)
    return [
        Block(
            page=page,
            line=text.count("\n", 0, match.start("text")) + 1,
            language=match["language"],
            text=match["text"],
            note=match["note"] or "",
        )
        for match in FENCE.finditer(text)
    ]


def all_blocks(language: str) -> list[Block]:
    """The blocks of a language that are to be run, on all pages."""
    found = [block for page in PAGES for block in blocks(page)]
    return [block for block in found if block.language == language and block.is_run]
