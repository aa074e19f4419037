"""Audits: a recording is made again at calls 2, 10, 100, ..., and what no rule knows of is found there.

Every function here hides what it depends on in a place that nobody follows: text files, the environment, contexts and
counters of libraries.
"""

from __future__ import annotations

import contextvars
import copy
import decimal
import functools
import gc
import os
import pickle
import sys
import threading
import warnings

import numpy as np
import pytest

import minidl as m
from minidl import OptionError, TraceError, TraceWarning, dlaccelerate, dlarray, dlfeval, dlgradient, struct
from minidl.accelerate.audits import audit_after, graph_difference, is_equal
from minidl.accelerate.recording import Recording
from minidl.core.tree import flatten
from minidl.testing import no_retrace

from .test_replay import Counted

X = np.float32([1.0, -2.0, 3.0])
CONTEXT = contextvars.ContextVar("rate", default=2.0)


class Hidden:
    """A number where nobody follows it: in a setting of this thread, that a C function gives."""

    @staticmethod
    def get():
        return decimal.getcontext().prec / 1.0

    @staticmethod
    def set(number):
        decimal.getcontext().prec = int(number)


RATE = Hidden


def called():
    """How often it was called: a count that nobody follows."""
    decimal.getcontext().Emax += 1
    return decimal.getcontext().Emax - 1000


@pytest.fixture(autouse=True)
def hidden_places():
    with decimal.localcontext(decimal.Context(prec=2, Emax=1000)):
        yield


