"""Dimension labels: which letters there are, their order, and how two labelled arrays are matched.

S spatial, C channel, B batch, T time, U unspecified. Stored order is always S..., C, B, T, U... .
Everything here is plain functions on strings and sizes; arrays are not touched.
Source: MathWorks, reference page "dlarray".
"""

from __future__ import annotations

import functools

from minidl.core.errors import LabelError, ShapeError

LETTERS = "SCBTU"
NAMES = {"S": "spatial", "C": "channel", "B": "batch", "T": "time", "U": "unspecified"}
_RANK = {letter: rank for rank, letter in enumerate(LETTERS)}


def check_format(who: str, fmt: str) -> str:
    """`fmt` itself if it is a valid format; otherwise a LabelError that says what is wrong with it."""
    if type(fmt) is not str and not isinstance(fmt, str):
        joined = "".join(fmt) if isinstance(fmt, (list, tuple)) and all(isinstance(x, str) for x in fmt) else "SSCB"
        raise LabelError(f'{who}: a format is a text with a letter for each dimension; got {fmt!r}. Write "{joined}".')
    return _checked(who, fmt)


@functools.lru_cache(maxsize=4096)
def _checked(who: str, fmt: str) -> str:
    for letter in fmt:
        if letter not in _RANK:
            hint = f' Write "{fmt.upper()}".' if fmt.upper() != fmt and set(fmt.upper()) <= set(LETTERS) else ""
            raise LabelError(
                f"{who}: dimension labels are S (spatial), C (channel), B (batch), T (time) and U (unspecified); "
                f'got {letter!r} in "{fmt}".{hint}'
            )
    for letter in "CBT":
        if fmt.count(letter) > 1:
            raise LabelError(
                f'{who}: the label {letter} ({NAMES[letter]}) may stand once; "{fmt}" has it {fmt.count(letter)} '
                "times. Only S and U repeat."
            )
    return fmt


@functools.lru_cache(maxsize=4096)
def stored_order(fmt: str) -> tuple[int, ...]:
    """Positions of `fmt` in stored order S..., C, B, T, U..., equal labels as they stand. 'BSSC' -> (1, 2, 3, 0)."""
    return tuple(sorted(range(len(fmt)), key=lambda i: _RANK[fmt[i]]))


@functools.lru_cache(maxsize=4096)
def union(a: str, b: str) -> str:
    """The format of a result of two formatted arrays: each label as often as in the one that has it more often."""
    return "".join(letter * max(a.count(letter), b.count(letter)) for letter in LETTERS)


@functools.lru_cache(maxsize=4096)
def positions(labels: str, result: str) -> tuple[int, ...]:
    """For each dimension of `labels`, its dimension in `result`; missing repeats come at the end of a label's block."""
    seen: dict[str, int] = {}
    found = []
    for letter in labels:
        nth = seen.get(letter, 0)
        seen[letter] = nth + 1
        found.append(result.index(letter) + nth)
    return tuple(found)


@functools.lru_cache(maxsize=8192)
def match(
    who: str, shapes: tuple[tuple[int, ...], ...], formats: tuple[str, ...]
) -> tuple[tuple[int, ...], str, tuple[tuple[int, ...], ...]]:
    """Implicit expansion: (result shape, result labels, for each operand the result dimension of each of its own).

    Last dimensions of size 1 that the result drops (labelled U, after the second) are left out for the operands too.
    Both formatted: labels are matched. One formatted: positions are matched from the first dimension on. None
    formatted: NumPy's rule, from the last dimension on (the same thing where the operands have equal rank).
    """
    labels = functools.reduce(union, formats)
    if labels:
        rank = max([len(labels), *(len(s) for s, f in zip(shapes, formats) if not f)])
        if rank > len(labels):
            labels = labels + "U" * (rank - len(labels)) if _only_ones_beyond(shapes, formats, len(labels)) else labels
            if len(labels) < rank:
                raise LabelError(
                    f'{who}: an unformatted array of {rank} dimensions meets one with format "{labels}". '
                    "Label it: dlarray(x, fmt)."
                )
        dims = tuple(positions(f, labels) if f else tuple(range(len(s))) for s, f in zip(shapes, formats))
        rank = len(labels)
    else:
        rank = max(len(shape) for shape in shapes)
        dims = tuple(tuple(range(rank - len(shape), rank)) for shape in shapes)
    result = [1] * rank
    for shape, where in zip(shapes, dims):
        for size, dim in zip(shape, where):
            if size != 1:
                if result[dim] not in (1, size):
                    raise ShapeError(
                        f"{who}: sizes do not fit together: {' and '.join(map(describe, shapes, formats))}"
                        + (f", which meet {result[dim]} and {size} in {NAMES[labels[dim]]} dimension {dim}" if labels
                           else "")
                        + ". Every pair of sizes must be equal or have a 1."
                    )
                result[dim] = size
    while len(result) > 2 and labels.endswith("U") and result[-1] == 1:
        result.pop()
        labels = labels[:-1]
    return tuple(result), labels, tuple(tuple(dim for dim in where if dim < len(result)) for where in dims)


def _only_ones_beyond(shapes: tuple[tuple[int, ...], ...], formats: tuple[str, ...], rank: int) -> bool:
    return all(f or all(size == 1 for size in s[rank:]) for s, f in zip(shapes, formats))


def describe(shape: tuple[int, ...], labels: str = "") -> str:
    """Sizes as MATLAB displays them: '28(S) x 28(S) x 1(C)', or '10x8' without labels; a scalar is '1x1'."""
    if labels:
        return " × ".join(f"{size}({letter})" for size, letter in zip(shape, labels))
    return "×".join(map(str, (*shape, *(1,) * (2 - len(shape)))))
