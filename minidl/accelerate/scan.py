"""What one piece of code names and what it does with it: variables, attributes, modules. Read off its instructions."""

from __future__ import annotations

import dis
import re
import string
import types
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from minidl.core.places import place

# methods whose only use is to change their object
CHANGING = frozenset([
    "append", "appendleft", "extend", "extendleft", "insert", "add", "update", "write", "writelines", "clear", "remove",
    "discard", "sort", "reverse", "push",
])  # fmt: skip
_HIDING = dict.fromkeys(["eval", "exec", "globals", "__import__"], "global") | {
    "modules": "attribute", "import_module": "attribute"
}  # fmt: skip
_SUBSCRIPT = 26  # since Python 3.14 an operator like others
_FORMATTING = ("format", "format_map", "vformat")
_ASKING = ("getattr", "hasattr", "setattr", "delattr")
_CELLS = ("LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF")
_GLOBALS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "LOAD_SUPER_METHOD", "IMPORT_FROM")
_LOADS = {op: kind for kind, ops in [("cell", _CELLS), ("global", _GLOBALS), ("attribute", _ATTRIBUTES)] for op in ops}
_STORES = {"GLOBAL": "global", "DEREF": "cell", "ATTR": "attribute"}
_NOTHING = ("CACHE", "RESUME", "PRECALL", "EXTENDED_ARG", "PUSH_NULL", "NOP", "NOT_TAKEN")
Named: TypeAlias = "tuple[str, str]"  # "cell", "global" or "attribute"; the name
Instruction: TypeAlias = "tuple[str, Any, int]"  # operation, argument, line


class Scan:
    """What one code object (without the code inside it) names, in the order of the code."""

    def __init__(self, code: types.CodeType) -> None:
        self.where: dict[Named, str] = {}
        self.uses: dict[Named, set[str]] = {}  # "read"; "change", of its content; "set", of a field; "store"
        self.bases: dict[str, dict[str, None]] = {}  # variable -> attributes named right behind it
        self.asked: dict[str, None] = {}  # texts given to getattr and the like
        self.modules: dict[tuple[str, int], str] = {}  # (name, dots before it) -> line
        self.texts = [x for x in code.co_consts if isinstance(x, str)]
        self.words = {word for text in self.texts for word in re.findall(r"[^\W\d]\w*", text)}
        self.makes_text = False
        self.hidden: list[tuple[str, str]] = []  # what looks up names that are made at run time: (its name, line)
        self.formatted: dict[str, str] = {}  # attributes named in texts that are formatted -> line; "": any
        self.changes: list[tuple[str, str]] = []  # (name, line), the surest first
        self.first = code.co_varnames[0] if code.co_argcount else ""  # self, in a method
        self._file, maybe = code.co_filename, list[tuple[str, str]]()
        found = list(_instructions(code))
        indexed = {line for op, _, line in found if op in ("STORE_SUBSCR", "DELETE_SUBSCR", "STORE_SLICE")}
        for k, (op, value, line) in enumerate(found):
            self.makes_text |= op.startswith("FORMAT_") or value in ("repr", "str", "format", "print")
            kind, use = _LOADS.get(op, ""), _use(found[k + 1 : k + 6])
            is_hiding = value in _HIDING and (kind == _HIDING[value] or (kind and value == "import_module"))
            is_hiding = is_hiding and (value != "modules" or found[k - 1][1] == "sys")
            if is_hiding and not _is_given(value, found[k + 1 : k + 10]):
                self.hidden.append((value, self._at(line)))
            if kind == "attribute" and value in _FORMATTING:
                given = found[k - 1][1] if k and found[k - 1][0] == "LOAD_CONST" else None
                for name in _attributes_in(given) if isinstance(given, str) else [""]:
                    self.formatted.setdefault(name, self._at(line))
            if op.startswith(("STORE_", "DELETE_")):
                kind, use = _STORES.get(op.partition("_")[2], ""), "store"
            if op == "LOAD_NAME" and value.startswith("__"):
                continue  # of the body of a class: __name__
            if kind:
                self._note(kind, value, use, line)
                (self.changes if use != "read" else maybe if line in indexed else []).append((value, self._at(line)))
                if kind == "attribute" and k and op != "IMPORT_FROM":
                    base = found[k - 1][1]
                    self.bases.setdefault(str(base[-1] if isinstance(base, tuple) else base), {})[value] = None
                if kind == "global" and value in _ASKING:
                    self.asked.update(dict.fromkeys(_texts_until_call(found[k + 1 :])))
            elif op == "IMPORT_NAME":
                self.modules.setdefault((value, found[k - 2][1] or 0), self._at(line))
            elif op == "MATCH_CLASS":
                names = found[k - 1][1] if isinstance(found[k - 1][1], tuple) else ()
                for name in [*names, *(["__dict__"] if value else [])]:  # by position: any attribute
                    self._note("attribute", name, "read", line)
        self.changes += maybe

    def _at(self, line: int) -> str:
        return place(self._file, line)

    def _note(self, kind: str, name: str, use: str, line: int) -> None:
        self.where.setdefault((kind, name), self._at(line))
        self.uses.setdefault((kind, name), set()).add(use)


