"""Results given again: the same objects with new numbers, and never while anybody could see it."""

from __future__ import annotations

import copy
import gc
import threading
import weakref

import cusim
import hypothesis.strategies as st
import numpy as np
import pytest
from conftest import in_use
from cusim.graphs import Graph, Stream
from hypothesis import given, settings

from minidl import adamupdate, dlaccelerate, dlarray, dlfeval, dlgradient, dlupdate, gpuArray, struct, sum
from minidl.core import handout
from minidl.core.struct import struct as Struct
from minidl.core.tree import flatten

pytestmark = pytest.mark.only_on("cpu")
X = [np.random.default_rng(k).normal(size=(4, 3)).astype(np.float32) for k in range(3)]


@pytest.fixture
def device():
    """These tests look into the shim."""
    with in_use("shim") as found:
        yield found
    Stream.graphs.clear()


def there(x):
    return dlupdate(lambda x: gpuArray(dlarray(x)), x)


def start():
    return struct(fc=struct(W=dlarray(np.eye(3, dtype=np.float32)), b=dlarray(np.zeros((1, 3), np.float32))),
                  last=struct(W=dlarray(np.full((3, 2), 0.5, np.float32))))  # fmt: skip


def gradients(p, x, state):
    y = (x @ p.fc.W + p.fc.b * 1) @ p.last.W
    loss = sum(y * y, "all") / 10
    return dlgradient(loss, p), struct(mean=0.9 * state.mean + 0.1 * sum(x, 0)), loss


def step(p, x, state):
    g, state, loss = gradients(p, x, state)
    return dlupdate(lambda p, g: p - 0.1 * g, p, g), state, loss


def begin(put):
    return dlupdate(put, start()), struct(mean=put(dlarray(np.zeros((1, 3), np.float32))))


def numbers(tree):
    return [np.array(x.numpy()) for x in flatten(tree)[0]]


def assert_same(found, expected):
    for x, y in zip(numbers(found), expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6)


def history(steps=12):
    """What plain calls on the host give after each step."""
    p, state = begin(lambda x: x)
    found = []
    for k in range(steps):
        p, state, loss = dlfeval(step, p, dlarray(X[k % 3]), state)
        found.append(numbers((p, state, loss)))
    return found


def test_a_loop_goes_round_among_the_same_objects(device):
    accfun = dlaccelerate(step)
    (p, state), xs = begin(gpuArray), there(X)
    handles, arrays = set(), set()
    for k, expected in enumerate(history()):
        p, state, loss = dlfeval(accfun, p, xs[k % 3], state)
        assert_same((p, state, loss), expected)
        if k > 1:
            handles.add(id(p.fc.W))
            arrays.add(p.fc.W._value.data.data.ptr)
    program = accfun.trace().program
    assert len(program._device_frames) == 2 and len(arrays) == 2 and len(handles) <= 4
    assert accfun.trace().known._sets and accfun.HitRate > 90


HELD = {
    "everything": lambda r: r, "parameters": lambda r: r[0], "an inner struct": lambda r: r[0].fc,
    "a dlarray": lambda r: r[0].fc.W, "the last dlarray": lambda r: r[1].mean, "a value": lambda r: r[0].last.W._value,
    "an array": lambda r: r[0].fc.b._value.data, "a view": lambda r: r[0].fc.W._value.data.reshape(-1)[2:5],
    "a transposed view": lambda r: r[0].fc.W._value.data.transpose(1, 0), "the loss": lambda r: r[2],
    "the value of the loss": lambda r: r[2]._value, "the array of the loss": lambda r: r[2]._value.data,
    "a copy": lambda r: copy.copy(r[0]), "a deep copy": lambda r: copy.deepcopy(r[0].fc),
    "a copy of a dlarray": lambda r: r[0].fc.W.copy(), "labelled anew": lambda r: dlarray(r[0].fc.W, "SS"),
    "a view by an op": lambda r: r[0].fc.W.reshape(9), "what dlfeval hands on": lambda r: dlfeval(lambda p: p, r[0]),
    "an iterator": lambda r: iter(r[0].fc.values()), "a list": lambda r: [r[0].fc.W, r[2]],
}  # fmt: skip


