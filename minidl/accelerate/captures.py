"""What a function reaches besides its arguments: closures, globals, default arguments, attributes of objects.

Found without running anything, from the code of the function and of all the user's functions that it can reach. An
object's attribute counts if its name is used anywhere in that code. The code of minidl, of the standard library and of
installed packages is not followed; the user's functions and objects that their objects hold are. What Python allows to
hide (an array inside of a library's object, say) is found by other means: a recording refuses arrays that it cannot
account for, and `testing.assert_accelerable` compares two recordings.
"""

from __future__ import annotations

import array
import collections
import contextvars
import ctypes
import dataclasses
import functools
import gc
import io
import operator
import random
import re
import sys
import threading
import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minidl.accelerate.ownership import (
    MISSING,
    attribute,
    class_dict,
    class_module,
    class_name,
    in_classes,
    is_accelerated,
    is_namespace,
    is_user_class,
    is_user_file,
    is_user_function,
    is_user_module,
    mro,
    own_attributes,
)
from minidl.accelerate.scan import CHANGING, line_of_change, scan, with_inner
from minidl.core.dlarray import DLArray
from minidl.core.tree import LEAF, leaf_paths, rest_of

__all__ = [
    "CHANGING", "MISSING", "Captures", "Leaf", "Source", "attribute", "find_captures", "is_namespace", "is_user_class",
    "is_user_file", "line_of_change",
]  # fmt: skip

MOST_OBJECTS, DEEPEST = 20_000, 100  # objects that are followed; containers inside containers
# methods that Python calls by itself, but not on an object that is there already
_MAKING = frozenset([
    "__init__", "__new__", "__post_init__", "__init_subclass__", "__set_name__", "__class_getitem__", "__del__",
    "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__copy__", "__deepcopy__", "__sizeof__", "__dir__",
])  # fmt: skip
_TEXTS = frozenset(["__repr__", "__str__", "__format__"])
# whoever names one of these may mean any attribute
_ALL = ("getattr", "vars", "eval", "exec", "locals", "__dict__", "__getattribute__", "attrgetter", "getattr_static")
_ANY = (getattr, vars, eval, exec, locals)
_GIVING = ("__next__", "hasdata")
_WRAPPERS = (property, staticmethod, classmethod, functools.cached_property, functools.partialmethod)
_GENERATORS = (
    np.random.Generator, np.random.RandomState, np.random.BitGenerator, np.random.SeedSequence, random.Random,
)  # fmt: skip
_METHODS = (types.FunctionType, *_WRAPPERS)
_CODE = (types.FunctionType, types.ModuleType)
_CONTAINERS = (dict, list, tuple, set, frozenset, collections.deque)
_FILE = io.IOBase.__mro__[1]  # io.IOBase itself would ask a class for its hash
_COLLECTIONS = (list, dict, set, collections.deque, bytearray, np.ndarray, _FILE)
_HOLDING = {
    collections.UserDict: "data", collections.UserList: "data", collections.ChainMap: "maps",
    weakref.WeakValueDictionary: "data", weakref.WeakKeyDictionary: "data", weakref.WeakSet: "data",
}  # fmt: skip
_BOUND = frozenset(map(id, [types.BuiltinMethodType, types.MethodWrapperType]))
_OPAQUE = frozenset(map(id, [
    int, float, complex, bool, str, bytes, bytearray, type(None), type(...), range, slice, memoryview, DLArray,
    type(MISSING), types.CodeType,
]))  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Leaf:
    """The index-th leaf of the call's arguments."""

    index: int


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Source:
    """One place outside of the arguments: a variable, the defaults of a function, an attribute."""

    kind: str  # "cell", "global", "attribute", "default"; "context" (of a ContextVar), "cache" (emptied how often)
    holder: Any  # the cell; the dict of globals; the object, or its Leaf; the function
    name: str  # "" is the holder itself
    path: str  # for people
    where: str  # file:line where it is named first

    def read(self, leaves: Sequence[Any]) -> Any:
        """What is there now; MISSING if nothing is. Runs no code of the user's."""
        if self.kind == "cell":
            try:
                return self.holder.cell_contents
            except ValueError:
                return MISSING
        if self.kind == "global":
            return dict.get(self.holder, self.name, MISSING)
        if self.kind == "default":
            return getattr(self.holder, self.name)
        if self.kind == "context":
            return self.holder.get(MISSING)
        if self.kind == "cache":
            return _times_emptied(self.holder)
        if type(self.holder) is Leaf:
            return attribute(leaves[self.holder.index], self.name) if self.holder.index < len(leaves) else MISSING
        return attribute(self.holder, self.name)