def _instructions(code: types.CodeType) -> Iterator[Instruction]:
    lines, line = dict(dis.findlinestarts(code)), code.co_firstlineno
    for x in dis.get_instructions(code):
        line = lines.get(x.offset) or line
        if x.opname not in _NOTHING:
            yield x.opname, x.argval, line


def _use(following: list[Instruction]) -> str:
    """What is done with what was just loaded: its content is changed, a field of it is set, or it is read."""
    keys = 0  # x[k] = ..., x[a:b] = ..., x[i, j] = ...
    for k, (op, value, _) in enumerate(following):
        if not keys and op in ("LOAD_ATTR", "LOAD_METHOD"):
            return "change" if value in CHANGING else "read"
        if not keys and op == "STORE_ATTR":
            return "set"
        if op.startswith("LOAD_FAST") or op in ("LOAD_CONST", "LOAD_SMALL_INT", *_GLOBALS, *_CELLS):
            keys += len(value) if isinstance(value, tuple) and op != "LOAD_CONST" else 1
        elif op in ("BUILD_SLICE", "BUILD_TUPLE"):
            then = following[k + 1][0] if k + 1 < len(following) else ""
            return "change" if then == "STORE_SUBSCR" and value == keys else "read"
        else:
            return "change" if (op, keys) in (("STORE_SUBSCR", 1), ("STORE_SLICE", 2)) else "read"
    return "read"


def _is_given(name: str, following: list[Instruction]) -> bool:
    """Whether what looks up a name gets it as a text that stands in the code: globals()["rate"], eval("rate")."""
    after = following[1:] if name == "globals" and following[:1] and following[0][0].startswith("CALL") else following
    if name == "globals" and after and after[0][0] in ("LOAD_ATTR", "LOAD_METHOD"):
        after = after[1:]  # globals().get("rate")
    if not after or after[0][0] != "LOAD_CONST" or not isinstance(after[0][1], str):
        return not after
    for k, (op, value, _) in enumerate(after[1:]):
        if op.endswith("_SUBSCR") or (op, value) == ("BINARY_OP", _SUBSCRIPT):
            return k == 0
        if op.startswith("CALL"):
            return True
        if op.startswith(("BINARY_", "FORMAT_", "BUILD_")):
            return False
    return True


def _attributes_in(text: str) -> list[str]:
    """The attributes that a text asks for when it is formatted: "{0.rate:.2f}"."""
    try:
        fields = [field or "" for _, field, _, _ in string.Formatter().parse(text)]
        fields += [inner or "" for _, _, spec, _ in string.Formatter().parse(text)
                   for _, inner, _, _ in string.Formatter().parse(spec or "")]  # fmt: skip
    except ValueError:
        return [""]
    return [name for field in fields for name in re.findall(r"\.([^.\[\]]+)", field)]


def _texts_until_call(following: list[Instruction]) -> Iterator[str]:
    for op, value, _ in following:
        if op.startswith("CALL"):
            return
        if op == "LOAD_CONST" and isinstance(value, str) and value.isidentifier():
            yield value


_scans: dict[int, tuple[types.CodeType, Scan]] = {}  # by id: code of another file may be equal


def scan(code: types.CodeType) -> Scan:
    """What a code object names."""
    found = _scans.get(id(code))
    if found is None:
        if len(_scans) >= 4096:
            _scans.clear()
        found = _scans[id(code)] = code, Scan(code)
    return found[1]


def with_inner(code: types.CodeType) -> list[types.CodeType]:
    """A code object and those of the functions, lambdas and comprehensions inside it."""
    inner = [x for x in code.co_consts if isinstance(x, types.CodeType)]
    return [code, *(y for x in inner for y in with_inner(x))]


def line_of_change(codes: Sequence[types.CodeType], name: str) -> str:
    """file:line where a variable or attribute of that name is most likely changed, or named first; "?" if it is not."""
    changes = [where for code in codes for changed, where in scan(code).changes if changed == name]
    mentions = [where for code in codes for (_, named), where in scan(code).where.items() if named == name]
    return (changes + mentions + ["?"])[0]