def seen(x):
    """The numbers that somebody sees who holds x."""
    if hasattr(x, "data") and hasattr(x, "spec"):
        x = x.data
    if isinstance(x, cusim.ndarray):
        return [x.get()]
    return numbers(list(x) if hasattr(x, "__next__") else x)


@pytest.mark.parametrize("what", HELD)
def test_what_somebody_holds_keeps_its_numbers(device, what):
    accfun = dlaccelerate(step)
    (p, state), xs = begin(gpuArray), there(X)
    kept = []
    for k, expected in enumerate(history(16)):
        result = dlfeval(accfun, p, xs[k % 3], state)
        p, state, loss = result
        assert_same(result, expected)
        if k in (5, 6, 9, 11):
            held = HELD[what](result)
            kept.append((held, seen(HELD[what](result))))
            del held
        del result, loss
    for held, before in kept:
        assert all(map(np.array_equal, seen(held), before))


@pytest.mark.parametrize("what", ["a dlarray", "parameters", "an inner struct", "the loss"])
def test_who_knows_a_result_weakly_sees_its_numbers_or_nothing(device, what):
    accfun = dlaccelerate(step)
    (p, state), xs = begin(gpuArray), there(X)
    known = []
    for k in range(14):
        result = dlfeval(accfun, p, xs[k % 3], state)
        p, state, loss = result
        if k in (6, 7, 10):
            known.append((weakref.ref(HELD[what](result)), numbers(HELD[what](result))))
        del result, loss
    for reference, before in known:
        assert reference() is None or all(map(np.array_equal, numbers(reference()), before))


def test_losses_that_are_kept_cost_no_further_frames(device):
    accfun = dlaccelerate(step)
    (p, state), xs = begin(gpuArray), there(X)
    losses, expected = [], [found[-1] for found in history(26)]
    for k in range(26):
        p, state, loss = dlfeval(accfun, p, xs[k % 3], state)
        losses.append(loss)
        if k == 18:
            captured = len(Stream.graphs)
    np.testing.assert_allclose([float(loss) for loss in losses], expected, rtol=1e-5)
    assert len({id(loss) for loss in losses}) == 26 and len(Stream.graphs) == captured
    assert len(accfun.trace().program._device_frames) == 2


CHANGES = {
    "a field": lambda p: setattr(p.fc, "b", p.fc.b + 1), "an item": lambda p: p.fc.__setitem__("b", p.fc.b + 1),
    "update": lambda p: p.fc.update(b=p.fc.b + 1), "or": lambda p: p.fc.__ior__({"b": p.fc.b + 1}),
    "a whole struct": lambda p: setattr(p, "fc", struct(W=p.fc.W * 2, b=p.fc.b)),
    "numbers": lambda p: p.fc.W.__setitem__((0, 1), 3.0), "a copy": lambda p: setattr(p, "fc", p.fc.copy()),
    "pop and put": lambda p: setattr(p.fc, "b", p.fc.pop("b") * 2),
    "delete and put": lambda p: (b := p.fc.b, delattr(p.fc, "b"), setattr(p.fc, "b", b - 1)),
    "popitem": lambda p: p.fc.__setitem__(*[f(x) for f, x in zip((str, lambda b: b + 2), p.fc.popitem())]),
    "clear": lambda p: (w := p.fc.W, b := p.fc.b, p.fc.clear(), p.fc.setdefault("W", b.T @ b + w), p.fc.update(b=b)),
}  # fmt: skip


@pytest.mark.parametrize("when", [0, 1, 2])
@pytest.mark.parametrize("what", CHANGES)
def test_results_that_are_changed_in_place(device, what, when):
    """At once, after they were an argument, and long after."""
    results = []
    for put, function in ((lambda x: x, step), (gpuArray, dlaccelerate(step))):
        p, state = begin(put)
        old, found = [p], []
        for k in range(18):
            p, state, loss = dlfeval(function, p, put(dlarray(X[k % 3])), state)
            old.append(p)
            if k in (4, 5, 9):
                CHANGES[what](old[-1 - when])
                found.append(numbers(old[-1 - when]))
            old = old[-3:]
            found.append(numbers((p, state, loss)))
        results.append(found)
    for found, expected in zip(*results, strict=True):
        for x, y in zip(found, expected, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_fields_in_another_order_or_with_other_names_are_another_signature(device):
    accfun = dlaccelerate(lambda p: [x * (k + 1) for k, x in enumerate(p.values())])
    run = dlaccelerate(lambda p: struct(a=p.a + 1, b=p.b + 2))
    p = struct(a=there(X[0]), b=there(X[1]))
    for _ in range(4):
        p = run(p)
        accfun(p)
    a = p.pop("a")
    p.a = a
    first, second = accfun(p)
    assert np.array_equal(first.numpy(), p.b.numpy()) and np.array_equal(second.numpy(), p.a.numpy() * 2)
    del p.a
    p.c = a
    assert np.array_equal(accfun(p)[1].numpy(), a.numpy() * 2)
    with pytest.raises(AttributeError):
        run(p)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from("sspqhdmxcr"), st.integers(0, 5)), min_size=6, max_size=24))
