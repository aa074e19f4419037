"""What a function reaches besides its arguments is read afresh or compared before a replay (A1, A2, A11, A13)."""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import functools
import operator
import sys
import threading
import types
import warnings
from typing import NamedTuple

import numpy as np
import pytest
from engine.programs import assert_close, assert_same

import minidl as m
from accelerate.hidden import Hidden
from accelerate.test_replay import X, accelerated, quietly
from minidl import TraceWarning, dlaccelerate, dlarray, struct
from minidl.accelerate.captures import MISSING, find_captures, is_user_class, is_user_file, line_of_change
from minidl.kernels.cpu import threads

GLOBAL = 2.0
ARRAY = dlarray(np.float32([1.0, 2.0, 3.0]))


class Layer:
    """An object with parameters, as users write them."""

    rate = 1.0

    def __init__(self, scale, shift):
        self.scale, self.shift, self.unused = scale, shift, 0

    def forward(self, x):
        return x * self.scale * self.rate + self.moved()

    def moved(self):
        return self.shift

    @property
    def twice(self):
        return self.scale * 2

    def __call__(self, x):
        return self.forward(x)


class Slotted:
    __slots__ = ("scale", "never_set")

    def __init__(self, scale):
        self.scale = scale


class Registry:
    """Keeps its parameters in a dictionary, behind __getattr__."""

    def __init__(self, **entries):
        object.__setattr__(self, "entries", entries)

    def __getattr__(self, name):
        return self.entries[name]


@dataclasses.dataclass
class Settings:
    rate: float
    weights: object

    def scaled(self, x):
        return x * self.rate


def module(text):
    """A module of the user's, made here."""
    made = types.ModuleType("settings")
    made.__file__ = __file__
    exec(text, made.__dict__)
    return made


# A1: a table of places: make() -> (function, changes); after each change the function is called -----------------------
def closure_number():
    k = 2.0

    def change():
        nonlocal k
        k = 3.0

    return (lambda x: x * k), [change]


def closure_array():
    w = dlarray(X)

    def change():
        nonlocal w
        w = dlarray(X * 2)

    def another_size():
        nonlocal w
        w = dlarray(X[:1])

    return (lambda x: x * w), [change, change, another_size]


def closure_struct():
    p = struct(a=dlarray(X), b=struct(c=dlarray(X + 1), rate=0.5))

    def replaced():
        p.b = struct(c=dlarray(X * 3), rate=0.5)

    def number():
        p.b.rate = 0.25

    def more():
        p.d = dlarray(X)

    return (lambda x: x * p.a + p.b.c * p.b["rate"] + len(p)), [replaced, number, more]


def closure_list_of_layers():
    layers = [Layer(2.0, dlarray(X)), Layer(dlarray(3.0), 1.0)]

    def function(x):
        for layer in layers:
            x = layer(x)
        return x

    def number():
        layers[0].scale = 5.0

    def array():
        layers[0].shift = dlarray(X + 2)

    def another():
        layers.append(Layer(0.5, 0.5))

    def swapped():
        layers.reverse()

    return function, [number, array, another, swapped]


def closure_function():
    inner = lambda x: x + 1

    def change():
        nonlocal inner
        inner = lambda x: x - 1

    return (lambda x: inner(x) * 2), [change]


def closure_handle():
    w = dlarray(X.copy())

    def change():
        w[0, 0] = 9.0  # the same handle names another value

    return (lambda x: x + w), [change]


def numpy_array_in_place():
    w = X.copy()

    def change():
        w[0, 0] += 1

    return (lambda x: x * w), [change, change]


def numpy_array_large():
    w = np.zeros((600, 600), np.float32)

    def change():
        w[-1, -1] += 1

    return (lambda x: m.sum(x, "all") + m.sum(dlarray(w), "all")), [change]


def global_number():
    def change():
        global GLOBAL
        GLOBAL += 1

    return (lambda x: x * GLOBAL), [change]


def global_array():
    def change():
        global ARRAY
        ARRAY = ARRAY * 2

    return (lambda x: x + ARRAY), [change]


def default_argument():
    def function(x, options={"rate": 2.0}, *, scale=3.0):  # noqa: B006
        return x * options["rate"] * scale

    def content():
        function.__defaults__[0]["rate"] = 4.0

    def replaced():
        function.__kwdefaults__ = {"scale": 5.0}

    return function, [content, replaced]


