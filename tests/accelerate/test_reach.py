"""What is found of a function without running it: the exact places, by path."""

from __future__ import annotations

import collections
import dataclasses
import functools
import operator
import sys
import types
from typing import ClassVar

import numpy as np
import pytest

import minidl as m
import minidl.kernels
from minidl import dlaccelerate, dlarray, relu
from minidl.accelerate.captures import MISSING, Leaf, find_captures, is_user_class, is_user_file, line_of_change
from minidl.core.tree import flatten

RATE, LAST = 2.0, None


class Layer:
    factor = 3.0

    def __init__(self, scale):
        self.scale, self.unused, self.log = scale, 0, []

    def scaled(self, x):
        return x * self.scale * self.factor

    @property
    def twice(self):
        return self.scale * 2

    @functools.cached_property
    def kept(self):
        return self.scale * 3

    @staticmethod
    def of_nobody(x):
        return x * RATE


class Named:
    factor = 3.0

    @classmethod
    def of_class(cls, x):
        return x * cls.factor


class Called(Layer):
    def __call__(self, x):
        return x * self.scale


class Deep(Layer):
    def scaled(self, x):
        return super().scaled(x)


class Slotted:
    __slots__ = ("scale", "shift", "never")

    def __init__(self):
        self.scale, self.shift = 2.0, 1.0


class Registry:
    def __init__(self, **entries):
        self._entries = entries

    def __getattr__(self, name):
        return self._entries[name]


@dataclasses.dataclass
class Settings:
    rate: float = 2.0
    limit: ClassVar[float] = 5.0

    def doubled(self):
        return self.rate * RATE


class Model(dict):
    def __call__(self, x):
        return x * self["w"]


def module(text):
    made = types.ModuleType("config")
    made.__file__ = "/home/somebody/config.py"
    exec(compile(text, made.__file__, "exec"), made.__dict__)
    return made


def kept(function):
    @functools.wraps(function)
    def inner(*args):
        return function(*args)

    return inner