def test_any_loop_gives_what_plain_calls_give(device, moves):
    """s: a step; p: with old parameters; q: with an old state; h, d: hold, let go; m, r, x: change; c: copy."""
    results = []
    for put, function in ((lambda x: x, step), (gpuArray, dlaccelerate(step))):
        p, state = begin(put)
        held, found = [(p, state)], []
        for move, n in moves:
            other = held[n % len(held)]
            if move in "spq":
                q, s = (other[0] if move == "p" else p), (other[1] if move == "q" else state)
                p, state, loss = dlfeval(function, q, put(dlarray(X[n % 3])), s)
                found.append(numbers((p, state, loss)))
            elif move == "h":
                held.append((p, state))
            elif move == "d" and len(held) > 1:
                held.pop(n % len(held))
            elif move == "m":
                other[0].fc.W = other[0].fc.W * 0.5
            elif move == "r":
                other[0].last.W[n % 3, 0] = 0.25
            elif move == "x":
                p.fc, p.last = p.fc.copy(), p.last.copy()
            elif move == "c":
                held.append((p.copy(), copy.copy(state)))
        found += [numbers(pair) for pair in held]
        results.append(found)
        del other
    for found, expected in zip(*results, strict=True):
        for x, y in zip(found, expected, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)


def test_dict_list_tuple_and_none(device):
    def turn(p):
        return {"a": p["a"] * 2, "l": [p["l"][1] + 1, p["l"][0]*1], "t": (p["t"][0] + p["a"], None), "e": {}}

    for change in (lambda p: None, lambda p: p["l"].reverse(), lambda p: p.update(a=p["a"] + 1),
                   lambda p: p["l"].append(p["l"].pop() * 3)):  # fmt: skip
        results = []
        for put, function in ((lambda x: x, turn), (gpuArray, dlaccelerate(turn))):
            a, b, c = [put(dlarray(x)) for x in X]
            p = {"a": a, "l": [a + 0, b], "t": (c, None), "e": {}}
            for k in range(8):
                p = function(p)
                if k in (3, 4):
                    change(p)
            assert type(p) is dict and p["t"][1] is None and p["e"] == {}
            results.append(numbers(p))
        assert all(map(np.allclose, *results))


def test_captures_are_read_at_each_call(device):
    scale, factor = there(X[0]), 2.0
    accfun = dlaccelerate(lambda p: struct(a=p.a * 0.5 + scale * factor))
    p, expected = struct(a=there(X[1])), X[1]
    for k in range(12):
        if k in (5, 8):
            scale = there(X[k % 3] + 1)
        if k == 7:
            factor = 3.0
        p = accfun(p)
        expected = expected * np.float32(0.5) + scale.numpy() * np.float32(factor)
        np.testing.assert_allclose(p.a.numpy(), expected, rtol=1e-5)
    assert accfun.NumTraces == 2


def test_the_same_array_in_two_places(device):
    accfun = dlaccelerate(lambda p, x: struct(a=p.a + x, b=p.b - x))
    p, x = struct(a=there(X[0]), b=there(X[1])), there(X[2])
    for _ in range(5):
        p = accfun(p, x)
    for _ in range(3):
        a, b = p.a.numpy(), p.b.numpy()
        q = accfun(p, p.a)
        assert np.allclose(q.a.numpy(), a + a) and np.allclose(q.b.numpy(), b - a)
        p = accfun(p, x)