def attribute_of_self():
    layer = Layer(2.0, dlarray(X))

    def number():
        layer.scale = 3.0

    def array():
        layer.shift = dlarray(X * 5)

    def shadowed():
        layer.rate = 7.0

    return layer.forward, [number, array, shadowed]


def attribute_of_the_class():
    class Mine(Layer):
        pass

    layer = Mine(2.0, 1.0)

    def on_the_base():
        Layer.rate = 2.0

    def on_the_class():
        Mine.rate = 3.0

    def back():
        Layer.rate = 1.0

    return layer.forward, [on_the_base, on_the_class, back]


def method_replaced():
    layer = Layer(2.0, 1.0)

    def on_the_instance():
        layer.moved = lambda: 5.0

    def on_the_class():
        del layer.moved
        Layer.moved = lambda self: 7.0

    before = Layer.moved

    def back():
        Layer.moved = before

    return layer.forward, [on_the_instance, on_the_class, back]


def attribute_that_appears():
    layer = Layer(2.0, 1.0)

    def function(x):
        return x * (layer.bonus if hasattr(layer, "bonus") else 1.0)

    def change():
        layer.bonus = 4.0

    return function, [change]


def property_of_self():
    layer = Layer(2.0, 0.0)

    def change():
        layer.scale = 5.0

    return (lambda x: x * layer.twice), [change]


def callable_object():
    layer = Layer(2.0, dlarray(X))

    def change():
        layer.shift = dlarray(X - 1)

    return layer, [change]


def slots():
    thing = Slotted(2.0)

    def change():
        thing.scale = 3.0

    return (lambda x: x * thing.scale), [change]


def behind_getattr():
    registry = Registry(scale=2.0, shift=dlarray(X))

    def number():
        registry.entries["scale"] = 3.0

    def array():
        registry.entries["shift"] = dlarray(X * 2)

    return (lambda x: x * registry.scale + registry.shift), [number, array]


def computed_name():
    layer = Layer(2.0, 1.0)
    name = "scale"

    def change():
        layer.scale = 4.0

    def another_name():
        nonlocal name
        name = "shift"

    return (lambda x: x * getattr(layer, name)), [change, another_name]


def dataclass():
    settings = Settings(0.5, [dlarray(X)])

    def number():
        settings.rate = 0.25

    def array():
        settings.weights[0] = dlarray(X * 2)

    return (lambda x: settings.scaled(x) + settings.weights[0]), [number, array]


def namespaces():
    a, b = types.SimpleNamespace(rate=0.5), argparse.Namespace(shift=dlarray(X))

    def number():
        a.rate = 2.0

    def array():
        b.shift = dlarray(X * 2)

    return (lambda x: x * a.rate + b.shift), [number, array]


def partial():
    def function(scale, x, *, shift):
        return x * scale["value"] + shift["value"]

    call = functools.partial(function, {"value": 2.0}, shift={"value": dlarray(X)})

    def number():
        call.args[0]["value"] = 3.0

    def array():
        call.keywords["shift"]["value"] = dlarray(X * 2)

    return call, [number, array]


def decorated():
    k = 2.0

    def logged(function):
        @functools.wraps(function)
        def inner(x):
            return function(x)

        return inner

    @logged
    def function(x):
        return x * k

    def change():
        nonlocal k
        k = 3.0

    return function, [change]


def accelerated_inside():
    k = 2.0
    inner = dlaccelerate(lambda x: x * k)

    def change():
        nonlocal k
        k = 3.0

    return (lambda x: inner(x) + 1), [change]


def module_of_the_users():
    settings = module("RATE = 2.0\nTABLE = {'shift': 1.0}\ndef scaled(x):\n    return x * RATE + TABLE['shift']\n")

    def number():
        settings.RATE = 3.0

    def content():
        settings.TABLE["shift"] = 5.0

    return (lambda x: settings.scaled(x) * settings.RATE), [number, content]


def imported_inside():
    settings = module("RATE = 2.0\n")
    sys.modules["settings_of_a_test"] = settings

    def function(x):
        from settings_of_a_test import RATE

        return x * RATE

    def change():
        settings.RATE = 3.0

    return function, [change]