_met: weakref.WeakKeyDictionary[Any, tuple[int, int]] = weakref.WeakKeyDictionary()


def _times_emptied(cache: Any) -> int:
    """How often a cache of functools was found emptied: it counts its misses from 0 again then."""
    times, before = _met.get(cache, (0, 0))
    misses = cache.cache_info().misses
    times += misses < before
    _met[cache] = times, misses
    return times


class Captures(NamedTuple):
    """Places that the function reads, places that it changes (or only changes), its code, sources of data and chance.

    Containers that contain themselves are among the sources of data: they cannot be compared.
    """

    reads: list[Source]
    writes: list[Source]
    codes: list[types.CodeType]
    sources: list[Any]
    generators: list[Any]
    is_whole: bool = True  # False: there were too many objects to follow all
    names: Sequence[str] = ()  # of the leaves of the arguments
    code: Sequence[Source] = ()  # what the code is and calls: compared like `reads`, but never changed by a call
    hidden: Sequence[tuple[str, str]] = ()  # what looks up names that are made at run time: (its name, line)
    theirs: Sequence[tuple[Any, str, str]] = ()  # objects of libraries: (object, path, line)


def find_captures(function: Callable[..., Any], leaves: Sequence[Any], structure: Any = None) -> Captures:
    """Everything that a call of the function with these argument leaves can read or change besides them.

    structure : of (args, kwargs), as `flatten` gives it; then methods of containers among the arguments are followed.
    """
    walk = _Walk(leaves)
    kind = type(function)
    is_named = kind is types.FunctionType or kind is types.MethodType
    path = function.__name__ if is_named else "partial" if issubclass(kind, functools.partial) else "self"
    walk.reach_loose(function, path, "?")
    names = _leaf_names(function, structure, len(leaves))
    for index, leaf in enumerate(leaves):
        walk.reach(leaf, names[index], "?", Leaf(index))
    walk.reach_types(structure)
    return walk.captures()._replace(names=names)


def _leaf_names(function: Any, structure: Any, count: int) -> list[str]:
    """For people: the leaves of the arguments by the names of the parameters."""
    function, skipped = function.Function if is_accelerated(function) else function, 0
    if type(function) is not types.FunctionType:
        function = attribute(function, "__func__" if type(function) is types.MethodType else "__call__")
        skipped = 1
    code = function.__code__ if type(function) is types.FunctionType else None
    names = list(code.co_varnames[skipped : code.co_argcount]) if code else []
    if structure is None:
        return [names[k] if count <= len(names) else f"argument {k}" for k in range(count)]
    args, kwargs = structure[2]
    names += [f"args[{k}]" for k in range(len(names), len(args[2]))]
    named = [*zip(names, args[2]), *zip(kwargs[1], kwargs[2])]
    return [path for name, child in named for path in leaf_paths(child, name)]


# containers -----------------------------------------------------------------------------------------------------
def _is_dataclass(kind: type) -> bool:
    return in_classes(mro(kind), "__dataclass_fields__") is not MISSING


def _is_tree(kind: type) -> bool:
    """Whether `flatten` takes the objects of a class apart."""
    return issubclass(kind, (dict, tuple)) or kind is list or _is_dataclass(kind)


def _fields(kind: type) -> frozenset[str]:
    """Names of the attributes that `flatten` finds as elements."""
    if _is_dataclass(kind):
        return frozenset([field.name for field in dataclasses.fields(kind)])
    found = in_classes(mro(kind), "_fields") if issubclass(kind, tuple) else ()
    return frozenset(found if type(found) is tuple else ())


