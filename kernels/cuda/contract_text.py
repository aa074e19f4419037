"""From a nest to C: its indices as rows, columns, batch and terms, and the structs that contract.cu is about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from . import launch
from .contract_slots import BASE_ALIGNMENT, Change, Layout, Read, Slots, Stored
from .contract_tiles import Sizes


def indices_of(subscripts: Any) -> set[int]:
    return {i for s in subscripts for i, factor in s.factors if factor}


class _Form(NamedTuple):
    """A whole number that is affine in the indices."""

    start: int
    factors: dict[int, int]

    def along(self, i: int) -> int:
        return self.factors.get(i, 0)


def _form(subscripts: Any, strides: Sequence[int], start: int = 0) -> _Form:
    """Where an element lies: start + sum of stride * position."""
    factors: dict[int, int] = {}
    for subscript, stride in zip(subscripts, strides, strict=True):
        start += subscript.start * stride
        for i, factor in subscript.factors:
            factors[i] = factors.get(i, 0) + factor * stride
    return _Form(start, factors)


def _reach(form: _Form, sizes: Sequence[int]) -> tuple[int, int]:
    """The least and the largest value."""
    ends = [factor * (sizes[i] - 1) for i, factor in form.factors.items()]
    return form.start + sum(min(x, 0) for x in ends), form.start + sum(max(x, 0) for x in ends)


class _Side:
    """An operand of one nest: where it lies, what has to be within bounds, places in other arrays that go with it.

    These are places where `change` reads, and then those of `more`, pairs of strides and a start.
    """

    def __init__(
        self, subscripts: Any, layout: Layout, sizes: Sequence[int], change: Change | None, is_checked: bool,
        more: Sequence[tuple[Sequence[int], int]] = (),
    ) -> None:  # fmt: skip
        self.change, self.layout = change, layout
        self.at = _form(subscripts, layout.strides)
        self.checks: list[tuple[_Form, int]] = []
        checked = set()
        if is_checked and all(sizes):
            for d, size in enumerate(layout.shape):
                form = _form(subscripts[d : d + 1], (1,))
                low, high = _reach(form, sizes)
                if low < 0 or high >= size:
                    self.checks.append((form, size))
                    checked.add(d)
        # reads that are within bounds even where the operand is not
        self.is_free = [not any(read.strides[d] for d in checked) for read in (change.reads if change else ())]
        places = [(read.strides, read.start) for read in change.reads] if change else []
        self.reads = [_form(subscripts, *place) for place in (*places, *more)]

    @property
    def forms(self) -> list[_Form]:
        return [self.at, *(form for form, _ in self.checks), *self.reads]

    def moves(self, i: int) -> bool:
        """Whether anything here depends on index i."""
        return any(form.along(i) for form in self.forms)


Axis = tuple[int, dict[int, int]]  # size, and the factor of each form (by its id)


def _dense(sizes: Sequence[int | None]) -> list[int]:
    """Strides of an array that has dimensions of these sizes, and 0 for those that it does not have (None)."""
    strides, stride = [0] * len(sizes), 1
    for d, size in reversed(list(enumerate(sizes))):
        if size is not None:
            strides[d] = stride
            stride *= size
    return strides


def _is_dense(subscript: Any, sizes: Sequence[int], extent: int) -> bool:
    """Whether a subscript takes each value below `extent` just once."""
    reach = 1
    for factor, i in sorted((factor, i) for i, factor in subscript.factors if sizes[i] != 1):
        if factor != reach:
            return False
        reach *= sizes[i]
    return subscript.start == 0 and reach == extent


class Nest:
    """A nest in terms of memory: a, b and y as sides, and the indices as rows, columns, batch and terms."""

    def __init__(self, nest: Any, y: Layout, a: Layout, b: Layout, slots: Slots):
        self.sizes = sizes = nest.sizes
        column = _dense([n if d in slots.kept else None for d, n in enumerate(y.shape)])
        more = [*((stored.strides, stored.start) for stored in slots.stores), *([(column, 0)] if slots.sums else [])]
        self.y = _Side(nest.y, y, sizes, slots.y, False, more)
        self.a = _Side(nest.a, a, sizes, slots.a, True)
        self.b = _Side(nest.b, b, sizes, slots.b, True)
        kept, terms = sorted(indices_of(nest.y)), range(len(sizes))
        is_named = not all(sizes)  # where an empty array's elements would lie, nobody knows
        in_a = indices_of(nest.a) if is_named else {i for i in kept if self.a.moves(i)}
        in_b = indices_of(nest.b) if is_named else {i for i in kept if self.b.moves(i)}
        self.batch = [i for i in kept if i in in_a and i in in_b]
        self.rows = [i for i in kept if i not in in_b]
        self.columns = [i for i in kept if i in in_b and i not in in_a]
        self.terms = [i for i in terms if i not in kept]
        self.kept: set[int] | None = None  # indices of the dimensions that sums keep
        if slots.sums:
            self.kept = {i for i in indices_of([nest.y[d] for d in slots.kept]) if sizes[i] != 1}
            self.is_dense = all(_is_dense(nest.y[d], sizes, y.shape[d]) for d in slots.kept)
            if not self.has_columns(False) and not self.has_columns(True):
                self._set_apart(self.kept)

    def _set_apart(self, kept: set[int]) -> None:
        """Of the columns leave those that sums keep, if rows have no part in that; the others become batch."""
        for columns, rows in ((self.columns, self.rows), (self.rows, self.columns)):
            others = [i for i in columns if i not in kept and self.sizes[i] != 1]
            if not kept.isdisjoint(columns) and kept.isdisjoint(rows):
                columns[:] = [i for i in columns if i not in others]
                self.batch = sorted([*self.batch, *others])
                return

    def has_columns(self, is_turned: bool) -> bool:
        """Whether what sums keep is just what moves along the columns, and maybe something of the batch."""
        assert self.kept is not None
        columns, rows = (self.rows, self.columns) if is_turned else (self.columns, self.rows)
        has_all = all(i in self.kept for i in columns if self.sizes[i] != 1)
        return self.is_dense and has_all and not self.kept.intersection(rows)

    def size(self, indices: Sequence[int]) -> int:
        return math.prod(self.sizes[i] for i in indices)

    @property
    def is_turned(self) -> bool:
        """Whether rows and columns should change places: columns are few, or lie side by side in y."""
        if self.kept is not None and self.has_columns(False) != self.has_columns(True):
            return self.has_columns(True)
        m, n = self.size(self.rows), self.size(self.columns)
        if min(m, n) < 16:
            return m < n
        beside = [any(abs(self.y.at.along(i)) == 1 and self.sizes[i] > 1 for i in x) for x in (self.rows, self.columns)]
        return beside[0] and not beside[1]

    def turn(self) -> None:
        self.a, self.b, self.rows, self.columns = self.b, self.a, self.columns, self.rows

    @property
    def is_each(self) -> bool:
        """Whether the numbers read serve one or two elements each, and neighbours of the batch lie side by side."""
        m, n, batch = self.size(self.rows), self.size(self.columns), self.size(self.batch)
        if batch == 1 or min(m, n) > 2 or self.size(self.terms) == 0:
            return False
        beside = any(abs(s.at.along(i)) == 1 and self.sizes[i] > 1 for i in self.batch for s in (self.a, self.b))
        return beside or self.size(self.terms) <= 32

    def axes(self, indices: Sequence[int], weights: Sequence[_Form]) -> list[Axis]:
        """The indices from the slowest to the fastest, joined where everything goes on from one to the next."""
        forms = [form for side in (self.y, self.a, self.b) for form in side.forms]
        ordered = sorted([i for i in indices if self.sizes[i] != 1], key=lambda i: (-self._weight(i, weights), i))
        found: list[Axis] = []
        for i in ordered:
            size, factors = self.sizes[i], {id(form): form.along(i) for form in forms}
            if found and all(found[-1][1][f] == factors[f] * size for f in factors):
                size *= found.pop()[0]
            found.append((size, factors))
        return found

    def _weight(self, i: int, weights: Sequence[_Form]) -> int:
        return sum(abs(form.along(i)) for form in weights)


def _decoded(axes: Sequence[Axis], name: str) -> tuple[str, list[str]]:
    """(statements that take a number apart, the names of its digits)."""
    lines, inner = "", 1
    for n, (size, _) in reversed(list(enumerate(axes))):
        digit = f"(U){name}" + (f" / {inner}u" if inner > 1 else "") + (f" % {size}u" if n else "")
        lines = f" const I {name}{n} = (I)({digit});" + lines
        inner *= size
    return lines, [f"{name}{n}" for n in range(len(axes))]


def _affine(form: _Form, start: int, groups: Sequence[tuple[Sequence[Axis], list[str]]]) -> str:
    terms = [str(start)] if start else []
    for axes, names in groups:
        for (_, factors), name in zip(axes, names, strict=True):
            if factor := factors[id(form)]:
                terms.append(name if factor == 1 else f"{factor} * {name}")
    return " + ".join(terms) or "0"


class _Writer:
    """The struct of an operand: where its rows and its terms (for y: its columns) lie."""

    def __init__(self, side: _Side, batch: list[Axis], outer: list[Axis], inner: list[Axis], slots: Slots):
        self.side, self.batch, self.outer, self.inner, self.slots = side, batch, outer, inner, slots
        self.place = f"Where<{len(side.checks)}, {len(side.reads)}>"

    def vector(self, itemsize: int, axes: list[Axis]) -> int:
        """How many neighbours along these axes one load or store can take."""
        if not axes or not self.side.layout.is_aligned:
            return 1
        size, last = axes[-1]
        if last[id(self.side.at)] != 1 or any(last[id(form)] for form, _ in self.side.checks):
            return 1
        others = [x[1][id(self.side.at)] for x in (*self.batch, *self.outer, *self.inner) if x is not axes[-1]]
        numbers = [size, self.side.at.start, *others]
        return next((v for v in (4, 2) if v * itemsize <= BASE_ALIGNMENT and not any(n % v for n in numbers)), 1)

    def along(self, axes: list[Axis], itemsize: int) -> tuple[int, bool, int]:
        """How good it is to load neighbours along these axes."""
        if not axes:
            return (0, False, 0)
        size, last = axes[-1]
        return self.vector(itemsize, axes), abs(last[id(self.side.at)]) == 1, size

    def functions(self, first: str, second: str) -> str:
        named = (self.batch, "z"), (self.outer, first), (self.inner, second)
        batch, outer, inner = (_decoded(axes, name) for axes, name in named)
        row = self._place([(self.batch, batch[1]), (self.outer, outer[1])], True)
        step = self._place([(self.inner, inner[1])], False)
        return (
            f"    typedef {self.place} Place;\n"
            f"    DEVICE Place row(I z, I {first}) {{{batch[0]}{outer[0]} return {row}; }}\n"
            f"    DEVICE Place step(I {second}) {{{inner[0]} return {step}; }}\n"
        )

    def _place(self, groups: Sequence[tuple[Sequence[Axis], list[str]]], has_start: bool) -> str:
        at, *others = [_affine(form, form.start if has_start else 0, groups) for form in self.side.forms]
        checks, reads = others[: len(self.side.checks)], others[len(self.side.checks) :]
        return f"Place{{{at}, {{{', '.join(checks) or '0'}}}, {{{', '.join(reads) or '0'}}}}}"

    def inside(self) -> str:
        tests = [f"(U)(row.check[{n}] + step.check[{n}]) < {size}u" for n, (_, size) in enumerate(self.side.checks)]
        return (
            "    DEVICE bool inside(const Place &row, const Place &step) "
            f"{{ return {' && '.join(tests) or 'true'}; }}\n"
        )

    def made(self, is_along: bool, vector: int) -> str:
        """What is read with a number that is loaded, and what becomes of it.

        is_along : whether packs of `vector` neighbours, along which v counts, lie along the inner indices
        """
        change = self.side.change or Change("x")
        axes, others = (self.inner, [*self.batch, *self.outer]) if is_along else (self.outer, self.inner)
        common: list[tuple[int, Read]] = []
        own: list[tuple[int, Read]] = []
        for n, read in enumerate(change.reads):
            is_same = self.side.is_free[n] and not any(x[id(self.side.reads[n])] for _, x in others)
            (common if is_same else own).append((n, read))
        text = f"    static constexpr bool HAS_COMMON = {_c(bool(common))}, HAS_OWN = {_c(bool(own))};\n"
        for name, found in (("common", common), ("own", own)):
            kind = name.capitalize()
            members = "".join(f" Pack<{self._type(read)}, W> {read.name};" for _, read in found)
            values = ", ".join(self._taken(read, n, axes, vector) for n, read in found)
            text += (
                f"    template <int W> struct {kind} {{{members} }};\n"
                f"    template <int W> DEVICE {kind}<W> {name}(const Place &row, const Place &step EXTRAS) "
                f"{{ return {kind}<W>{{{values}}}; }}\n"
            )
        lines = [f"const {self._type(read)} {read.name} = common.{read.name}.v[v];" for _, read in common]
        lines += [f"const {self._type(read)} {read.name} = own.{read.name}.v[v];" for _, read in own]
        lines += [*change.lines, f"return (T)({change.text});"]
        text += "    template <class C, class O> DEVICE T made(T x, const C &common, const O &own, int v) {\n"
        return text + "".join(f"      {line.strip()}\n" for line in lines) + "    }\n"

    def finished(self, axes: list[Axis], vector: int) -> str:
        """What becomes of sums of products, further results, and what is added to the sums of their columns."""
        change, slots = self.side.change or Change("x"), self.slots
        reads, results = list(enumerate(change.reads)), list(enumerate(slots.stores, len(change.reads)))
        before = [f"const auto read{n} = {self._taken(read, n, axes, vector)};" for n, read in reads]
        before += [f"Pack<{self._type(stored)}, W> made{n};" for n, stored in results]
        lines = ["T x = xs.v[v];"] + [f"const {self._type(r)} {r.name} = read{n}.v[v];" for n, r in reads]
        lines += [*change.lines, f"const T y = (T)({change.text});", "xs.v[v] = y;"]
        lines += [f"made{n}.v[v] = ({self._type(stored)})({stored.text});" for n, stored in results]
        lines += [f"added[v][{n}] += (double)({summed.text});" for n, summed in enumerate(slots.sums)]
        after = []
        for n, stored in results:
            at = f"e{stored.array} + (row.read[{n}] + step.read[{n}]), {self._beside(n, axes)}, made{n}"
            after.append(f"give<{self._type(stored)}, W, {self._is_pack(stored, n, axes, vector)}>({at});")
        return (
            f"    static constexpr int COLUMN = {max(len(self.side.reads) - 1, 0)};\n"
            "    template <int W> DEVICE void finished(Pack<T, W> &xs, const Place &row, const Place &step, "
            "Added *added EXTRAS) {\n"
            + "".join(f"      {line}\n" for line in before)
            + "#pragma unroll\n      for (int v = 0; v < W; v++) {\n"
            + "".join(f"        {line.strip()}\n" for line in lines)
            + "      }\n" + "".join(f"      {line}\n" for line in after) + "    }\n"
        )  # fmt: skip

    def _type(self, place: Read | Stored) -> str:
        return launch.CTYPES[self.slots.types[place.array]]

    def _beside(self, n: int, axes: list[Axis]) -> int:
        return axes[-1][1][id(self.side.reads[n])] if axes else 0

    def _taken(self, read: Read, n: int, axes: list[Axis], vector: int) -> str:
        """The n-th of the other places, for W neighbours along the last of the axes."""
        kind = f"taken<{self._type(read)}, W, {self._is_pack(read, n, axes, vector)}>"
        return f"{kind}(e{read.array} + (row.read[{n}] + step.read[{n}]), {self._beside(n, axes)})"

    def _is_pack(self, place: Read | Stored, n: int, axes: list[Axis], vector: int) -> str:
        """Whether neighbours lie at one address, of so many bytes that they are loaded or stored at once."""
        if vector == 1 or self._beside(n, axes) != 1 or not self.slots.is_aligned:
            return "false"
        form, itemsize = self.side.reads[n], np.dtype(self.slots.types[place.array]).itemsize
        unit = min(BASE_ALIGNMENT // itemsize, vector)
        others = [x[1][id(form)] for x in (*self.batch, *self.outer, *self.inner) if x is not axes[-1]]
        return "false" if any(x % unit for x in (form.start, *others)) else "(W > 1)"


def _c(truth: bool) -> str:
    return "true" if truth else "false"


def _struct(letter: str, writer: _Writer, tile_size: str, names: tuple[str, str], itemsize: int, totals: Any) -> str:
    """The struct of a or b."""
    is_along = writer.along(writer.inner, itemsize) >= writer.along(writer.outer, itemsize)
    vector = writer.vector(itemsize, writer.inner if is_along else writer.outer)
    return (
        f"  struct {letter} {{\n"
        f"    static constexpr I ROWS_IN_ALL = {totals[0]}, TERMS_IN_ALL = {totals[1]};\n"
        f"    static constexpr int SIZE = {tile_size}, V = {vector};\n"
        f"    static constexpr bool ALONG_K = {_c(is_along)}, IS_CHANGED = {_c(writer.side.change is not None)};\n"
        + writer.functions(*names) + writer.inside() + writer.made(is_along, vector) + "  };\n"
    )  # fmt: skip


class Part(NamedTuple):
    """A part's text, and its sizes."""

    text: str
    sizes: Sizes