def cases():
    """(name, function, reads, writes)"""
    rate, shift, layer, slotted, registry = 0.5, 1.0, Layer(2.0), Slotted(), Registry(w=dlarray(1.0))
    layers, table, settings, config = [Layer(1.0)], {"a": lambda x: x * rate}, Settings(), module("RATE = 2\nOTHER = 1")
    history, seen, namespace, counter = [], {}, types.SimpleNamespace(inner=types.SimpleNamespace(k=1.0)), 0
    queue, handle, model, buffer = collections.deque([{"k": 1.0}]), table.get, Model(w=2.0), np.zeros(3)
    get, state, which = operator.attrgetter("scale"), types.SimpleNamespace(), "inner"

    def defaults(x, a=1, *, b=layer):
        return x * a * b.scale

    def nested(x):
        def inner(y):
            return y * rate

        return inner(x) + (lambda: lambda: shift)()()

    def recursive(x, n=3):
        return x if n == 0 else recursive(x * rate, n - 1)

    def counts(x):
        nonlocal counter
        counter += 1
        return x

    def stores(x):
        global LAST
        LAST = state.last = x
        layer.unused = x
        return x

    def fills(x):
        history.append(x)
        seen["x"], buffer[:] = x, 1.0
        layer.log.append(x)
        return x

    def fills_and_reads(x):
        history.append(x)
        return x * len(history)

    def asks(x):
        return x * getattr(namespace, which).k

    def imports(x):
        from config import RATE as k

        return x * k

    def has(x):
        return x if hasattr(layer, "bias") else -x

    sys.modules["config"] = config
    own, inner = ["layer.scale"], ["namespace", "namespace.inner", "namespace.inner.k"]
    yield "closure", lambda x: x * rate, ["rate"], []
    yield "global", lambda x: x * RATE, ["RATE"], []
    yield "library names", lambda x: relu(m.exp(x)) + np.float32(1), ["relu", "m", "np"], []
    yield "builtin", lambda x: max(x, 1), [], []
    yield "undefined", lambda x: nowhere(x), ["nowhere"], []  # noqa: F821
    yield "defaults", defaults, ["defaults (default arguments)"] * 2 + ["b.scale"], []
    yield "nested", nested, ["rate", "shift"], []
    yield "comprehension", lambda x: [x * rate * k for k in range(3)], ["rate"], []
    yield "recursion", recursive, ["recursive", "rate", "recursive (default arguments)"], []
    yield "attribute", lambda x: x * layer.scale, ["layer", *own], []
    yield "class attribute", lambda x: x * layer.factor, ["layer", "layer.factor"], []
    yield "attribute of attribute", lambda x: x * namespace.inner.k, inner, []
    yield "not there", lambda x: x * namespace.k, ["namespace", "namespace.k"], []
    yield "objects in a list", lambda x: x * layers[0].scale, ["layers", "layers[0].scale"], []
    yield "functions in a dict", lambda x: table["a"](x), ["table", "rate"], []
    yield "partial", functools.partial(lambda one, x: x * one.scale, layer), ["partial (args)", "one.scale"], []
    yield "bound method", layer.scaled, ["self.factor", "self.scale"], []
    yield "callable object", Called(1.0), ["self.scale"], []
    yield "super", Deep(1.0).scaled, ["self.scaled", "Layer.scaled", "self.factor", "self.scale"], []
    yield "wraps", kept(lambda x: x * rate), ["function", "rate"], []
    yield "accelerated", dlaccelerate(lambda x: x * rate), ["rate"], []
    yield "property", lambda x: x * layer.twice, ["layer", "layer.twice", *own], []
    yield "cached property", lambda x: x * layer.kept, ["layer", "layer.kept", *own], []
    yield "class method", lambda x: Named.of_class(x), ["Named", "Named.of_class", "Named.factor"], []
    yield "static method", lambda x: layer.of_nobody(x), ["layer", "layer.of_nobody", "RATE"], []
    yield "class", lambda x: Layer.of_nobody(x), ["Layer", "Layer.__init__", "Layer.of_nobody", "RATE"], []
    yield "module", lambda x: x * config.RATE, ["config", "config.RATE"], []
    yield "import inside", imports, ["config", "config.RATE"], []
    yield "slots", lambda x: x * slotted.scale, ["slotted", "slotted.scale"], []
    yield "behind __getattr__", lambda x: x * registry.w, ["Registry.__getattr__", "registry", "registry._entries"], []
    yield "computed name", asks, ["which", *inner, "namespace.__dict__", "namespace.inner.__dict__"], []
    yield "hasattr", has, ["layer", "layer.bias"], []
    yield "dataclass", lambda x: x * settings.doubled(), ["settings", "settings.doubled", "RATE"], []
    yield "class variable", lambda x: x * settings.limit, ["settings", "settings.limit"], []
    yield "method of a dataclass", settings.doubled, ["self", "RATE"], []
    yield "object that is a dict", model, ["self"], []
    yield "dict in a deque", lambda x: x * queue[0]["k"], ["queue", "queue[0]"], []
    yield "method of a dict", lambda x: x * handle("k", 1), ["handle", "handle.__self__", "rate"], []
    yield "attrgetter", lambda x: x * get(layer), ["get", "layer", *own], []
    yield "filled only", fills, ["layer"], ["history", "seen", "buffer", "layer.log"]
    yield "filled and read", fills_and_reads, ["history"], []
    yield "stored only", stores, ["state", "layer"], ["LAST", "state.last", "layer.unused"]
    yield "counter", counts, ["counter"], ["counter"]
    yield "library object", lambda x: x * np.poly1d([1.0]), ["np"], []


CASES = {name: rest for name, *rest in cases()}


@pytest.mark.parametrize("name", CASES)
def test_the_places(name):
    function, reads, writes = CASES[name]
    found = find_captures(function, [])
    assert sorted(s.path for s in found.reads) == sorted(reads)
    assert sorted(s.path for s in found.writes) == sorted(writes)
    assert [s.path for s in find_captures(function, []).reads] == [s.path for s in found.reads], "the order is not sure"
    files = {s.where.rpartition(":")[0] for s in found.reads + found.writes if s.where != "?"}
    assert files <= {__file__, "/home/somebody/config.py"}


def test_iterators_generators_and_chance():
    numbers, squares, chance = iter([1]), (k * k for k in range(3)), np.random.default_rng(0)
    box, log = types.SimpleNamespace(numbers=numbers), open(__file__)  # noqa: SIM115
    with log:
        found = find_captures(lambda x: x * next(box.numbers) * next(squares) * chance.random() * len(log.read()), [])
        assert {id(x) for x in found.sources} == set(map(id, (numbers, squares, log)))
    assert found.generators == [chance]
    assert not find_captures(lambda x: sys.stdout.write("x"), []).sources


