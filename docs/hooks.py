"""What mkdocs.yml cannot say: pages of the site that lie outside of docs/.

README.md and the other pages at the root of the repository are read there as often as here, so
their links are those of the repository. This adds them to the site, and moves every link of a page
from where its target lies in the repository to where it lies in the site. It also takes Sphinx's
roles out of what docstrings say.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from griffe import Extension, Object
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = (
    "README.md",
    "CHANGELOG.md",
    "CONFIGS.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "SECURITY.md",
    "configs/**/*.yaml",  # to which CONFIGS.md links
    "projects/*/README.md",
    "projects/*/docs/*.png",
)
# The target of a link or picture, without an anchor; not of addresses and anchors alone
TARGET = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")
# Sphinx's roles in docstrings, such as :class:`Predictor`
ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):(?=`)")
FENCES = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what lies outside of docs/."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, in_site(name), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with its links as the site needs them."""
    here = in_repository(page.file)

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), match[1]))
        return posixpath.relpath(in_site(target), posixpath.dirname(page.file.src_uri) or ".")

    code = FENCES.findall(markdown)
    text = [TARGET.sub(moved, part) for part in FENCES.split(markdown)]
    return "".join(part for pair in zip(text, [*code, ""], strict=True) for part in pair)


def in_repository(file: File) -> str:
    """The path of a page in the repository."""
    return Path(file.abs_src_path).relative_to(ROOT).as_posix()


def in_site(path: str) -> str:
    """The source path in the site of what lies at a path of the repository."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


class PlainRoles(Extension):
    """Docstrings without roles, of which Markdown knows nothing: what they name stays as code."""

    def on_instance(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = ROLE.sub("", obj.docstring.value)