def nested_functions():
    k = 2.0

    def change():
        nonlocal k
        k = 3.0

    def function(x):
        def inner(y):
            return [y * k for _ in range(2)]

        return sum(inner(x), start=dlarray(0.0))

    return function, [change]


def sets_and_deques():
    chosen, queue = {"a"}, collections.deque([1.0, 2.0])

    def member():
        chosen.add("b")

    def number():
        queue[0] = 5.0

    return (lambda x: x * len(chosen) + sum(queue)), [member, number]


def equal_objects_in_a_deque():
    class Equal:
        def __init__(self, rate):
            self.rate = rate

        def __eq__(self, other):
            return True

        def __hash__(self):
            return 0

    queue, chosen = collections.deque([Equal(1.0)]), {Equal(2.0)}

    def another():
        queue[0] = Equal(3.0)

    def another_member():
        chosen.clear()
        chosen.add(Equal(5.0))

    return (lambda x: x * queue[0].rate + next(iter(list(chosen)), None).rate), [another, another_member]


def class_as_a_holder():
    class Options:
        rate = 2.0

        @staticmethod
        def scaled(x):
            return x * Options.rate

    def change():
        Options.rate = 3.0

    return (lambda x: Options.scaled(x)), [change]


def texts_that_name_globals():
    def change():
        global GLOBAL
        GLOBAL += 1

    return (lambda x: x * globals()["GLOBAL"] + eval("GLOBAL + 1")), [change]


def attributes_by_vars():
    box = types.SimpleNamespace(a=2.0, b=dlarray(X))

    def number():
        box.a = 3.0

    def array():
        box.b = dlarray(X * 2)

    def one_more():
        box.c = 5.0

    return (lambda x: sum((x * value for value in vars(box).values()), start=dlarray(0.0))), [number, array, one_more]


def object_in_a_dataclass():
    settings = Settings(1.0, Layer(2.0, dlarray(X)))

    def number():
        settings.weights.scale = 3.0

    def array():
        settings.weights.shift = dlarray(X * 2)

    return (lambda x: settings.weights.forward(x)), [number, array]


def attrgetter():
    layer = Layer(2.0, 1.0)

    def change():
        layer.scale = 3.0

    return (lambda x: x * operator.attrgetter("scale")(layer)), [change]


def decorated_by_a_library():
    k = 2.0

    @contextlib.contextmanager
    def rate():
        yield k

    def function(x):
        with rate() as factor:
            return x * factor

    def change():
        nonlocal k
        k = 3.0

    return function, [change]


def functions_in_a_table():
    k = 2.0
    table = {"double": lambda x: x * k, "other": functools.lru_cache(lambda: 1.0)}

    def change():
        nonlocal k
        k = 3.0

    return (lambda x: table["double"](x) + table["other"]()), [change]


def objects_made_inside():
    k = 2.0

    class Inner(Layer):
        def moved(self):
            return self.shift * k

    def change():
        nonlocal k
        k = 3.0

    return (lambda x: Inner(2.0, 1.0)(x)), [change]


def descriptor():
    class Rate:
        factor = 2.0

        def __get__(self, instance, owner):
            return self.factor

    class Mine:
        rate = Rate()

    mine = Mine()

    def change():
        Rate.factor = 5.0

    return (lambda x: x * mine.rate), [change]


PLACES = [
    texts_that_name_globals, attributes_by_vars, object_in_a_dataclass, attrgetter, decorated_by_a_library,
    functions_in_a_table, objects_made_inside, descriptor,
    closure_number, closure_array, closure_struct, closure_list_of_layers, closure_function, closure_handle,
    numpy_array_in_place, numpy_array_large, global_number, global_array, default_argument, attribute_of_self,
    attribute_of_the_class, method_replaced, attribute_that_appears, property_of_self, callable_object, slots,
    behind_getattr, computed_name, dataclass, namespaces, partial, decorated, accelerated_inside,
    module_of_the_users, imported_inside, nested_functions, sets_and_deques,
    equal_objects_in_a_deque, class_as_a_holder,
]  # fmt: skip


@pytest.mark.parametrize("numerics", ["fast", "exact"])
@pytest.mark.parametrize("place", PLACES, ids=lambda f: f.__name__)
def test_A1_what_is_captured_may_change_between_calls(place, numerics):
    function, changes = place()
    accfun = dlaccelerate(function, Numerics=numerics)
    for change in [lambda: None, *changes]:
        change()
        for k in range(3):  # recorded or replayed, the fast way at last
            x = dlarray(X + k)
            (assert_same if numerics == "exact" else assert_close)(accfun(x), function(x))
        assert accfun.NumTraces, "it was never replayed"
    hits = accfun.HitRate
    accfun(dlarray(X))
    assert accfun.HitRate > hits


