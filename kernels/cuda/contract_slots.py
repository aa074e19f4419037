"""What is said about a contraction: where its arrays lie, and what it does besides. In C, by the words of words.cuh."""

from __future__ import annotations

from typing import Any, NamedTuple

Array = Any

BASE_ALIGNMENT = 16  # bytes of the longest load


class Read(NamedTuple):
    """A number from another array: a C name, the array's number, its stride along each dimension of the operand."""

    name: str
    array: int
    strides: tuple[int, ...]
    start: int = 0


class Change(NamedTuple):
    """What becomes of a number `x`: a C expression of x and of what is read at the same element of the operand.

    lines : C statements before the expression, which may name what they compute: "float t1 = x * scale;"
    """

    text: str
    reads: tuple[Read, ...] = ()
    lines: tuple[str, ...] = ()


class Stored(NamedTuple):
    """Another result, into the array of a number: a C expression of all that `Slots.y` names, and of its result `y`.

    strides : of that array, along each dimension of y
    """

    text: str
    array: int
    strides: tuple[int, ...]
    start: int = 0


class Summed(NamedTuple):
    """A sum over the elements of y that share their subscripts along the dimensions kept, in double.

    text    : C expression of all that `Slots.y` names, and of its result `y`; made double when it is computed
    array   : number of the array that gets the sums; None: they are for the tail alone
    strides : of that array, along each dimension of y; those of other dimensions than the ones kept do not count
    """

    text: str
    array: int | None = None
    strides: tuple[int, ...] = ()
    start: int = 0


class Behind(NamedTuple):
    """What the last block does when all others are done: C statements over the arrays e0, e1, ...

    threads share the work as they do within a block, of which there are THREADS; arrays: the numbers of those used.
    """

    lines: tuple[str, ...]
    arrays: tuple[int, ...]


class Tail(NamedTuple):
    """What becomes of the sums s0, s1, ... that are finished: C statements, over what is read, and results.

    Strides are those along each dimension of y, as in `Summed`. All numbers are read before one is stored.
    """

    lines: tuple[str, ...]
    reads: tuple[Read, ...] = ()
    stores: tuple[Stored, ...] = ()


class Slots(NamedTuple):
    """What a contraction does besides: to a and b on load (never to what lies out of bounds), to y before it is stored.

    types      : dtypes of the other arrays, in the order of their numbers; those that are only read share no memory
                 with y and with what is written
    stores     : more results, element by element
    sums, kept : sums over all dimensions of y but those kept; tail: what becomes of them
    behind     : what is done when everything else is
    keeps_y    : whether y itself is stored
    is_aligned : whether all other arrays start at multiples of 16 bytes, so that neighbours can be moved at once

    C text has the words of words.cuh. Names that are read or declared are like t0, t1, ...: others may be taken.
    """

    a: Change | None = None
    b: Change | None = None
    y: Change | None = None
    types: tuple[str, ...] = ()
    stores: tuple[Stored, ...] = ()
    sums: tuple[Summed, ...] = ()
    kept: tuple[int, ...] = ()
    tail: Tail | None = None
    behind: Behind | None = None
    keeps_y: bool = True
    is_aligned: bool = False

    @property
    def is_about_y(self) -> bool:
        """Whether something is to be done with the elements of y."""
        return self.y is not None or bool(self.stores) or bool(self.sums)


class Layout(NamedTuple):
    """Where an array's elements lie: shape, strides in elements, and whether the first stands at a round address."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    is_aligned: bool = True


NONE = Slots()


def layout_of(x: Array) -> Layout:
    """The layout of an array."""
    size = x.dtype.itemsize
    return Layout(x.shape, tuple([s // size for s in x.strides]), x.data.ptr % BASE_ALIGNMENT == 0)
