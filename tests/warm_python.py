"""A Python that starts in a moment: its processes are copies of one that has imported PyTorch.

Importing PyTorch and Detectron2 takes seconds, and some hundred tests start a process. A server
imports them once and does nothing else; a small program in the place of ``python`` asks it to copy
itself (fork), and the copy runs what was asked for, with the caller's open files, folder,
environment and ignored signals. nl_detectron itself is not imported before. The real Python does
what a copy cannot do, such as ``-S`` or modules other than ours.
"""

import atexit
import contextlib
import fcntl
import importlib
import json
import multiprocessing
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

IMPORTED = ("torch", "torchvision", "torch.utils.tensorboard", "detectron2.engine", "cv2")
IMPORTED += ("detectron2.evaluation", "detectron2.modeling", "detectron2.utils.visualizer")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
CLIENT = """#!{python} -IS
import contextlib, json, os, signal, socket, sys
MODULES = ("nl_detectron.", "dev.soak.", "torch.distributed.run")
arguments = sys.argv[1:]
while arguments[:1] in (["-B"], ["-u"]):  # as spawn and torchrun put it
    del arguments[0]
is_known = arguments and (
    arguments[0].endswith(".py")
    or (len(arguments) > 1 and arguments[0] == "-c")
    or (len(arguments) > 1 and arguments[0] == "-m" and arguments[1].startswith(MODULES))
)
if not is_known:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
files = [int(name) for name in os.listdir("/proc/self/fd")]
files = [file for file in files if os.path.exists(f"/proc/self/fd/{{file}}")]  # but the listing's
ignored = [number for number in {signals} if signal.getsignal(number) is signal.SIG_IGN]
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    asked = json.dumps([arguments, os.getcwd(), dict(os.environ), files, ignored]).encode()
    socket.send_fds(server, [len(asked).to_bytes(4, "big")], files)
    server.sendall(asked)
    answers = server.makefile()
    copy = int(answers.readline())
    def pass_on(number, frame):
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.kill(copy, number)
    for number in {signals}:
        signal.signal(number, pass_on)
    code = int(answers.readline())
    for number in {signals}:
        signal.signal(number, signal.SIG_DFL)
if code < 0:
    os.kill(os.getpid(), -code)
os._exit(code)
"""


@contextlib.contextmanager
def warm_python(folder: Path) -> Iterator[Path]:
    """A program in this folder, called python, that takes Python's place."""
    address = str(folder / "socket")
    program = folder / "python"
    program.write_text(
        CLIENT.format(python=sys.executable, address=address, signals=[*map(int, SIGNALS)])
    )
    program.chmod(0o755)
    command = [sys.executable, "-m", __name__, address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        server.stdout.readline()  # it is ready
        try:
            yield program
        finally:
            server.terminate()


def serve(address: str) -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    # Processes that a copy starts are such copies, too.
    sys.executable = str(Path(address).with_name("python"))
    multiprocessing.set_executable(sys.executable)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that answer
        print("ready", flush=True)
        while True:
            connection, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                answer(connection)
            connection.close()


def answer(connection: socket.socket) -> None:
    """Runs what is asked for in a copy of this process, and tells its id and its exit code.

    The copy does not outlive the program that asked, which passes signals on to it.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, files, _, _ = socket.recv_fds(connection, 4, 250)
    asked = connection.makefile("rb").read(int.from_bytes(size, "big"))
    child = os.fork()
    if child == 0:
        connection.close()
        arguments, folder, environment, numbers, ignored = json.loads(asked)
        above = max(*numbers, *files) + 1
        files = [fcntl.fcntl(file, fcntl.F_DUPFD, above) for file in files]
        os.closerange(3, above)
        for number, file in zip(numbers, files, strict=True):
            os.dup2(file, number)
            os.close(file)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        for number in SIGNALS:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, signal.SIG_IGN if number in ignored else default)
        os._exit(run(arguments))
    for file in files:
        os.close(file)
    with contextlib.suppress(OSError):  # gone already
        connection.sendall(f"{child}\n".encode())
    ended, gone = os.pidfd_open(child), connection.fileno()
    readable, _, _ = select.select([ended, gone], [], [])
    if ended not in readable:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(OSError):
        connection.sendall(f"{status}\n".encode())
    os._exit(0)


def run(arguments: list[str]) -> int:
    """What Python does with these arguments, in this process; returns the exit code."""
    path = os.environ.get("PYTHONPATH", "")
    sys.path[0:1] = path.split(os.pathsep) if path else []  # in the place of the server's folder
    try:
        if arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            sys.path.insert(0, "")
            exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
        elif arguments[0] == "-m":
            sys.argv = arguments[1:]
            sys.path.insert(0, os.getcwd())
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = arguments
            sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
            runpy.run_path(arguments[0], run_name="__main__")
        code: object = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    with contextlib.suppress(BaseException):
        threading._shutdown()  # waits for threads, as Python does at its end
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    return int(code or 0) & 0xFF


if __name__ == "__main__":
    serve(sys.argv[1])
