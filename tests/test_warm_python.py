"""The stand-in for Python behaves as Python does."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

SPAWN = """
import multiprocessing, os, sys

def double(x):
    return 2 * x, os.getppid() != os.getpid(), sys.argv[1:]

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        print(pool.map(double, [1, 2]))
"""


def both(python, *arguments: str, **options) -> list[subprocess.CompletedProcess]:
    options = {"capture_output": True, "text": True, **options}
    return [
        subprocess.run([str(program), *arguments], **options)
        for program in (sys.executable, python)
    ]


@pytest.mark.parametrize(
    "code",
    [
        "import sys, os; print(sys.argv[1:], os.getcwd(), os.environ['WORD'], __name__)",
        "import sys; sys.exit(3)",
        "raise SystemExit('so and so')",
        "import sys; print('out'); print('err', file=sys.stderr); sys.exit(None)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import sys; print(sys.stdin.read()[::-1])",
        "import atexit; atexit.register(print, 'at the end')",
    ],
)
def test_a_line_of_code(python, tmp_path, code):
    options = {"cwd": tmp_path, "env": {**os.environ, "WORD": "a b"}, "input": "abc"}
    real, copy = both(python, "-c", code, "1", "--two", **options)
    assert (copy.returncode, copy.stdout, copy.stderr) == (
        real.returncode,
        real.stdout,
        real.stderr,
    )


@pytest.mark.parametrize("ignored", [(), (signal.SIGHUP, signal.SIGINT)])
def test_signals_are_ignored_as_by_who_starts_it(python, ignored):
    """As in a terminal, and as with nohup in the background, whatever the tests themselves do."""

    def prepare():
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

    code = "import signal as s; print([s.getsignal(n) for n in (s.SIGHUP, s.SIGINT, s.SIGTERM)])"
    real, copy = both(python, "-c", code, preexec_fn=prepare)
    assert copy.stdout == real.stdout and real.stdout.count("SIG_IGN") == len(ignored)


def test_an_error_has_its_traceback_and_exit_code(python):
    real, copy = both(python, "-c", "1 / 0")
    assert copy.returncode == real.returncode == 1
    assert copy.stderr.splitlines()[-1] == real.stderr.splitlines()[-1]


def test_a_script_and_the_processes_that_it_starts(python, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SPAWN))
    real, copy = both(python, str(script), "word")
    assert real.returncode == copy.returncode == 0, copy.stderr
    assert real.stdout == copy.stdout == "[(2, True, ['word']), (4, True, ['word'])]\n"


def test_what_it_cannot_do_the_real_python_does(python):
    real, copy = both(python, "-S", "-c", "import sys; print('torch' in sys.modules)")
    assert real.stdout == copy.stdout == "False\n"


def test_a_copy_does_not_outlive_the_program_that_asked(python, tmp_path):
    code = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()));"
    asking = subprocess.Popen([str(python), "-c", code + "time.sleep(600)"])
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.02)
    asking.send_signal(signal.SIGKILL)
    asking.wait()
    copy = int((tmp_path / "pid").read_text())
    for _ in range(500):
        try:
            os.kill(copy, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    pytest.fail("the copy is alive")
