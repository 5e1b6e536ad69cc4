"""The web page under many requests, at once and one after the other."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from nl_detectron.files import write_image

from .growth import grow, in_use, resident
from .memory import DEVICE, train
from .row import Row

# glibc's: one heap for all threads, and what takes pages of its own goes back when it is freed, so
# that steps of an allocator are not taken for a slope.
FREED_AT_ONCE = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}


def rows(*, calls: int, people: int = 20) -> Iterator[Row]:
    """So many requests, after those of some people at once.

    Raises:
        RuntimeError: if the page does not start.
    """
    from gradio_client import Client, handle_file  # type: ignore[import-untyped]  # an extra's

    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder), 2)
        image = Path(folder) / "image.png"
        write_image(image, np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8))
        weights = Path(folder) / "model_final.pth"
        with serving(weights) as (process, address):
            model = f"{weights.parent.name}/{weights.name}"

            def ask(client: "Client") -> int:
                """The highest place in the queue that was shown to one who asks."""
                job = client.submit(handle_file(str(image)), model, 0.5, api_name="/detect")
                place = 0
                while not job.done():
                    place = max(place, job.status().rank or 0)
                    time.sleep(0.02)
                job.result()
                return place

            clients = [Client(address, verbose=False) for _ in range(people)]
            with ThreadPoolExecutor(people) as pool:
                places = list(pool.map(ask, clients))
            yield Row(
                f"{people} people at once are served in turn, and shown their place",
                people,
                max(places) > 1,
                f"the highest place shown was {max(places)}",
            )
            looks: dict[str, Callable[[], float]] = {"memory": partial(resident, process)}
            if DEVICE == "cuda":
                looks["CUDA memory"] = in_use
            for name, look in looks.items():
                growth = grow(lambda _: ask(clients[0]), calls, look=look)
                yield Row(f"the page's {name} is flat", calls, growth.is_flat(), str(growth))


@contextlib.contextmanager
def serving(weights: Path) -> Iterator[tuple[int, str]]:
    """tools/app.py in a process of its own: its id and its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tool = Path(__file__).parents[2] / "tools" / "app.py"
    command = [sys.executable, str(tool), "--weights", str(weights), "--port", str(port)]
    with subprocess.Popen(
        [*command, "--device", DEVICE],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | FREED_AT_ONCE,
    ) as process:
        assert process.stdout is not None
        printed = []
        try:
            for line in process.stdout:
                printed.append(line)
                if found := re.search(r"running on.*(http://\S+)", line, re.IGNORECASE):
                    break
            else:
                raise RuntimeError("the page does not start: " + "".join(printed)[-2000:])
            yield process.pid, found[1]
        finally:
            process.terminate()
