"""Signatures: what two calls must have in common to share a trace, as a key for look-up and as a compiled check.

A call is described by the trees of its arguments and of what its function captures (`captures.Source`), leaf by leaf:
dlarrays by size, labels, type and by which of them are the same array; everything else by value or identity.
"""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import enum
import itertools
import types
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from minidl.accelerate.captures import MISSING, Leaf, Source, is_namespace, is_user_class
from minidl.core.dlarray import DLArray
from minidl.core.spec import Spec, Value
from minidl.core.tree import (
    LEAF,
    Layout,
    attributes,
    count_leaves,
    elements,
    flatten,
    is_changeable,
    keys_of,
    layout,
    others,
    rest_of,
    shared_of,
)

# keys -----------------------------------------------------------------------------------------------------------
_PYTHON_TWINS = (np.float64, np.bool_, np.int64, np.str_, np.bytes_)  # behave as float, bool, int, str and bytes do
_CHANGEABLE = (np.ndarray, set, list, collections.deque, bytearray, array.array, memoryview, weakref.ref)
_DATES = (datetime.datetime, datetime.time)


def plain_key(x: Any) -> Hashable:
    """What stands for an argument that is no dlarray: its value where it is plain data, otherwise the object itself.

    What Python can tell apart has different keys, though it may be equal: 0.0 and -0.0, 1 and True, two time zones.
    """
    if isinstance(x, np.ndarray) and x.ndim == 0 and type(x) is np.ndarray:
        x = x[()]
    if isinstance(x, _PYTHON_TWINS):
        x = x.item()
    kind = type(x)
    if kind is int or kind is str or kind is bool:
        return kind, x
    if isinstance(x, float):
        return (kind, "nan") if x != x else (kind, x, str(x)[0] == "-")
    if isinstance(x, complex):
        return kind, plain_key(x.real), plain_key(x.imag)
    if isinstance(x, np.ndarray):
        if x.dtype.hasobject:
            return kind, x.shape, tuple(map(plain_key, x.reshape(-1).tolist()))
        if kind is np.ndarray:
            return kind, x.shape, x.dtype, x.tobytes()
        beside = tuple([(name, plain_key(y)) for name, y in getattr(x, "__dict__", {}).items()])  # a mask, units
        return kind, x.shape, x.dtype, np.asarray(x).tobytes(), beside
    if isinstance(x, np.generic):
        return kind, x.dtype, x.tobytes()
    if isinstance(x, (set, frozenset)):
        return kind, frozenset(map(plain_key, x))
    if isinstance(x, (slice, range)):
        return kind, tuple(map(plain_key, (x.start, x.stop, x.step)))
    if isinstance(x, collections.deque):
        return kind, x.maxlen, tuple(map(plain_key, x))
    if isinstance(x, (list, tuple)):
        return kind, tuple(map(plain_key, x))
    if isinstance(x, dict):
        return kind, tuple([(plain_key(name), plain_key(y)) for name, y in x.items()])
    if isinstance(x, array.array):
        return kind, x.typecode, x.tobytes()
    if isinstance(x, memoryview):
        return kind, x.format, x.shape, x.readonly, x.tobytes()
    if isinstance(x, bytearray):
        return kind, bytes(x)
    if isinstance(x, decimal.Decimal):
        return kind, x.as_tuple()
    if isinstance(x, _DATES):
        return kind, x.replace(tzinfo=None, fold=0), x.fold, ById(x.tzinfo)
    if isinstance(x, types.MethodType):  # a new object at each look, and equal to one of an equal instance
        return kind, x.__func__, ById(x.__self__)
    if isinstance(x, weakref.ref):
        return kind, ById(x), x() is None
    try:
        hash(x)
        return kind, x
    except TypeError:
        return ById(x)


def _is_frozen(x: np.ndarray) -> bool:
    """Whether nobody can ever change these numbers: they are those of a bytes object. A read-only array's owner may
    make it writeable again."""
    base: Any = x
    while type(base) is np.ndarray and not base.flags.writeable:
        base = base.base
    return type(base) is bytes


def captured_key(x: Any) -> Hashable:
    """The key of something captured: objects of the user's classes are themselves, whatever they call equal."""
    if (is_user_class(type(x)) or is_namespace(x)) and not isinstance(x, (enum.Enum, list, set, collections.deque)):
        return ById(x)
    if isinstance(x, (list, tuple, collections.deque)):
        return type(x), tuple(map(captured_key, x))
    if isinstance(x, (set, frozenset)):
        return type(x), frozenset(map(captured_key, x))
    return plain_key(x)


