"""A file that does what none may is seen, and ends nothing else."""

import os
from pathlib import Path

import pytest

from dev.soak import files
from dev.soak.mutations import Mutations
from nl_detectron.errors import UsageError


def test_the_same_number_is_the_same_file():
    mutations, again = Mutations(), Mutations()
    for kind in files.KINDS:
        assert mutations(kind, 7) == again(kind, 7)
        assert len({mutations(kind, number)[1] for number in range(50)}) > 40


def test_an_outcome_says_what_came_of_a_file(tmp_path):
    def refuse(_: Path) -> None:
        raise UsageError("no\x1b[2J")

    def fail(_: Path) -> None:
        raise KeyError("inside")

    assert files._outcome(lambda _: None, tmp_path) == "read"
    assert files._outcome(refuse, tmp_path) == "refused"
    assert files._outcome(fail, tmp_path) == "traceback: KeyError: 'inside'"


@pytest.mark.parametrize(
    ("event", "arguments", "is_seen"),
    [
        ("os.system", (b"true",), True),
        ("subprocess.Popen", ("true", ["true"], None, None), True),
        ("socket.getaddrinfo", ("localhost", 80), True),
        ("pickle.find_class", ("os", "system"), True),
        ("open", ("file", "wb", 0), True),
        ("open", ("file", "rb", 0), False),
        ("open", ("file", None, 0), False),
        ("import", ("json",), False),
    ],
)
def test_what_reaches_out_is_noted(event, arguments, is_seen):
    done: list[str] = []
    files._audit(done, event, arguments)
    assert bool(done) == is_seen


def slow_work(first: int, count: int, folder: str, results: files.Connection) -> None:
    """Ends at the file with number 2, as of a fault in C."""
    for number in range(first, count):
        if number == 2:
            results.close()
            os.abort()
        results.send((number, "read", 0.5, number))


def test_a_file_that_ends_the_process_is_counted_and_the_rest_goes_on(monkeypatch, quick_spawn):
    monkeypatch.setattr(files, "work", slow_work)
    rows = list(files.rows(mutations=2))
    assert [row.tried for row in rows] == [2] * 5
    assert [row.kept for row in rows] == [True, True, False, True, True]
    assert "1 ended" in rows[2].figures and ".safetensors 0 ended: SIGABRT" in rows[2].figures
