"""Assembly texts of native code for several processors, and what to look for in them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from minidl.backends.cpu.native.target import described

TARGETS = {
    "avx512": described("x86_64-unknown-linux-gnu", "skylake-avx512", "+avx512f,+avx512vl,+avx512dq,+avx2,+fma"),
    "avx2": described("x86_64-unknown-linux-gnu", "haswell", "+avx2,+fma"),
    "neon": described("aarch64-unknown-linux-gnu", "neoverse-n1", "+neon,+fullfp16"),
}
REGISTER = {"avx512": r"%zmm", "avx2": r"%ymm", "neon": r"\bv\d+\.(4s|2d)"}  # a whole vector
MULTIPLY_ADD = {"avx512": r"vfn?m(add|sub)\w+p[sd]\s.*%zmm", "avx2": r"vfn?m(add|sub)\w+p[sd]\s.*%ymm",
                "neon": r"fmla\s+v\d+\.(4s|2d)"}  # fmt: skip
STACK = r"\(%rsp|\[sp\b"
MOVE = r"v?mov[au]p[sd]\s+%\wmm\d+, %\wmm\d+$|mov\s+v\d+\.16b, v\d+\.16b"  # from register to register


def basic_blocks(text: str) -> list[list[str]]:
    """The instructions of an assembly text, block by block."""
    found: list[list[str]] = [[]]
    for line in map(str.strip, text.splitlines()):
        if re.match(r"[.\w$]+:", line):
            found.append([])
        elif line and not line.startswith((".", "#", "//")):
            found[-1].append(line)
            if re.match(r"j\w+\s|b(\.\w+)?\s|cbn?z\s|tbn?z\s|ret", line):
                found.append([])
    return found


def count(pattern: str, lines: Iterable[str]) -> int:
    """Lines in which the pattern is found."""
    return sum(bool(re.search(pattern, line)) for line in lines)