@pytest.mark.parametrize("place", [closure_array, global_array, attribute_of_self], ids=lambda f: f.__name__)
def test_A1_inside_dlfeval(place):
    function, changes = place()

    def loss(x):
        y = m.sum(function(x) * x, "all")
        return y, m.dlgradient(y, x)

    accfun = dlaccelerate(loss)
    for change in [lambda: None, *changes]:
        change()
        for k in range(3):
            assert_close(m.dlfeval(accfun, dlarray(X + k)), m.dlfeval(loss, dlarray(X + k)), 1e-5)


def test_A1_captured_arrays_are_inputs_and_cost_no_trace():
    w = dlarray(X)
    counted, accfun = accelerated(lambda x: x * w)
    for k in range(1, 20):
        w = dlarray(X * k)
        assert_close(accfun(dlarray(X)), X * w)
    assert counted.count == 1


def test_A1_gradients_reach_a_captured_array():
    def loss(function):
        def inner(w, x):
            nonlocal held
            held = w
            return m.dlgradient(m.sum(function(x), "all"), w)

        return inner

    held = None
    function = lambda x: x * held * held
    accfun = dlaccelerate(function)
    for k in range(3):
        w, x = dlarray(X + k), dlarray(X * k)
        assert_close(m.dlfeval(loss(accfun), w, x), m.dlfeval(loss(function), w, x), 1e-5)
    assert accfun.NumTraces == 1


def test_A1_the_same_array_captured_and_given():
    w = dlarray(X)
    function = lambda x: m.dlfeval(lambda x, w: m.dlgradient(m.sum(x * w, "all"), x), x, w) + w
    accfun = dlaccelerate(function)
    for x in (w, dlarray(X + 1), w, dlarray(X + 2), w):
        assert_close(accfun(x), function(x))
    assert accfun.NumTraces == 2


def test_A1_a_look_at_a_captured_array_is_right_for_that_very_array():
    limit = dlarray(2.0)
    counted, accfun = accelerated(lambda x: x * 2 if limit > 1 else x)
    for k in range(3):
        assert accfun(dlarray(float(k))).item() == 2 * k
    assert counted.count == 1
    limit = dlarray(0.5)
    for k in range(3):
        assert accfun(dlarray(float(k))).item() == k
    assert counted.count == 2
    limit[()] = 3.0
    assert accfun(dlarray(5.0)).item() == 10


def test_A1_an_array_that_cannot_be_followed_is_never_frozen():
    hidden = Hidden("hidden")
    hidden.set(dlarray(X))
    counted, accfun = accelerated(lambda x: x * hidden.get())
    with pytest.warns(TraceWarning, match=r"uses a dlarray at \S+test_captures.py:\d+ that it got neither"):
        assert_same(accfun(dlarray(X)), X * X)
    hidden.set(dlarray(X * 2))
    assert_same(accfun(dlarray(X)), X * (X * 2))
    assert accfun.NumTraces == 0
    accfun = dlaccelerate(lambda x: x * hidden.get().tolist()[0][0])
    with pytest.warns(TraceWarning, match="looks at a traced number"):
        accfun(dlarray(X))
    hidden.set(dlarray(X + 1))
    assert_same(accfun(dlarray(X)), X * (X[0, 0] + 1))
    accfun = dlaccelerate(lambda x: hidden.get())
    with pytest.warns(TraceWarning, match="uses a dlarray at its result"):
        accfun(dlarray(X))


def test_A1_captured_sources_and_generators_are_never_frozen():
    numbers, generator = iter([1.0, 2.0, 3.0]), np.random.default_rng(0)
    accfun = dlaccelerate(lambda x: x * next(numbers))
    assert [quietly(accfun, dlarray(1.0)).item() for _ in range(3)] == [1, 2, 3] and accfun.NumTraces == 0
    accfun = dlaccelerate(lambda x: x * generator.random())
    with pytest.warns(TraceWarning, match="random numbers were drawn"):
        found = [accfun(dlarray(1.0)).item() for _ in range(3)]
    assert found == np.random.default_rng(0).random(3).tolist()