def test_what_is_read_is_what_is_there_now():
    rate, layer, one = 1.0, Layer(2.0), Slotted()

    def function(x, k=3.0):
        return x * rate * layer.scale * one.scale * layer.factor * k  # noqa: F821

    places = {s.path: s for s in find_captures(function, []).reads}
    rate, layer.scale, one.scale, function.__defaults__ = 5.0, 6.0, 7.0, (8.0,)
    now = {path: place.read(()) for path, place in places.items()}
    assert now["rate"] == 5 and now["layer.scale"] == 6 and now["one.scale"] == 7 and now["layer.factor"] == 3
    assert now["function (default arguments)"] == (8.0,) and now["layer"] is layer
    layer.factor = 9.0  # hides that of the class
    del one.scale, layer.scale, rate  # noqa: F821
    assert places["layer.factor"].read(()) == 9
    assert all(places[path].read(()) is MISSING for path in ("rate", "layer.scale", "one.scale"))


def test_objects_among_the_arguments():
    def function(config, layer):
        return config["x"] * layer.scale

    leaves, structure = flatten((({"x": 1.0, "y": 2.0}, Layer(2.0)), {}))
    (place,) = find_captures(function, leaves, structure).reads
    assert (place.holder, place.path) == (Leaf(2), "layer.scale") and place.read(leaves) == 2
    assert place.read([0, 0, Layer(3.0)]) == 3 and place.read([]) is MISSING
    assert [s.path for s in find_captures(function, [1.0, Layer(2.0)]).reads] == ["layer.scale"]
    leaves, structure = flatten(((Settings(),), {}))
    places = {s.path for s in find_captures(lambda s: s.doubled() * s.limit, leaves, structure).reads}
    assert places == {"Settings.doubled", "Settings.limit", "RATE"}


def test_nothing_of_the_users_is_run():
    def refuse(*args):
        raise RuntimeError("run")

    class Meta(type):
        __eq__ = __hash__ = __getattr__ = __instancecheck__ = __subclasscheck__ = refuse

    names = "__getattr__ __eq__ __hash__ __bool__ __iter__ __len__ __get__ __set__ __call__ __repr__ __getattribute__"
    Hostile = Meta("Hostile", (), {**dict.fromkeys(names.split(), refuse), "__class__": property(refuse), "value": 2.0})
    List = Meta("List", (list,), dict.fromkeys(names.split(), refuse))
    thing, table, many = object.__new__(Hostile), {"a": object.__new__(Hostile)}, list.__new__(List)
    list.append(many, object.__new__(Hostile))
    found = find_captures(lambda x: thing.value + table["a"].value + many[0].value, [object.__new__(Hostile)])
    paths = [s.path for s in found.reads]
    assert {"thing", "table", "many", "thing.value", "table.a.value", "many[0].value"} <= set(paths)
    assert {s.path: s.read(()) for s in found.reads}["thing.value"] == 2.0


def test_rings_depths_and_crowds():
    ring, other, nodes, deep = [1.0], {}, [types.SimpleNamespace() for _ in range(2000)], 1.0
    ring.append(ring)
    other["ring"] = ring
    for node, after in zip(nodes, nodes[1:]):
        node.after = after
    first = nodes[0]
    for _ in range(3000):
        deep = [deep]
    found = find_captures(lambda x: x * ring[0] * other["ring"][0] * first.after * deep[0], [])
    assert {s.path for s in found.reads} >= {"first", "first.after", "first.after.after"} and len(found.reads) == 2001
    assert any(x is ring for x in found.sources), "what contains itself cannot be compared"
    crowd = [Layer(1.0) for _ in range(21_000)]
    assert found.is_whole and not find_captures(lambda x: x * crowd[-1].scale, []).is_whole


def test_files_and_classes_of_the_user(tmp_path):
    import json
    import sysconfig

    assert is_user_file(__file__) and is_user_file("<stdin>") and is_user_file("<ipython-input-1-2>")
    assert is_user_file(str(tmp_path / "work.py")) and is_user_file(m.__file__.replace("minidl", "minidl_more"))
    assert not is_user_file(str(tmp_path / ".venv" / "lib" / "python3.12" / "site-packages" / "thing" / "a.py"))
    assert is_user_file(sysconfig.get_path("stdlib") + "_of_mine/a.py") and not is_user_file("<frozen importlib>")
    assert not any(map(is_user_file, (np.__file__, json.__file__, m.__file__, minidl.kernels.__file__)))
    assert is_user_class(Layer) and not any(map(is_user_class, (np.ndarray, json.JSONDecoder, dict, m.struct)))


def test_lines_of_changes():
    total, box = 0, {}

    def function(x):
        nonlocal total
        total += 1
        box["a"] += 1
        box.get("b")
        return x

    first = function.__code__.co_firstlineno
    for name, line in {"total": 2, "box": 3, "get": 4}.items():
        assert line_of_change([function.__code__], name) == f"{__file__}:{first + line}"
    assert line_of_change([function.__code__], "nothing") == "?" and repr(MISSING) == "MISSING"
