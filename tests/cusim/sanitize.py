"""Sample calls of all kernels under AddressSanitizer and UndefinedBehaviorSanitizer.

    python tests/cusim/sanitize.py [part of a call's text ...] [--shift file line-part]

starts itself again with the sanitizers' library in front and the shim built for them; a finding ends the process with
its report, which names file and line of the kernel's text. --shift makes the array subscript of a line one too large,
to show that it is found.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

OPTIONS = {
    "CUSIM_SANITIZE": "1",
    # leaks: Python's own; a fiber's stack is none that the sanitizer knows
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:allocator_may_return_null=1:handle_segv=1",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    "PYTHONMALLOC": "malloc",
}


def library() -> str | None:
    """Path of gcc's AddressSanitizer; None if there is none."""
    try:
        found = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    except OSError:
        return None
    return found if os.path.isabs(found) else None


def main(arguments: list[str]) -> int:
    """Run the calls whose text contains one of the words given (none: all); the number of calls."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import cusim
    from cusim.calls import of_rooms
    from cusim.mutations import standing_in

    words = arguments
    count = 0
    with standing_in(cusim):
        for call in of_rooms():
            if not words or any(word in str(call) for word in words):
                cusim.order(count % 3)
                call.run(cusim)
                count += 1
    print(f"{count} calls, no finding")
    return 0 if count else 1


if __name__ == "__main__":
    if os.environ.get("CUSIM_SANITIZE"):
        sys.exit(main(sys.argv[1:]))
    preload = library()
    if preload is None:
        sys.exit("sanitize.py: gcc has no libasan.so here")
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **OPTIONS, "LD_PRELOAD": preload})
