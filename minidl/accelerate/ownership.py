"""Objects looked at without running anybody's code, and whose code it is: the user's, minidl's, another library's.

Hostile objects are among them: `isinstance` asks an object for its class, and the hash of a class is what its metaclass
likes. So classes are taken by `type`, compared by identity and searched along their own `__mro__`.
"""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Sequence
from typing import Any

from minidl.core.places import is_user_file


class _Missing:
    """Nothing of that name is there."""

    def __repr__(self) -> str:
        return "MISSING"

    def __reduce__(self) -> str:
        return "MISSING"


MISSING: Any = _Missing()
SLOTS = (types.MemberDescriptorType, types.GetSetDescriptorType)
mro, class_dict = type.__dict__["__mro__"].__get__, type.__dict__["__dict__"].__get__
class_module, class_name = type.__dict__["__module__"].__get__, type.__dict__["__name__"].__get__


# what is there --------------------------------------------------------------------------------------------------
def attribute(x: Any, name: str) -> Any:
    """The attribute as data: properties and other descriptors are not run; MISSING if there is none. "" is x itself."""
    if not name:
        return x
    kind = type(x)
    if issubclass(kind, type):
        found = in_classes(mro(x), name)
        return found if found is not MISSING else in_classes(mro(kind), name)
    found = in_classes(mro(kind), name)
    if type(found) in SLOTS:
        try:
            return found.__get__(x, kind)
        except AttributeError:
            return MISSING
    own = own_attributes(x)
    if name in own and (found is MISSING or in_classes(mro(type(found)), "__set__") is MISSING):
        return own[name]
    return found


def in_classes(classes: Sequence[type], name: str) -> Any:
    """What the first of the classes that has the name has under it."""
    for kind in classes:
        own = class_dict(kind)
        if name in own:
            return own[name]
    return MISSING


def own_attributes(x: Any) -> Any:
    """The attributes of the object itself, by name."""
    kind = type(x)
    if issubclass(kind, type):
        return class_dict(x)
    if issubclass(kind, threading.local):
        return threading.local.__getattribute__(x, "__dict__")
    try:
        return object.__getattribute__(x, "__dict__")
    except AttributeError:
        return {}


# whose code -----------------------------------------------------------------------------------------------------
def is_user_function(function: types.FunctionType) -> bool:
    """Whether a function is the user's; generated code belongs to who had it generated."""
    name, file = function.__code__.co_filename, function.__globals__.get("__file__")
    is_generated = name.startswith("<") and not name.startswith("<doctest")
    return is_user_file(file if is_generated and isinstance(file, str) else name)


def is_user_class(kind: type) -> bool:
    """Whether a class is the user's."""
    name = class_module(kind)
    return name != "builtins" and _is_user_name(name)


def is_user_module(module: types.ModuleType) -> bool:
    """Whether a module is the user's."""
    own = own_attributes(module)
    file, name = own.get("__file__"), own.get("__name__")
    return is_user_file(file) if isinstance(file, str) and name != "__main__" else _is_user_name(name)


def _is_user_name(name: Any) -> bool:
    """Whether the module of that name is the user's; one without a file is like the package that it is in."""
    while name and isinstance(name, str):
        if name == "__main__":
            return True
        file = own_attributes(sys.modules.get(name)).get("__file__")
        if isinstance(file, str):
            return is_user_file(file)
        if name in sys.builtin_module_names or name in sys.stdlib_module_names:
            return False
        name = name.rpartition(".")[0]
    return True


def is_namespace(x: Any) -> bool:
    """Whether an object is nothing but attributes of the user's."""
    kind = type(x)
    return (class_module(kind), class_name(kind)) in (("types", "SimpleNamespace"), ("argparse", "Namespace"))


def is_accelerated(x: Any) -> bool:
    """Whether it is an AcceleratedFunction (whose room is above this one)."""
    kind = type(x)
    return class_name(kind) == "AcceleratedFunction" and str(class_module(kind)).startswith("minidl.")