class ById:
    """The same object, and no other, is equal to it. Held, so that its id stays its own."""

    __slots__ = ("x",)

    def __init__(self, x: Any) -> None:
        self.x = x

    def __hash__(self) -> int:
        return id(self.x)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ById) and other.x is self.x


class Array(NamedTuple):
    """A leaf that is a dlarray: spec, labels, number of the distinct array; or exactly this value, if Python looks."""

    spec: Spec
    labels: str
    place: int
    pinned: ById | None = None


class Plain:
    """Any other leaf. Equal keys are equal leaves; the object itself is for a first look and for people."""

    __slots__ = ("key", "x")

    def __init__(self, key: Hashable, x: Any) -> None:
        self.key, self.x = key, x

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plain) and self.key == other.key


class Tree(NamedTuple):
    """Structure and leaves."""

    structure: Any
    leaves: tuple[Array | Plain, ...]


class Signer:
    """Makes the leaves' part of a signature and collects the distinct values among them."""

    def __init__(self) -> None:
        self.places: dict[int, int] = {}
        self.values: list[Value] = []

    def leaves(self, leaves: Sequence[Any], key: Callable[[Any], Hashable], pins: frozenset[int] = frozenset()) -> Any:
        """The leaves of a signature; `pins` are the numbers of those that must be the very same value."""
        found: list[Array | Plain] = []
        for i, leaf in enumerate(leaves):
            if not isinstance(leaf, DLArray):
                found.append(_plain(leaf, key(leaf)))
                continue
            value = leaf._value
            if i in pins:
                found.append(Array(value.spec, leaf._labels, -1, ById(value)))
                continue
            place = self.places.setdefault(id(value), len(self.values))
            if place == len(self.values):
                self.values.append(value)
            found.append(Array(value.spec, leaf._labels, place))
        return tuple(found)


def _plain(x: Any, key: Hashable) -> Plain:
    if type(x) is np.ndarray and x.ndim and not x.dtype.hasobject and not _is_frozen(x):
        shape, dtype, data = key[1:]  # type: ignore[index]
        x = np.frombuffer(data, dtype).reshape(shape)  # what it is now, and the caller's array need not be kept
    return Plain(key, x)


class Plan:
    """Where a recorded function reads besides its arguments, and which of those leaves are pinned."""

    def __init__(self, sources: list[Source], pins: frozenset[int] = frozenset()) -> None:
        self.sources, self.pins = sources, pins
        self._identity = tuple([(s.kind, s.holder if isinstance(s.holder, Leaf) else id(s.holder), s.name)
                                for s in sources]), pins  # fmt: skip

    def __hash__(self) -> int:
        return hash(self._identity)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self._identity == other._identity

    def tree(self, leaves: Sequence[Any], signer: Signer) -> Tree:
        """What is there now."""
        found, structure = flatten([source.read(leaves) for source in self.sources])
        return Tree(structure, signer.leaves(found, captured_key, self.pins))


class Signature(NamedTuple):
    """The whole key of a trace."""

    arguments: Tree
    captured: Tree
    plan: Plan
    is_traced: bool
    backend: str

    @property
    def place(self) -> tuple[Tree, bool, str]:
        """What is known of a call before anything captured is looked at."""
        return self.arguments, self.is_traced, self.backend

    @property
    def pattern(self) -> tuple[int, ...]:
        """The place of each dlarray that is not pinned."""
        leaves = self.arguments.leaves + self.captured.leaves
        return tuple([x.place for x in leaves if type(x) is Array and x.pinned is None])


# a compiled check -----------------------------------------------------------------------------------------------
Guard = Callable[[tuple[Any, ...], dict[str, Any]], "list[Value] | None"]


def guard_of(signature: Signature, trees: Sequence[int] = ()) -> Guard:
    """A function of (args, kwargs): the values of all dlarrays if the call has this signature (but for which of them
    are the same array), None if not. Straight code, so that a hit costs microseconds.

    trees : positional arguments that are known to fit. They are not looked at, and their values are left out.
    """
    writer = _Writer(shared_of(signature.arguments.structure))
    args, kwargs = signature.arguments.structure[2]
    leaves = iter(signature.arguments.leaves)
    writer.tree("args", args, leaves, "plain_key", trees)
    writer.tree("kwargs", kwargs, leaves, "plain_key")
    writer.sharing()
    writer.is_whole = False
    children = signature.captured.structure[2]
    leaves = iter(signature.captured.leaves)
    for source, child in zip(signature.plan.sources, children):
        writer.tree(writer.read(source), child, leaves, "captured_key")
    text = "\n    ".join(["def guard(args, kwargs):", *writer.lines, f"return [{', '.join(writer.values)}]"])
    exec(compile(text, "<guard>", "exec"), writer.space)
    found = writer.space["guard"]
    if not signature.plan.sources and not writer.may_fail:
        return found

    def careful(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Value] | None:
        try:
            return found(args, kwargs)
        except (KeyError, ValueError, AttributeError):  # a variable or attribute is not there any more
            return None

    return careful