def _elements(x: Any) -> list[tuple[Any, Any]]:
    """(name or number, element); the keys of a dict too, where they may be objects."""
    kind = type(x)
    for base in (list, tuple, set, frozenset, collections.deque):
        if issubclass(kind, base):
            return list(enumerate(base.__iter__(x)))
    if issubclass(kind, dict):
        keys = [("key", key) for key in dict.keys(x) if type(key) is not str and type(key) is not int]
        values = [(k if type(k) in (str, int) else i, y) for i, (k, y) in enumerate(dict.items(x))]
        return values + keys
    if issubclass(kind, np.ndarray) and np.ndarray.dtype.__get__(x).hasobject:
        return list(enumerate(np.asarray(x).reshape(-1).tolist()))
    if not issubclass(kind, type) and _is_dataclass(kind):
        return [(field.name, attribute(x, field.name)) for field in dataclasses.fields(kind)]
    return []


# what shows that an object is numbers of another library
_NUMBERS = (
    "__array__", "__array_interface__", "__dlpack__", "__dataframe__", "__arrow_c_stream__", "toarray", "to_numpy",
)  # fmt: skip
_FOLLOWED = (
    *_CODE, *_WRAPPERS, *_GENERATORS, *_HOLDING, *_CONTAINERS, type, types.MethodType, functools.partial, weakref.ref,
    types.MappingProxyType, contextvars.ContextVar, threading.local, np.ufunc, np.dtype, operator.itemgetter,
    operator.attrgetter, operator.methodcaller, re.Pattern, functools._lru_cache_wrapper,
    array.array, memoryview,
)  # fmt: skip
_C_DATA = (ctypes._SimpleCData, ctypes.Array, ctypes.Structure, ctypes.Union, ctypes._Pointer)  # not libraries: code
_LOCKS = ("_thread", "threading", "logging", "tqdm", "warnings", "typing", "numba", "zoneinfo")


def _home(kind: type) -> str:
    """The package that a class is of."""
    return str(class_module(kind)).partition(".")[0]


def is_opaque(x: Any, is_given: bool) -> bool:
    """Whether an object of a library may hold something else at the next call, and nothing tells: its content can be
    neither followed nor compared. is_given: it is an argument, which is there for its content; of what is captured
    only numbers (a table, a sparse matrix) are, and not a lock or a logger."""
    kind = type(x)
    if id(kind) in _OPAQUE or id(kind) in _BOUND or x is MISSING or issubclass(kind, (np.generic, np.ndarray)):
        return False
    home = _home(kind)
    if is_user_class(kind) or is_namespace(x) or home in ("minidl", *_LOCKS):
        return False
    if any(in_classes(mro(kind), name) is not MISSING for name in _NUMBERS) or issubclass(kind, _C_DATA):
        return True
    if issubclass(kind, (type({}.values()), type({}.keys()), type({}.items()))):
        return True
    is_itself = in_classes(mro(kind), "__hash__") in (None, object.__hash__)
    return is_given and is_itself and not issubclass(kind, _FOLLOWED) and home != "builtins"


def _is_readable(file: Any) -> bool:
    try:
        return not is_user_class(type(file)) and bool(file.readable())
    except (ValueError, OSError, NotImplementedError):
        return False