def test_two_threads(device):
    accfun = dlaccelerate(step)
    expected, wrong = history(30), []
    (p, state), xs = begin(gpuArray), there(X)
    for _ in range(3):
        dlfeval(accfun, p, xs[0], state)

    def work():
        (p, state), kept = begin(gpuArray), []
        for k in range(30):
            result = p, state, loss = dlfeval(accfun, p, xs[k % 3], state)
            kept.append(result if k % 7 == 0 else loss)
            try:
                assert_same(result, expected[k])
            except AssertionError as error:
                wrong.append(error)
        for k in range(0, 30, 7):
            assert_same(kept[k], expected[k])

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_error_in_a_launch_is_the_callers_and_leaves_nothing_behind(device, monkeypatch):
    accfun = dlaccelerate(step)
    (p, state), xs = begin(gpuArray), there(X)
    expected = history(16)
    for k in range(16):
        if k in (12, 14):
            with monkeypatch.context() as patch:
                patch.setattr(Graph, "launch", lambda graph, stream=None: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    dlfeval(accfun, p, xs[k % 3], state)
        p, state, loss = dlfeval(accfun, p, xs[k % 3], state)
        assert_same((p, state, loss), expected[k])


def test_what_is_dropped_is_freed_and_what_is_held_stays(device):
    accfun = dlaccelerate(step)
    (p, state), xs = begin(gpuArray), there(X)
    for k in range(8):
        p, state, loss = dlfeval(accfun, p, xs[k % 3], state)
    program, before = weakref.ref(accfun.trace().program), numbers(p)
    handouts = [weakref.ref(frame.handout) for frame in program()._device_frames]
    gc.disable()  # at once, without a collector
    try:
        accfun.clearCache()
        is_gone = program() is None
    finally:
        gc.enable()
    assert is_gone and program() is None and all(h() is None for h in handouts)
    assert handout.known(p) is None
    assert all(map(np.array_equal, numbers(p), before))
    p, state, loss = dlfeval(accfun, p, xs[0], state)
    assert all(np.isfinite(x).all() for x in numbers(p))


def test_nothing_that_a_handout_consists_of_can_be_held_unnoticed(device):
    accfun = dlaccelerate(step)
    (p, state), xs = begin(gpuArray), there(X)
    for k in range(6):
        p, state, loss = dlfeval(accfun, p, xs[k % 3], state)
    frames = accfun.trace().program._device_frames
    del p, state, loss
    for frame in frames:
        given = frame.handout
        assert frame.is_free() and not given.has_kept()
        for parts in (given._containers, given._leaves, given.values, frame.arrays, frame.pointers):
            for k in range(len(parts)):
                held = parts[k]
                assert not given.is_free() or given.has_kept() or type(held) is cusim.Pointer
                del held
                assert frame.is_free() and not given.has_kept()


def test_the_outputs_of_one_function_are_known_to_another(device):
    """Gradients accelerated, the solver outside: both go round."""
    results = []
    for put, function in ((lambda x: x, gradients), (gpuArray, dlaccelerate(gradients))):
        p, state = begin(put)
        m = v = None
        for k in range(14):
            g, state, loss = dlfeval(function, p, put(dlarray(X[k % 3])), state)
            if k == 9:
                g = dlupdate(lambda x: x * 0.5, g)
            p, m, v = adamupdate(p, g, m, v, k + 1, 0.01)
        results.append(numbers((p, m, v, state, loss)))
    assert_same_numbers(*results)


def assert_same_numbers(found, expected):
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-4, atol=1e-5)


def test_structs_tell_of_every_change():
    from minidl.core.changes import changes

    s = Struct(a=1, b=2)
    actions = [
        lambda: setattr(s, "a", 2), lambda: s.__setitem__("a", 3), lambda: s.update({"c": 1}, d=2),
        lambda: delattr(s, "c"), lambda: s.__delitem__("d"), lambda: s.pop("a"), lambda: s.setdefault("a", 1),
        lambda: s.__ior__({"a": 5}), lambda: s.popitem(), lambda: s.clear(), lambda: s.pop("none", None),
    ]  # fmt: skip
    for action in actions:
        before = changes.last
        action()
        assert changes.last is not before
    s.update(a=1)
    mutating = {"__setitem__", "__delitem__", "__ior__", "update", "setdefault", "pop", "popitem", "clear"}
    assert mutating <= set(vars(Struct))
    x = dlarray(X[0])
    before = changes.last
    x[0, 0] = 1
    assert changes.last is not before
    before = changes.last
    assert s.copy() == s and list(s) == ["a"] and s.get("b") is None and repr(s) and changes.last is before


