"""Tables of what was measured, and the machine it was measured on."""

import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tabulate import tabulate

from nl_detectron.inference.processor import FEATURES, lacks_bfloat16, processor_flags

NOT_MEASURED = "not measured"  # a cell for which this machine lacks something


# What is said under each heading of the page, with {places} for values
TEXTS = Path(__file__).with_name("texts.md")


def text_of(title: str, **values: object) -> str:
    """What is said under a heading, on one line.

    Raises:
        KeyError: if there is no such heading, or a value is missing.
    """
    headings = re.split(r"^##? (.+)$", TEXTS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    texts = dict(zip(headings[1::2], headings[2::2], strict=True))
    return " ".join(texts[title].format(**values).split())


@dataclass(frozen=True)
class Table:
    """A table and what a reader needs to know about it.

    Attributes:
        title: its heading.
        text: what was measured, how, and the goal; Markdown.
        header: names of the columns.
        rows: as many cells each as the header has.
    """

    title: str
    text: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"{self.title}: {list(row)} has not the {len(self.header)} cells")

    def markdown(self) -> str:
        """A section in Markdown."""
        rows = tabulate(self.rows, self.header, tablefmt="github", disable_numparse=True)
        return f"## {self.title}\n\n{self.text}\n\n{rows}\n"


def machine(device: str) -> str:
    """The processor, what it can do, threads in use, and PyTorch's version, in words."""
    flags = processor_flags()
    features = "".join(f", {name}" for name in FEATURES if name in flags)
    name = f"{_cpu_name()}{features}, {torch.get_num_threads()} threads"
    if device != "cpu":
        name = f"{torch.cuda.get_device_name(device)} ({name})"
    return f"{name}, {platform.system()}, PyTorch {torch.__version__}"


def dtypes(device: str) -> tuple[str, ...]:
    """What is measured: float32, and bfloat16 where the hardware computes in it."""
    if device == "cpu":
        has_bfloat16 = not lacks_bfloat16(processor_flags())
    else:
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return ("float32", "bfloat16") if has_bfloat16 else ("float32",)


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")  # platform.processor() is often empty on Linux
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