def _content_of(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return MISSING


# the walk -------------------------------------------------------------------------------------------------------
class _Place:
    """A Source while its use is being found out. `names` are those of its elements, where they have better ones."""

    def __init__(self, source: Source, names: Sequence[str] | None) -> None:
        self.source, self.names = source, names
        self.uses: set[str] = set()
        self.is_endless = False


@dataclasses.dataclass(eq=False)
class _Object:
    """Something with attributes. `fields` are compared elsewhere; of objects that are not the user's only what is
    named is looked at; `is_made`: a class that may be called."""

    x: Any
    holder: Any
    path: str
    where: str
    is_users: bool
    is_made: bool
    fields: frozenset[str] = frozenset()


class _Walk:
    def __init__(self, leaves: Sequence[Any]) -> None:
        self.leaves = leaves
        self.codes: dict[int, types.CodeType] = {}
        self.names: dict[str, str] = {}  # attributes named anywhere -> line
        self.uses: dict[str, set[str]] = {}  # of those
        self.bases: dict[str, dict[str, None]] = {}  # variable -> attributes named right behind it
        self.asked: dict[str, None] = {}  # attributes that may be asked for, there or not
        self.all_at = ""  # line where any attribute may be meant
        self.makes_text = self.looks_at_types = False
        self.is_whole = True
        self.seen: dict[Any, Any] = {}  # held, so that ids stay theirs
        self.open: list[int] = []  # containers that are being walked
        self.endless: set[int] = set()
        self.objects: list[_Object] = []
        self.places: dict[Any, _Place] = {}
        self.waiting: list[_Place] = []
        self.sources: dict[int, Any] = {}
        self.generators: dict[int, Any] = {}
        self.code: dict[Any, Source] = {}
        self.hidden: dict[tuple[str, str], None] = {}

    def captures(self) -> Captures:
        """Follow what is read until nothing new turns up."""
        before: tuple[Any, ...] = ()
        while before != (now := self._state()):
            before = now
            waiting, self.waiting = self.waiting, []
            for place in waiting:
                if self._is_read(place):
                    self._walk(place)
                else:
                    self.waiting.append(place)
            for one in list(self.objects):
                self._attributes(one)
        places = [place for place in self.places.values() if not place.is_endless]
        reads = [place.source for place in places if self._is_read(place)]
        writes = [place.source for place in places if "store" in self._uses(place) or not self._is_read(place)]
        sources, generators = list(self.sources.values()), list(self.generators.values())
        theirs = [
            (one.x, one.path, one.where) for one in self.objects
            if not one.is_users and type(one.x) not in _CODE and _home(type(one.x)) not in _LOCKS
        ]  # fmt: skip
        captures = Captures(reads, writes, list(self.codes.values()), sources, generators, self.is_whole)
        return captures._replace(theirs=theirs, code=list(self.code.values()), hidden=list(self.hidden))

    def _state(self) -> tuple[Any, ...]:
        counts = [len(self.names), len(self.codes), len(self.places), len(self.objects), len(self.waiting)]
        return *counts, len(self.asked), self.all_at, self.makes_text, self.looks_at_types

    # places
    def place(
        self, kind: str, holder: Any, name: str, path: str, where: str, names: Sequence[str] | None = None
    ) -> _Place:
        """The place, perhaps known already."""
        key = kind, holder if type(holder) is Leaf else id(holder), name
        if key not in self.places:
            self.places[key] = _Place(Source(kind, holder, name, path, where), names)
            self.waiting.append(self.places[key])
        return self.places[key]

    def _uses(self, place: _Place) -> set[str]:
        source = place.source
        return place.uses | self.uses.get(source.name, set()) if source.kind == "attribute" else place.uses

    def _is_read(self, place: _Place) -> bool:
        """Whether what is there matters; not if it is a container that is only filled."""
        uses = self._uses(place)
        if "read" in uses or not uses or (self.all_at and place.source.kind == "attribute"):
            return True
        if uses == {"store"}:
            return False
        kind = type(place.source.read(self.leaves))
        is_filled = issubclass(kind, _COLLECTIONS if "set" not in uses else dict)
        return not is_filled or is_user_class(kind)

    def _walk(self, place: _Place) -> None:
        source, names = place.source, place.names
        value = source.read(self.leaves)
        if names is None:
            place.is_endless = self.reach(value, source.path, source.where)
        else:
            named = value.items() if type(value) is dict else zip(names, value or ())
            place.is_endless = any([self.reach(x, name, source.where) for name, x in named])

    # objects
    def reach_loose(self, x: Any, path: str, where: str) -> None:
        """Follow an object that no place holds: if it is a container, its content gets a place of its own."""
        kind = type(x)
        if (_is_tree(kind) or issubclass(kind, _CONTAINERS)) and (id(x), None) not in self.seen:
            self.place("attribute", x, "", path, where)
        else:
            self.reach(x, path, where)

    def reach(self, x: Any, path: str, where: str, leaf: Leaf | None = None) -> bool:
        """Follow an object that the code can get hold of. Whether it is a container without end."""
        kind = type(x)
        if id(kind) in _OPAQUE or issubclass(kind, np.generic):
            return False
        if id(x) in self.open or len(self.open) > DEEPEST:
            self.endless.update(self.open)
            self.sources.setdefault(id(x), x)
            return True
        if (id(x), leaf) in self.seen:
            return id(x) in self.endless
        self.seen[id(x), leaf] = x
        if len(self.seen) > MOST_OBJECTS and not issubclass(kind, _CONTAINERS):
            self.is_whole = False
            return False
        if not self._source(x, leaf) and not self._callable(x, path, where):
            self._content(x, path, where)
            self._object(x, path, where, leaf)
        return id(x) in self.endless

    def _source(self, x: Any, leaf: Leaf | None) -> bool:
        """Things that give something else each time."""
        kind = type(x)
        if issubclass(kind, _GENERATORS):
            self.generators.setdefault(id(x), x)
            return not is_user_class(kind)
        is_file = issubclass(kind, _FILE)
        is_source = _is_readable(x) if is_file else any(in_classes(mro(kind), n) is not MISSING for n in _GIVING)
        if is_source and leaf is None:  # arguments are looked at by the recording
            self.sources.setdefault(id(x), x)
        return is_file or is_source

    def _callable(self, x: Any, path: str, where: str) -> bool:
        """Functions, and what stands for a function."""
        kind = type(x)
        if kind is types.FunctionType:
            self._function(x, path, where)
        elif kind is types.MethodType:
            names = x.__func__.__code__.co_varnames if type(x.__func__) is types.FunctionType else ()
            self.reach_loose(x.__self__, names[0] if names else f"{path}.__self__", where)
            self.reach(x.__func__, path, where)
        elif kind is contextvars.ContextVar:
            self.place("context", x, "", path, where).uses.add("read")
        elif kind is functools._lru_cache_wrapper:
            if type(x.__wrapped__) is types.FunctionType and is_user_function(x.__wrapped__):
                self.place("cache", x, "", path, where).uses.add("read")
                self.reach(x.__wrapped__, path, where)
        elif id(kind) in _BOUND:
            self._bound(x, path, where)
        elif issubclass(kind, functools.partial):
            self._partial(x, path, where)
        elif issubclass(kind, _WRAPPERS):
            for name in ("__func__", "fget", "fset", "fdel", "func", "args", "keywords"):
                self.reach(attribute(x, name), path, where)
        elif is_accelerated(x):
            self.reach(x.Function, path, where)
        elif kind is operator.attrgetter or kind is operator.methodcaller:
            for text in x.__reduce__()[1]:
                for name in text.split(".") if type(text) is str else ():
                    self._name(name, "read", where)
        else:
            return False
        return True

    def _bound(self, x: Any, path: str, where: str) -> None:
        """A function of C's, or a method of a built-in object: table.get."""
        owner = x.__self__
        if owner is None or issubclass(type(owner), (types.ModuleType, type)):
            self.all_at = self.all_at or (where if any(x is given for given in _ANY) else "")
        elif issubclass(type(owner), _COLLECTIONS):
            use = "change" if x.__name__ in CHANGING else "read"
            self.place("attribute", owner, "", f"{path}.__self__", where).uses.add(use)
        else:
            self.reach_loose(owner, f"{path}.__self__", where)

    def _partial(self, x: Any, path: str, where: str) -> None:
        self.reach_loose(x.func, path, where)
        code = x.func.__code__ if type(x.func) is types.FunctionType else None
        names = code.co_varnames[: code.co_argcount] if code else ()
        names += tuple([f"{path} (args)[{k}]" for k in range(len(names), len(x.args))])
        for name, given in (("args", x.args), ("keywords", x.keywords)):
            if given:
                self.place("attribute", x, name, f"{path} ({name})", where, names).uses.add("read")

    def _content(self, x: Any, path: str, where: str) -> None:
        """What is in a container. In one that is no tree, the containers are held by no place."""
        kind = type(x)
        if kind is types.MappingProxyType:
            self.reach_loose(gc.get_referents(x)[0], path, where)
        elif issubclass(kind, weakref.ref):
            self.reach_loose(weakref.ref.__call__(x), path, where)
        elif issubclass(kind, collections.defaultdict):
            self.reach(attribute(x, "default_factory"), path, where)
        is_tree = _is_tree(kind)
        self.open.append(id(x))
        for name, y in _elements(x):
            if id(type(y)) not in _OPAQUE:
                inner = f"{path}.{name}" if type(name) is str else f"{path}[{name}]"
                if is_tree or id(y) in self.open:
                    self.reach(y, inner, where)
                else:
                    self.reach_loose(y, inner, where)
        self.open.pop()

    def _object(self, x: Any, path: str, where: str, leaf: Leaf | None) -> None:
        """Something that has attributes."""
        kind, holder = type(x), x if leaf is None else leaf
        is_class, is_module = issubclass(kind, type), issubclass(kind, types.ModuleType)
        if is_user_module(x) if is_module else is_namespace(x) or is_user_class(x if is_class else kind):
            self.objects.append(_Object(x, holder, path, where, True, is_class, _fields(kind)))
        elif not is_class and not is_module and not class_module(kind).startswith(("minidl.", "numba", "builtins")):
            self._theirs(own_attributes(x).values(), path, where)
            self._chance(x, 3)
            self.objects.append(_Object(x, holder, path, where, False, False, _fields(kind)))
        for base, name in _HOLDING.items():
            if any(base is c for c in mro(kind)):
                self.place("attribute", holder, name, f"{path}.{name}", where).uses.add("read")

    def _chance(self, x: Any, depth: int) -> None:
        """Random generators that an object of a library has, perhaps inside of other objects."""
        for y in list(own_attributes(x).values()) if depth and len(self.seen) < MOST_OBJECTS else ():
            kind = type(y)
            if issubclass(kind, _GENERATORS):
                self.generators.setdefault(id(y), y)
            elif (id(y), None) not in self.seen and not issubclass(kind, (type, types.FunctionType, types.ModuleType)):
                self._chance(y, depth - 1)

    def _theirs(self, values: Any, path: str, where: str) -> None:
        """The user's functions and objects that something of a library holds."""
        for x in list(values):
            for y in [x, *(y for _, y in _elements(x))]:
                kind = type(y)
                is_code = kind is types.FunctionType or kind is types.MethodType or issubclass(kind, functools.partial)
                is_owned = is_user_class(y) if issubclass(kind, type) else is_user_class(kind) and not _is_tree(kind)
                if is_code or is_owned:
                    self.reach(y, path, where)

    def reach_types(self, structure: Any) -> None:
        """Follow the methods of the user's containers in a tree of arguments."""
        if isinstance(structure, tuple):
            kind, _, children = structure[:3]
            if is_user_class(kind) and (id(kind), LEAF) not in self.seen:
                self.seen[id(kind), LEAF] = kind
                self.objects.append(_Object(kind, kind, class_name(kind), "?", True, False, _fields(kind)))
            for child in children:
                self.reach_types(child)
            self.reach_types(rest_of(structure))

    # code
    def _name(self, name: str, use: str, where: str) -> None:
        self.names.setdefault(name, where)
        self.uses.setdefault(name, set()).add(use)
        if name in _ALL:
            self.all_at = self.all_at or where

    def _function(self, function: types.FunctionType, path: str, where: str) -> None:
        code, contents = function.__code__, function.__closure__ or ()
        if not is_user_function(function):
            if not str(function.__globals__.get("__name__")).startswith("minidl."):
                self._theirs([*map(_content_of, contents), *function.__dict__.values()], path, where)
            return
        cells = dict(zip(code.co_freevars, contents))
        for inner in with_inner(code):
            self._scan(inner, function, cells)
        self._code("default", function, "__code__", f"{path}.__code__", f"{code.co_filename}:{code.co_firstlineno}")
        line, title = f"{code.co_filename}:{code.co_firstlineno}", f"{function.__name__} (default arguments)"
        if function.__defaults__:
            names = code.co_varnames[code.co_argcount - len(function.__defaults__) : code.co_argcount]
            self.place("default", function, "__defaults__", title, line, names)
        if function.__kwdefaults__:
            self.place("default", function, "__kwdefaults__", title, line, ())
        self.objects.append(_Object(function, function, path, line, False, False))

    def _scan(self, code: types.CodeType, function: types.FunctionType, cells: dict[str, Any]) -> None:
        """Add the places that one piece of a function's code names."""
        found, space, known = scan(code), function.__globals__, getattr(function, "__builtins__", {})
        self.codes.setdefault(id(code), code)
        self.makes_text |= found.makes_text
        self.asked.update(found.asked)
        for base, names in found.bases.items():
            self.bases.setdefault(base, {}).update(names)
        for (kind, name), where in found.where.items():
            uses = found.uses[kind, name]
            if kind == "attribute":
                for use in uses:
                    self._name(name, use, where)
                is_written = code.co_filename != "<string>"  # and not generated, by dataclass
                self.looks_at_types |= name == "__class__" and is_written
            elif kind == "cell":
                if name in cells and name not in ("__class__", "__classdict__"):
                    self.place("cell", cells[name], name, name, where).uses.update(uses)
            elif name in space or name not in known or "store" in uses:
                self.place("global", space, name, name, where).uses.update(uses)
            else:
                self.all_at = self.all_at or (where if name in _ALL else "")
                self.looks_at_types = self.looks_at_types or name == "type"
                self._code("global", space, name, name, where)  # that no variable hides it
                self._code("global", known, name, f"builtins.{name}", where)
        for base, names in found.bases.items():
            owner = _content_of(cells[base]) if base in cells else space.get(base)
            if type(owner) is types.ModuleType and not is_user_module(owner):
                for name in names:
                    found_there = own_attributes(owner).get(name)
                    if callable(found_there) or type(found_there) in (int, float, str, bool, tuple, list):
                        self._code("attribute", owner, name, f"{base}.{name}", found.where["attribute", name])
        for name, where in found.formatted.items():
            if name:
                self._name(name, "read", where)
            else:
                self.all_at = self.all_at or where
        self.hidden.update(dict.fromkeys([x for x in found.hidden if x[0] not in space or x[0] == "import_module"]))
        self._texts(code, space)
        for (name, dots), where in found.modules.items():
            package = space.get("__package__") or str(space.get("__name__")).rpartition(".")[0]
            above = package.rsplit(".", dots - 1)[0] if dots else ""
            self._module(".".join(filter(None, [above, name])), where)

    def _code(self, kind: str, holder: Any, name: str, path: str, where: str) -> None:
        self.code.setdefault((kind, id(holder), name), Source(kind, holder, name, path, where))

    def _texts(self, code: types.CodeType, space: dict[str, Any]) -> None:
        """Names that are given as texts: globals()["rate"], import_module("config"), methodcaller("step")."""
        found = scan(code)
        named = {name: where for (_, name), where in found.where.items()}
        if not named.keys().isdisjoint(("globals", "eval", "exec")):
            for word in sorted(found.words & space.keys()):
                self.place("global", space, word, word, next(iter(named.values()))).uses.add("read")
        for text in found.texts:
            if not named.keys().isdisjoint(("modules", "import_module", "__import__")) and text in sys.modules:
                self._module(text, next(iter(named.values())))
            if "methodcaller" in named:
                self._name(text, "read", named["methodcaller"])

    def _module(self, name: str, where: str) -> None:
        """A module that the code imports: looked up again each time, and perhaps not there yet."""
        module: Any = sys.modules.get(name, MISSING)
        if module is MISSING or (issubclass(type(module), types.ModuleType) and is_user_module(module)):
            self.place("global", sys.modules, name, name, where).uses.add("read")

    # attributes
    def _attributes(self, one: _Object) -> None:
        """Add the attributes of an object that the code names."""
        x, kind = one.x, type(one.x)
        is_class = issubclass(kind, type)
        classes = [*mro(x), *mro(kind)] if is_class else list(mro(kind))
        own = [] if is_class else list(own_attributes(x))
        met = {name for name in own if type(name) is str and self._is_meant(name, one)}
        for name in own:
            if name in met:
                self._attribute(one, name)
        if self.all_at and own and one.is_users and not issubclass(kind, types.ModuleType):
            self._attribute(one, "__dict__").uses.add("read")  # also for attributes that are not there yet
        if not one.is_users:
            if met or kind is types.FunctionType:
                self._missing(one, [])
            return
        classes = list(filter(is_user_class, classes))
        for owner in classes:
            for name, found in list(class_dict(owner).items()):
                if self._is_meant(name, one) or self._is_implied(name, found, one):
                    self._class_attribute(one, owner, name, found, name in met)
                    met.add(name)
        if self.looks_at_types and not is_class and is_user_class(kind):
            self.reach(kind, class_name(kind), one.where)
        if not issubclass(kind, types.ModuleType):
            for name in list(self.asked):
                self._attribute(one, name).uses.add("read")
        if "__getattr__" not in met:
            self._missing(one, [] if is_class else classes)

    def _class_attribute(self, one: _Object, owner: type, name: str, found: Any, is_hidden: bool) -> None:
        if issubclass(type(found), _METHODS) or is_accelerated(found):
            self.reach(found, f"{one.path}.{name}", one.where)
            if type(found) is classmethod:
                self.reach(owner, class_name(owner), one.where)
        if type(found) is types.MemberDescriptorType:
            self._attribute(one, name)
        elif name == "__call__" and one.where != "?":  # the code names the object
            self.place("attribute", owner, name, f"{class_name(owner)}.{name}", one.where)
        elif name.startswith("__") and name.endswith("__"):  # len(x), x[k]: the class may get another one
            is_written = type(found) is types.FunctionType and found.__code__.co_filename != "<string>"
            if is_written and name != "__call__":  # by a person, not by dataclasses
                self.place("attribute", owner, name, f"{class_name(owner)}.{name}", one.where)
        elif is_hidden and owner is not one.x:  # super() and type(x) can see it
            self.place("attribute", owner, name, f"{class_name(owner)}.{name}", self.names.get(name, one.where))
        else:
            self._attribute(one, name)

    def _attribute(self, one: _Object, name: str) -> _Place:
        where = self.names.get(name) or self.all_at or one.where
        return self.place("attribute", one.holder, name, f"{one.path}.{name}", where)

    def _is_meant(self, name: str, one: _Object) -> bool:
        if name.startswith("__") and issubclass(type(one.x), types.ModuleType):
            return name == "__getattr__"
        is_named = name in self.names or (self.all_at and one.is_users and not name.startswith("__"))
        return bool(is_named) and name not in one.fields

    def _is_implied(self, name: str, found: Any, one: _Object) -> bool:
        """Whether it is a method that Python calls by itself."""
        if not name.startswith("__") or not issubclass(type(found), _METHODS):
            return False
        return (one.is_made or name not in _MAKING) and (self.makes_text or name not in _TEXTS)

    def _missing(self, one: _Object, classes: list[type]) -> None:
        """Add attributes that are not there, but that the code uses of this very object: of `self` in its methods, of
        the variable that it is in."""
        named = dict(self.bases.get(one.path.rpartition(".")[2], ()))
        for owner in classes:
            for method in list(class_dict(owner).values()):
                if type(method) is types.FunctionType and id(method.__code__) in self.codes:
                    for code in with_inner(method.__code__):
                        named.update(scan(code).bases.get(scan(method.__code__).first, ()))
        for name in named:
            if name not in one.fields and attribute(one.x, name) is MISSING:
                self._attribute(one, name)
