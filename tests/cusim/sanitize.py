"""Sample calls of all kernels under AddressSanitizer and UndefinedBehaviorSanitizer.

    python tests/cusim/sanitize.py [--shift FILE | --every-second FIRST]

starts itself again with the sanitizers' library in front and the shim built for them; a finding ends the process with
its report, which names file and line of the kernel's text. --shift makes a subscript of a .cu file one too large, where
a kernel writes its result, to show that this is found. --every-second takes half of the calls, from number 0 or 1 on.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

OPTIONS = {
    "CUSIM_SANITIZE": "1",
    # leaks are Python's own; a fiber's stack is none that the sanitizer knows
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
}
WRITE = re.compile(r"\b((?:\([^()]*\))?d?[xy]\)?)\[([^\[\]]+)\] = ")


def library() -> str | None:
    """Path of gcc's AddressSanitizer; None if there is none."""
    try:
        found = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    except OSError:
        return None
    return found if os.path.isabs(found) else None


def shifted(file: str) -> tuple[Any, str]:
    """(the shim with the mistake in the last write of a file, the line)."""
    from cusim.mutations import Mutated, mutants
    from minidl.kernels.cuda import launch

    text = (launch.HERE / file).read_text(encoding="utf-8")
    mutant = list(mutants(file, text, WRITE, r"\1[\2 + 1] = "))[-1]
    return Mutated(mutant), mutant.old


def main(arguments: list[str]) -> int:
    """Run the calls: all, or those of the file with a mistake."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import cusim
    from cusim.calls import of_rooms
    from cusim.mutations import standing_in, texts_of

    option, value = arguments or ["", ""]
    shim, line = shifted(value) if option == "--shift" else (cusim, "")
    calls = [call for call in of_rooms() if not line or any(line in text for text in texts_of(call))]
    if option == "--every-second":
        calls = calls[int(value) :: 2]
    with standing_in(shim):
        for count, call in enumerate(calls):
            cusim.order(count % 3)
            call.run(shim)
    print(f"{len(calls)} calls, no finding")
    return 0 if calls else 1


if __name__ == "__main__":
    if os.environ.get("CUSIM_SANITIZE"):
        sys.exit(main(sys.argv[1:]))
    preload = library()
    if preload is None:
        sys.exit("sanitize.py: gcc has no libasan.so here")
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **OPTIONS, "LD_PRELOAD": preload})
