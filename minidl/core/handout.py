"""Handouts: results that are given to the user again, the same objects with new numbers, once nobody has them any more.

The containers, dlarrays, values and arrays of a call's results take longer to make than a GPU takes to compute them. So
they are kept beside the memory that they name. Counting references tells whether anybody but the handout holds one of
them, marks (`core.changes`) tell whether they are as they were given. A result that somebody has is never given again.

Who is given such results as arguments can know them by their containers, without a look at the leaves: `known`.
"""

from __future__ import annotations

import functools
import operator
import sys
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from minidl.core.changes import changes
from minidl.core.dlarray import DLArray
from minidl.core.spec import Value
from minidl.core.struct import struct
from minidl.core.tree import LEAF

_value = operator.attrgetter("_value")
_count, _count_weak = sys.getrefcount, weakref.getweakrefcount


class Handout:
    """A tree of results, all of it made by minidl: struct, dict, list or tuple of dlarrays, or one dlarray.

    tree   : as it is given the first time. If it is a tuple, a new one with the same children is given each time, and
             single numbers among these (or the tree, if it is one), such as a loss, are loose: one that the user keeps
             becomes his, with memory of its own, and another takes its place.
    values : of its dlarrays, in order. The list is the handout's from now on.
    others : what else lies between an array's memory and a view of it.
    move   : (array) -> a copy of it, in memory of its own.
    Call `settle` when nobody else holds anything of it.
    """

    def __init__(self, tree: Any, values: list[Value], others: list[Any], move: Callable[[Any], Any]) -> None:
        self.values, self._others, self._move = values, others, move
        self._is_tuple = type(tree) is tuple
        self._children = list(tree) if self._is_tuple else [tree]
        self._containers: list[Any] = []
        self._leaves: list[DLArray] = []
        self._ranges: list[tuple[int, int]] = []  # the leaves of each child
        for child in self._children:
            start = len(self._leaves)
            self._walk(child)
            self._ranges.append((start, len(self._leaves)))
        self._keys = [key for x in self._containers if isinstance(x, dict) for key in x]  # held: their ids stay theirs
        self._given = self._contents()
        self._mark: Any = None
        self._has_marks = all(type(x) is struct or isinstance(x, tuple) for x in self._containers)

    def _walk(self, x: Any) -> None:
        if type(x) is DLArray:
            self._leaves.append(x)
        elif x is not None:
            self._containers.append(x)
            for y in x.values() if isinstance(x, dict) else x:
                self._walk(y)

    def settle(self) -> None:
        """From now on, whoever holds something of it is somebody else."""
        arrays = [value.data for value in self.values]
        loose = [
            (k, start) for k, (start, stop) in enumerate(self._ranges)
            if type(self._children[k]) is DLArray and self.values[start].spec.size == 1
        ]  # fmt: skip
        those = {start for _, start in loose}
        held = [i for i in range(len(self.values)) if i not in those]
        self._handles = [*self._containers, *[self._leaves[i] for i in held]]
        self._objects = [*self._handles, *[self.values[i] for i in held], *arrays, *self._others]
        del arrays
        self._loose = [(k, i, *self._counts_of(i)) for k, i in loose]
        self._total = sum(map(_count, self._objects))
        trees = {id(x): k for k, x in enumerate(self._children) if type(x) is not DLArray and x is not None}
        me = weakref.ref(self, functools.partial(_forget, _known, list(trees)))
        _known.update({number: (me, k) for number, k in trees.items()})

    def values_of(self, child: int) -> list[Value]:
        """Those of one child of the tuple, or of the whole tree."""
        start, stop = self._ranges[child]
        return self.values[start:stop]

    def _counts_of(self, i: int) -> tuple[int, int, int]:
        """References to the dlarray, its value, its array."""
        leaf = self._leaves[i]
        return _count(leaf), _count(self.values[i]), _count(self.values[i].data)

    # looking at it ----------------------------------------------------------------------------------------------
    def _contents(self) -> list[int]:
        """What is where, as ids."""
        found: list[int] = []
        for x in self._containers:
            if isinstance(x, dict):
                found.extend(map(id, dict.keys(x)))
                found.extend(map(id, dict.values(x)))
            else:
                found.extend(map(id, x))
            found.append(0)
        return found

    def is_intact(self) -> bool:
        """Whether containers and dlarrays are as they were given."""
        mark = changes.last
        if self._mark is mark:
            return True
        if self._contents() != self._given or list(map(_value, self._leaves)) != self.values:  # values differ by id
            return False
        if self._has_marks:
            self._mark = mark
        return True

    def is_free(self) -> bool:
        """Whether it is intact and nobody holds anything of it but what is loose, nor a weak reference to it."""
        return (
            self.is_intact()
            and sum(map(_count, self._objects)) == self._total
            and not any(map(_count_weak, self._handles))
        )

    def has_kept(self) -> bool:
        """Whether the user has kept one of the loose results."""
        return any(map(self.is_kept, range(len(self._loose))))

    def give(self) -> Any:
        """The tree, to be told that it has new numbers. What the user kept of loose results must have been moved."""
        return tuple(self._children) if self._is_tuple else self._children[0]

    def is_kept(self, entry: int) -> bool:
        """Whether the user has kept a loose result."""
        _, i, handles, holders, _ = self._loose[entry]
        leaf = self._leaves[i]
        return _count(leaf) != handles or _count(self.values[i]) != holders or _count_weak(leaf) > 0

    def let_go(self) -> bool:
        """Have loose results that the user kept become his; False if somebody took hold of an array meanwhile.

        Call it when the handout is free, before its arrays get new numbers.
        """
        is_alone = True
        for entry, (k, i, _, _, holders) in enumerate(self._loose):
            if not self.is_kept(entry):
                continue
            old = self.values[i]
            array = old.data
            old.data = self._move(array)
            labels = self._leaves[i]._labels
            self.values[i] = Value(old.spec, array)
            self._children[k] = self._leaves[i] = DLArray(self.values[i], labels)
            del array
            self._loose[entry] = k, i, *self._counts_of(i)
            is_alone = is_alone and self._loose[entry][4] == holders  # he may have read it in this moment
        return is_alone


_known: dict[int, tuple[weakref.ref[Handout], int]] = {}  # id of a container -> (its handout, which child it is)


def _forget(known: dict[int, Any], ids: list[int], gone: weakref.ref[Handout]) -> None:
    for number in ids:
        if known.get(number, (None,))[0] is gone:
            del known[number]


def known(x: Any) -> tuple[Handout, int] | None:
    """The handout of which x is a child, and which one; x is as it was given if the handout is intact."""
    me, number = _known.get(id(x), (None, 0))
    found = None if me is None else me()
    return None if found is None else (found, number)  # it holds x, so the id is still that of x


def all_intact(remembered: Iterable[weakref.ref[Handout]]) -> list[Handout] | None:
    """These handouts, if all are there and as they were given; otherwise None."""
    found = []
    for me in remembered:
        one = me()
        if one is None or not one.is_intact():
            return None
        found.append(one)
    return found


def is_suitable(structure: Any) -> bool:
    """Whether a tree of this structure (of `core.tree`) can be handed out: struct, dict, list, tuple of dlarrays."""
    if structure is None or structure == LEAF:
        return True
    kind, _, children = structure[:3]
    is_plain = kind in (struct, dict, list, tuple) or (issubclass(kind, tuple) and hasattr(kind, "_fields"))
    return is_plain and len(structure) == 3 and all(map(is_suitable, children))
