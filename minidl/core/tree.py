"""Trees: struct, dict, list, tuple, namedtuple and dataclass, nested as deep as you like, with leaves of any kind."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from minidl.core.errors import ShapeError


def flatten(tree: Any) -> tuple[list[Any], Any]:
    """(leaves in order, hashable structure). None and empty containers are structure, not leaves."""
    leaves: list[Any] = []
    return leaves, _structure(tree, leaves)


LEAF = "*"


def _structure(tree: Any, leaves: list[Any]) -> Any:
    kind = type(tree)
    if isinstance(tree, dict):
        return kind, tuple(tree), tuple([_structure(x, leaves) for x in tree.values()])
    if kind is list or isinstance(tree, tuple):
        return kind, None, tuple([_structure(x, leaves) for x in tree])
    if tree is None:
        return None
    if hasattr(kind, "__dataclass_fields__"):
        names = tuple(field.name for field in dataclasses.fields(tree))
        return kind, names, tuple([_structure(getattr(tree, name), leaves) for name in names])
    leaves.append(tree)
    return LEAF


def count_leaves(structure: Any) -> int:
    """How many leaves a tree of that structure has."""
    if structure is None or structure == LEAF:
        return int(structure is not None)
    return sum(map(count_leaves, structure[2]))


def unflatten(structure: Any, leaves: Iterator[Any] | list[Any]) -> Any:
    """The tree of that structure, with new containers, around the given leaves."""
    return _build(structure, iter(leaves))


def _build(structure: Any, leaves: Iterator[Any]) -> Any:
    if structure is None:
        return None
    if structure is LEAF or structure == LEAF:
        return next(leaves)
    kind, names, children = structure
    built = [_build(child, leaves) for child in children]
    if names is None:
        return kind(*built) if hasattr(kind, "_fields") else kind(built)
    if issubclass(kind, dict):
        fields: Any = kind.__new__(kind)  # defaultdict and its like take other arguments than dict
        fields.update(zip(names, built))
        return fields
    new = object.__new__(kind)  # a dataclass: as it was, without running __init__ again
    for name, child in zip(names, built):
        object.__setattr__(new, name, child)
    return new


def builder(structure: Any) -> Callable[[Sequence[Any]], Any]:
    """`unflatten` for one structure, as a function of the leaves: straight code, for those who build many."""
    space: dict[str, Any] = {"build": _build}
    count = itertools.count()

    def text(node: Any) -> str:
        if node is None:
            return "None"
        if node == LEAF:
            return f"x[{next(count)}]"
        kind, names, children = node
        inner = [text(child) for child in children]
        name = f"k{len(space)}"
        space[name] = kind
        if kind is list or kind is tuple:
            joined = "".join(f"{x}, " for x in inner)
            return f"[{joined}]" if kind is list else f"({joined})"
        if names is None and hasattr(kind, "_fields"):
            return f"{name}({', '.join(inner)})"
        if kind is dict or kind.__init__ is dict.__init__:
            fields = []
            for key, x in zip(names, inner):
                space[f"n{len(space)}"] = key
                fields.append(f"n{len(space) - 1}: {x}")
            return f"{name}({{{', '.join(fields)}}})"
        space[f"s{name}"] = (kind, names, (LEAF,) * len(children))
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
    kind, names, children = structure
    return names, tuple(map(_shape_of, children))


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