class _Writer:
    """Writes the lines of a guard; `space` holds the objects that they name."""

    def __init__(self, shared: Sequence[int] | None) -> None:
        self.lines: list[str] = []
        self.values: list[str] = []
        self.leaves: list[str] = []
        self.space: dict[str, Any] = {
            "DLArray": DLArray, "plain_key": plain_key, "captured_key": captured_key, "same_array": same_array,
            "MISSING": MISSING, "elements": elements, "keys_of": keys_of, "others": others, "attributes": attributes,
        }  # fmt: skip
        self.is_whole = True  # of arguments everything counts (`flatten_whole`); of captures what the code names
        self.may_fail = False
        self.objects: list[tuple[str, Any]] = []  # variables with what can be changed; equal keys may be one object
        self._shared = shared  # which of them are the same object, as numbers of the first ones
        self._met: dict[int, tuple[str, str]] = {}  # dlarrays that are there several times -> variables of x, its value
        self._aside = 0  # objects that are made for a check alone, and not counted
        self._taken: list[Any] = []
        self._count = 0

    def new(self) -> str:
        self._count += 1
        return f"x{self._count}"

    def constant(self, x: Any) -> str:
        name = f"c{len(self.space)}"
        self.space[name] = x
        return name

    def unless(self, condition: str) -> None:
        self.lines.append(f"if {condition}: return None")

    def read(self, source: Source) -> str:
        """A variable that holds what is at the source."""
        holder, name = source.holder, source.name
        if isinstance(holder, Leaf) or not _has_plain_access(source):
            read = self.constant(source.read)
            text = f"{read}(({''.join(f'{leaf}, ' for leaf in self.leaves)}))"
        elif source.kind == "cell":
            text = f"{self.constant(holder)}.cell_contents"
        elif source.kind == "global":
            text = f"{self.constant(holder)}.get({name!r}, MISSING)"
        elif source.kind == "default":
            text = f"{self.constant(holder)}.{name}"
        else:
            text = f"{self.constant(holder)}.__dict__[{name!r}]"
        x = self.new()
        self.lines.append(f"{x} = {text}")
        return x

    def tree(
        self, x: str, structure: Any, leaves: Iterator[Array | Plain], key: str, known: Sequence[int] = ()
    ) -> None:
        """Check that variable x holds a tree of this structure with these leaves. Its `known` children are skipped."""
        if structure is None:
            self.unless(f"{x} is not None")
            return
        if structure == LEAF:
            self.leaf(x, next(leaves), key)
            return
        kind, names, children = structure[:3]
        if x not in ("args", "kwargs"):
            self.unless(f"type({x}) is not {self.constant(kind)}")
        place, start = len(self.objects), len(self._taken)
        if self.is_whole and is_changeable(structure):
            self.objects.append((x, None))
        inner = [self.new() for _ in children]
        if names is None:
            values = x if _has_methods(kind, list if issubclass(kind, list) else tuple) else self.let(f"elements({x})")
            self.unless(f"len({values}) != {len(children)}")
        elif issubclass(kind, dict):
            is_plain = _has_methods(kind, dict)
            keys = f"tuple({x})" if is_plain else f"keys_of({x})"
            self.unless(f"{keys} != {self.constant(names)}" if names or not is_plain else x)
            values = f"{x}.values()" if is_plain else f"elements({x})"
        else:
            self.may_fail = True
            values = "".join(f"{x}.{name}, " for name in names)
        if inner:
            self.lines.append(f"{', '.join(inner)}, = {values}")
        for i, (y, child) in enumerate(zip(inner, children)):
            if i in known:
                collections.deque(itertools.islice(leaves, count_leaves(child)), 0)
            else:
                self.tree(y, child, leaves, key)
        if self.is_whole and (form := layout(kind)) is not None and (form.has_dict or form.slots):
            self.rest(x, structure, form, leaves, key)
        if self.is_whole and is_changeable(structure):
            self.objects[place] = x, (structure, tuple(self._taken[start:]))

    def rest(self, x: str, structure: Any, form: Layout, leaves: Iterator[Array | Plain], key: str) -> None:
        """Check what a container holds besides its elements."""
        if rest_of(structure) is not None:
            place = len(self.objects)
            self._aside += 1
            self.tree(self.let(f"others({x})"), structure[3], leaves, key)
            self._aside -= 1
            del self.objects[place]  # the dict of attributes
        elif form.slots:
            fields = structure[1] if form.base is object else ()
            self.unless(f"len(attributes({x})) != {len(fields)}")
        elif form.base is object:
            self.unless(f"len({x}.__dict__) != {len(structure[1])}")
        else:
            self.unless(f"{x}.__dict__")

    def let(self, text: str) -> str:
        """A new variable with that content."""
        x = self.new()
        self.lines.append(f"{x} = {text}")
        return x

    def sharing(self) -> None:
        """Check which arguments are the same object, among those that may be as far as has been checked."""
        first = range(len(self.objects)) if self._shared is None else self._shared
        alike: dict[Any, dict[int, list[str]]] = {}
        for k, (x, key) in enumerate(self.objects):
            alike.setdefault(key, {}).setdefault(first[k], []).append(x)
        for groups in alike.values():
            for same in groups.values():
                if len(same) > 1 and type(key) is tuple:  # containers; of dlarrays `leaf` has seen to it
                    self.unless(f"not ({' is '.join(same)})")
            if len(groups) == 2:
                self.unless(" is ".join([same[0] for same in groups.values()]))
            elif len(groups) > 2:
                self.unless(f"len({{{', '.join(f'id({same[0]})' for same in groups.values())}}}) != {len(groups)}")

    def leaf(self, x: str, leaf: Array | Plain, key: str) -> None:
        self.leaves.append(x)
        self._taken.append(leaf)
        if isinstance(leaf, Plain):
            self.plain(x, leaf, key)
            return
        number = None
        if self.is_whole:
            number = None if self._shared is None else self._shared[len(self.objects) - self._aside]
            self.objects.append((x, leaf.place))
        if number in self._met:
            first, value = self._met[number]
            self.unless(f"{x} is not {first}")  # then all else has been checked
            self.use(value, leaf)
            return
        self.unless(f"type({x}) is not DLArray")
        value, spec = self.new(), self.constant(leaf.spec)
        if number is not None:
            self._met[number] = x, value
        self.lines.append(f"{value} = {x}._value")
        self.unless(f"{value}.spec is not {spec} and {value}.spec != {spec} or {x}._labels != {leaf.labels!r}")
        self.use(value, leaf)

    def use(self, value: str, leaf: Array) -> None:
        """An array's value is an input, or has to be the one that it was."""
        if leaf.pinned is None:
            self.values.append(value)
        else:
            self.unless(f"{value} is not {self.constant(leaf.pinned.x)}")

    def plain(self, x: str, leaf: Plain, key: str) -> None:
        if isinstance(leaf.key, ById):
            self.unless(f"{x} is not {self.constant(leaf.x)}")
        elif type(leaf.x) is np.ndarray and leaf.x.ndim and not leaf.x.dtype.hasobject:
            same = f"same_array({x}, *{self.constant(leaf.key)})"
            known = f"{x} is not {self.constant(leaf.x)} and " if _is_frozen(leaf.x) else ""
            self.unless(f"{known}not {same}")
        else:
            known = "" if isinstance(leaf.x, _CHANGEABLE) else f"{x} is not {self.constant(leaf.x)} and "
            self.unless(f"{known}{key}({x}) != {self.constant(leaf.key)}")


def _has_methods(kind: Any, base: Any) -> bool:
    """Whether a subclass shows its elements as its base does."""
    names = ("__iter__", "__len__", "values") if base is dict else ("__iter__", "__len__")
    return all([getattr(kind, name) is getattr(base, name) for name in names])


def _has_plain_access(source: Source) -> bool:
    """Whether a short expression reads the source without running anybody's code."""
    if source.kind in ("cell", "global", "default"):
        return source.kind != "cell" or source.read(()) is not MISSING
    kind = type(source.holder)
    plain = (object.__getattribute__, types.ModuleType.__getattribute__)
    if source.kind != "attribute" or isinstance(source.holder, type) or kind.__getattribute__ not in plain:
        return False
    return source.name in getattr(source.holder, "__dict__", ())


def same_array(x: Any, kind: Any, shape: tuple[int, ...], dtype: np.dtype[Any], data: bytes) -> bool:
    """Whether x is an array with the key (kind, shape, dtype, data), without making the key of x."""
    if type(x) is not kind or x.shape != shape or x.dtype != dtype:
        return False
    return bool(np.array_equal(np.ascontiguousarray(x).reshape(-1).view(np.uint8), np.frombuffer(data, np.uint8)))