def heard(accfun, *args, caught):
    """The result as NumPy; TraceWarnings go to `caught`."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        result = accfun(*args)
    caught += [str(w.message) for w in found if issubclass(w.category, TraceWarning)]
    return result


# what is found ------------------------------------------------------------------------------------------------------
def from_environment(x):
    return x * float(os.environ["MINIDL_TEST_RATE"])


def from_context(x):
    return x * CONTEXT.get()


def from_setting(x):
    return x * RATE.get()


def from_recursion_limit(x):
    return x * sys.getrecursionlimit()


def from_collector(x):
    return x * gc.get_threshold()[0]


@functools.lru_cache
def cached_rate(k):
    return CONTEXT.get()


def from_cache(x):
    return x * cached_rate(1)


def set_environment(k):
    os.environ["MINIDL_TEST_RATE"] = str(float(k))


def set_cache(k):
    CONTEXT.set(float(k))
    cached_rate.cache_clear()


def set_limit(k):
    sys.setrecursionlimit(3000 + k)


def set_collector(k):
    gc.set_threshold(700 + k, *gc.get_threshold()[1:])


TRAPS = {
    "setting": (from_setting, RATE.set), "recursion limit": (from_recursion_limit, set_limit),
    "collector": (from_collector, set_collector), "environment": (from_environment, set_environment),
    "context": (from_context, lambda k: CONTEXT.set(float(k))), "cache": (from_cache, set_cache),
}  # fmt: skip


@pytest.mark.parametrize("trap", TRAPS)
def test_R5_what_changes_each_time_is_found_at_call_2(trap):
    function, change = TRAPS[trap]
    accfun, caught = dlaccelerate(function), []
    limit, threshold = sys.getrecursionlimit(), gc.get_threshold()
    try:
        for k in range(1, 15):
            change(k)
            found = heard(accfun, dlarray(X.astype(float)), caught=caught)
            assert found.tolist() == function(dlarray(X.astype(float))).tolist()
    finally:
        sys.setrecursionlimit(limit)
        gc.set_threshold(*threshold)
    if trap in ("environment", "context", "cache") and not any("still holds" in text for text in caught):
        return  # it was followed, or refused
    (message,) = caught
    if trap == "environment":
        assert "asks for something outside of the program" in message
        return
    line = function.__code__.co_firstlineno + 1
    assert f"a constant of times at {__file__}:{line} changed (" in message
    assert "no other call was replayed" in message and "(call 2 of one kind)" in message
    assert accfun.NumTraces == 0 and accfun.HitRate == 0
    assert "audit at call 2 of its trace" in accfun.explain().misses[-1].note


def test_what_changes_later_is_found_at_the_next_audit_and_says_which_calls_were_wrong():
    accfun, caught = dlaccelerate(from_setting), []
    results = []
    for k in range(1, 13):
        RATE.set(2.0 if k < 6 else 3.0)
        results.append(heard(accfun, dlarray(1.0), caught=caught).item())
    assert results == [2.0] * 9 + [3.0] * 3  # calls 6 to 9 were wrong, and it says so
    (message,) = caught
    assert "numbers 3 to 9 may have been wrong" in message and "changed (2.0, then 3.0)" in message
    assert accfun.HitRate == pytest.approx(100 * 8 / 12)


def test_other_kinds_of_calls_are_still_replayed():
    accfun, caught = dlaccelerate(lambda x: x * RATE.get() if x.size > 1 else x + 1), []
    for k in range(3):
        RATE.set(k + 1)
        heard(accfun, dlarray(X), caught=caught)
        assert heard(accfun, dlarray(1.0), caught=caught).item() == 2.0
    assert len(caught) == 1 and accfun.NumTraces == 1


def other_op(x):
    return m.exp(x) if called() % 2 else m.sin(x)


def other_length(x):
    for _ in range(called()):
        x = x + 1
    return x


def other_option(x):
    return m.sum(x, called() % 2)


def other_wiring(x, y):
    return x - y if called() % 2 else y - x


def other_labels(x):
    return dlarray(x, "SC" if called() % 2 else "SS")


def other_containers(x):
    return [x] if called() % 2 else (x,)


def other_number(x):
    return x + 1, called()


def other_result(x):
    return x * 2, dlarray(np.float32(called()))


def other_random(x):
    return x + 1 if called() % 2 else x + m.rand(3, like=x)


def now_looks(x):
    if called() > 1:
        float(m.sum(x, "all"))
    return x + 1


def now_prints(x):
    if called() > 1:
        print("hello")
    return x + 1


def now_raises(x):
    if called() > 1:
        raise KeyError("gone")
    return x + 1


DIFFERENCES = {
    other_op: r"exp at \S+:\d+ became sin at \S+:\d+", other_length: r"only one of them goes on to plus at \S+:\d+",
    other_option: r"sum at \S+:\d+ had .* and then", other_wiring: r"minus at .*another value altogether",
    other_labels: "other labels", other_containers: "returns other containers",
    other_number: "returns 2 where a replay returns 1", other_result: r"a result changed \(1.0, then 2.0\)",
    other_random: "draws random numbers now", now_looks: r"looks at a traced number at \S+:\d+ now",
    now_prints: r"writes \(print\) at \S+:\d+ now",
}  # fmt: skip


@pytest.mark.parametrize("function", DIFFERENCES, ids=lambda f: f.__name__)
def test_what_differs_is_named(function, capsys):
    accfun = dlaccelerate(function)
    args = [dlarray(np.float32([[1.0, 2.0, 3.0]] * 3)), dlarray(1.0)][: function.__code__.co_argcount]
    accfun(*args)
    with pytest.warns(TraceWarning, match=DIFFERENCES[function]) as caught:
        found = accfun(*args)
    assert len(caught) == 1 and accfun.NumTraces == 0
    decimal.getcontext().Emax -= 1
    expected = function(*args)
    for x, y in zip(flatten(found)[0], flatten(expected)[0], strict=True):
        if function is not other_random:
            assert np.array_equal(x, y) and type(x) is type(y)
    before = called()
    accfun(*args)
    assert called() == before + 2  # from now on the function itself runs


def test_the_functions_own_error_is_the_truth():
    accfun = dlaccelerate(now_raises)
    accfun(dlarray(X))
    with pytest.warns(TraceWarning, match=r"it raised KeyError \('gone'\) at \S+test_audits.py:\d+"):  # noqa: SIM117
        with pytest.raises(KeyError):
            accfun(dlarray(X))
    assert accfun.NumTraces == 0
    with pytest.raises(KeyError):
        accfun(dlarray(X))


def test_strict_raises_each_time():
    accfun = dlaccelerate(from_setting, Strict=True)
    accfun(dlarray(1.0))
    RATE.set(5.0)
    with pytest.raises(TraceError, match=r"changed \(2.0, then 5.0\)"):
        accfun(dlarray(1.0))
    with pytest.raises(TraceError, match="explain"):
        accfun(dlarray(1.0))


# what is not disturbed ----------------------------------------------------------------------------------------------
def network(x, w):
    y = m.tanh(x @ w.a + w.b) + m.randn(2, like=x)
    return m.sum(y * y, "all"), dlgradient(m.sum(y * y, "all"), w)


WEIGHTS = struct(a=dlarray(np.float32([[0.5, -1.0], [1.0, 2.0], [0.25, 0.125]])), b=dlarray(np.float32([0.1, -0.1])))


@pytest.mark.parametrize("numerics", ["fast", "exact"])
def test_an_audit_that_passes_changes_no_bit_and_no_random_number(numerics):
    def run(**options):
        m.rng(3)
        accfun = dlaccelerate(network, Numerics=numerics, **options)
        w, found = WEIGHTS, []
        for k in range(12):
            loss, gradient = dlfeval(accfun, dlarray(X * (k + 1)), w)
            w = m.dlupdate(lambda p, g: p - 0.01 * g, w, gradient)
            found += [loss, w.a, w.b, m.rand(2)]
        return [np.asarray(x).tobytes() for x in found], m.rng(), accfun

    with warnings.catch_warnings():
        warnings.simplefilter("error", TraceWarning)
        warnings.simplefilter("ignore", m.RetraceWarning)
        audited, state, accfun = run()
        others, other_state, other = run(Audit=False)
    assert audited == others and state == other_state
    assert accfun.HitRate == other.HitRate and accfun.explain().traces[0].audits == 2


def test_inside_dlfeval_outer_gradients_go_through_the_replay():
    inner = dlaccelerate(lambda x: m.sum(x**3, "all") * RATE.get())

    def outer(x):
        y = inner(x) + inner(2 * x)
        return dlgradient(y, x)

    for _ in range(8):
        assert dlfeval(outer, dlarray(X.astype(float))).tolist() == pytest.approx((54 * X.astype(float) ** 2).tolist())
    assert inner.explain().traces[0].audits == 2
    RATE.set(3.0)
    caught = []
    for _ in range(50):
        found = heard(dlfeval, outer, dlarray(X.astype(float)), caught=caught)
    assert found.tolist() == pytest.approx((81 * X.astype(float) ** 2).tolist()) and len(caught) == 1


def test_a_gradient_taken_inside_of_an_audited_function_releases_no_outer_trace():
    inner = dlaccelerate(lambda x, y: dlgradient(m.sum(y * y * x, "all"), x))

    def outer(x):
        y = x * x
        return inner(x, y) + dlgradient(m.sum(y * x, "all"), x)

    x = X.astype(float)
    with pytest.raises(TraceError, match="released"):  # plain calls: the inner gradient has released it
        dlfeval(outer, dlarray(x))
    for _ in range(10):  # replays: no gradient is taken in them; so it is at calls 2 and 10
        assert dlfeval(outer, dlarray(x)).tolist() == pytest.approx((5 * x**4 + 3 * x**2).tolist())
    assert inner.explain().traces[0].audits == 2


def test_audits_stand_in_explain_and_stop_where_they_are_switched_off():
    runs = []
    for options in ({}, {"Audit": False}):
        counted = threading.Semaphore(0)

        def function(x, counted=counted):
            counted.release()
            return x * 2

        accfun = dlaccelerate(function, **options)
        for _ in range(101):
            accfun(dlarray(1.0))
        runs.append(counted._value)
        row = accfun.explain().traces[0]
        assert (row.audits, row.audited_call) == ((3, 100) if not options else (0, 0)) and row.hits == 100
        assert ("at call 100 (3)" if not options else "off") in str(accfun.explain())
    assert runs == [4, 1]
    assert [audit_after(call) for call in (1, 2, 9, 10, 99, 100, 1000)] == [2, 10, 10, 100, 100, 1000, 10000]


def test_the_property_follows_the_option_and_travels():
    accfun = dlaccelerate(from_setting, Audit=False)
    assert accfun.Audit is False and copy.copy(accfun).Audit is False
    assert pickle.loads(pickle.dumps(dlaccelerate(np.negative, Audit=False))).Audit is False
    for _ in range(3):
        accfun(dlarray(1.0))
    RATE.set(7.0)
    accfun.Audit = True  # due from now on, at call 10
    caught, found = [], []
    for _ in range(8):
        found.append(heard(accfun, dlarray(1.0), caught=caught).item())
    assert found == [2.0] * 6 + [7.0] * 2 and len(caught) == 1
    with pytest.raises(OptionError, match="Audit is True or False"):
        accfun.Audit = "yes"
    with pytest.raises(OptionError, match="Audit"):
        dlaccelerate(from_setting, Audits=False)


def test_recordings_with_told_side_effects_are_not_audited(capsys):
    def talks(x):
        print("talk")
        return x * 2

    accfun = dlaccelerate(talks)
    with pytest.warns(TraceWarning, match="will not repeat"):
        for _ in range(12):
            accfun(dlarray(1.0))
    assert capsys.readouterr().out == "talk\n"
    row = accfun.explain().traces[0]
    assert row.audits == 0 and row.audited.startswith("never: writes (print) at")


def test_a_table_that_is_made_once_is_no_difference():
    x = dlarray(X.astype(float))
    tables = [m.sin(dlarray(np.arange(3.0))) + k for k in (1, 2)]

    def graph(function):
        recording = Recording(function, *flatten(((x,), {})))
        return recording.graph([x._value])  # what it captures is a constant

    making = graph(lambda x: x * (m.sin(dlarray(np.arange(3.0))) + 1))
    having = [graph(lambda x, table=table: x * table) for table in tables]
    assert len(making.nodes) == 3 and len(having[0].nodes) == 1 and not is_equal(making, having[0])
    assert graph_difference(making, having[0]) is None and graph_difference(having[0], making) is None
    kind, text = graph_difference(making, having[1])
    assert kind == "constant" and "a constant of times" in text and "changed ([1.0," in text


def test_constants_are_compared_by_their_bits():
    def function(x):
        return m.where(x > 0, x, dlarray(np.float32([np.nan, -0.0, 2.0]))) * float("nan")

    accfun = dlaccelerate(function)
    with warnings.catch_warnings():
        warnings.simplefilter("error", TraceWarning)
        for _ in range(3):
            accfun(dlarray(X))
    assert accfun.explain().traces[0].audits == 1
    zeros = [0.0, -0.0]
    accfun = dlaccelerate(lambda x: x * zeros[(called() - 1) % 2])
    accfun(dlarray(X))
    with pytest.warns(TraceWarning, match=r"changed \(0.0, then -0.0\)"):
        accfun(dlarray(X))


def test_an_interrupt_leaves_everything_as_before():
    def function(x):
        y = x + m.rand(3, like=x)
        if RATE.get() == 9:
            raise KeyboardInterrupt
        return y

    m.rng(5)
    accfun = dlaccelerate(function)
    accfun(dlarray(X))
    state = m.rng()
    RATE.set(9)
    with pytest.raises(KeyboardInterrupt):
        accfun(dlarray(X))
    assert m.rng() == state and accfun.NumTraces == 1 and accfun.explain().calls == 1
    RATE.set(2)
    found = accfun(dlarray(X))
    m.rng(state)
    assert np.array_equal(found, function(dlarray(X)))
    assert accfun.explain().traces[0].audits == 1


def test_arguments_are_changed_once():
    def function(p, x):
        p["w"] = p["w"] * 2  # of its own copy
        x += 1
        return x * p["w"]

    accfun = dlaccelerate(function)
    for _ in range(12):
        p, x = {"w": dlarray(3.0)}, dlarray(X)
        assert np.array_equal(accfun(p, x), (X + 1) * 6) and p["w"].item() == 3.0
        assert np.array_equal(x, X)
    assert accfun.explain().traces[0].audits == 2


def test_threads_share_one_audit():
    counted = Counted(lambda x: x * 2)
    accfun = dlaccelerate(counted)
    accfun(dlarray(0.0))
    wrong, start = [], threading.Barrier(4)

    def work(k):
        start.wait()
        for i in range(300):
            if accfun(dlarray(float(i + k))).item() != 2.0 * (i + k):
                wrong.append((k, i))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", TraceWarning)
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert not wrong and accfun.explain().calls == 1201 and accfun.explain().hits == 1200
    assert 2 <= accfun.explain().traces[0].audits <= 4  # call 2 and the like, whoever makes them


def test_an_audit_is_no_new_recording_and_goes_with_checks():
    accfun = dlaccelerate(lambda x: m.exp(x) * RATE.get())
    accfun(dlarray(1.0))
    accfun.CheckMode, accfun.CheckFinite = "tolerance", True
    with warnings.catch_warnings(), no_retrace():
        warnings.simplefilter("error")
        for _ in range(10):
            accfun(dlarray(1.0))
    assert accfun.explain().traces[0].audits == 2


def test_on_a_gpu_audits_cost_no_frames(device):
    def step(p, x):
        y = x @ p.a + p.b
        loss = m.sum(y * y, "all") * RATE.get()
        g = dlgradient(loss, p)
        return m.dlupdate(lambda w, d: w - 0.001 * d, p, g), loss

    found = {}
    for is_audited_now in (True, False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", m.RetraceWarning)
            accfun = dlaccelerate(step, Audit=is_audited_now)
        p, x = m.dlupdate(m.gpuArray, WEIGHTS), m.gpuArray(dlarray(X[None]))
        losses = []
        for _ in range(16):
            p, loss = dlfeval(accfun, p, x)
            losses.append(float(loss))
        program = accfun.trace().program
        found[is_audited_now] = losses, len(program._device_frames), len(program._executables)
        assert accfun.explain().traces[0].audits == 2 * is_audited_now
    assert found[True] == found[False]
    accfun = dlaccelerate(lambda x: x * RATE.get())
    accfun(x)
    RATE.set(4.0)
    with pytest.warns(TraceWarning, match=r"changed \(2.0, then 4.0\)"):
        assert m.gather(accfun(x)).tolist() == (X[None] * 4).tolist()


def test_the_warning_stands_at_the_users_line_also_inside_dlfeval():
    accfun = dlaccelerate(from_setting)
    dlfeval(accfun, dlarray(1.0))
    RATE.set(5)
    with pytest.warns(TraceWarning) as caught:
        dlfeval(accfun, dlarray(1.0))
    assert caught[0].filename == __file__


def test_memory_that_runs_out_in_an_audit_says_nothing_of_the_recording():
    def function(x):
        if RATE.get() == 9:
            raise MemoryError
        return x * 2 + m.rand(1, like=x) * 0

    accfun = dlaccelerate(function)
    accfun(dlarray(1.0))
    RATE.set(9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert accfun(dlarray(2.0)).item() == 4.0
    RATE.set(2)
    for _ in range(3):
        assert accfun(dlarray(2.0)).item() == 4.0
    row = accfun.explain().traces[0]
    assert row.hits == 4 and row.audits == 1  # tried again some calls later


def test_random_numbers_that_another_thread_draws_meanwhile_are_no_difference():
    def function(x):
        y = x * m.rand(1, like=x)
        if RATE.get() == 9:
            thread = threading.Thread(target=m.rand, args=(1,))  # draws between the two
            thread.start()
            thread.join()
        return y + m.rand(1, like=x)

    accfun = dlaccelerate(function)
    accfun(dlarray(1.0))
    RATE.set(9)
    m.rng(4)
    with warnings.catch_warnings():
        warnings.simplefilter("error", TraceWarning)
        found = accfun(dlarray(1.0)).item()
    m.rng(4)
    assert found == function(dlarray(1.0)).item()
    row = accfun.explain().traces[0]
    assert row.hits == 1 and row.audits == 0
