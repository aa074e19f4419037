"""What a function reaches besides its arguments: closures, globals, default arguments, attributes of objects.

Found without running anything, from the code of the function and of all the user's functions that it can reach. An
object's attribute counts if its name is loaded anywhere in that code. minidl, the standard library and installed
packages are not followed. What Python allows to hide (an array in an object of a library, say) is found by other means:
a recording refuses arrays that it cannot account for, and `testing.assert_accelerable` compares two recordings.
"""

from __future__ import annotations

import builtins
import collections
import dataclasses
import dis
import functools
import inspect
import io
import os
import random
import re
import sys
import sysconfig
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minidl.core.dlarray import DLArray


class _Missing:
    """Nothing of that name is there."""

    def __repr__(self) -> str:
        return "MISSING"

    def __reduce__(self) -> str:
        return "MISSING"


MISSING = _Missing()
MOST_OBJECTS = 20_000  # that are followed
# methods whose only use is to change their object
CHANGING = frozenset([
    "append", "appendleft", "extend", "extendleft", "insert", "add", "update", "write", "writelines", "clear", "remove",
    "discard", "sort", "reverse",
])  # fmt: skip
_ALL = ("getattr", "vars", "__dict__", "eval", "exec", "attrgetter", "globals", "locals")  # any attribute may be meant
_STORES = {"GLOBAL": "global", "NAME": "global", "DEREF": "cell", "ATTR": "attribute"}
_CELLS = ("LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF")
_GLOBALS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "LOAD_SUPER_METHOD", "IMPORT_FROM")
_SLOTS = (types.MemberDescriptorType, types.GetSetDescriptorType)
_CALLED = (types.FunctionType, types.MethodType, functools.partial)
_METHODS = (types.FunctionType, property, staticmethod, classmethod, functools.cached_property)
_PLAIN = (DLArray, np.ndarray, np.generic, str, bytes, int, float, complex, type(None), io.IOBase)


@dataclasses.dataclass(frozen=True, slots=True)
class Leaf:
    """The index-th leaf of the call's arguments."""

    index: int


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Source:
    """One place outside of the arguments: a variable, the defaults of a function, an attribute."""

    kind: str  # "cell", "global", "attribute", "default"
    holder: Any  # the cell; the dict of globals; the object, or its Leaf; the function
    name: str
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
            return self.holder.get(self.name, MISSING)
        if self.kind == "default":
            return getattr(self.holder, self.name)
        holder = leaves[self.holder.index] if isinstance(self.holder, Leaf) else self.holder
        return attribute(holder, self.name)


class Captures(NamedTuple):
    """Places that the function reads, places that it changes, its code; sources of data and generators of chance."""

    reads: list[Source]
    writes: list[Source]
    codes: list[types.CodeType]
    sources: list[Any]
    generators: list[Any]
    is_whole: bool = True  # False: there were too many objects to follow all


def find_captures(function: Callable[..., Any], leaves: Sequence[Any], structure: Any = None) -> Captures:
    """Everything that a call of the function with these arguments can read or change besides them."""
    walk = _Walk()
    for kind in _kinds(structure):
        walk.reach(kind, kind.__name__, "?")  # its methods
    walk.reach(function, getattr(function, "__name__", type(function).__name__), "?")
    names = _parameter_names(function)
    for index, leaf in enumerate(leaves):
        if not isinstance(leaf, _PLAIN):
            path = names[index] if index < len(names) else f"argument {index}"
            walk.reach(leaf, path, "?", holder=Leaf(index))
    return walk.captures()


def _kinds(structure: Any) -> Iterator[type]:
    """The classes of containers in the structure of a tree."""
    if isinstance(structure, tuple):
        yield structure[0]
        for child in structure[2]:
            yield from _kinds(child)