def test_A1_threads_change_what_others_capture():
    k = 0.0
    accfun = dlaccelerate(lambda x: x + k)
    with warnings.catch_warnings():
        warnings.simplefilter("error", TraceWarning)
        for i in range(40):
            k = float(i % 4)
            thread = threading.Thread(target=accfun, args=(dlarray(X),))
            thread.start()
            thread.join()
            assert_same(accfun(dlarray(X)), X + np.float32(k))
    assert accfun.NumTraces == 4


FACTOR = 2.0


class Named(NamedTuple):
    a: object

    def forward(self, x):
        return x * self.a * FACTOR


class Fields(dict):
    def forward(self, x):
        return x * self["a"] * FACTOR


@pytest.mark.parametrize("container", [Settings(2.0, None), Named(2.0), Fields(a=2.0)], ids=lambda x: type(x).__name__)
def test_A1_methods_of_containers_among_the_arguments(container):
    global FACTOR
    function = lambda c, x: c.scaled(x) * FACTOR if isinstance(c, Settings) else c.forward(x)
    accfun = dlaccelerate(function)
    for FACTOR in (2.0, 3.0, 2.0):  # noqa: B007
        for k in range(3):
            assert_close(accfun(container, dlarray(X + k)), function(container, dlarray(X + k)))
    assert accfun.NumTraces == 2


# A2: seeing them ----------------------------------------------------------------------------------------------------
def test_A2_captures_lists_path_line_and_bytes():
    rate, p = 0.5, struct(w=dlarray(X), name="net")

    def function(x):
        y = x * rate + p.w  # the line
        return y * dlarray(np.float32([[1.0, 2.0, 3.0]])), p.name  # a constant

    accfun = dlaccelerate(function)
    accfun(dlarray(X))
    rows = {row.path: row for row in accfun.captures()}
    line = function.__code__.co_firstlineno + 1
    assert rows["rate"] == ("rate", f"{__file__}:{line}", "compared", "0.5", 0)
    assert rows["p.w"] == ("p.w", f"{__file__}:{line}", "input", "2×3 single", 24)
    assert rows["p.name"][2:4] == ("compared", "'net'")
    (constant,) = [row for row in rows.values() if row.role == "constant"]
    assert constant.where == f"{__file__}:{line + 1}" and constant.text == "1×3 single" and constant.nbytes == 12
    text = str(accfun.captures())
    assert text.splitlines()[0].split() == ["what", "role", "is", "bytes", "at"] and "p.w" in text
    assert not any(row.path == "np" or row.path == "dlarray" for row in accfun.captures())
    looked = dlaccelerate(lambda x: x * float(p.w[0, 0]))
    looked(dlarray(X))
    assert [row.role for row in looked.captures() if row.path == "p.w"] == ["compared"]
    assert "this very value" in str(looked.captures())


# A11: methods -------------------------------------------------------------------------------------------------------
class Model:
    def __init__(self, seed):
        self.w = dlarray(np.float32(np.random.default_rng(seed).normal(size=(3, 2))))
        self.history = None

    @dlaccelerate
    def forward(self, x):
        return m.tanh(x @ self.w)

    def update(self, g):
        self.w = self.w - g


def test_A11_one_accelerated_method_two_instances():
    a, b = Model(0), Model(1)
    Model.forward.clearCache()
    for k in range(4):
        x = dlarray(X + k)
        for model in (a, b):
            assert_close(model.forward(x), m.tanh(x @ model.w))
            g = m.dlfeval(lambda w, model=model, x=x: m.dlgradient(m.sum(m.tanh(x @ w), "all"), w), model.w)
            model.update(g)
    assert Model.forward.NumTraces == 2 and Model.forward.HitRate == 75


# A13: sizes that depend on numbers ----------------------------------------------------------------------------------
SELECTED = {
    "mean": lambda x: m.mean(x[x > 0]),
    "mean 'all'": lambda x: m.mean(x[x > 0], "all"),
    "numel": lambda x: x * m.numel(x[x > 0]),
    "size": lambda x: x * m.size(x[x > 0], 0),
    "len": lambda x: x * len(x[x > 0]),
    "std": lambda x: m.std(x[x > 0]),
    "sum": lambda x: m.sum(x[x > 0]),
    "find": lambda x: x[m.find(x > 0)] if hasattr(m, "find") else x[x > 0],
}


