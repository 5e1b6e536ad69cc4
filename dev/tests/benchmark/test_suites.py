import pytest

from dev.benchmark import SUITES, suites
from dev.benchmark.table import Table


def test_each_suite_is_a_module_with_tables():
    for name in SUITES:
        assert callable(suites.import_module(f"dev.benchmark.{name}").tables)


def test_what_was_measured_is_kept_when_a_later_suite_fails(monkeypatch, tmp_path, capsys):
    def tables(suite, quick, device):
        if suite == "second":
            raise RuntimeError("out of memory")
        yield Table(f"{suite} {quick} {device}", "", ("a",), [("1",)])

    monkeypatch.setattr(suites, "_tables", tables)
    path = tmp_path / "page.md"
    with pytest.raises(RuntimeError):
        suites.write(suites.benchmark(["first", "second"], quick=True, device="cpu"), path)
    page = path.read_text()
    assert "PyTorch" in page and "## first True cpu" in page
    assert capsys.readouterr().out == page