def attribute(x: Any, name: str) -> Any:
    """The attribute as data: properties and other descriptors are not run; MISSING if there is none."""
    own = _own(x)
    if name in own:
        return own[name]
    for kind in (x if isinstance(x, type) else type(x)).__mro__:
        if name in kind.__dict__:
            found = kind.__dict__[name]
            if type(found) in _SLOTS and not isinstance(x, type):
                try:
                    return found.__get__(x, type(x))
                except AttributeError:
                    return MISSING
            return found
    return MISSING


def _own(x: Any) -> Any:
    """The attributes of the object itself."""
    try:
        return type.__getattribute__(x, "__dict__") if isinstance(x, type) else object.__getattribute__(x, "__dict__")
    except AttributeError:
        return {}


# whose code -----------------------------------------------------------------------------------------------------
_HOUSE = Path(__file__).resolve().parents[1]
_OURS = (str(_HOUSE) + os.sep, str(_HOUSE.parent / "kernels") + os.sep)  # in a checkout kernels/ lies beside minidl/
_STANDARD = tuple({os.path.abspath(sysconfig.get_path(name)) + os.sep for name in ("stdlib", "platstdlib")})


@functools.cache
def is_user_file(filename: str) -> bool:
    """Whether code of this file is the user's: not minidl's, the standard library's or an installed package's."""
    if filename.startswith("<"):
        return not filename.startswith(("<frozen", "<__array_function__"))
    path = os.path.abspath(filename)
    if path.startswith(_OURS) or any(part in ("site-packages", "dist-packages") for part in path.split(os.sep)):
        return False
    return not path.startswith(_STANDARD)


def _is_user_function(function: types.FunctionType) -> bool:
    file = function.__globals__.get("__file__")
    if isinstance(file, str) and function.__code__.co_filename.startswith("<"):
        return is_user_file(file)  # generated code belongs to who had it generated
    return is_user_file(function.__code__.co_filename)


_classes: weakref.WeakKeyDictionary[type, bool] = weakref.WeakKeyDictionary()


def is_user_class(kind: type) -> bool:
    """Whether a class is the user's."""
    found = _classes.get(kind)
    if found is None:
        found = _classes[kind] = _is_user_class(kind)
    return found


def _is_user_class(kind: type) -> bool:
    name = type.__getattribute__(kind, "__module__")
    if name == "__main__":
        return True
    file = getattr(sys.modules.get(name), "__file__", None)
    if isinstance(file, str):
        return is_user_file(file)
    functions = [x for x in kind.__dict__.values() if isinstance(x, types.FunctionType)]
    return name not in sys.modules and any(map(_is_user_function, functions))


def is_namespace(x: Any) -> bool:
    """Whether an object is nothing but attributes of the user's."""
    kind = type(x)
    return (kind.__module__, kind.__name__) in (("types", "SimpleNamespace"), ("argparse", "Namespace"))


def _is_user_module(module: types.ModuleType) -> bool:
    file = module.__dict__.get("__file__")
    return module.__dict__.get("__name__") == "__main__" or (isinstance(file, str) and is_user_file(file))


def _parameter_names(function: Any) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return []