@pytest.mark.parametrize("name", SELECTED)
def test_A13_lengths_that_depend_on_values_are_never_frozen(name):
    function = SELECTED[name]
    accfun = dlaccelerate(function)
    for x in (X, -X, X * 0 + 1, X):
        assert_close(quietly(accfun, dlarray(x)), function(dlarray(x)), 1e-6)


# the walk itself ----------------------------------------------------------------------------------------------------
def reads(function, *leaves):
    return [source.path for source in find_captures(function, leaves).reads]


def writes(function, *leaves):
    return [source.path for source in find_captures(function, leaves).writes]


def test_nothing_of_the_users_is_run():
    class Hostile:
        value = 1.0

        def __getattr__(self, name):
            raise RuntimeError("touched")

        def __eq__(self, other):
            raise RuntimeError("compared")

        def __hash__(self):
            raise RuntimeError("hashed")

        def __bool__(self):
            raise RuntimeError("asked")

        def __iter__(self):
            raise RuntimeError("iterated")

        @property
        def explosive(self):
            raise RuntimeError("read")

    thing, table = Hostile(), {"a": Hostile()}
    function = lambda x: x if thing is table["a"] else x * thing.value if x is None else x * 2  # noqa: E731
    accfun = dlaccelerate(function)
    for k in range(4):
        assert_same(accfun(dlarray(X + k)), (X + k) * 2)
    assert accfun.NumTraces == 1


def test_only_what_is_named_is_looked_at():
    layer = Layer(2.0, 1.0)
    counted, accfun = accelerated(layer.forward)
    for k in range(5):
        layer.unused = k  # nobody reads it
        accfun(dlarray(X + k))
    assert counted.count == 1
    assert sorted(reads(layer.forward)) == ["self.forward", "self.moved", "self.rate", "self.scale", "self.shift"]


def test_libraries_are_not_walked():
    found = find_captures(lambda x: m.relu(np.tanh(x)), [])
    assert {source.path for source in found.reads} == {"m", "np"} and len(found.codes) == 1


def test_what_is_only_changed():
    history, table, log = [], {}, {"n": 0}

    def function(x):
        history.append(x)
        table["last"] = x
        log["n"] = log["n"] + 1
        return x

    assert set(writes(function)) == {"history", "table"} and "log" in reads(function)


def test_loops_and_crowds():
    a, b = types.SimpleNamespace(), types.SimpleNamespace(value=2.0)
    a.other, b.other = b, a
    ring = [a]
    ring.append(ring[0])
    many = [types.SimpleNamespace(value=float(k)) for k in range(500)]
    accfun = dlaccelerate(lambda x: x * ring[0].other.value + sum(one.value for one in many))
    for value in (2.0, 3.0):
        b.value = many[-1].value = value
        for _ in range(3):
            assert_close(accfun(dlarray(X)), X * value + sum(one.value for one in many), 1e-4)
    assert accfun.NumTraces == 2


def test_too_much_to_follow_is_told():
    crowd = [types.SimpleNamespace(value=k) for k in range(21_000)]
    accfun = dlaccelerate(lambda x: x * crowd[0].value)
    with pytest.warns(TraceWarning, match="reaches more than 20,000 objects besides its arguments"):
        accfun(dlarray(X))
    assert accfun.NumTraces == 0


def test_files_and_classes_of_the_user():
    import json

    assert is_user_file(__file__) and is_user_file("<stdin>") and is_user_file("/home/somebody/work.py")
    assert not is_user_file(np.__file__) and not is_user_file(json.__file__) and not is_user_file(m.__file__)
    assert not is_user_file("<frozen importlib>") and not is_user_file(threads.__file__)
    assert is_user_class(Layer) and not is_user_class(np.ndarray) and not is_user_class(json.JSONDecoder)
    assert not is_user_class(dict) and not is_user_class(struct)


def test_lines_of_changes():
    total = 0

    def function(x):
        nonlocal total
        total += 1  # here
        return x

    assert line_of_change([function.__code__], "total") == f"{__file__}:{function.__code__.co_firstlineno + 2}"
    assert line_of_change([function.__code__], "nothing") == "?"
    assert repr(MISSING) == "MISSING"
