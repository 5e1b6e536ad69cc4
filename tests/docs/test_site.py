"""The site of the pages."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .pages import PAGES, ROOT, read

pytest.importorskip("mkdocs", reason="MkDocs is not installed: requirements/docs.txt")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    done = subprocess.run(
        [*command, "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    return folder


@pytest.mark.slow
def test_has_every_page_and_every_public_name(site):
    for page in PAGES:
        name = "index.md" if page == "README.md" else page.removeprefix("docs/")
        # MkDocs calls the page of a README.md in a folder index.html.
        name = name.replace("README.md", "index.md")
        html = (site / name.replace(".md", ".html")).read_text(encoding="utf-8")
        for public in re.findall(r"^::: (\S+)$", read(page), re.MULTILINE):
            assert f'id="{public}"' in html, public


@pytest.mark.slow
def test_loads_nothing_from_the_network(site):
    loads = re.compile(r"<(?:script|img|link|iframe)\b[^>]*\b(?:src|href)=\"?(?:https?:)?//[^>]*>")
    for file in site.rglob("*.html"):
        assert not loads.search(file.read_text(encoding="utf-8")), file