# one piece of code ----------------------------------------------------------------------------------------------
class Scan:
    """The names in one code object (without the code inside it): name -> line where it comes first."""

    def __init__(self, code: types.CodeType) -> None:
        self.globals: dict[str, str] = {}
        self.cells: dict[str, str] = {}
        self.attributes: dict[str, str] = {}
        self.modules: dict[str, str] = {}
        texts = [x for x in code.co_consts if type(x) is str]
        self.words = {word for text in texts for word in re.findall(r"[^\W\d]\w*", text)}  # may name something
        self.stored: dict[str, set[str]] = {"global": set(), "cell": set(), "attribute": set()}
        self.read: set[tuple[str, str]] = set()  # (kind, name): loaded for something else than to be changed
        self.changes: list[tuple[str, str, str]] = []  # (kind, name, line) of what may change something
        found = list(_instructions(code))
        indexed = {line for name, _, line in found if name in ("STORE_SUBSCR", "DELETE_SUBSCR")}
        maybe = []
        for k, (name, value, line) in enumerate(found):
            where = f"{code.co_filename}:{line}"
            kind = self._load(name, value, where)
            if kind:
                if line in indexed:
                    maybe.append((kind, value, where))
                if _only_changes(found[k + 1 : k + 3]):
                    self.changes.append((kind, value, where))
                else:
                    self.read.add((kind, value))
            elif name == "IMPORT_NAME":
                self.modules.setdefault(value, where)
            elif name.startswith(("STORE_", "DELETE_")):
                kind = _STORES.get(name.split("_")[1], "")
                if kind:
                    self.stored[kind].add(value)
                    self.changes.append((kind, value, where))
        self.changes += maybe

    def _load(self, name: str, value: Any, where: str) -> str:
        for kind, names, found in (
            ("global", _GLOBALS, self.globals),
            ("cell", _CELLS, self.cells),
            ("attribute", _ATTRIBUTES, self.attributes),
        ):
            if name in names:
                found.setdefault(value, where)
                return kind
        return ""


def _instructions(code: types.CodeType) -> Iterator[tuple[str, Any, int]]:
    """(name, argument, line)."""
    line = code.co_firstlineno
    for x in dis.get_instructions(code):
        if x.opname in ("CACHE", "RESUME", "PRECALL", "EXTENDED_ARG", "PUSH_NULL"):
            continue
        positions = getattr(x, "positions", None)
        if positions is not None and positions.lineno is not None:
            line = positions.lineno
        elif type(x.starts_line) is int:
            line = x.starts_line
        yield x.opname, x.argval, line


def _only_changes(following: list[tuple[str, Any, int]]) -> bool:
    """Whether what was loaded just before is only changed: x.append(...), x[key] = ..."""
    if not following:
        return False
    if following[0][0] in ("LOAD_ATTR", "LOAD_METHOD"):
        return following[0][1] in CHANGING
    is_key = following[0][0] in ("LOAD_CONST", "LOAD_FAST", "LOAD_SMALL_INT", "LOAD_FAST_BORROW", *_GLOBALS, *_CELLS)
    return is_key and len(following) > 1 and following[1][0] == "STORE_SUBSCR"


@functools.lru_cache(maxsize=4096)
def scan(code: types.CodeType) -> Scan:
    """The names in a code object."""
    return Scan(code)


def with_inner(code: types.CodeType) -> list[types.CodeType]:
    """A code object and those of the functions, lambdas and comprehensions inside it."""
    inner = [x for x in code.co_consts if isinstance(x, types.CodeType)]
    return [code, *(y for x in inner for y in with_inner(x))]


def line_of_change(codes: Sequence[types.CodeType], name: str) -> str:
    """file:line where a variable or attribute of that name is most likely changed."""
    for code in codes:
        for _, changed, where in scan(code).changes:
            if changed == name:
                return where
    for code in codes:  # through another name, or an index that is computed: the first line that mentions it
        found = scan(code)
        for names in (found.globals, found.cells, found.attributes):
            if name in names:
                return names[name]
    return "?"


