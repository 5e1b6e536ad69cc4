"""What the pages point to is there."""

import pkgutil
import posixpath
import re

import pytest

from .pages import PAGES, ROOT, prose, read

LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FOLDERS = "configs|dev|docs|nl_detectron|projects|requirements|tests|tools"
CONFIG_FOLDERS = "COCO-|Detectron1-|Misc/|quick_schedules/"


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    titles = HEADING.findall(prose(page))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    for path, anchor in LINK.findall(prose(page)):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page
        assert (ROOT / target).is_file(), (path, anchor)
        assert not anchor or anchor in anchors(target), (path, anchor)


# CHANGELOG.md names those of before.
@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_paths_that_pages_name_exist(page):
    for path in re.findall(rf"`((?:{FOLDERS})/[\w/.*-]*)`", prose(page)):
        assert any(ROOT.glob(path)), path


@pytest.mark.parametrize("page", [page for page in PAGES if re.search(CONFIG_FOLDERS, read(page))])
def test_configs_that_pages_name_exist(page):
    folders = rf"(?:configs/|[`\" ])((?:{CONFIG_FOLDERS})[\w/-]+\.(?:yaml|py))\b"
    for name in re.findall(folders, read(page)):
        assert (ROOT / "configs" / name).is_file(), name


def test_make_has_the_targets_that_pages_name():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for page in PAGES:
        assert set(re.findall(r"(?:`|^)make (\w+)", read(page), re.MULTILINE)) <= set(targets), page


@pytest.mark.parametrize(
    "name", [n for page in PAGES for n in re.findall(r"^::: (\S+)$", read(page), re.MULTILINE)]
)
def test_public_names_exist_and_are_documented(name):
    assert pkgutil.resolve_name(name).__doc__
