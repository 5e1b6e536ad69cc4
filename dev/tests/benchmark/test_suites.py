import sys

import pytest

from dev.benchmark import SUITES, suites
from dev.benchmark import __main__ as benchmark_command
from dev.benchmark.table import Table
from nl_detectron.errors import UsageError


def test_each_suite_is_a_module_with_tables():
    for name in SUITES:
        assert callable(suites.import_module(f"dev.benchmark.{name}").tables)


def test_what_was_measured_is_kept_when_what_follows_fails(monkeypatch, tmp_path, capsys):
    def tables(suite, quick, device):
        yield Table(f"{suite} {quick} {device}", "", ("a",), [("1",)])
        raise RuntimeError("out of memory")

    monkeypatch.setattr(suites, "_tables", tables)
    path = tmp_path / "page.md"
    with pytest.raises(RuntimeError):
        suites.write(suites.benchmark("block", quick=True, device="cpu"), path)
    page = path.read_text()
    assert page.startswith("# Benchmarks: block") and "PyTorch" in page
    assert "## block True cpu" in page
    assert capsys.readouterr().out == page


def test_each_suite_has_a_page_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setattr(suites, "_tables", lambda suite, quick, device: iter(()))
    command = ["benchmark", "--suite", "all", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    benchmark_command.main()
    assert {file.name for file in tmp_path.iterdir()} == {f"{suite}.md" for suite in SUITES}
    monkeypatch.setattr(sys, "argv", [*command[:-1], str(tmp_path / "none")])
    with pytest.raises(UsageError, match="none is no folder"):
        benchmark_command.main()
