"""Tables of what was measured, and the machine it was measured on."""

import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tabulate import tabulate

# Of a processor, as Linux calls them, what makes kernels faster
FEATURES = {"avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"}
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
    """The processor, what of it kernels use, threads, and PyTorch's version, in words."""
    features = ", ".join(sorted(FEATURES & _cpu_flags())) or "none of the features looked for"
    name = f"{_cpu_name()} ({features}), {torch.get_num_threads()} threads"
    if device != "cpu":
        name = f"{torch.cuda.get_device_name(device)} ({name})"
    return f"{name}, {platform.system()}, PyTorch {torch.__version__}"


def dtypes(device: str) -> tuple[str, ...]:
    """What is measured: float32, and bfloat16 where the hardware computes in it."""
    if device == "cpu":
        has_bfloat16 = bool(_cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})
    else:
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return ("float32", "bfloat16") if has_bfloat16 else ("float32",)


def _cpu_name() -> str:
    return _cpu_info("model name") or platform.processor() or platform.machine()


def _cpu_flags() -> set[str]:
    """As Linux calls them, on x86 and on ARM."""
    return set((_cpu_info("flags") or _cpu_info("Features")).split())


def _cpu_info(key: str) -> str:
    info = Path("/proc/cpuinfo")  # platform.processor() is often empty on Linux
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.split(":")[0].strip() == key:
                return line.partition(":")[2].strip()
    return ""
