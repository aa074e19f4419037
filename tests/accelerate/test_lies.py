"""Traps for replays: what a function returns, asks, is given and reaches, of kinds that a recording could freeze.

Each is called several times, plain and accelerated, while the world changes: the results are equal. Either the call is
replayed, or it is not and a TraceWarning says so.
"""

from __future__ import annotations

import array
import asyncio
import builtins
import collections
import concurrent.futures
import contextvars
import ctypes
import dataclasses
import datetime
import decimal
import functools
import importlib
import inspect
import itertools
import math
import operator
import os
import pathlib
import random
import resource
import secrets
import string
import subprocess
import sys
import threading
import time
import types
import uuid
import warnings
import weakref

import numpy as np
import pandas
import pytest
import scipy.sparse
import scipy.stats

import minidl as m
from accelerate.hidden import Hidden
from minidl import TraceError, TraceWarning, dlaccelerate, dlarray, dlfeval, dlgradient, struct

pytestmark = pytest.mark.only_on("cpu")
TWO = np.float64([1.0, 2.0])


def seen(x):
    """What there is to see of a result, as data."""
    if isinstance(x, m.DLArray):
        return "dlarray", x.dims(), x.tolist()
    if isinstance(x, dict):
        return type(x), [(key, type(key), seen(y)) for key, y in x.items()], seen(vars(x)) if has_more(x) else None
    if isinstance(x, (list, tuple)):
        return type(x), [seen(y) for y in x], seen(vars(x)) if has_more(x) else None
    if isinstance(x, np.ndarray):
        return type(x), x.dtype, x.tolist()
    return type(x), x


def has_more(x):
    return type(x) not in (dict, struct) and hasattr(x, "__dict__")


def compare(function, calls, change=lambda k: None, look=seen):
    """Call the plain and the accelerated function by turns; (hits, messages). calls: functions that make arguments."""
    accfun = dlaccelerate(function)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TraceWarning)
        for k, arguments in enumerate(calls):
            change(k)
            wanted = look(function(*arguments()))
            assert look(accfun(*arguments())) == wanted, f"call {k}"
    return accfun._cache.hits, [str(x.message) for x in caught if x.category is TraceWarning]


def numbers(*values):
    return [lambda v=v: (dlarray(float(v)),) for v in values]


def is_never_replayed(function, match, calls=3, argument=1.0):
    accfun = dlaccelerate(function)
    with pytest.warns(TraceWarning, match=match):
        for _ in range(calls):
            accfun(dlarray(argument))
    assert accfun._cache.hits == 0
    with pytest.raises(TraceError, match=match):
        dlaccelerate(function, Strict=True)(dlarray(argument))


# R1: results ----------------------------------------------------------------------------------------------------
class Out:
    def __init__(self, y):
        self.y = y


class Tagged(dict):
    pass


class TaggedList(list):
    pass


class Pair(tuple):
    def __new__(cls, a, b):
        return tuple.__new__(cls, (a, b))


Named = collections.namedtuple("Named", "a b")


class MoreNamed(Named):
    pass


def tagged(new, **more):
    vars(new).update(more)
    return new


def later(x):
    async def run():
        return x * 2

    return run()


def remembering(x, kept=None):
    return lambda: x * 2


def iterated(x):
    yield x
    yield x * 2