# the walk -------------------------------------------------------------------------------------------------------
class _Walk:
    def __init__(self) -> None:
        self.codes: dict[types.CodeType, None] = {}
        self.names: dict[str, str] = {}  # attributes loaded anywhere -> line
        self.asked: dict[str, None] = {}  # attributes that may be asked for by hasattr or getattr, there or not
        self.stored: set[str] = set()  # attributes stored anywhere
        self.read_names: set[tuple[str, str]] = set()
        self.seen: dict[int, Any] = {}
        self.objects: list[tuple[Any, Any, str]] = []  # object, holder, path
        self.found: dict[tuple[Any, ...], Source] = {}
        self.changed: set[tuple[Any, ...]] = set()  # keys of sources that are stored to
        self.sources: list[Any] = []
        self.generators: list[Any] = []

    def captures(self) -> Captures:
        """Look for attributes until nothing new turns up."""
        done: tuple[int, ...] = ()
        while done != (state := self._state()):
            done = state
            for x, holder, path in list(self.objects):
                self._attributes(x, holder, path)
        is_read = {key: s.kind == "default" or (s.kind, s.name) in self.read_names for key, s in self.found.items()}
        reads = [s for key, s in self.found.items() if is_read[key]]
        writes = [s for key, s in self.found.items() if key in self.changed or not is_read[key]]
        is_whole = len(self.seen) <= MOST_OBJECTS
        return Captures(reads, writes, list(self.codes), self.sources, self.generators, is_whole)

    def _state(self) -> tuple[int, ...]:
        return len(self.names), len(self.asked), len(self.objects), len(self.codes), len(self.stored)

    def reach(self, x: Any, path: str, where: str, holder: Any = None) -> None:
        """Follow an object that the code can get hold of."""
        if isinstance(x, _PLAIN) or x is MISSING or id(x) in self.seen or len(self.seen) > MOST_OBJECTS:
            return  # (captures() tells if it was too much)
        self.seen[id(x)] = x  # held: its id stays its own
        kind = type(x)
        if kind is types.FunctionType:
            self._function(x)
        elif kind is types.MethodType:
            self.reach(x.__self__, "self", where)
            self.reach(x.__func__, path, where)
        elif isinstance(x, functools.partial):
            self.reach(x.func, path, where)
            for name in ("args", "keywords"):
                self.read_names.add(("attribute", name))
                self._source("attribute", x, name, f"{path} ({name})", where)
        elif isinstance(x, (staticmethod, classmethod)):
            self.reach(x.__func__, path, where)
        elif isinstance(x, property):
            self.reach(x.fget, path, where)
        elif isinstance(x, functools.cached_property):
            self.reach(x.func, path, where)
        elif isinstance(x, functools._lru_cache_wrapper):
            self.reach(x.__wrapped__, path, where)
        elif kind.__name__ == "AcceleratedFunction" and kind.__module__.startswith("minidl."):
            self.reach(x.Function, path, where)
        elif isinstance(x, (np.random.Generator, np.random.RandomState, random.Random)):
            self.generators.append(x)
        elif any("__next__" in c.__dict__ or "hasdata" in c.__dict__ for c in kind.__mro__):
            self.sources.append(x)
        elif isinstance(x, (dict, list, tuple, set, frozenset, collections.deque)):
            self._elements(x, path, where)
        elif dataclasses.is_dataclass(kind):
            self._elements({name: attribute(x, name) for name in kind.__dataclass_fields__}, path, where)
        if isinstance(x, types.ModuleType):
            is_followed = _is_user_module(x)
        elif is_namespace(x):
            is_followed = True
        else:
            is_followed = is_user_class(x if isinstance(x, type) else kind)
        if is_followed:
            self.objects.append((x, x if holder is None else holder, path))

    def _elements(self, x: Any, path: str, where: str) -> None:
        items: Any = dict.items(x) if isinstance(x, dict) else enumerate(tuple(x))
        for name, y in list(items):
            self.reach(y, f"{path}.{name}" if isinstance(name, str) else f"{path}[{name!r}]", where)

    def _function(self, function: types.FunctionType) -> None:
        if not _is_user_function(function):
            for cell in function.__closure__ or ():  # a decorator of a library may hold a function of the user's
                held = Source("cell", cell, "", "", "").read(())
                if isinstance(held, _CALLED):
                    self.reach(held, function.__name__, "?")
            return
        space = function.__globals__
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or ()))
        for code in with_inner(function.__code__):
            found = scan(code)
            self.codes.setdefault(code)
            self.read_names |= found.read
            for name, where in found.attributes.items():
                self.names.setdefault(name, where)
            self.stored |= found.stored["attribute"]
            for name, where in found.globals.items():
                if name in space or not hasattr(builtins, name):
                    self._source("global", space, name, name, where)
                if name in _ALL or name == "hasattr":
                    self.names.setdefault(name, where)
                    self.asked.update(dict.fromkeys(sorted(found.words)))
                if name in ("globals", "eval", "exec"):
                    self._words(found.words & space.keys(), space, where)
            for name in found.stored["global"]:
                self._source("global", space, name, name, line_of_change([code], name), is_changed=True)
            for name in (*found.cells, *found.stored["cell"]):
                if name in cells and name != "__class__":
                    where = found.cells.get(name) or line_of_change([code], name)
                    self._source("cell", cells[name], name, name, where, is_changed=name in found.stored["cell"])
            for name, where in found.modules.items():
                self.reach(sys.modules.get(name), name, where)
        line = f"{function.__code__.co_filename}:{function.__code__.co_firstlineno}"
        for name in ("__defaults__", "__kwdefaults__"):
            if getattr(function, name):
                self._source("default", function, name, f"{function.__name__} (default arguments)", line)

    def _words(self, words: set[str], space: dict[str, Any], where: str) -> None:
        """Globals that are named in texts."""
        for name in sorted(words):
            self.read_names.add(("global", name))
            self._source("global", space, name, name, where)

    def _source(self, kind: str, holder: Any, name: str, path: str, where: str, *, is_changed: bool = False) -> None:
        key = (kind, holder if isinstance(holder, Leaf) else id(holder), name)
        if key not in self.found:
            source = self.found[key] = Source(kind, holder, name, path, where)
            if not isinstance(holder, Leaf):
                self.reach(source.read(()), path, where)
        if is_changed:
            self.changed.add(key)

    def _attributes(self, x: Any, holder: Any, path: str) -> None:
        own = _own(x)
        kinds = [c for c in (x if isinstance(x, type) else type(x)).__mro__ if is_user_class(c)]
        fields = () if isinstance(x, type) else getattr(type(x), "__dataclass_fields__", ())
        is_any = any(name in self.names for name in _ALL)
        is_module = isinstance(x, types.ModuleType)
        if is_any and own and not isinstance(x, (type, types.ModuleType)):
            self.read_names.add(("attribute", "__dict__"))
            self._attribute(x, holder, "__dict__", path, "?")
        for name in list(own if is_any else self.names):
            is_special = name.startswith("__") and (is_module or isinstance(x, type))
            if name in own and not is_special and name not in fields:
                where = self.names.get(name, "?")
                if is_any:
                    self.read_names.add(("attribute", name))
                self._attribute(x, holder, name, path, where)
        for name in list(self.asked) if not is_module else ():
            self.read_names.add(("attribute", name))
            self._attribute(x, holder, name, path, "?")
        for name in list(self.stored):
            if name not in fields and not isinstance(attribute(x, name), property):
                self._attribute(x, holder, name, path, self.names.get(name, "?"), is_changed=True)
        for kind in kinds:
            for name, found in list(kind.__dict__.items()):
                is_special = name.startswith("__") and (isinstance(x, type) or name not in ("__init__", "__new__"))
                if not (name in self.names or is_any or (is_special and isinstance(found, types.FunctionType))):
                    continue
                if isinstance(found, _METHODS):
                    self.reach(found, f"{path}.{name}", "?")
                if not name.startswith("__") and name not in own and name not in fields:
                    self._attribute(x, holder, name, path, self.names.get(name, "?"))

    def _attribute(self, x: Any, holder: Any, name: str, path: str, where: str, *, is_changed: bool = False) -> None:
        self._source("attribute", holder, name, f"{path}.{name}", where, is_changed=is_changed)
        if isinstance(holder, Leaf):
            self.reach(attribute(x, name), f"{path}.{name}", where)
