"""dlaccelerate: a call returns what the plain function would have returned, or says why it cannot be accelerated.

Names like A3 are rows of the behaviours of a replay (docs): silent wrong results (A), cache (B), state (C), seeing (D).
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import enum
import functools
import gc
import itertools
import linecache
import pickle
import random
import re
import sys
import threading
import warnings
import weakref
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from engine.programs import Program, assert_close, assert_same, gradients_of, programs, values

import minidl as m
from accelerate.hidden import Hidden
from minidl import AccelerationWarning, DLArray, OptionError, TraceError, TraceWarning, dlaccelerate, dlarray, struct
from minidl.backends import BACKENDS, use_backend
from minidl.core.tape import open_tapes

X = np.float32([[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]])
MODES = ("fast", "exact")


class Counted:
    """A function that counts how often its Python runs: in an object of a library, which is not followed. Audits are
    left out (`conftest.audits_do_not_count`)."""

    made = weakref.WeakSet()

    def __init__(self, function):
        self.function, self.counter = function, threading.Semaphore(0)
        functools.update_wrapper(self, function)
        self.made.add(self)

    def __call__(self, *args, **kwargs):
        self.counter.release()
        return self.function(*args, **kwargs)

    @property
    def count(self):
        return self.counter._value


def accelerated(function, **options):
    counted = Counted(function)
    return counted, dlaccelerate(counted, **options)


def quietly(function, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TraceWarning)
        return function(*args, **kwargs)


def layer(x, w):
    return m.tanh(x @ w.a + w.b)


WEIGHTS = struct(a=dlarray(np.float32([[0.5, -1.0], [1.0, 2.0], [0.25, 0.125]])), b=dlarray(np.float32([0.1, -0.1])))


# calling ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", MODES)
def test_a_hit_runs_none_of_the_functions_python(mode):
    counted, accfun = accelerated(layer, Numerics=mode)
    for k in range(5):
        x = dlarray(X * k)
        (assert_same if mode == "exact" else assert_close)(accfun(x, WEIGHTS), layer(x, WEIGHTS))
    assert counted.count == 1 and accfun.HitRate == 80


def test_a_value_and_its_gradient():
    function = lambda x: (y := m.sum(m.hypot(x, 3.0), "all"), m.dlgradient(y, x))  # noqa: E731
    counted, accfun = accelerated(lambda x: m.dlfeval(function, x))
    for k in range(3):
        assert_close(accfun(dlarray(X + k)), counted.function(dlarray(X + k)), 1e-6)
    assert counted.count == 1


def test_decorators_and_methods():
    @dlaccelerate
    def double(x):
        """Twice x."""
        return x * 2

    assert double.__name__ == "double" and double.__doc__ == "Twice x." and double(dlarray(3.0)).item() == 6.0

    class Model:
        def __init__(self, factor):
            self.factor = factor

        @dlaccelerate
        def forward(self, x, *, shift=0.0):
            return x * self.factor + shift

        @staticmethod
        @dlaccelerate
        def fixed(x):
            return x + 1

    a, b = Model(2.0), Model(3.0)
    for _ in range(3):  # A11: one accelerated method, two instances
        assert a.forward(dlarray(1.0)).item() == 2.0 and b.forward(dlarray(1.0), shift=1.0).item() == 4.0
    assert Model.forward.HitRate == a.forward.HitRate == pytest.approx(100 * 4 / 6)
    m.clearCache(a.forward)
    assert b.forward.Occupancy == 0 and a.fixed(dlarray(1.0)).item() == 2.0
    for call in (dlaccelerate(a.forward), dlaccelerate(functools.partial(a.forward, shift=2.0)), dlaccelerate(np.sin)):
        assert_close(call(dlarray(1.0)), call.Function(dlarray(1.0)), 1e-12)
        assert_close(call(dlarray(2.0)), call.Function(dlarray(2.0)), 1e-12)
        assert call.HitRate == 50
    assert dlaccelerate(double).Function is double.Function


def test_what_cannot_be_accelerated():
    with pytest.raises(m.DTypeError, match="dlaccelerate: a function is wanted; got int"):
        dlaccelerate(3)
    with pytest.raises(OptionError, match='Numerics is one of "fast", "exact"'):
        dlaccelerate(layer, Numerics="quick")
    with pytest.raises(OptionError, match="Strict is True or False"):
        dlaccelerate(layer, Strict="yes")
    with pytest.raises(m.DTypeError, match="clearCache: an AcceleratedFunction is wanted"):
        m.clearCache(layer)


# A3, A13: Python looks at a traced number ---------------------------------------------------------------------------
READS = {
    "if": lambda x: x * 2 if x[0, 0] > 0 else x * 3,
    "float": lambda x: x * float(m.sum(x, "all")),
    "int": lambda x: x[: int(x[0, 0] * 0 + 1)],
    "bool": lambda x: x * bool(m.any(x > 3, "all")),
    "item": lambda x: x * m.max(x, [], "all").item(),
    "extractdata": lambda x: x * m.extractdata(x).sum(),
    "numpy array": lambda x: x + np.asarray(x).max(),
    "tolist": lambda x: x + x.tolist()[0][0],
    "format": lambda x: x * float(f"{m.sum(x, 'all'):.3f}"),
    "mask": lambda x: m.mean(x[x > 0]),
    "number of true ones": lambda x: x * m.numel(x[x > 0]),
    "max by Python": lambda x: max(x[0, 0], x[0, 1]) * 2,
    "range": lambda x: sum((x for _ in range(m.round(x[0, 0] * 0 + 2))), x),
    "through a gradient": lambda x: x * float(m.dlfeval(lambda x: m.dlgradient(m.sum(x * x, "all"), x), x)[0, 0]),
    "random": lambda x: x * 2 if m.rand(1, 1, like=x) > 0.5 else x * 3,
}


@pytest.mark.parametrize("name", READS)
def test_A3_a_look_at_a_traced_number_is_never_baked(name):
    counted, accfun = accelerated(READS[name])
    m.rng(0)
    with pytest.warns(TraceWarning) as caught:
        found = [accfun(dlarray(x)) for x in (X, -X, X * 3, X)]
    m.rng(0)
    assert_same(found, [counted.function(dlarray(x)) for x in (X, -X, X * 3, X)])
    file, line = re.search(r"(\S+):(\d+)", str(caught[0].message)).groups()
    assert file == __file__ and f'"{name}"' in linecache.getline(file, int(line))
    assert "cannot be replayed" in str(caught[0].message) and "Keep to dlarray operations" in str(caught[0].message)
    assert len(caught) == 1  # one warning for the line, not one for each call
    assert accfun.Occupancy == 0 and accfun.HitRate == 0


def test_A3_a_look_at_what_is_not_traced_is_no_harm():
    limit = dlarray(2.0)
    counted, accfun = accelerated(lambda x: x * 2 if limit > 1 else x)
    for k in range(3):
        assert accfun(dlarray(float(k))).item() == 2 * k
    assert counted.count == 1


def test_A3_lines_are_warned_of_one_by_one():
    def function(x):
        a = float(x)
        b = float(x * 2)
        return x * a * b + float(x * 3) + float(x * 4)

    _, accfun = accelerated(function)
    with pytest.warns(TraceWarning) as caught:
        assert accfun(dlarray(1.0)).item() == 9.0
        assert accfun(dlarray(np.float32(1.0))).item() == 9.0
    assert len(caught) == 3
    accfun.clearCache()
    with pytest.warns(TraceWarning) as caught:
        accfun(dlarray(1.0))
    assert len(caught) == 3


def test_A3_strict():
    counted, accfun = accelerated(lambda x: x * float(x), Strict=True)
    for _ in range(2):
        with pytest.raises(TraceError, match=r"looks at a traced number at .*test_replay\.py:\d+"):
            accfun(dlarray(2.0))
    assert accfun.HitRate == 0 and accfun.Strict and not open_tapes()
    accfun.Strict = False
    assert quietly(accfun, dlarray(2.0)).item() == 4.0


def test_A3_traced_subscripts_are_no_look():
    counted, accfun = accelerated(lambda x, i: x[i])
    for i in (0.0, 1.0, -1.0):
        assert_same(accfun(dlarray(X), dlarray(i)), dlarray(X)[int(i)])
    assert counted.count == 1


def test_A3_iteration_and_sizes_are_no_look():
    def function(x):
        return sum(row * len(x) for row in x) + x.shape[1] + m.size(x, 0) + m.numel(x)

    counted, accfun = accelerated(function)
    for k in range(3):
        assert_close(accfun(dlarray(X * k)), function(dlarray(X * k)), 1e-6)
    assert counted.count == 1


# A4 - A6: memory ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", MODES)
def test_A4_results_kept_from_earlier_calls(mode):
    def loss(w, x):
        value = m.sum(layer(x, w) ** 2, "all")
        return value, m.dlgradient(value, w), x, w.b

    _, accfun = accelerated(loss, Numerics=mode)
    inputs = [dlarray(X * k) for k in range(10)]
    kept = [m.dlfeval(accfun, WEIGHTS, x) for x in inputs]
    gradients = struct(a=0.0, b=0.0)
    for _, g, _, _ in kept:
        gradients = struct({name: gradients[name] + g[name] for name in g})
    plain = [m.dlfeval(loss, WEIGHTS, x) for x in inputs]
    for found, expected in zip(kept, plain):
        assert_close([found[0], found[1].a, found[1].b, found[2], found[3]],
                     [expected[0], expected[1].a, expected[1].b, expected[2], expected[3]], 1e-5)  # fmt: skip
    assert_close(gradients.a, sum(g.a for _, g, _, _ in plain), 1e-4)
    arrays = [y._value.data for found in kept[1:] for y in (found[0], found[1].a, found[1].b, found[2], found[3])]
    assert not any(np.may_share_memory(a, b) for a, b in itertools.combinations(arrays, 2))


@pytest.mark.parametrize("mode", MODES)
def test_A5_outputs_fed_back_as_inputs(mode):
    def step(x, v):
        v = v * 0.9 - x * 0.1
        return x + v, v

    counted, accfun = accelerated(step, Numerics=mode)
    for start in (1.0, -3.0):
        x, v = found = dlarray(np.full(3, start)), dlarray(np.zeros(3))
        for _ in range(50):
            x, v = step(x, v)
            found = accfun(*found)
        assert_close(list(found), [x, v], 1e-12)
    assert counted.count == 1


@pytest.mark.parametrize("mode", MODES)
def test_A5_results_of_one_accelerated_function_go_into_another(mode):
    """Large ones: memory that serves again must not be taken for the input of the call before."""
    first, second = dlaccelerate(lambda x: x * 2, Numerics=mode), dlaccelerate(lambda y: m.sum(y + 1, 0), Numerics=mode)

    def both(x):
        return second(first(x))

    for k in range(12):
        x = np.full((200, 200), k, np.float32)
        assert np.all(np.asarray(both(dlarray(x))) == 200 * (2 * k + 1))


def test_A6_the_same_array_twice_and_equal_arrays():
    def function(x, y):
        return m.dlfeval(lambda x, y: m.dlgradient(m.sum(x * x * y, "all"), [x, y]), x, y)

    for order in ((0, 1), (1, 0)):
        counted, accfun = accelerated(function)
        x, y = dlarray(X), dlarray(X.copy())
        pairs = [(x, x), (x, y)]
        for k in (*order, *order):
            assert_close(accfun(*pairs[k]), function(*pairs[k]), 1e-6)
        assert counted.count == 2
        assert accfun(dlarray(X * 0), dlarray(X))[1].tolist() == (X * 0).tolist()


def test_A6_views_of_one_array_and_inputs_returned():
    memory = np.arange(12.0)
    counted, accfun = accelerated(lambda a, b: (a + b, a, b, a))
    for shift in (0, 3, 6):
        a, b = dlarray(memory[shift : shift + 4]), dlarray(memory[shift + 2 : shift + 6])
        total, first, second, third = accfun(a, b)
        assert_same([total, first, second, third], [a + b, a, b, a])
    assert counted.count == 1 and memory.tolist() == list(range(12))


# A7: random numbers -------------------------------------------------------------------------------------------------
def draws(x):
    return m.rand(2, 3, like=x) * x, m.randn(3, 1, like=x), m.rand(2, like=x)


@pytest.mark.parametrize("mode", MODES)
def test_A7_random_numbers_are_those_of_the_plain_function(mode):
    counted, accfun = accelerated(draws, Numerics=mode)
    m.rng(3)
    expected = [draws(dlarray(X)) for _ in range(4)]
    after = m.rng(3)
    found = [accfun(dlarray(X)) for _ in range(4)]
    assert m.rng() == after and counted.count == 1
    for a, b in zip(found, expected):
        assert_same(a, b)
    assert len({y[2].tolist()[0][0] for y in found}) == 4  # fresh each time


def test_A7_draws_between_replays_and_a_new_seed():
    _, accfun = accelerated(lambda x: m.rand(1, like=x))
    plain = []
    for function in (lambda x: m.rand(1, like=x), accfun):
        m.rng(1)
        plain.append([function(dlarray(1.0)).item(), m.rand(1).item(), function(dlarray(1.0)).item()])
        m.rng(9)
        plain[-1] += [function(dlarray(1.0)).item(), function(dlarray(2.0)).item()]
    assert plain[0] == plain[1]


def test_A7_a_function_without_draws_leaves_the_generator_alone():
    _, accfun = accelerated(lambda x: x * 2)
    m.rng(1)
    for _ in range(3):
        accfun(dlarray(X))
    first = m.rand(1).item()
    m.rng(1)
    assert m.rand(1).item() == first


def test_A7_threads_never_draw_the_same_numbers():
    _, accfun = accelerated(lambda x: m.rand(1, like=x))
    accfun(dlarray(1.0))
    found: list[float] = []

    def work():
        for _ in range(30):
            found.append(accfun(dlarray(1.0)).item())
            found.append(m.rand(1, like=dlarray(1.0)).item())
            found.append(m.rand(1).item())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == len(found) == 360 and m.rng()["Draws"] == 361


def test_A7_draws_of_another_thread_while_recording():
    def function(x):
        y = m.rand(1, like=x)
        if disturbed:
            wanted.set()
            drawn.wait()
        return y, m.rand(1, like=x)

    def draw():
        wanted.wait()
        m.rand(1)
        drawn.set()

    wanted, drawn = threading.Event(), threading.Event()
    thread = threading.Thread(target=draw)
    thread.start()
    counted, accfun = accelerated(function)
    disturbed = True
    accfun(dlarray(1.0))
    disturbed = False
    thread.join()
    found = [y.item() for _ in range(3) for y in accfun(dlarray(1.0))]
    assert len(set(found)) == 6 and counted.count == 2  # the disturbed recording was not kept


HOST_DRAWS = {
    "NumPy's global generator": lambda x, g: x * np.random.rand(),
    "NumPy's shuffle": lambda x, g: x[np.random.permutation(2)],
    "Python's global generator": lambda x, g: x * random.random(),
    "a generator among the arguments": lambda x, g: x * g.random(),
}


@pytest.mark.parametrize("name", HOST_DRAWS)
def test_A7_random_numbers_of_others_are_never_frozen(name):
    counted, accfun = accelerated(HOST_DRAWS[name])
    generator = np.random.default_rng(0)
    np.random.seed(0)
    random.seed(0)
    with pytest.warns(TraceWarning, match="random numbers were drawn.*rand") as caught:
        found = [accfun(dlarray(X), generator) for _ in range(4)]
    np.random.seed(0)
    random.seed(0)
    generator = np.random.default_rng(0)
    assert_same(found, [HOST_DRAWS[name](dlarray(X), generator) for _ in range(4)])
    assert accfun.Occupancy == 0 and len(caught) == 1


@pytest.mark.parametrize("function", [
    lambda x: x * m.rand(1, 3), lambda x: x[m.randperm(2)], lambda x: x * m.initializeGlorot((2, 3), 3, 2),
    lambda x: x * m.rng()["Draws"],
], ids=["rand", "randperm", "initialize", "rng"])  # fmt: skip
def test_A7_draws_on_the_host_are_never_frozen(function):
    counted, accfun = accelerated(function)
    m.rng(2)
    found = [quietly(accfun, dlarray(X)) for _ in range(3)]
    m.rng(2)
    assert_same(found, [function(dlarray(X)) for _ in range(3)])
    assert accfun.Occupancy == 0


# A9: derivatives ----------------------------------------------------------------------------------------------------
def energy(x, w):
    return m.sum(m.sin(x) * m.exp(x * w) + x**3, "all")


def derivatives(function, x, w, order):
    """Value and derivatives by x of order 1, 2, ... of a function, by dlgradient from outside."""

    def all_of_them(x, w):
        y = function(x, w)
        found = [y]
        for k in range(order):
            y = m.dlgradient(m.sum(y, "all"), x, EnableHigherDerivatives=k < order - 1)
            found.append(y)
        return found

    return m.dlfeval(all_of_them, x, w)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_A9_derivatives_through_an_accelerated_function(mode, order):
    counted, accfun = accelerated(energy, Numerics=mode)
    for k in range(3):
        x, w = dlarray(np.array([0.3, -0.2]) + k), dlarray(0.5)
        assert_close(derivatives(accfun, x, w, order), derivatives(energy, x, w, order), 1e-12)
    assert counted.count == 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_A9_derivatives_inside_an_accelerated_function(mode, order):
    counted, accfun = accelerated(lambda x, w: derivatives(energy, x, w, order), Numerics=mode)
    for k in range(3):
        x, w = dlarray(np.array([0.3, -0.2]) + k), dlarray(0.5)
        assert_close(accfun(x, w), derivatives(energy, x, w, order), 1e-12)
    assert counted.count == 1


@pytest.mark.parametrize("mode", MODES)
@hypothesis.settings(max_examples=40, derandomize=True)
@hypothesis.given(drawn=programs(most_steps=5, orders=(0,)), order=st.integers(1, 2))
def test_A9_derivatives_through_any_function(drawn, order, mode):
    function, specs = drawn
    accfun = dlaccelerate(function, Numerics=mode)
    for seed in (0, 1):
        inputs = [values(spec, seed) for spec in specs]
        plain = Program(function.steps, function.count, order).gradients
        through = functools.partial(gradients_of, accfun, order)
        tolerance = 1e-3 if any(spec[2] == "float32" for spec in specs) else 1e-4  # a constant of the program is single
        assert_close(m.dlfeval(through, *inputs), m.dlfeval(plain, *inputs), tolerance)


def test_A9_gradient_of_what_computes_a_gradient():
    def inner(x):
        return m.dlfeval(lambda x: m.dlgradient(energy(x, 0.5), x), x)

    def outer(function):
        def loss(x):
            g = function(x)
            y = m.sum(g * g, "all")
            return y, m.dlgradient(y, x)

        return loss

    def plain(x):  # inner, in one dlfeval
        g = m.dlgradient(energy(x, 0.5), x, EnableHigherDerivatives=True)
        y = m.sum(g * g, "all")
        return y, m.dlgradient(y, x)

    counted, accfun = accelerated(inner)
    for k in range(3):
        x = dlarray(np.array([0.3, -0.2]) + k)
        assert_close(m.dlfeval(outer(accfun), x), m.dlfeval(plain, x), 1e-12)
    assert counted.count == 1


def test_A9_dlgradient_of_the_callers_dlfeval():
    def loss(w, x):
        y = m.sum(layer(x, w) ** 2, "all")
        return y, m.dlgradient(y, w)

    counted, accfun = accelerated(loss)
    for k in range(3):
        (y, g), (z, h) = (m.dlfeval(f, WEIGHTS, dlarray(X * k)) for f in (accfun, loss))
        assert type(g) is struct and list(g) == ["a", "b"]
        assert_close([y, g.a, g.b], [z, h.a, h.b], 1e-5)
    assert counted.count == 1
    for function in (accfun, loss):
        with pytest.raises(TraceError, match="not traced"):
            function(WEIGHTS, dlarray(X))  # outside of dlfeval
    assert_close(m.dlfeval(accfun, WEIGHTS, dlarray(X))[0], m.dlfeval(loss, WEIGHTS, dlarray(X))[0], 1e-5)


def test_a_parameter_that_the_replay_does_not_depend_on_has_gradient_zero():
    _, accfun = accelerated(lambda x, w: (x * 2, w))
    for _ in range(2):
        g = m.dlfeval(lambda x, w: m.dlgradient(m.sum(accfun(x, w)[0], "all"), [x, w]), dlarray(X), dlarray(X))
        assert g[0].tolist() == (X * 0 + 2).tolist() and g[1].tolist() == (X * 0).tolist()


# the signature ------------------------------------------------------------------------------------------------------
@dataclasses.dataclass
class Options:
    rate: float
    name: str


Pair = collections.namedtuple("Pair", "a b")


class Colour(enum.IntEnum):
    RED = 1


class Plain:
    pass


class Equal:
    def __eq__(self, other):
        return isinstance(other, Equal)

    __hash__ = None


def named_function(x):
    return x


ONE, OTHER, UNHASHABLE = Plain(), Plain(), Equal()
KEYS: dict[str, tuple[Any, Any, Any]] = {  # argument, one with the same key, one with another
    "float": (0.5, 0.5, 0.25),
    "nan": (float("nan"), np.float64("nan"), 0.0),
    "negative zero": (0.0, 0.0, -0.0),
    "int and bool": (1, 1, True),
    "int and float": (1, 1, 1.0),
    "bool": (True, np.True_, False),
    "NumPy float": (0.5, np.float64(0.5), np.float32(0.5)),
    "NumPy int": (3, np.int64(3), 4),
    "0-d array": (0.5, np.array(0.5), np.array(0.5, np.float32)),
    "text": ("same", "sa" + "me", "valid"),
    "text and bytes": ("a", "a", b"a"),
    "none": (None, None, 0),
    "array": (np.arange(3.0), np.arange(3.0), np.arange(3.0) + 1),
    "array of nan": (np.full(2, np.nan), np.full(2, np.nan), np.zeros(2)),
    "array type": (np.zeros(2), np.zeros(2), np.zeros(2, np.float32)),
    "array shape": (np.zeros(2), np.zeros(2), np.zeros((2, 1))),
    "array order": (np.ones((2, 3)), np.ones((2, 3), order="F"), np.zeros((2, 3))),
    "texts": (np.array(["a", "b"]), np.array(["a", "b"]), np.array(["a", "c"])),
    "objects": (np.array(["a", 1], object), np.array(["a", 1], object), np.array(["a", 1.0], object)),
    "list": ([1, 2], [1, 2], (1, 2)),
    "empty list": ([], [], {}),
    "list length": ([1, 2], [1, 2], [1, 2, 3]),
    "dict": ({"a": 1}, {"a": 1}, {"b": 1}),
    "dict and struct": ({"a": 1}, {"a": 1}, struct(a=1)),
    "dataclass": (Options(0.1, "a"), Options(0.1, "a"), Options(0.1, "b")),
    "namedtuple": (Pair(1, 2), Pair(1, 2), (1, 2)),
    "enumeration": (Colour.RED, Colour.RED, 1),
    "deque": (collections.deque([{"a": 1}]), collections.deque([{"a": 1}]), collections.deque([{"a": 2}])),
    "set": ({1, 2}, {2, 1}, {1, 3}),
    "frozen set": (frozenset({1}), frozenset({1}), frozenset({2})),
    "slice": (slice(1, 2), slice(1, 2), slice(1, 3)),
    "range": (range(3), range(3), range(4)),
    "complex": (1j, 1j, 2j),
    "type": (np.float32, np.float32, np.float64),
    "dtype": (np.dtype("f4"), np.dtype("float32"), np.dtype("f8")),
    "object": (ONE, ONE, OTHER),
    "unhashable object": (UNHASHABLE, UNHASHABLE, Equal()),
    "function": (named_function, named_function, lambda x: x),
    "method": (X.sum, X.sum, X.min),
    "dlarray": (dlarray(X), dlarray(X * 2), dlarray(X[:1])),
    "labels": (dlarray(X, "CB"), dlarray(X + 1, "CB"), dlarray(X, "SB")),
    "unlabelled": (dlarray(X, "CB"), dlarray(X + 1, "CB"), dlarray(X)),
    "type of a dlarray": (dlarray(X), dlarray(X), dlarray(X.astype(float))),
    "logical": (dlarray(X > 0), dlarray(X > 1), dlarray(X)),
    "dlarrays in containers": ({"a": [dlarray(X)]}, {"a": [dlarray(X)]}, {"a": (dlarray(X),)}),
    "dlarray and number": (dlarray(1.0), dlarray(2.0), 1.0),
    "structure of dlarrays": ([dlarray(X), None], [dlarray(X), None], [None, dlarray(X)]),
}


@pytest.mark.parametrize("name", KEYS)
def test_signature(name):
    first, same, other = KEYS[name]
    for is_inside in (False, True):
        counted, accfun = accelerated(lambda x, argument: x * 2)
        call = functools.partial(m.dlfeval, accfun) if is_inside else accfun
        for argument in (first, same, first):
            call(dlarray(X), argument)
        assert counted.count == 1, "a spurious trace"
        call(dlarray(X), other)
        call(dlarray(X), other)
        assert counted.count == 2 and accfun.Occupancy == 4


def test_results_belong_to_the_type_of_the_number():
    _, accfun = accelerated(lambda x, c: dlarray(c) * x)
    for c in (2.0, np.float32(2.0), np.array(2.0, np.float32), np.float64(2.0), np.float32(2.0)):
        assert accfun(dlarray(np.float64(3.0)), c).dtype == (dlarray(c) * dlarray(np.float64(3.0))).dtype


def test_inside_and_outside_of_dlfeval_are_traces_of_their_own():
    counted, accfun = accelerated(lambda x: x * 2)
    for _ in range(2):
        accfun(dlarray(X))
        m.dlfeval(accfun, dlarray(X))
    assert counted.count == 2 and accfun.HitRate == 50


def test_arguments_of_any_name():
    accfun = dlaccelerate(lambda **named: named["self"] * named["x"])
    assert accfun(self=dlarray(2.0), x=3.0).item() == 6.0


def test_positional_and_keyword_arguments():
    def function(x, y=2.0, *more, scale=1.0, **others):
        return x * y * scale + sum(more) + sum(others.values())

    counted, accfun = accelerated(function)
    x = dlarray(3.0)
    for _ in range(2):
        assert accfun(x).item() == 6 and accfun(x, 3.0).item() == 9 and accfun(x, y=4.0).item() == 12
        assert accfun(x, 3.0, 1, 2, scale=2.0, a=1.0, b=dlarray(10.0)).item() == 32
    assert counted.count == 4
    for function in (accfun, counted.function):
        with pytest.raises(TypeError):
            function()


def test_A10_a_plain_array_is_keyed_by_its_numbers_even_if_it_changes():
    counted, accfun = accelerated(lambda x, a: x + a)
    a = np.array([1.0, 2.0])
    x = dlarray(np.zeros(2))
    assert accfun(x, a).tolist() == [1, 2]
    a[:] = [3, 4]
    assert accfun(x, a).tolist() == [3, 4]
    assert accfun(x, np.array([1.0, 2.0])).tolist() == [1, 2]  # a hit of the first trace: not the numbers of now
    assert accfun(x, a).tolist() == [3, 4] and counted.count == 2


def test_A10_objects_are_kept_alive_so_that_their_identity_is_theirs():
    counted, accfun = accelerated(lambda x, argument: x * argument.factor)
    for k in range(20):
        argument = Plain()
        argument.factor = float(k)
        assert accfun(dlarray(1.0), argument).item() == k
        del argument
    assert counted.count == 20


def test_A10_what_gives_something_else_each_time_is_never_frozen():
    counted, accfun = accelerated(lambda x, source: x * next(source))
    numbers = iter([1.0, 2.0, 3.0])
    with pytest.warns(TraceWarning, match=r"source of data \(list_iterator\).*Read the data first") as caught:
        assert [accfun(dlarray(1.0), numbers).item() for _ in range(3)] == [1, 2, 3]
    assert len(caught) == 1 and accfun.Occupancy == 0
    queue = m.minibatchqueue(m.arrayDatastore(np.arange(6.0)), MiniBatchSize=2)
    accfun = dlaccelerate(lambda x, queue: m.sum(x + next(queue), "all"))
    assert [quietly(accfun, dlarray(0.0), queue).item() for _ in range(3)] == [1, 5, 9]


def test_A12_the_backend_is_part_of_the_signature():
    counted, accfun = accelerated(lambda x: x * 2)
    for name in ("cpu", "reference", "cpu", "reference"):
        with use_backend(name):
            assert_same(accfun(dlarray(X)), dlarray(X * 2))
    assert counted.count == 2


def test_B7_results_fed_in_again_are_no_new_signature():
    counted, accfun = accelerated(lambda x, w: (m.mean(x * w, "all"), x * w, m.sum(x, 1)))
    x, w = dlarray(X, "CB"), dlarray(X, "CB")
    for _ in range(4):
        y, x, s = accfun(x, w)
    assert counted.count == 1
    counted, accfun = accelerated(lambda a, b: a * 2 + b)
    accfun(dlarray(1.0), 0.5)
    accfun(dlarray(np.float64(2.0)), np.float64(0.5))
    accfun(dlarray(3), 0.5)
    accfun(accfun(dlarray(True) * 1.0, 0.5), np.array(0.5))
    assert counted.count == 1


# C4, C5: containers -------------------------------------------------------------------------------------------------
def test_C4_containers_in_and_out():
    def function(s, items, *, pair, options):
        s.extra = s.a * 2  # the caller's struct stays as it is
        items.append(pair.a + pair.b)
        plain = {"text": "done", "none": None, "number": 3, "empty": [], "type": float}
        return {"s": s, "items": items, "pair": Pair(pair.b, pair.a), "options": options, "plain": plain,
                "array": np.arange(3), "nested": ({"x": [s.a]}, (None,))}  # fmt: skip

    def arguments(k):
        return ((struct(a=dlarray(X * k), name="net"), [dlarray(float(k)), 2, "t"]),
                {"pair": Pair(dlarray(1.0 + k), dlarray(2.0)), "options": Options(0.5, "o")})  # fmt: skip

    counted, accfun = accelerated(function)
    for k in range(3):
        args, options = arguments(k)
        found = accfun(*args, **options)
        assert list(args[0]) == ["a", "name"] and len(args[1]) == 3
        expected = function(*arguments(k)[0], **arguments(k)[1])
        assert list(found) == list(expected) and type(found["s"]) is struct and type(found["pair"]) is Pair
        assert list(found["s"]) == ["a", "name", "extra"] and found["options"] == Options(0.5, "o")
        assert found["plain"] == expected["plain"] and found["plain"] is not expected["plain"]
        assert found["array"].tolist() == [0, 1, 2] and found["nested"][1] == (None,)
        flat = [[r["s"].a, r["s"].extra, *r["items"][:1], r["items"][3], *r["pair"], r["nested"][0]["x"][0]]
                for r in (found, expected)]  # fmt: skip
        assert_same(*flat)
    assert counted.count == 1


def test_C4_plain_results_are_not_shared_between_calls():
    _, accfun = accelerated(lambda x: (x * 2, np.zeros(2), [1, 2], struct(a=1)))
    for _ in range(3):
        _, array, items, s = accfun(dlarray(X))
        assert array.tolist() == [0, 0] and items == [1, 2] and s == {"a": 1}
        array += 1
        items.append(3)
        s.b = 2


def test_C4_labels_of_results():
    _, accfun = accelerated(lambda x: [x, m.sum(x, "C"), m.stripdims(x), m.sum(x, "all"), x > 0])
    for _ in range(3):
        assert [y.dims() for y in accfun(dlarray(X, "CB"))] == ["CB", "CB", "", "", "CB"]


def test_C4_results_of_each_kind():
    for result in (None, 3, "text", [], {}, (), True):
        counted, accfun = accelerated(lambda x, result=result: result)
        assert [accfun(dlarray(X)) for _ in range(3)] == [result] * 3 and counted.count == 1


def test_C5_state_made_lazily_on_the_first_call():
    def step(w, g, velocity):
        velocity = g if velocity is None else velocity * 0.9 + g
        return w - 0.1 * velocity, velocity

    counted, accfun = accelerated(step)
    found, expected = [(dlarray(X), None)] * 2
    for k in range(5):
        found = accfun(found[0], dlarray(X + k), found[1])
        expected = step(expected[0], dlarray(X + k), expected[1])
        assert_close(list(found), list(expected), 1e-6)
    assert counted.count == 2


# B1: properties -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("misses, calls, shown", [((1,), 3120, "99.9679"), ((1, 157), 157, "98.7261")])
def test_B1_hit_rates_of_the_example(misses, calls, shown):
    accfun = dlaccelerate(lambda x: x)
    batch, last = dlarray(np.ones((3, 32), np.float32), "CB"), dlarray(np.ones((3, 8), np.float32), "CB")
    for k in range(1, calls + 1):
        accfun(last if k in misses[1:] else batch)
    assert f"{accfun.HitRate:.4f}" == shown and accfun.HitRate == 100 * (calls - len(misses)) / calls
    assert accfun.Occupancy == 2 * len(misses) and f"HitRate: {shown}" in repr(accfun)


def test_B1_as_made():
    accfun = dlaccelerate(layer)
    assert (accfun.Enabled, accfun.CacheSize, accfun.HitRate, accfun.Occupancy) == (True, 50, 0, 0)
    assert (accfun.CheckMode, accfun.CheckTolerance, accfun.Strict) == ("none", 1e-4, False)
    assert accfun.Function is layer
    assert repr(accfun).splitlines() == [
        "AcceleratedFunction with properties:", "", "          Function: @layer", "           Enabled: 1",
        "         CacheSize: 50", "           HitRate: 0", "         Occupancy: 0", "         CheckMode: 'none'",
        "    CheckTolerance: 1.0000e-04",
    ]  # fmt: skip
    for name in ("Function", "HitRate", "Occupancy"):
        with pytest.raises(AttributeError):
            setattr(accfun, name, 1)


@pytest.mark.parametrize("name, wrong, right", [
    ("Enabled", ["yes", 2, None, np.ones(2)], [True, 0, np.False_]),
    ("CacheSize", [0, -1, 2.5, True, "5"], [1, np.int64(7)]),
    ("CheckMode", ["strict", 1], ["tolerance", "None"]),
    ("CheckTolerance", [0, -1, np.inf, np.nan, "x", True], [1, np.float32(0.5)]),
    ("Strict", ["yes", None], [True, 0]),
])  # fmt: skip
def test_B1_values_of_properties(name, wrong, right):
    accfun = dlaccelerate(layer)
    before = getattr(accfun, name)
    for value in wrong:
        with pytest.raises(OptionError, match=f"AcceleratedFunction: {name} is"):
            setattr(accfun, name, value)
        assert getattr(accfun, name) == before
    for value in right:
        setattr(accfun, name, value)


def test_B1_enabled():
    counted, accfun = accelerated(lambda x: x * 2)
    accfun(dlarray(X))
    accfun.Enabled = False
    for _ in range(3):
        accfun(dlarray(X))
    assert counted.count == 4 and accfun.HitRate == 0 and accfun.Occupancy == 2  # neither looked up nor counted
    accfun.Enabled = True
    accfun(dlarray(X))
    assert counted.count == 4 and accfun.HitRate == 50


def test_B1_the_oldest_trace_goes_first():
    counted, accfun = accelerated(lambda x, k: x * k)
    accfun.CacheSize = 3
    for k in (1, 2, 3, 1, 1, 4):  # 4 drives out 1: oldest, though used last
        accfun(dlarray(X), k)
    assert counted.count == 4 and accfun.Occupancy == 100
    for k in (2, 3, 4):
        accfun(dlarray(X), k)
    assert counted.count == 4
    accfun(dlarray(X), 1)  # drives out 2
    accfun(dlarray(X), 2)  # drives out 3
    accfun(dlarray(X), 4)
    assert counted.count == 6
    accfun.CacheSize = 1
    assert accfun.Occupancy == 100
    accfun(dlarray(X), 2)
    assert counted.count == 6
    accfun.CacheSize = 10
    assert accfun.Occupancy == 10


def test_B1_clear_cache():
    for clear in (m.clearCache, lambda accfun: accfun.clearCache()):
        counted, accfun = accelerated(lambda x: x * 2)
        accfun.CheckTolerance = 0.5
        for _ in range(3):
            accfun(dlarray(X))
        assert clear(accfun) is None
        assert (accfun.HitRate, accfun.Occupancy, accfun.CheckTolerance) == (0, 0, 0.5)
        accfun(dlarray(X))
        assert counted.count == 2 and accfun.HitRate == 0


def test_what_cannot_be_kept_takes_no_place():
    _, accfun = accelerated(lambda x, k: x * float(x) * k)
    accfun.CacheSize = 2
    for k in range(100):
        quietly(accfun, dlarray(1.0), k)
    assert accfun.Occupancy == 0 and len(accfun._cache.traces) <= 40


@pytest.mark.only_on("cpu")
# B5: memory ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("drop", ["clearCache", "eviction", "the object"])
def test_B5_memory_comes_back(drop):
    _, accfun = accelerated(lambda x, k: m.cumsum(m.exp(x), 0) * k)
    accfun.CacheSize = 1
    for _ in range(2):
        accfun(dlarray(np.ones((100, 10))), 1)
    arena = weakref.ref(accfun.trace().program._arena)
    trace = weakref.ref(accfun.trace())
    gc.disable()  # no cycles: memory must not wait for the collector
    try:
        if drop == "clearCache":
            accfun.clearCache()
        elif drop == "eviction":
            accfun(dlarray(np.ones((100, 10))), 2)
        else:
            del accfun
        assert arena() is None and trace() is None
    finally:
        gc.enable()


def test_B5_a_recording_keeps_no_numbers_of_its_call():
    kept = []

    def function(x):
        y = m.exp(x)
        kept.append(weakref.ref(y._value))
        z = m.cumsum(y, 0)
        kept.append(weakref.ref(z._value))
        return z * 2

    accfun = dlaccelerate(function)
    result = quietly(accfun, dlarray(X))
    gc.collect()
    assert [ref() for ref in kept] == [None, None] and result is not None  # before any replay


# C1: faults ---------------------------------------------------------------------------------------------------------
class Fault(Exception):
    pass


def training_step(w, x):
    noise = m.rand(2, 3, like=x)
    y = m.sum(layer(x + noise, w) ** 2, "all")
    return y, m.dlgradient(y, w)


def flat(result):
    y, g = result
    return [y, g.a, g.b]


def test_C1_a_fault_at_any_op_while_recording(monkeypatch, backend):
    run, count = BACKENDS[backend].run, 0
    limit = None

    def faulty(*args):
        nonlocal count
        count += 1
        if count == limit:
            raise Fault(f"at op {count}")
        return run(*args)

    monkeypatch.setattr(BACKENDS[backend], "run", faulty)
    m.rng(4)
    expected = flat(m.dlfeval(training_step, WEIGHTS, dlarray(X)))
    total = count
    assert total > 15
    for limit in range(1, total + 1):  # noqa: B007
        accfun = dlaccelerate(training_step)
        m.rng(4)
        before, count = m.rng(), 0
        with pytest.raises(Fault):
            m.dlfeval(accfun, WEIGHTS, dlarray(X))
        assert not open_tapes() and m.rng() == before
        assert (accfun.HitRate, accfun.Occupancy, accfun._cache.calls) == (0, 0, 0)
        found = m.dlfeval(accfun, WEIGHTS, dlarray(X))
        assert_same(flat(found), expected)
        assert accfun.Occupancy == 2
    m.rng(4)
    assert_close(flat(m.dlfeval(accfun, WEIGHTS, dlarray(X))), expected, 1e-5)  # a replay


@pytest.mark.only_on("cpu")
def test_C1_a_fault_while_replaying():
    accfun = dlaccelerate(training_step)
    for _ in range(2):
        m.dlfeval(accfun, WEIGHTS, dlarray(X))
    program = accfun.trace().program
    m.rng(4)
    expected = flat(m.dlfeval(training_step, WEIGHTS, dlarray(X)))

    def faulty():
        raise Fault

    for i, step in enumerate(list(program.frames[0].steps)):
        m.rng(4)
        before = m.rng()
        program.frames[0].steps[i] = faulty
        with pytest.raises(Fault):
            m.dlfeval(accfun, WEIGHTS, dlarray(X))
        program.frames[0].steps[i] = step
        assert not open_tapes() and m.rng() == before
        assert_close(flat(m.dlfeval(accfun, WEIGHTS, dlarray(X))), expected, 1e-5)


@pytest.mark.only_on("cpu")
@pytest.mark.ill_compiler
@pytest.mark.parametrize("where", [
    "simplify", "expand", "choose_layout", "schedule", "recomputed", "winograd", "plan_phases", "NativeProgram",
])  # fmt: skip
def test_C1_a_fault_while_compiling(monkeypatch, where):
    def faulty(*args, **kwargs):
        raise Fault("the compiler is ill")

    counted, accfun = accelerated(lambda x: m.exp(x) * 2)
    accfun(dlarray(X))
    with monkeypatch.context() as patch:
        patch.setattr(f"minidl.engine.compile.{where}", faulty)
        with pytest.warns(TraceWarning, match="not be compiled .Fault at .*compiler is ill.*call by call") as told:
            assert_same(accfun(dlarray(X * 2)), m.exp(dlarray(X * 2)) * 2)
    assert_same(accfun(dlarray(X * 3)), m.exp(dlarray(X * 3)) * 2)  # for good, without a further word
    assert len(told) == 1 and counted.count == 1 and accfun.HitRate == pytest.approx(200 / 3)
    state = accfun.explain().traces[0].state
    assert re.fullmatch(r"failed: Fault at test_replay.py:\d+: the compiler is ill", state)
    assert state in str(accfun.explain())
    accfun.clearCache()
    for _ in range(2):
        accfun(dlarray(X))
    assert counted.count == 2 and accfun.HitRate == 50 and accfun.explain().traces[0].state == "compiled"


@pytest.mark.only_on("cpu")
@pytest.mark.ill_compiler
@pytest.mark.parametrize("numerics", MODES)
def test_C1_no_program_at_all(monkeypatch, numerics):
    def faulty(*args, **kwargs):
        raise Fault("the compiler is ill")

    counted, accfun = accelerated(lambda x: m.exp(x) * 2, Numerics=numerics)
    accfun(dlarray(X))
    assert accfun.explain().traces[0].state == "not yet"
    with monkeypatch.context() as patch:
        patch.setattr("minidl.engine.compile.drop_unused", faulty)
        with pytest.warns(TraceWarning, match="could not be compiled .Fault at .*the compiler is ill.*runs instead"):
            assert_same(accfun(dlarray(X * 2)), m.exp(dlarray(X * 2)) * 2)
    assert_same(accfun(dlarray(X * 3)), m.exp(dlarray(X * 3)) * 2)  # given up for good, without a word
    assert accfun.HitRate == 0 and accfun.Occupancy == 0
    assert "could not be compiled: Fault at test_replay.py" in str(accfun.explain())


def test_C1_an_error_of_the_function_is_the_same_as_without():
    def function(x, y):
        return m.exp(x) + y

    counted, accfun = accelerated(function)
    for _ in range(2):
        with pytest.raises(m.ShapeError, match="sizes do not fit"):
            accfun(dlarray(X), dlarray(X.T))
    assert accfun.Occupancy == 0 and accfun.HitRate == 0
    assert_same(accfun(dlarray(X), dlarray(X)), function(dlarray(X), dlarray(X)))


# C2, C3: threads, nesting -------------------------------------------------------------------------------------------
def test_C2_many_threads_call_one_function():
    counted, accfun = accelerated(lambda x: (m.cumsum(m.exp(x), 0), m.sum(x, "all")))
    wrong = []

    def work(k):
        for i in range(20):
            x = np.full((200 + i % 3, 40), k / 10)
            y, z = accfun(dlarray(x))
            if not (np.allclose(y, np.cumsum(np.exp(x), 0)) and np.allclose(z, x.sum())):
                wrong.append((k, i))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and counted.count <= 18 and accfun.Occupancy == 6 and accfun._cache.calls == 120


def test_C3_nested_and_recursive_functions_become_part_of_the_outer_one():
    inner_counted, inner = accelerated(lambda x: m.exp(x) * 2)

    @dlaccelerate
    def recursive(x, depth):
        return x if depth == 0 else recursive(x * 1.5, depth - 1) + inner(x)

    def plain(x, depth):
        return x if depth == 0 else plain(x * 1.5, depth - 1) + m.exp(x) * 2

    outer_counted, outer = accelerated(lambda x: inner(recursive(x, 3)) + inner(x))
    for k in range(3):
        x = dlarray(X + k)
        assert_close(outer(x), m.exp(plain(x, 3)) * 2 + m.exp(x) * 2, 1e-5)
        assert_close(recursive(x, 2), plain(x, 2), 1e-5)
    assert outer_counted.count == 1 and inner.HitRate == 0 and inner.Occupancy == 0
    assert recursive.HitRate == pytest.approx(200 / 3)
    inner(dlarray(X))
    assert inner.Occupancy == 2


def test_C3_one_accelerated_function_after_the_other():
    first, second = dlaccelerate(lambda x: x * 2), dlaccelerate(lambda x: m.sum(x * x, "all"))
    for k in range(3):
        x = dlarray(X + k)
        y, g = m.dlfeval(lambda x: (y := second(first(x)), m.dlgradient(y, x)), x)
        assert_close([y, g], [m.sum(4 * x * x, "all"), 8 * x], 1e-5)


# C6: travelling -----------------------------------------------------------------------------------------------------
@dlaccelerate
def decorated(x):
    return x * 2


class WithMethod:
    @dlaccelerate
    def method(self, x):
        return x * 2


def test_C6_pickling_and_copying():
    accfun = dlaccelerate(named_function, Numerics="exact", Strict=True)
    accfun.CacheSize, accfun.CheckMode, accfun.CheckTolerance, accfun.Enabled = 7, "tolerance", 0.25, True
    for _ in range(2):
        accfun(dlarray(X))
    for other in (pickle.loads(pickle.dumps(accfun)), copy.copy(accfun), copy.deepcopy(accfun)):
        assert other is not accfun and other.Function is named_function
        assert (other.CacheSize, other.CheckMode, other.CheckTolerance, other.Strict) == (7, "tolerance", 0.25, True)
        assert (other.HitRate, other.Occupancy) == (0, 0)  # the function travels, traces do not
        assert_same(other(dlarray(X)), dlarray(X))
    assert accfun.Occupancy == pytest.approx(100 / 7)


def test_C6_decorated_functions_travel_by_name():
    assert pickle.loads(pickle.dumps(decorated)) is decorated
    assert pickle.loads(pickle.dumps(WithMethod.method)) is WithMethod.method
    other = copy.copy(decorated)
    assert other is not decorated and other(dlarray(2.0)).item() == 4.0


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork on Windows")
def test_C6_a_forked_child_calls_on():
    import multiprocessing

    accfun = dlaccelerate(lambda x: m.sum(m.exp(x), "all"))
    x = dlarray(np.zeros((300, 300)))
    expected = [accfun(x).item() for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
        queue = multiprocessing.get_context("fork").SimpleQueue()
        child = multiprocessing.get_context("fork").Process(target=lambda: queue.put(accfun(x).item()))
        child.start()
    child.join(60)
    assert child.exitcode == 0 and queue.get() == expected[1] == 90_000.0


# D1: checking -------------------------------------------------------------------------------------------------------
def test_D1_outputs_are_compared_with_the_plain_functions():
    factor = Hidden("factor", default=2.0)

    def function(x):
        y = m.exp(x) * 0.5
        z = y * factor.get()
        return {"first": y, "second": z}

    counted, accfun = accelerated(function)
    accfun.CheckMode = "tolerance"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for k in range(3):
            accfun(dlarray(X + k))
    assert counted.count == 3 and accfun.HitRate == pytest.approx(200 / 3)
    factor.set(2.5)
    with pytest.warns(AccelerationWarning) as caught:
        found = accfun(dlarray(X * 0))
    text = str(caught[0].message)
    assert text.startswith("Accelerated outputs differ from underlying function outputs.")
    assert "second differs by up to 0.2 (CheckTolerance 0.0001)" in text
    assert re.search(r"a constant of times at \S+test_replay\.py:\d+ has another value now", text)
    assert found["second"].tolist() == (X * 0 + 1).tolist()  # the accelerated outputs are returned
    accfun.CheckTolerance = 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        accfun(dlarray(X * 0))


CHANGES = {
    "another op": (lambda x, k: m.exp(x) if k == 0 else m.sin(x), "The output differs.*instead of exp .* has sin at"),
    "one op more": (lambda x, k: m.exp(x) if k == 0 else m.exp(x) * 2, ".*only the function goes on to times at"),
    "one op less": (lambda x, k: m.exp(x) * 2 if k == 0 else m.exp(x), ".*only the trace goes on to times at"),
    "another option": (lambda x, k: m.sum(x, int(k > 0)), r".*reduce_sum at .* has .*\(1,\).* instead of .*\(0,\)"),
    "another structure": (lambda x, k: [x] if k == 0 else [x, x], "The structure differs"),
    "another number": (lambda x, k: [x, k], r"\[1\] differs by up to inf"),
    "another array": (lambda x, k: [x, np.full(2, k)], r"\[1\] differs by up to inf"),
    "logical": (lambda x, k: x > k, ".*differs by up to inf.*a constant of gt at"),
    "labels": (lambda x, k: dlarray(x, "CB") if k == 0 else dlarray(x, "SB"), "The output differs by up to inf"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_D1_what_may_have_changed(name):
    function, pattern = CHANGES[name]
    k = Hidden("k", default=0)
    accfun = dlaccelerate(lambda x: function(x, k.get()))
    accfun.CheckMode = "tolerance"
    for _ in range(2):
        accfun(dlarray(X))
    k.set(3)
    with pytest.warns(AccelerationWarning, match="(?s)underlying function outputs. " + pattern):
        accfun(dlarray(X))


def test_D1_random_numbers_are_no_difference():
    accfun = dlaccelerate(draws)
    accfun.CheckMode = "tolerance"
    m.rng(3)
    expected = [draws(dlarray(X)) for _ in range(3)]
    after = m.rng(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [accfun(dlarray(X)) for _ in range(3)]
    assert m.rng() == after
    for a, b in zip(found, expected):
        assert_same(a, b)


def test_D1_gradients_and_nan():
    def loss(w, x):
        y = m.sum(m.log(layer(x, w)), "all")  # NaN
        return y, m.dlgradient(y, w)

    accfun = dlaccelerate(loss)
    accfun.CheckMode = "tolerance"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for k in range(3):
            y, _ = m.dlfeval(accfun, WEIGHTS, dlarray(X + k))
            assert np.isnan(y.item())


@pytest.mark.only_on("cpu")
# D3: seeing ---------------------------------------------------------------------------------------------------------
def test_D3_a_trace_reads_line_by_line():
    def loss(w, x):
        y = layer(x, w)
        return m.mean(y * y, "all"), y

    accfun = dlaccelerate(loss)
    with pytest.raises(OptionError, match="there are 0 traces"):
        accfun.trace()
    accfun(struct(a=WEIGHTS.a, b=WEIGHTS.b), dlarray(X))
    accfun(struct(a=WEIGHTS.a, b=WEIGHTS.b), dlarray(X))
    text = str(accfun.trace())
    head, graph, plan = text.split("\n\n")
    assert head.splitlines()[0] == "trace of loss (fast), hits: 1"
    assert "argument v0: 3×2 single, 24 bytes" in head and head.count("argument") == 3 and head.count("result") == 2
    assert plan.startswith("arena ") and "bytes" in plan
    calls = [line for line in graph.splitlines() if " = " in line and "input" not in line and "constant" not in line]
    assert all("test_replay.py:" in line and "single" in line for line in calls)
    assert any("matmul" in line and "kernel" in line for line in calls)
    assert "phase 1" in plan and "FLOP" in plan
    assert all("test_replay.py:" in line for line in plan.splitlines() if "<-" in line)
    labelled = dlaccelerate(lambda x: m.sum(x, "C"))
    labelled(dlarray(X, "CB"))
    assert "argument v0: 2(C) × 3(B) single" in str(labelled.trace()) and "1(C) × 3(B)" in str(labelled.trace(0))
    with pytest.raises(OptionError, match="there are 1 traces, index 5"):
        labelled.trace(5)


# a whole training -----------------------------------------------------------------------------------------------------
def test_a_training_with_and_without_acceleration():
    random = np.random.default_rng(0)
    data, targets = random.normal(size=(8, 40)), random.normal(size=(2, 40))

    def loss(w, x, t):
        y = m.fullyconnect(m.relu(m.fullyconnect(x, w.a, w.b)), w.c, w.d)
        value = m.mse(y, t)
        return value, m.dlgradient(value, w)

    def train(function):
        r = np.random.default_rng(1)
        w = struct(a=dlarray(r.normal(size=(5, 8)) * 0.3), b=dlarray(np.zeros((5, 1))),
                   c=dlarray(r.normal(size=(2, 5)) * 0.3), d=dlarray(np.zeros((2, 1))))  # fmt: skip
        average, square, losses = [], [], []
        for k in range(1, 31):
            columns = r.permutation(40)[:10]
            x, t = dlarray(data[:, columns], "CB"), dlarray(targets[:, columns], "CB")
            value, g = m.dlfeval(function, w, x, t)
            w, average, square = m.adamupdate(w, g, average, square, k)
            losses.append(value.item())
        return losses

    accfun = dlaccelerate(loss)
    np.testing.assert_allclose(train(accfun), train(loss), rtol=1e-9)
    assert accfun.HitRate == pytest.approx(100 * 29 / 30)


def test_types_that_are_no_dlarray_are_untouched():
    accfun = dlaccelerate(lambda a, b: a + b)
    assert accfun(1, 2) == 3 and accfun(1, 2) == 3 and accfun("a", "b") == "ab"
    assert accfun(np.ones(2), 1).tolist() == [2, 2]
    assert isinstance(accfun(dlarray(1.0), 2), DLArray)
