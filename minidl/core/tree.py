"""Trees: struct, dict, list, tuple, namedtuple and dataclass, nested as deep as you like, with leaves of any kind."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from minidl.core.dlarray import DLArray
from minidl.core.errors import ShapeError
from minidl.core.struct import struct

LEAF = "*"
# A structure is None, LEAF or (type, names, structures of the elements); `names` are the keys of a dict, the fields of
# a dataclass, None for sequences. A fourth item holds its other attributes: see `flatten_whole`.
# The last item of a whole structure may be a `Shared`.


def flatten(tree: Any) -> tuple[list[Any], Any]:
    """(leaves in order, hashable structure). None and empty containers are structure, not leaves."""
    leaves: list[Any] = []
    return leaves, _structure(tree, leaves)


def _structure(tree: Any, leaves: list[Any]) -> Any:
    kind = type(tree)
    if isinstance(tree, dict):
        return kind, _keys(tree), tuple([_structure(x, leaves) for x in tree.values()])
    if kind is list or isinstance(tree, tuple):
        return kind, None, tuple([_structure(x, leaves) for x in tree])
    if tree is None:
        return None
    if hasattr(kind, "__dataclass_fields__"):
        names = tuple([field.name for field in dataclasses.fields(tree) if hasattr(tree, field.name)])
        return kind, names, tuple([_structure(getattr(tree, name), leaves) for name in names])
    leaves.append(tree)
    return LEAF


class Keys(tuple[Any, ...]):
    """Keys of a dict that are not all texts: equal if their types are equal too, as 1, True and 1.0 are not."""

    __slots__ = ()
    __hash__ = tuple.__hash__

    def __eq__(self, other: object) -> bool:
        is_like = isinstance(other, tuple) and len(self) == len(other)
        return is_like and list(map(_typed, self)) == list(map(_typed, other))  # type: ignore[call-overload]

    def __ne__(self, other: object) -> bool:
        return not self == other


def _typed(x: Any) -> Any:
    kind = type(x)
    if kind is float or kind is complex:
        return kind, repr(x)
    if kind is tuple:
        return kind, tuple(map(_typed, x))
    return (kind, frozenset(map(_typed, x))) if kind is frozenset else (kind, x)


def _keys(tree: Any) -> tuple[Any, ...]:
    keys = tuple(tree)
    return keys if all([type(key) is str for key in keys]) else Keys(keys)


# whole objects --------------------------------------------------------------------------------------------------
class Layout(NamedTuple):
    """How the objects of a class are taken apart and made again, without running code of the class.

    base   : dict, OrderedDict, defaultdict, list, tuple or object, whose methods do it.
    slots  : names of the attributes that lie in slots.
    fields : of a dataclass.
    """

    base: type
    has_dict: bool
    slots: tuple[str, ...]
    fields: tuple[str, ...]


_BARE = (dict, list, tuple, struct)
_BASES = (collections.OrderedDict, collections.defaultdict, dict, list, tuple)


def _layout(kind: Any) -> Layout | None:
    """Of a class whose objects are containers; None if they are leaves."""
    if kind in _BARE:
        return Layout(dict if issubclass(kind, dict) else kind, False, (), ())
    spaces = [vars(base) for base in kind.__mro__]
    is_dataclass = any(["__dataclass_fields__" in space for space in spaces])
    if not is_dataclass and not issubclass(kind, _BASES):
        return None
    base = next(x for x in kind.__mro__ if x in _BASES or type(vars(x).get("__new__")) is types.BuiltinFunctionType)
    if base is not object and base not in _BASES:
        return None  # a class in C, with data of its own
    slots = [name for space in spaces for name, x in space.items() if type(x) is types.MemberDescriptorType]
    names = tuple([field.name for field in dataclasses.fields(kind)]) if is_dataclass and base is object else ()
    return Layout(base, kind.__dictoffset__ != 0, tuple(dict.fromkeys(slots)), names)


layout: Callable[[Any], Layout | None] = functools.lru_cache(1024)(_layout)


def attributes(x: Any) -> dict[str, Any]:
    """What a container holds besides its elements: its own attributes, those of its slots too."""
    form = layout(type(x))
    assert form is not None
    found = dict(object.__getattribute__(x, "__dict__")) if form.has_dict else {}
    for name in form.slots:
        try:
            found[name] = object.__getattribute__(x, name)
        except AttributeError:
            continue
    return found


def others(x: Any) -> dict[str, Any]:
    """Attributes of a container that are no fields of a dataclass."""
    fields = layout(type(x)).fields  # type: ignore[union-attr]
    return {name: y for name, y in attributes(x).items() if name not in fields}


def elements(x: Any) -> list[Any]:
    """Of a sequence or a dict, in order, whatever methods its class has."""
    base: Any = layout(type(x)).base  # type: ignore[union-attr]
    return list(base.values(x) if issubclass(base, dict) else base.__iter__(x))


def keys_of(x: Any) -> tuple[Any, ...]:
    """Of a dict, in order, whatever methods its class has."""
    return tuple(layout(type(x)).base.keys(x))  # type: ignore[union-attr]


def flatten_whole(tree: Any) -> tuple[list[Any], Any]:
    """`flatten` for arguments and results of calls: nothing that belongs to a container is lost.

    Subclasses of list are taken apart too. A container with attributes of its own (a subclass of dict, list or tuple; a
    dataclass with more than its fields; the default_factory of a defaultdict) has their structure, that of a dict,
    as a fourth item, and they are leaves behind its elements.
    """
    leaves: list[Any] = []
    return leaves, _whole(tree, leaves, ())


def _whole(tree: Any, leaves: list[Any], above: tuple[int, ...]) -> Any:
    kind = type(tree)
    if kind is dict or kind is struct:
        return kind, _keys(tree), tuple([_whole(x, leaves, above) for x in tree.values()])
    if kind is list or kind is tuple:
        return kind, None, tuple([_whole(x, leaves, above) for x in tree])
    if tree is None:
        return None
    form = None if kind is DLArray else layout(kind)
    if form is None or id(tree) in above:  # an attribute leads back to it
        leaves.append(tree)
        return LEAF
    above = (*above, id(tree))
    rest: dict[str, Any] = attributes(tree)
    names: Any = None
    if form.base is object:
        names = tuple([name for name in form.fields if name in rest])
        inner = [rest.pop(name) for name in names]
    else:
        inner = elements(tree)
        if issubclass(form.base, dict):
            keys = keys_of(tree)
            names = keys if all([type(key) is str for key in keys]) else Keys(keys)
    children = tuple([_whole(x, leaves, above) for x in inner])
    if not rest:
        return kind, names, children
    return kind, names, children, _whole(rest, leaves, above)


class Shared(tuple[int, ...]):
    """Which containers and dlarrays of a call's arguments are the same object: for each of them the number of the first
    place where it is."""

    __slots__ = ()


def flatten_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], Any]:
    """`flatten_whole` of (args, kwargs). If one object is there twice, the structure's last item says so (`Shared`),
    and `unflatten` makes it one object again."""
    return flatten_shared((args, kwargs))


def flatten_shared(tree: Any) -> tuple[list[Any], Any]:
    """The same for any tree, such as the results of a call."""
    leaves, structure = flatten_whole(tree)
    if structure is None or structure == LEAF:
        return leaves, structure
    objects: list[Any] = []
    _changeable(tree, structure, iter(leaves), objects)
    first: dict[int, int] = {}
    places = [first.setdefault(id(x), k) for k, x in enumerate(objects)]
    return leaves, structure if len(first) == len(places) else (*structure, Shared(places))


def _changeable(x: Any, structure: Any, leaves: Iterator[Any], found: list[Any]) -> None:
    """Collect the objects of a tree that stand for themselves: containers that can be changed, and dlarrays."""
    if structure is None:
        return
    if structure == LEAF:
        leaf = next(leaves)
        if type(leaf) is DLArray:
            found.append(leaf)
        return
    kind, names, children = structure[:3]
    if is_changeable(structure):
        found.append(x)
    inner = [object.__getattribute__(x, name) for name in names] if layout(kind).base is object else elements(x)  # type: ignore
    for y, child in zip(inner, children):
        _changeable(y, child, leaves, found)
    attributes_of = rest_of(structure)
    if attributes_of is not None:
        rest = others(x)
        for name, child in zip(attributes_of[1], attributes_of[2]):
            _changeable(rest[name], child, leaves, found)


def is_changeable(structure: Any) -> bool:
    """Whether containers of that structure can be changed: not tuples without attributes."""
    return not issubclass(structure[0], tuple) or rest_of(structure) is not None


def rest_of(structure: Any) -> Any:
    """The structure of what a container holds besides its elements; None if nothing."""
    return structure[3] if len(structure) > 3 and type(structure[3]) is not Shared else None


def shared_of(structure: Any) -> Shared | None:
    """Which objects are there twice; None if none is."""
    return structure[-1] if type(structure) is tuple and type(structure[-1]) is Shared else None


def count_leaves(structure: Any) -> int:
    """How many leaves a tree of that structure has."""
    if structure is None or structure == LEAF:
        return int(structure is not None)
    return sum(map(count_leaves, structure[2])) + count_leaves(rest_of(structure))


def unflatten(structure: Any, leaves: Iterator[Any] | list[Any]) -> Any:
    """The tree of that structure, with new containers, around the given leaves."""
    if shared_of(structure) is not None:
        return _build_shared(structure, iter(leaves))
    return _build(structure, iter(leaves))


def _build(structure: Any, leaves: Iterator[Any]) -> Any:
    if structure is None:
        return None
    if structure is LEAF or structure == LEAF:
        return next(leaves)
    built = [_build(child, leaves) for child in structure[2]]
    rest = _build(structure[3], leaves) if len(structure) > 3 else None
    return _made(structure[0], structure[1], built, rest)


def _build_shared(structure: Any, leaves: Iterator[Any]) -> Any:
    """The same for arguments of which some are the same object."""
    first: Shared = structure[-1]
    made: list[Any] = []

    def build(node: Any) -> Any:
        if node is None:
            return None
        if node == LEAF:
            return leaf(next(leaves))
        place = len(made) if is_changeable(node) else None
        if place is not None:
            made.append(None)
        built = [build(child) for child in node[2]]
        rest = build_attributes(node[3]) if rest_of(node) is not None else None
        new = _made(node[0], node[1], built, rest)
        if place is None:
            return new
        made[place] = new if first[place] == place else made[first[place]]
        return made[place]

    def build_attributes(node: Any) -> dict[str, Any]:
        return {name: build(child) for name, child in zip(node[1], node[2])}

    def leaf(x: Any) -> Any:
        if type(x) is not DLArray:
            return x
        place = len(made)
        made.append(x if first[place] == place else made[first[place]])
        return made[place]

    return build(structure[:-1])


def _made(kind: Any, names: Any, built: list[Any], rest: dict[str, Any] | None) -> Any:
    """A container, without running code of its class."""
    if kind is list:
        return built
    if kind is dict:
        return dict(zip(names, built))
    if kind is struct:
        fields = struct.__new__(struct)
        dict.update(fields, zip(names, built))
        return fields
    if kind is tuple:
        return tuple(built)
    form = layout(kind)
    if form is None:
        return kind(built)
    base: Any = form.base
    if base is tuple:
        new = tuple.__new__(kind, built)
    else:
        new = base.__new__(kind)
        if base is object:
            for name, x in zip(names, built):
                object.__setattr__(new, name, x)
        elif base is list:
            list.extend(new, built)
        else:
            for key, x in zip(names, built):
                base.__setitem__(new, key, x)
    for name, x in rest.items() if rest else ():
        object.__setattr__(new, name, x)
    return new


def builder(structure: Any) -> Callable[[Sequence[Any]], Any]:
    """`unflatten` for one structure, as a function of the leaves: straight code, for those who build many."""
    if shared_of(structure) is not None:
        return functools.partial(unflatten, structure)
    space: dict[str, Any] = {"build": _build, "new": tuple.__new__}
    count = itertools.count()

    def text(node: Any) -> str:
        if node is None:
            return "None"
        if node == LEAF:
            return f"x[{next(count)}]"
        kind, names, children = node[:3]
        inner = [text(child) for child in children]
        name = f"k{len(space)}"
        space[name] = kind
        if len(node) == 3:
            if kind is list or kind is tuple:
                joined = "".join(f"{x}, " for x in inner)
                return f"[{joined}]" if kind is list else f"({joined})"
            if names is None and hasattr(kind, "_fields"):
                return f"new({name}, ({''.join(f'{x}, ' for x in inner)}))"
            if kind is dict or kind is struct:
                fields = []
                for key, x in zip(names, inner):
                    space[f"n{len(space)}"] = key
                    fields.append(f"n{len(space) - 1}: {x}")
                return f"{name}({{{', '.join(fields)}}})"
        rest = () if len(node) == 3 else ((dict, node[3][1], (LEAF,) * len(node[3][2])),)
        inner += [text(child) for child in node[3][2]] if rest else []
        space[f"s{name}"] = (kind, names, (LEAF,) * len(children), *rest)
        return f"build(s{name}, iter(({''.join(f'{x}, ' for x in inner)})))"

    return eval(compile(f"lambda x: {text(structure)}", "<builder>", "eval"), space)


def matching(who: str, tree: Any, structure: Any, other: Any) -> list[Any]:
    """Leaves of `other`, which must have the structure of `tree`; otherwise a ShapeError with the first difference."""
    leaves, found = flatten(other)
    if found != structure and _shape_of(found) != _shape_of(structure):
        raise ShapeError(f"{who}: containers differ: {difference(tree, other)}. Give both the same fields.")
    return leaves


def _shape_of(structure: Any) -> Any:
    """Structure without container types: a dict and a struct with the same fields match."""
    if structure is None or structure == LEAF:
        return structure
    return structure[1], tuple(map(_shape_of, structure[2]))


def difference(a: Any, b: Any, path: str = "") -> str:
    """Where two trees differ first, in words."""
    here = path or "the top"
    if isinstance(a, dict) and isinstance(b, dict):
        for name in a:
            if name not in b:
                return f"{here} lacks field {name!r} in one of them"
        for name in b:
            if name not in a:
                return f"{here} has field {name!r} in one of them only"
        if tuple(a) != tuple(b):
            return f"{here} has its fields in another order"
        found = (difference(a[name], b[name], f"{path}.{name}" if path else str(name)) for name in a)
        return next((text for text in found if text), "")
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b):
            return f"{here} has {len(a)} elements in one and {len(b)} in the other"
        found = (difference(x, y, f"{path}[{i}]") for i, (x, y) in enumerate(zip(a, b)))
        return next((text for text in found if text), "")
    containers = (dict, list, tuple)
    if isinstance(a, containers) or isinstance(b, containers) or (a is None) != (b is None):
        return f"{here} is {type(a).__name__} in one and {type(b).__name__} in the other"
    return ""


def leaf_paths(structure: Any, path: str = "") -> Iterator[str]:
    """A readable name for each leaf of a structure; attributes by their names."""
    if structure == LEAF:
        yield path
    elif structure is not None:
        kind, names, children = structure[:3]
        names = names or getattr(kind, "_fields", None)
        for k, child in enumerate(children):
            inner = f"[{k}]" if not names else f".{names[k]}" if path else str(names[k])
            yield from leaf_paths(child, path + inner)
        yield from leaf_paths(rest_of(structure), path)


def paths(tree: Any, path: str = "") -> list[str]:
    """A readable name for each leaf, in the order of `flatten`: 'conv1.Weights', '[0].x'."""
    if isinstance(tree, dict):
        items = [(f"{path}.{name}" if path else str(name), x) for name, x in tree.items()]
    elif type(tree) is list or isinstance(tree, tuple):
        names = getattr(tree, "_fields", None)
        items = [(f"{path}.{names[i]}".lstrip(".") if names else f"{path}[{i}]", x) for i, x in enumerate(tree)]
    elif tree is None:
        return []
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        items = [(f"{path}.{f.name}".lstrip("."), getattr(tree, f.name)) for f in dataclasses.fields(tree)]
    else:
        return [path]
    return [name for where, x in items for name in paths(x, where)]