def test_a_single_number_as_the_whole_result(device):
    accfun = dlaccelerate(lambda x: sum(x * x, "all"))
    kept = [accfun(there(X[0] * k)) for k in range(14)]
    np.testing.assert_allclose([float(y) for y in kept], [(X[0] * X[0]).sum() * k * k for k in range(14)], rtol=1e-5)
    assert len(accfun.trace().program._device_frames) == 2


def test_single_numbers_fed_back(device):
    accfun = dlaccelerate(lambda t, x: (t + 1, sum(x, "all") * t))
    t, x, kept = there(np.float32(0)), there(X[0]), []
    for _ in range(12):
        t, y = accfun(t, x)
        kept.append((t, y))
    for k, (t, y) in enumerate(kept):
        assert float(t) == k + 1 and abs(float(y) - X[0].sum() * k) < 1e-4


def test_parameters_that_move_now_and_then_are_not_copied(device):
    accfun = dlaccelerate(step)
    (p, state), xs = begin(gpuArray), there(X)
    kept = []
    for _ in range(9):
        for _ in range(40):
            p, state, loss = dlfeval(accfun, p, xs[0], state)
        p = dlupdate(lambda x: x * 1, p)
        kept.append(p)  # so that no place comes twice
    program = accfun.trace().program
    assert all(len(seen) <= 5 for seen in program._seen) and all(not e.slots for e in program._executables.values())


def test_keywords_and_options(device):
    def scaled(p, x=None, *, factor=1.0, more=None):
        return struct(a=p.a * factor + x, b=p.b + (0 if more is None else more.a))

    results = []
    for put, function in ((lambda x: x, scaled), (gpuArray, dlaccelerate(scaled))):
        p, more, found = struct(a=put(dlarray(X[0])), b=put(dlarray(X[1]))), None, []
        for k in range(16):
            before = p
            p = function(p, x=put(dlarray(X[k % 3])), factor=0.5 if k < 9 else 0.25, more=more if k % 2 else None)
            more = before if k > 5 else p
            found.append(numbers(p))
        results.append(found)
    for found, expected in zip(*results, strict=True):
        assert all(map(np.allclose, found, expected))


def test_checks_run_beside_it(device):
    accfun = dlaccelerate(step)
    (p, state), xs = begin(gpuArray), there(X)
    for k, expected in enumerate(history(12)):
        accfun.CheckMode = "tolerance" if k in (5, 6) else "none"
        accfun.CheckFinite = k in (8, 9)
        accfun.Enabled = k != 10
        p, state, loss = dlfeval(accfun, p, xs[k % 3], state)
        assert_same((p, state, loss), expected)


def test_inside_other_tapes(device):
    """A replay that is differentiated is recorded as such; what its tape holds is not given again."""
    accfun = dlaccelerate(lambda p: struct(a=p.a * p.a, b=p.b * 2))
    p, kept = struct(a=there(X[0] / 4), b=there(X[1])), []
    for k in range(10):
        before = p.a.numpy()
        kept.append((dlfeval(lambda p: dlgradient(sum(accfun(p).a, "all"), p.a), p), before * 2))
        p = accfun(p)
        p = p if k % 3 else struct(a=p.a + 0.25, b=p.b)
    for found, expected in kept:
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_two_functions_feed_each_other(device):
    results = []
    for put, wrap in ((lambda x: x, lambda f: f), (gpuArray, dlaccelerate)):
        f, g = wrap(lambda p, q: (struct(a=p.a * 0.5 + q.b), q.a + 1)), wrap(lambda p, y: struct(a=p.a - y, b=p.a * y))
        p, q, found = struct(a=put(dlarray(X[0]))), struct(a=put(dlarray(X[1])), b=put(dlarray(X[2]))), []
        old = q
        for k in range(20):
            p, y = f(p, q if k % 5 else old)
            q = g(p, y * 0.1)
            if k in (6, 13):
                old = q
            found.append(numbers((p, q, y)))
        results.append(found + [numbers(old)])
    for found, expected in zip(*results, strict=True):
        for x, y in zip(found, expected, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
