"""What the processor can do that decides how fast each precision is."""

from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
# As Linux calls them: vector widths, then what has products of int8 and of bfloat16
FEATURES = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")  # the last is ARM's


def processor_flags() -> frozenset[str]:
    """The flags of the first processor, in Linux's names; none where they cannot be known."""
    try:
        text = CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() in ("flags", "features"):  # of x86 and of ARM
            return frozenset(value.split())
    return frozenset()


def lacks_bfloat16(flags: frozenset[str]) -> bool:
    """Whether products in bfloat16 would be emulated, as far as is known."""
    return bool(flags) and flags.isdisjoint(BFLOAT16)