FOREIGN = {
    "object": (lambda x: Out(x * 2), lambda r: seen(r.y)),
    "namespace": (lambda x: types.SimpleNamespace(y=x * 2), lambda r: seen(r.y)),
    "closure": (remembering, lambda r: seen(r())),
    "partial": (lambda x: functools.partial(m.plus if hasattr(m, "plus") else operator.add, x), lambda r: seen(r(1.0))),
    "method": (lambda x: (x * 2).tolist, lambda r: r()),
    "deque": (lambda x: collections.deque([x * 2]), lambda r: seen(r[0])),
    "UserDict": (lambda x: collections.UserDict(y=x * 2), lambda r: seen(r["y"])),
    "UserList": (lambda x: collections.UserList([x * 2]), lambda r: seen(r[0])),
    "ChainMap": (lambda x: collections.ChainMap({"y": x * 2}), lambda r: seen(r["y"])),
    "generator": (lambda x: (x * k for k in range(2)), lambda r: [seen(y) for y in r]),
    "generator function": (iterated, lambda r: [seen(y) for y in r]),
    "map": (lambda x: map(lambda k: x * k, [1, 2]), lambda r: [seen(y) for y in r]),
    "zip": (lambda x: zip([x], [x * 2]), lambda r: [seen(y) for y in r]),
    "iterator": (lambda x: iter([x, x * 2]), lambda r: [seen(y) for y in r]),
    "plain iterator": (lambda x: (x, iter([1, 2])), lambda r: list(r[1])),
    "coroutine": (later, lambda r: seen(asyncio.run(r))),
    "object array": (lambda x: (x, np.array([Out(x)], object)), lambda r: seen(r[1][0].y)),
    "inside": (lambda x: {"a": [x, Out(x)]}, lambda r: seen(r["a"][1].y)),
    "an object as key": (lambda x: {Out: x, (1, Out(2)): x}, lambda r: len(r)),
    "mutable": (lambda x: (x, Out(1)), lambda r: setattr(r[1], "y", r[1].y + 1) or r[1].y),
    "class": (lambda x: type("Made", (), {"y": x}), lambda r: seen(r.y)),
    "MappingProxyType": (lambda x: types.MappingProxyType({"y": x}), lambda r: seen(r["y"])),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_R1_results_that_are_no_trees_are_never_frozen(name):
    function, look = FOREIGN[name]
    hits, told = compare(function, numbers(1, 2, 3, 3), look=look)
    assert hits == 0 and any("which a replay could not make again" in text for text in told)
    if name != "coroutine":  # it would never be awaited
        with pytest.raises(TraceError, match="which a replay could not make again"):
            dlaccelerate(function, Strict=True)(dlarray(1.0))


def made_defaultdict(x):
    found = collections.defaultdict(list)
    found["a"] = x
    return found


TREES = {
    "dict with attributes": lambda x: tagged(Tagged(a=x), tag=x * 3, name="n"),
    "list with attributes": lambda x: tagged(TaggedList([x, 1]), tag=x * 3),
    "tuple with attributes": lambda x: tagged(Pair(x, x * 2), tag=x * 3),
    "namedtuple with attributes": lambda x: tagged(MoreNamed(x, x * 2), tag=x * 3),
    "defaultdict": made_defaultdict,
    "OrderedDict": lambda x: collections.OrderedDict(b=x, a=x * 2),
    "Counter": lambda x: (x, collections.Counter("aab")),
    "keys of several types": lambda x: ({1: x}, {True: x}, {1.0: x}),
    "set": lambda x: (x, {1, 2}, frozenset([3])),
    "deque of numbers": lambda x: (x, list(collections.deque([1, 2], maxlen=2))),
    "arrays": lambda x: (x, np.arange(3), np.float32(2), bytearray(b"12")),
    "plain": lambda x: (x, 1, 2.5, "t", b"b", None, 1j, True, ..., range(3), slice(1), datetime.date(2020, 1, 1)),
    "values": lambda x: (x, decimal.Decimal("1.50"), pathlib.Path("a"), np.dtype("f4"), math.sqrt, len, Out, np),
}


@pytest.mark.parametrize("name", TREES)
def test_R1_trees_and_plain_data_are_replayed(name):
    hits, told = compare(TREES[name], numbers(1, 2, 3, 3))
    assert hits == 3 and not told


def test_R1_results_are_independent_and_share_what_the_function_shares():
    table = np.arange(3.0)
    accfun = dlaccelerate(lambda x: {"x": x, "list": [1, 2], "array": table, "set": {1}})
    for k in range(3):
        found = accfun(dlarray(float(k)))
        assert found["list"] == [1, 2] and found["array"].tolist() == [0, 1, 2] and found["set"] == {1}
        found["list"].append(3)
        found["array"][0] = 9
        found["set"].add(2)

    def twice(x):
        y, both = x * 2, [1]
        return y, y, both, both

    accfun = dlaccelerate(twice)
    for k in range(3):
        a, b, c, d = accfun(dlarray(float(k)))
        assert a is b and c is d and a.item() == 2 * k


THREADS = {
    "Thread": lambda x, found: run_in_thread(lambda: found.append(x * 2)) or found[0],
    "result": lambda x, found: POOL.submit(lambda: x * 2).result(),
    "map": lambda x, found: list(POOL.map(lambda k: x * k, [2.0]))[0],
}
POOL = concurrent.futures.ThreadPoolExecutor(1)


def run_in_thread(work):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


@pytest.mark.parametrize("name", THREADS)
def test_R1_what_other_threads_compute_is_never_frozen(name):
    hits, told = compare(lambda x: THREADS[name](x, []), numbers(1, 2, 3))
    assert hits == 0 and any("has another thread work for it" in text for text in told)


class Model:
    def step(self, x):
        return x * 2, self


def test_R1_an_object_that_the_signature_names_is_given_back():
    model = Out(2.0)
    accfun = dlaccelerate(lambda x, other: (x * model.y, model, other))
    for k in range(3):
        found = accfun(dlarray(float(k)), model)
        assert found[1] is model and found[2] is model
    assert accfun._cache.hits == 2
    assert compare(Model().step, numbers(1, 2, 3), look=lambda r: (seen(r[0]), id(r[1]))) == (2, [])


# R2: texts ------------------------------------------------------------------------------------------------------
TEXTS = {
    "f-string": lambda x: f"{x}",
    "format": lambda x: format(x),
    "str": str,
    "repr": repr,
    "percent": lambda x: "%s" % x,  # noqa: UP031
    "in a list": lambda x: str([x]),
    "in a struct": lambda x: repr(struct(x=x)),
    "steers": lambda x: x * len(f"{x}".split()[-1]),
}


@pytest.mark.parametrize("name", TEXTS)
def test_R2_the_text_of_a_traced_number_is_a_look(name):
    hits, told = compare(lambda x: TEXTS[name](x), numbers(1, 2.25, 3))
    assert hits == 0 and any("looks at a traced number" in text for text in told)


def test_R2_texts_of_other_things_are_none():
    rate, w = 0.5, dlarray(2.0)

    def function(x):
        return x * w * len(f"{rate:.2f} {x.shape} {x.dims()} {x.dtype} {[1, 2]}")

    assert compare(function, numbers(1, 2, 3)) == (2, [])


# R3: chance, clocks, the world outside ---------------------------------------------------------------------------
CHANCE = {
    "default_rng": lambda: np.random.default_rng().normal(),
    "RandomState": lambda: np.random.RandomState().normal(),
    "RandomState(None)": lambda: np.random.RandomState(None).normal(),
    "PCG64": lambda: np.random.Generator(np.random.PCG64()).normal(),
    "MT19937": lambda: np.random.Generator(np.random.MT19937()).normal(),
    "Random": lambda: random.Random().random(),
    "SystemRandom": lambda: random.SystemRandom().random(),
    "secrets": lambda: secrets.randbelow(10**6),
    "token": lambda: secrets.token_bytes(2)[0],
    "uuid1": lambda: uuid.uuid1().int % 997,
    "uuid4": lambda: uuid.uuid4().int % 997,
    "SeedSequence": lambda: np.random.SeedSequence().entropy % 997,
    "spawn": lambda: np.random.default_rng(np.random.SeedSequence().spawn(1)[0]).normal(),
    "urandom": lambda: os.urandom(1)[0],
    "scipy": lambda: scipy.stats.norm.rvs(random_state=np.random.default_rng()),
}
SEEDED = {
    "default_rng": lambda: np.random.default_rng(5).normal(),
    "RandomState": lambda: np.random.RandomState(5).normal(),
    "Random": lambda: random.Random(5).random(),
    "scipy": lambda: scipy.stats.norm.rvs(random_state=7),
}


@pytest.mark.parametrize("name", CHANCE)
def test_R3_chance_of_the_system_is_never_frozen(name):
    is_never_replayed(lambda x: x * 0 + CHANCE[name](), "random numbers of the operating system")


@pytest.mark.parametrize("name", SEEDED)
def test_R3_what_is_seeded_is_replayed(name):
    hits, told = compare(lambda x: x + SEEDED[name](), numbers(1, 2, 3))
    assert hits == 2 and not told


class Subclass(random.Random):
    pass


def generators():
    normal = scipy.stats.norm(0, 1)
    normal.random_state = np.random.default_rng(1)
    generator, state, bits = np.random.default_rng(0), np.random.RandomState(0), np.random.PCG64(0)
    sequence, own, sobol = np.random.SeedSequence(3), Subclass(1), scipy.stats.qmc.Sobol(1, rng=1)
    return {
        "Generator": lambda: generator.normal(),
        "RandomState": lambda: state.normal(),
        "BitGenerator": lambda: bits.random_raw() % 997,
        "SeedSequence": lambda: int(sequence.spawn(1)[0].generate_state(1)[0]) % 997,
        "subclass of Random": lambda: own.random(),
        "scipy's frozen": lambda: normal.rvs(),
        "scipy's Sobol": lambda: sobol.random(1)[0, 0],
    }


@pytest.mark.parametrize("name", generators())
def test_R3_captured_generators_go_on(name):
    draw = generators()[name]
    accfun = dlaccelerate(lambda x: x * 0 + draw())
    with pytest.warns(TraceWarning, match="random numbers were drawn|reads sobol and changes it"):
        found = [accfun(dlarray(0.0)).item() for _ in range(4)]
    again = generators()[name]
    assert found == [again() for _ in range(4)]


def test_R3_generators_of_torch(monkeypatch):
    torch = types.ModuleType("torch")
    torch.state = np.zeros(2)
    torch.get_rng_state = lambda: types.SimpleNamespace(numpy=lambda: torch.state)
    monkeypatch.setitem(sys.modules, "torch", torch)

    class Rand(Hidden):
        __module__ = "queue"

        def get(self):
            torch.state = torch.state + 1
            return torch.state[0]

    draw = Rand("rand")
    accfun = dlaccelerate(lambda x: x * 0 + draw.get())
    with pytest.warns(TraceWarning, match="random numbers were drawn"):
        assert [accfun(dlarray(0.0)).item() for _ in range(3)] == [1, 2, 3]


CLOCKS = {
    "time": lambda: time.time(),
    "monotonic_ns": lambda: time.monotonic_ns(),
    "process_time": lambda: time.process_time(),
    "thread_time": lambda: time.thread_time(),
    "thread_time_ns": lambda: time.thread_time_ns(),
    "clock_gettime": lambda: time.clock_gettime(0),
    "gmtime": lambda: time.gmtime().tm_sec,
    "strftime": lambda: float(time.strftime("%S")),
    "now": lambda: datetime.datetime.now(datetime.timezone.utc).second,
    "today": lambda: datetime.date.today().day,
    "os.times": lambda: os.times()[0],
    "getrusage": lambda: resource.getrusage(0)[0],
    "getpid": lambda: os.getpid(),
    "get_ident": lambda: threading.get_ident() % 997,
    "current_thread": lambda: len(threading.current_thread().name),
}


@pytest.mark.parametrize("name", CLOCKS)
def test_R3_clocks_and_whoever_asks_are_never_frozen(name):
    is_never_replayed(lambda x: x * 0 + CLOCKS[name](), "which says something else each time")


@pytest.fixture
def files(tmp_path):
    (tmp_path / "number.txt").write_text("3")
    np.save(tmp_path / "array.npy", TWO)
    TWO.tofile(tmp_path / "array.bin")
    return tmp_path


def first_line(path):
    with open(path) as file:
        for line in file:
            return float(line)


def written(path):
    with open(path, "w") as file:
        file.write("x")
    return 1.0


OUTSIDE = {
    "environ": lambda files: len(os.environ["PATH"]),
    "getenv": lambda files: len(os.getenv("NOT_THERE_AT_ALL", "")),
    "in environ": lambda files: float("NOT_THERE_AT_ALL" in os.environ),
    "open": lambda files: first_line(files / "number.txt"),
    "read_text": lambda files: float((files / "number.txt").read_text()),
    "read_bytes": lambda files: float((files / "number.txt").read_bytes()),
    "load": lambda files: np.load(files / "array.npy")[0],
    "fromfile": lambda files: np.fromfile(files / "array.bin")[0],
    "exists": lambda files: float(os.path.exists(files / "number.txt")),
    "listdir": lambda files: len(os.listdir(files)),
    "subprocess": lambda files: len(subprocess.check_output(["echo"])),
}
INSIDE = {
    "open to write": lambda files: written(files / "log.txt"),
    "write_text": lambda files: (files / "log.txt").write_text("3"),
    "save": lambda files: np.save(files / "other.npy", TWO) or 1.0,
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_R3_files_and_the_environment_are_never_frozen(name, files):
    is_never_replayed(lambda x: x * OUTSIDE[name](files), "something outside of the program")


@pytest.mark.parametrize("name", INSIDE)
def test_R3_writing_is_told_and_replayed(name, files):
    hits, told = compare(lambda x: x * INSIDE[name](files), numbers(1, 2, 3))
    assert hits == 2 and len(told) == 1 and "that will not repeat on replay" in told[0]


def test_R3_what_libraries_do_for_themselves_is_no_source():
    def function(x):
        import colorsys  # noqa: PLC0415

        kind = collections.namedtuple("kind", "a b")
        warnings.warn("careful", stacklevel=1)
        return x * kind(1, 2).a * colorsys.rgb_to_hsv(1, 1, 1)[2]

    assert compare(function, numbers(1, 2, 3))[1] == []


FRAMES = {
    "_getframe": lambda: sys._getframe(1).f_lineno,
    "currentframe": lambda: inspect.currentframe().f_lineno,
    "stack": lambda: len(inspect.stack(0)),
}


@pytest.mark.parametrize("name", FRAMES)
def test_R5_who_calls_is_never_frozen(name):
    is_never_replayed(lambda x: x * FRAMES[name](), "looks at who calls it|outside of the program")


# R4: arguments --------------------------------------------------------------------------------------------------
@dataclasses.dataclass
class WithInit:
    w: object
    scale: dataclasses.InitVar[float]

    def __post_init__(self, scale):
        self.factor = scale


@dataclasses.dataclass
class Late:
    w: object
    late: float = dataclasses.field(init=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Slots:
    w: object
    factor: float = 3.0


@dataclasses.dataclass
class Child:
    w: object


@dataclasses.dataclass
class Parent:
    children: list

    def __post_init__(self):
        for child in self.children:
            child.parent = self


class Careful(dict):
    def __setitem__(self, key, value):
        raise AssertionError("code of the user's")

    def __iter__(self):
        raise AssertionError("code of the user's")


def careful(w):
    found = Careful()
    dict.update(found, w=w)
    return found


def ordered(*names):
    found = collections.OrderedDict((name, dlarray(float(k))) for k, name in enumerate("ab"))
    for name in names:
        found.move_to_end(name)
    return found


W = 2.0
ARGUMENTS = {
    "dict with attributes": (lambda p: p["w"] * p.rate, lambda k: tagged(Tagged(w=dlarray(W)), rate=k)),
    "dlarrays as attributes": (lambda p: p["w"] * p.rate, lambda k: tagged(Tagged(w=dlarray(W)), rate=dlarray(k))),
    "tuple with attributes": (lambda p: p[0] * p.rate, lambda k: tagged(Pair(dlarray(W), 1.0), rate=k)),
    "namedtuple with attributes": (lambda p: p.a * p.rate, lambda k: tagged(MoreNamed(dlarray(W), 1.0), rate=k)),
    "list with attributes": (lambda p: p[0] * p.rate, lambda k: tagged(TaggedList([dlarray(W)]), rate=k)),
    "InitVar": (lambda p: p.w * p.factor, lambda k: WithInit(dlarray(W), k)),
    "field that is not there": (lambda p: p.w * hasattr(p, "late"), lambda k: Late(dlarray(W))),
    "other attribute": (lambda p: p.w * p.other, lambda k: tagged(Child(dlarray(W)), other=k)),
    "frozen with slots": (lambda p: p.w * p.factor, lambda k: Slots(dlarray(W), k)),
    "ring": (lambda p: p.children[0].w * len(p.children[0].parent.children), lambda k: Parent([Child(dlarray(W))])),
    "defaultdict": (lambda p: p["w"] + p["new"], lambda k: collections.defaultdict(float, w=dlarray(k))),
    "Counter": (lambda p: p["w"] * p["none"], lambda k: collections.Counter(w=dlarray(k))),
    "OrderedDict": (lambda p: list(p.values())[0] * 1, lambda k: ordered("a" if k > 2 else "b")),
    "ChainMap": (lambda p: p["w"] * p["k"], lambda k: collections.ChainMap({"w": dlarray(W)}, {"k": k})),
    "overridden methods": (lambda p: dict.__getitem__(p, "w") * 1, lambda k: careful(dlarray(k))),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_R4_arguments_arrive_whole(name):
    function, make = ARGUMENTS[name]
    hits, _ = compare(function, [lambda k=k: (make(k),) for k in (2.0, 2.0, 3.0, 5.0, 3.0)])
    assert hits or name in ("ring", "ChainMap")


def test_R4_in_dlfeval_too():
    def loss(p):
        return dlgradient(p["w"] * p.rate * p.rate, p.rate)

    for function in (loss, dlaccelerate(loss)):
        for k in (2.0, 3.0, 4.0):
            assert dlfeval(function, tagged(Tagged(w=dlarray(W)), rate=dlarray(k))).item() == 4 * k
    made = dlfeval(lambda p: p, collections.defaultdict(list, a=1))
    assert made["new"] == [] and made == {"a": 1, "new": []}


# R5: places -----------------------------------------------------------------------------------------------------
RATE, R_A = 2.0, 2.0
KEPT = []
MODULE = types.ModuleType("trap_module")


class Config:
    rate = 2.0


def set_global(name, value):
    globals()[name] = value


def places():
    c, name, text = Config(), "_A", "RATE"
    first, second = Config(), Config()
    first.rate, second.rate = 2.0, 5.0
    values, keys, members = weakref.WeakValueDictionary(a=first), weakref.WeakKeyDictionary(), weakref.WeakSet([first])
    keys[first] = 2.0
    KEPT[:] = [first]
    kept = [Config()]
    reference = weakref.ref(kept[0])
    context, local, template = contextvars.ContextVar("context"), threading.local(), "{0.rate}"
    context.set(2.0)
    local.rate = 2.0
    table = {"rate": 2.0}
    view, getter, integer = table.values(), operator.attrgetter("rate"), ctypes.c_int(2)
    frame, sparse = pandas.DataFrame({"a": [2.0]}), scipy.sparse.csr_matrix(np.eye(2) * 2)
    frozen = np.float64([2.0, 3.0])
    look = frozen[:]
    look.flags.writeable = False

    def helper(x):
        return x * 2

    def other(x):
        return x * 3

    def default(x, k=2.0):
        return x * k

    def thaw():
        frozen[0] = 5.0

    def executed(x):
        space = {}
        exec("y = RA" + "TE", globals(), space)
        return x * space["y"]

    return {
        "globals by a made name": (lambda x: x * globals()["R" + name], lambda: set_global("R_A", 5.0)),
        "globals by a name": (lambda x: x * globals()["R_A"], lambda: set_global("R_A", 6.0)),
        "vars of a module": (lambda x: x * vars(MODULE)["ra" + "te"[:2]], lambda: setattr(MODULE, "rate", 5.0)),
        "eval of a made text": (lambda x: x * eval(text[:2] + "TE"), lambda: set_global("RATE", 5.0)),
        "eval of a text": (lambda x: x * eval("RATE"), lambda: set_global("RATE", 6.0)),
        "exec": (executed, lambda: set_global("RATE", 7.0)),
        "format": (lambda x: x * float(f"{c.rate}"), lambda: setattr(c, "rate", 5.0)),
        "format of a made text": (lambda x: x * float(template.format(c)), lambda: setattr(c, "rate", 5.0)),
        "format_map": (lambda x: x * float("{c.rate}".format_map({"c": c})), lambda: setattr(c, "rate", 5.0)),
        "Formatter": (lambda x: x * float(string.Formatter().format("{0.rate}", c)), lambda: setattr(c, "rate", 5.0)),
        "attrgetter": (lambda x: x * getter(c), lambda: setattr(c, "rate", 5.0)),
        "getattr": (lambda x: x * getattr(c, "ra" + name[:0] + "te"), lambda: setattr(c, "rate", 5.0)),
        "WeakValueDictionary": (lambda x: x * values["a"].rate, lambda: values.update(a=second)),
        "WeakKeyDictionary": (lambda x: x * keys[first], lambda: keys.update({first: 5.0})),
        "WeakSet": (lambda x: x * len(members), lambda: members.add(second)),
        "a reference that dies": (lambda x: x * (1 if reference() is None else 2), kept.clear),
        "other code": (lambda x: helper(x), lambda: setattr(helper, "__code__", other.__code__)),
        "other defaults": (lambda x: default(x), lambda: setattr(default, "__defaults__", (5.0,))),
        "math is patched": (lambda x: x * math.sqrt(4.0), lambda: setattr(math, "sqrt", lambda y: 9.0)),
        "builtins are patched": (lambda x: x * round(2.2), lambda: setattr(builtins, "round", lambda y: 9.0)),
        "a builtin is hidden": (lambda x: x * abs(-2.2), lambda: set_global("abs", lambda y: 9.0)),
        "argv": (lambda x: x * len(sys.argv), lambda: setattr(sys, "argv", sys.argv + ["one more"])),
        "ContextVar": (lambda x: x * context.get(), lambda: context.set(5.0)),
        "threading.local": (lambda x: x * local.rate, lambda: setattr(local, "rate", 5.0)),
        "import_module": (
            lambda x: x * importlib.import_module("trap" + "_module"[:7]).rate, lambda: setattr(MODULE, "rate", 5.0)
        ),
        "sys.modules": (lambda x: x * sys.modules["trap_mod" + "ule"[:3]].rate, lambda: setattr(MODULE, "rate", 5.0)),
        "a view of a dict": (lambda x: x * sum(view), lambda: table.update(rate=5.0)),
        "ctypes": (lambda x: x * integer.value, lambda: setattr(integer, "value", 5)),
        "DataFrame": (lambda x: x * frame["a"][0], lambda: frame.__setitem__("a", [5.0])),
        "sparse matrix": (lambda x: x * sparse[0, 0], lambda: sparse.data.__setitem__(0, 5.0)),
        "R7 a view of an array that changes": (lambda x: x * look[0], thaw),
    }  # fmt: skip


@pytest.fixture
def world(monkeypatch):
    monkeypatch.setitem(sys.modules, "trap_module", MODULE)
    for owner, name in ((math, "sqrt"), (builtins, "round"), (sys, "argv")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    MODULE.rate = 2.0
    monkeypatch.setitem(globals(), "RATE", 2.0)
    monkeypatch.setitem(globals(), "R_A", 2.0)
    yield
    globals().pop("abs", None)


@pytest.mark.parametrize("name", places())
def test_R5_places_are_followed_or_told(name, world):
    function, change = places()[name]
    hits, told = compare(function, numbers(*[1] * 5), lambda k: change() if k == 3 else None)
    assert hits or told


def test_R5_a_cache_that_is_emptied():
    table = {"rate": 2.0}
    cached = functools.lru_cache(lambda: table["rate"])
    accfun = dlaccelerate(lambda x: x * cached())
    one = dlarray(1.0)
    assert [accfun(one).item() for _ in range(3)] == [2, 2, 2] and accfun._cache.hits == 2
    table["rate"] = 5.0
    assert accfun(one).item() == 2  # what the cache has, as without acceleration
    cached.cache_clear()
    assert [accfun(one).item() for _ in range(3)] == [5, 5, 5]


GIVEN = {
    "DataFrame": (
        lambda: pandas.DataFrame({"a": [2.0]}), lambda t: t["a"][0], lambda t: t.__setitem__("a", [5.0])
    ),
    "sparse matrix": (
        lambda: scipy.sparse.csr_matrix(np.eye(2)), lambda t: t[0, 0], lambda t: t.data.__setitem__(0, 5.0)
    ),
    "object of a library": (
        lambda: argparse_namespace(), lambda t: t.rate[0], lambda t: t.rate.__setitem__(0, 5.0)
    ),
    "OrderedDict": (
        lambda: collections.OrderedDict(a=2.0), lambda t: t["a"], lambda t: t.update(a=5.0)
    ),
    "UserDict": (lambda: collections.UserDict(a=2.0), lambda t: t["a"], lambda t: t.update(a=5.0)),
    "memoryview": (lambda: memoryview(bytearray(b"12")), lambda t: t[0], lambda t: t.__setitem__(0, 5)),
}  # fmt: skip


def argparse_namespace():
    date = string.Template("x")
    date.rate = [2.0]
    return date


@pytest.mark.parametrize("name", GIVEN)
def test_R5_arguments_that_change_in_place(name):
    make, look, change = GIVEN[name]
    thing = make()
    calls = [lambda: (dlarray(1.0), thing)] * 5
    hits, told = compare(lambda x, t: x * look(t), calls, lambda k: k == 3 and change(thing))
    assert hits or any("may be changed without a trace" in text for text in told)


# R6, R7, R8, R9 -------------------------------------------------------------------------------------------------
FILLED = {
    "array": (lambda: np.ones(2), lambda a: a.__setitem__(0, 5.0), lambda a: a.tolist()),
    "bytearray": (lambda: bytearray(b"11"), lambda a: a.__setitem__(0, 5), bytes),
    "array.array": (lambda: array.array("d", [1.0]), lambda a: a.__setitem__(0, 5.0), list),
    "deque": (lambda: collections.deque([1.0]), lambda a: a.append(5.0), list),
    "set": (lambda: {1.0}, lambda a: a.add(5.0), sorted),
}


@pytest.mark.parametrize("name", FILLED)
def test_R6_arguments_that_are_filled_are_filled_each_time(name):
    make, fill, look = FILLED[name]

    def function(x, a):
        fill(a)
        return x * 2

    accfun = dlaccelerate(function)
    with pytest.warns(TraceWarning, match="fills its argument a at .*which a replay would not do"):
        for _ in range(3):
            a, b = make(), make()
            fill(a)
            accfun(dlarray(1.0), b)
            assert look(a) == look(b)


def test_R7_a_read_only_array_is_trusted_no_longer_than_it_stays_the_same():
    a = np.float64([1.0, 2.0])
    a.flags.writeable = False
    view = a[:]
    accfun = dlaccelerate(lambda x, y: x * y[0])
    for k in range(4):
        a.flags.writeable = True
        a[0] = k // 2
        a.flags.writeable = False
        assert accfun(dlarray(1.0), view).item() == k // 2
    assert accfun._cache.hits == 2


def first_key(x, t):
    return x * {int: 2, float: 3, bool: 5}[type(next(iter(t)))]


ZONE = datetime.timezone(datetime.timedelta(hours=1))
COARSE = {
    "keys of a dict": (first_key, [{1: 2.0}, {1.0: 2.0}, {True: 2.0}]),
    "keys in tuples": (lambda x, t: first_key(x, next(iter(t))), [{(1,): 2.0}, {(1.0,): 2.0}, {(True,): 2.0}]),
    "members of a set": (first_key, [{1}, {1.0}, {True}]),
    "members of a frozenset": (first_key, [frozenset([1]), frozenset([1.0]), frozenset([True])]),
    "array.array": (lambda x, t: x * t[0], [array.array("b", b"\1" * 8), array.array("h", b"\1" * 8)]),
    "memoryview": (lambda x, t: x * t[0], [memoryview(b"\1" * 8), memoryview(b"\1" * 8).cast("h")]),
    "shape of a memoryview": (
        lambda x, t: x * t.shape[0], [memoryview(b"\1" * 8), memoryview(b"\1" * 8).cast("b", (4, 2))]
    ),
    "complex": (lambda x, t: x * math.copysign(1, t.imag), [complex(1, 0.0), complex(1, -0.0)]),
    "keys of zeros": (lambda x, t: x * math.copysign(1, next(iter(t))), [{0.0: 1}, {-0.0: 1}]),
    "range": (lambda x, t: x * t.stop, [range(0, 3, 2), range(0, 4, 2)]),
    "Decimal": (lambda x, t: x * len(str(t)), [decimal.Decimal("1.0"), decimal.Decimal("1.00")]),
    "time zones": (
        lambda x, t: x * t.hour,
        [datetime.datetime(2020, 1, 1, 1, tzinfo=ZONE), datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)],
    ),
    "maxlen": (lambda x, t: x * (t.maxlen or 5), [collections.deque([1]), collections.deque([1], maxlen=2)]),
    "byte order": (lambda x, t: x * (t.dtype.byteorder == ">"), [np.zeros(1, "<f8"), np.zeros(1, ">f8")]),
}  # fmt: skip


@pytest.mark.parametrize("name", COARSE)
def test_R8_keys_tell_apart_what_python_tells_apart(name):
    function, values = COARSE[name]
    hits, _ = compare(function, [lambda v=v: (dlarray(1.0), v) for v in values * 2])
    assert hits == len(values)


def fill_first(a, b):
    a[0] = 5.0
    return b * 1


def set_field(a, b):
    a["w"] = 5.0
    return b["w"] * 1.0


def set_item(a, b):
    a.append(5.0)
    return dlarray(float(len(b)))


def same(make):
    def one():
        x = make()
        return x, x

    def two():
        return make(), make()

    return [two, one, one, two, one, two, two]


SHARED = {
    "dlarray": (fill_first, lambda: dlarray(TWO)),
    "struct": (set_field, lambda: struct(w=2.0)),
    "struct of dlarrays": (set_field, lambda: struct(w=dlarray(TWO))),
    "dict": (set_field, lambda: {"w": 2.0, "v": dlarray(TWO)}),
    "list": (set_item, lambda: [1.0]),
    "empty list": (set_item, list),
    "dataclass": (lambda a, b: setattr(a, "w", 5.0) or b.w * 1.0, lambda: Child(2.0)),
    "inside": (lambda a, b: fill_first(a[0], b[0]), lambda: [dlarray(TWO)]),
}


@pytest.mark.parametrize("name", SHARED)
def test_R9_one_object_given_twice_stays_one_object(name):
    function, make = SHARED[name]
    hits, _ = compare(function, same(make))
    assert hits >= 4


def test_R9_one_array_under_two_handles():
    def two_handles():
        x = dlarray(TWO)
        return x, +x

    compare(fill_first, [two_handles, *same(lambda: dlarray(TWO)), two_handles])


def test_what_is_ordinary_is_still_replayed():
    @dataclasses.dataclass
    class Parameters:
        w: object
        b: object

    class Layer:
        def __init__(self, k):
            self.table, self.k = {"w": dlarray(TWO * k)}, k

        def __call__(self, x):
            return x * self.table["w"] + getattr(self, "k")  # noqa: B009

    layers = [Layer(1.0), Layer(2.0)]
    scale = functools.partial(operator.mul, 2.0)

    def function(p, x, options):
        for layer in layers:
            x = layer(x)
        text = f"{options['rate']:.3f}"
        assert isinstance(x, m.DLArray) and len(text) > 1
        names = [field.name for field in dataclasses.fields(p)]
        both = dict(zip(names, itertools.chain([p.w], [p.b])))
        return scale(m.sum(x * both["w"] + both["b"], "all")), {"n": len(layers), "text": text}

    def arguments(k):
        return lambda: (Parameters(dlarray(TWO * k), dlarray(TWO)), dlarray(TWO + k), {"rate": 0.5})

    assert compare(function, [arguments(k) for k in range(5)]) == (4, [])


# one result by another ------------------------------------------------------------------------------------------
def doubled_and_loss(x):
    Y = x * 2
    return Y, m.sum(Y * Y, "all")


def by_a_result(x, function):
    Y, loss = function(x)
    return dlgradient(loss, Y, x)


@pytest.mark.parametrize("numerics", ["fast", "exact"])
def test_T1_a_result_of_a_replay_is_differentiated_by_another(numerics):
    accfun = dlaccelerate(doubled_and_loss, Numerics=numerics)
    for _ in range(4):
        by_Y, by_x = dlfeval(by_a_result, dlarray([1.0, 2.0]), accfun)
        assert by_Y.tolist() == [4.0, 8.0] and by_x.tolist() == [8.0, 16.0]
    assert accfun.HitRate == 75


def test_T1_where_the_way_between_results_is_not_known_it_is_said():
    def probabilities_and_loss(z):
        Y = m.softmax(z)
        return Y, m.crossentropy(Y, np.array([[0.0], [1.0]]))

    accfun, z = dlaccelerate(probabilities_and_loss), dlarray([[1.0], [2.0]], "CB")
    dlfeval(by_a_result, z, accfun)
    with pytest.raises(TraceError, match="inside the accelerated function"):
        dlfeval(by_a_result, z, accfun)
    assert dlfeval(lambda z: dlgradient(accfun(z)[1], z), z).shape == (2, 1)
