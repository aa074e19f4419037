"""Rows of several arrays picked by number, in one launch: the mini-batches of data that lie on the GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from minidl.backends.cuda.memory import new_table
from minidl.backends.cuda.printed import THREADS
from minidl.kernels.cuda import launch

_TEXT = f"""
// Rows of several arrays: target[b] = source[order[start + b]]. Grid: a block of {THREADS} per row b and array; the
// table has for each array its source, target and order, the words of a row and the bytes of a word (4 or 1). No
// shared memory. Floor: twice the bytes of the targets.
extern "C" __global__ void __launch_bounds__({THREADS}) pick_rows(const i64 *__restrict__ table, i64 start) {{
  const i64 *entry = table + (i64)blockIdx.y * 5;
  i64 row = ((const i64 *)entry[2])[start + blockIdx.x], words = entry[3];
  if (entry[4] == 4) {{
    const unsigned *source = (const unsigned *)entry[0] + row * words;
    unsigned *target = (unsigned *)entry[1] + blockIdx.x * words;
    for (i64 i = threadIdx.x; i < words; i += {THREADS}) target[i] = source[i];
  }} else {{
    const unsigned char *source = (const unsigned char *)entry[0] + row * words;
    unsigned char *target = (unsigned char *)entry[1] + blockIdx.x * words;
    for (i64 i = threadIdx.x; i < words; i += {THREADS}) target[i] = source[i];
  }}
}}
"""


def bind_rows(
    sources: Sequence[Any], targets: Sequence[Any], orders: Sequence[Any], count: int
) -> Callable[[int], None]:
    """A function of `start`: for each array, rows order[start] .. order[start + count - 1] of the source.

    sources, targets : arrays without gaps, first dimension slowest. orders : of 64-bit numbers.
    """
    rows = []
    for source, target, order in zip(sources, targets, orders):
        nbytes = target.nbytes // max(count, 1)
        of, to = int(source.data.ptr), int(target.data.ptr)
        word = 4 if (nbytes | of | to) % 4 == 0 else 1
        rows.append([of, to, int(order.data.ptr), nbytes // word, word])
    table = new_table(rows)
    kernel, address = launch.compiled(launch.text_of("portable.h") + _TEXT, "pick_rows"), int(table.data.ptr)
    grid, block = (count, len(rows)), (THREADS,)

    def run(start: int, held: tuple[Any, ...] = (table, *sources, *orders)) -> None:
        kernel(grid, block, (address, start))

    return run


def free_bytes() -> int:
    """Memory of the device that nobody uses."""
    return int(launch.cupy().cuda.runtime.memGetInfo()[0])