class First(NamedTuple):
    """Where a part begins: in the sums of a slice, in tiles, rows of partial sums, groups of these."""

    sum: int = 0
    tile: int = 0
    block: int = 0
    group: int = 0


def written(
    name: str, nest: Nest, first: First, sums: int, itemsize: int, slots: Slots, width: int
) -> Part:  # fmt: skip
    y, a, b = nest.y, nest.a, nest.b
    batch, rows, columns = nest.batch, nest.rows, nest.columns
    kept = [i for i in batch if nest.kept is not None and i in nest.kept]
    if nest.is_each:  # every element is a matter of its own
        batch, rows, columns = [*batch, *rows, *columns], [], []
        z = nest.axes(batch, [y.at, a.at, b.at])
    else:
        z = nest.axes([i for i in batch if i not in kept], [y.at]) + nest.axes(kept, [y.at])
    m = nest.axes(rows, [y.at])
    n = nest.axes(columns, [y.at])
    k = nest.axes(nest.terms, [a.at, b.at])
    sizes: Sizes = nest.size(batch), nest.size(rows), nest.size(columns), nest.size(nest.terms)
    ys, as_, bs = _Writer(y, z, m, n, slots), _Writer(a, z, m, k, slots), _Writer(b, z, n, k, slots)
    vector = min(width, ys.vector(itemsize, n))
    widest = min(width, BASE_ALIGNMENT // itemsize)
    sums_v = next(v for v in (4, 2, 1) if v <= widest and not any(x % v for x in (sizes[2], first.sum, sums)))
    text = (
        f"struct {name} {{\n"
        f"  static constexpr I BATCH = {sizes[0]}, M = {sizes[1]}, N = {sizes[2]}, K = {sizes[3]};\n"
        f"  static constexpr I FIRST = {first.sum}, FIRST_TILE = {first.tile}, FIRST_BLOCK = {first.block};\n"
        f"  static constexpr I KEPT = {nest.size(kept)}, FIRST_GROUP = {first.group};\n"
        f"  static constexpr int SUMS_V = {sums_v};\n"
        + _struct("A", as_, "BM", ("m", "k"), itemsize, (sizes[1], sizes[3]))
        + _struct("B", bs, "BN", ("n", "k"), itemsize, (sizes[2], sizes[3]))
        + f"  struct Y {{\n    static constexpr int V = {vector};\n"
        + ys.functions("m", "n") + ys.finished(n, vector) + "  };\n};\n"
    )  # fmt: skip
    return Part(text, sizes)


def reaches(nest: Nest) -> list[int]:
    """The ends of everything that is computed about places."""
    forms = [form for side in (nest.y, nest.a, nest.b) for form in side.forms]
    ends = [x for form in forms for x in _reach(form, nest.sizes)]
    return [*ends, *(nest.size(x) for x in (nest.batch, nest.rows, nest.columns, nest.terms))]
