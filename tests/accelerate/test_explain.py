"""Re-tracing is bounded, explained and warned of (B2 - B6); NaN is found (D2); for users' test suites (D4)."""

from __future__ import annotations

import gc
import re
import sys
import threading
import tracemalloc
import types
import warnings

import numpy as np
import psutil
import pytest
from engine.programs import assert_close, assert_same

import minidl as m
from accelerate.hidden import Hidden
from accelerate.test_replay import WEIGHTS, X, accelerated, flat, layer, quietly, training_step
from minidl import (
    AccelerationWarning,
    NonFiniteWarning,
    RetraceWarning,
    TraceError,
    TraceWarning,
    dlaccelerate,
    dlarray,
    struct,
)
from minidl.accelerate.recording import Recording
from minidl.core.tape import open_tapes
from minidl.core.tree import flatten
from minidl.testing import assert_accelerable, no_retrace


# B2: numbers that change --------------------------------------------------------------------------------------------
def step(w, g, rate):
    return w - g * rate


def test_B2_a_rate_that_changes_is_named_at_the_third_value():
    accfun = dlaccelerate(step)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RetraceWarning)
        for rate in (0.1, 0.2, 0.1, 0.2):
            accfun(dlarray(X), dlarray(X), rate)
    with pytest.warns(RetraceWarning) as caught:
        for rate in (0.3, 0.4, 0.5):
            assert_close(accfun(dlarray(X), dlarray(X), rate), X - X * np.float32(rate), 1e-6)
    assert "step is recorded anew for each value of the argument rate, now 0.3" in str(caught[0].message)
    assert "rate = dlarray(...)" in str(caught[0].message)


@pytest.mark.parametrize("new", [lambda k: lambda x: x * 2, lambda k: np.float32([k]), lambda k: k])
def test_B2_functions_arrays_and_numbers_made_anew(new):
    def function(x, options):
        return x * 2

    accfun = dlaccelerate(function)
    with pytest.warns(RetraceWarning, match="the argument options.rule"):
        for k in range(3):
            accfun(dlarray(X), {"rule": new(k), "name": f"text {k}"})


def test_B2_texts_truths_and_sizes_are_no_numbers():
    accfun = dlaccelerate(lambda x, mode, flag: x * 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RetraceWarning)
        for mode in ("train", "test", "validate", "other"):
            for flag in (True, False, None):
                for size in (1, 2):
                    accfun(dlarray(X[:size]), mode, flag)


def test_B2_a_thousand_rates_as_dlarrays_make_one_trace():
    counted, accfun = accelerated(step)
    w, g = dlarray(X), dlarray(X)
    for k in range(1000):
        rate = np.float32(1 / (k + 1))
        found = accfun(w, g, dlarray(rate))
    assert_close(found, X - X * rate)
    assert counted.count == 1 and accfun.NumTraces == 1 and accfun.HitRate == 99.9


def test_B2_captured_numbers_too():
    rate = 0.0
    accfun = dlaccelerate(lambda x: x * rate)
    with pytest.warns(RetraceWarning, match=r"each value of the captured rate, now 0\.3.*rate = dlarray"):
        for rate in (0.1, 0.2, 0.3):  # noqa: B007
            accfun(dlarray(X))


def test_B2_a_full_cache_is_told_once():
    accfun = dlaccelerate(lambda x: x * 2)
    accfun.CacheSize = 3
    with pytest.warns(RetraceWarning, match=r"cache of <lambda> is full \(3 traces\).*most often was new: x") as caught:
        for size in range(1, 10):
            accfun(dlarray(np.ones(size)))
    assert len(caught) == 1 and accfun.Occupancy == 100


# B3: why ------------------------------------------------------------------------------------------------------------
WHY = {  # first arguments, second arguments, what explain() says of the second recording
    "number": (({"rate": 0.1},), ({"rate": 0.2},), "p.rate: 0.1 -> 0.2 (wrap it: dlarray(...))"),
    "size": ((dlarray(X),), (dlarray(X[:1]),), "p: 2×3 single -> 1×3 single (calls of one size share a trace)"),
    "labels": ((dlarray(X, "CB"),), (dlarray(X, "SB"),), "2(C) × 3(B) single -> 2(S) × 3(B) single (label it the"),
    "type": ((dlarray(X),), (dlarray(X.astype(float)),), "2×3 single -> 2×3 double (convert it to one type)"),
    "none": ((None,), (dlarray(X),), "p: None -> 2×3 single"),
    "containers": (([dlarray(X)],), ([dlarray(X)] * 2,), "p: list of 1 -> list of 2 (give the same containers"),
    "array or not": ((dlarray(1.0),), (1.0,), "p: 1×1 double -> 1.0 (give a dlarray each time)"),
    "text": (("same",), ("valid",), "p: 'same' -> 'valid'"),
    "object": ((types.SimpleNamespace(a=1).__init__,), (types.SimpleNamespace(a=1).__init__,), "p: "),
    "one array": ((a := dlarray(X), a), (dlarray(X), dlarray(X)), "which arrays are the same: (0, 0, 1) -> (0, 1, 2)"),
}  # fmt: skip


@pytest.mark.parametrize("name", WHY)
def test_B3_explain_says_why_a_call_was_recorded(name):
    first, second, why = WHY[name]
    accfun = dlaccelerate(lambda p, q=0, *, x: x * 2)
    for arguments in (first, first, second):
        accfun(*arguments, x=dlarray(X))
    found = accfun.explain()
    assert (found.calls, found.hits, len(found.traces), len(found.misses)) == (3, 1, 2, 2)
    assert found.misses[0].nearest is None and found.misses[1].nearest == 0 and found.misses[1].call == 3
    assert re.fullmatch(r"\S+test_explain\.py:\d+", found.misses[1].where)
    assert why in "; ".join(map(str, found.misses[1].why))
    text = str(found)
    assert "3 calls, 1 hits (33.33 %), 2 traces" in text and why[:40] in text and "first call" in text


def test_B3_rows_are_data():
    accfun = dlaccelerate(layer)
    for k in range(4):
        accfun(dlarray(X + k), WEIGHTS)
    (row,) = accfun.explain().traces
    assert row.hits == 3 and row.record_ms > 0 and row.replay_ms > 0 and row.signature == accfun.signatures[0]
    assert row.signature["x"] == "2×3 single" and list(row.signature) == ["x", "w.a", "w.b"]
    assert row.nbytes == accfun.trace().nbytes


def test_B3_what_is_captured_and_inside_dlfeval():
    k = 1.0
    accfun = dlaccelerate(lambda x: x * k)
    accfun(dlarray(X))
    k = 2.0
    accfun(dlarray(X))
    m.dlfeval(accfun, dlarray(X))
    captured, inside = accfun.explain().misses[1:]
    assert "k: 1.0 -> 2.0" in str(captured.why[0]) and "outside of dlfeval -> inside dlfeval" in str(inside.why[0])
    assert accfun.signatures[0]["k"] == "1.0"


def test_B3_calls_that_cannot_be_replayed_are_there():
    accfun = dlaccelerate(lambda x: x * float(x))
    quietly(accfun, dlarray(1.0))
    assert accfun.explain().misses[0].note == "cannot be replayed" and "cannot be replayed" in str(accfun.explain())
    assert accfun.NumTraces == 0 and accfun.signatures == []


# B4: made again and again -------------------------------------------------------------------------------------------
def test_B4_a_function_accelerated_in_a_loop():
    with pytest.warns(RetraceWarning, match=r"once more at \S+test_explain.py:\d+.*outside of the loop") as caught:
        for _ in range(5):
            dlaccelerate(lambda x: x * 2)(dlarray(X))
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", RetraceWarning)
        for function in (step, layer):
            dlaccelerate(function)


def test_M6_a_helper_with_a_closure_of_its_own_is_no_loop():
    def fit(rate):
        accfun = dlaccelerate(lambda x: x - rate * x)
        return [accfun(dlarray(X)) for _ in range(3)]

    with warnings.catch_warnings():
        warnings.simplefilter("error", RetraceWarning)
        for rate in (0.1, 0.2, 0.3, 0.4):
            fit(rate)
        for many in [[dlaccelerate(lambda x: x + 1) for _ in range(5)] for _ in range(2)]:  # not called yet
            assert not any(accfun.NumTraces for accfun in many)


CELL = """
accfun = dlaccelerate(f)
y = accfun(x)
"""


@pytest.mark.parametrize("file", ["/tmp/ipykernel_123/456.py", "<ipython-input-3-0123abcd>"])
def test_M6_a_cell_that_is_run_again_is_no_loop(file):
    space = {"dlaccelerate": dlaccelerate, "x": dlarray(X), "f": lambda x: x * 2}
    with warnings.catch_warnings():
        warnings.simplefilter("error", RetraceWarning)
        for _ in range(4):
            exec(compile(CELL, file, "exec"), space)


@pytest.mark.parametrize("file, name, numbers", [
    ("/tmp/ipykernel_123/456.py", "In[7]", {"/tmp/ipykernel_123/456.py": 7}),
    ("/tmp/ipykernel_123/456.py", "cell 456", None),
    (r"C:\Users\me\AppData\Temp\ipykernel_9\77.py", "cell 77", {}),
    ("<ipython-input-3-0123abcd>", "In[3]", None),
    ("<ipython-input-3-0123abcd>", "In[4]", {"<ipython-input-3-0123abcd>": 4}),
])  # fmt: skip
def test_M6_a_notebooks_cell_has_its_own_name(monkeypatch, file, name, numbers):
    if numbers is not None:
        shell = types.SimpleNamespace(compile=types.SimpleNamespace(_filename_map=numbers))
        monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    space = {"dlaccelerate": dlaccelerate, "x": dlarray(X), "scale": 2.0}
    source = "@dlaccelerate\ndef f(x):\n    print('hello')\n    return x * scale\n"
    exec(compile(source, file, "exec"), space)
    with pytest.warns(TraceWarning, match=re.escape(f"at {name}:3")):
        space["f"](space["x"])
    assert space["f"].trace().graph.nodes[0].where == f"{name}:4"
    assert space["f"].captures()[0].where == f"{name}:4"


# B5, B6: memory and size of the cache -------------------------------------------------------------------------------
def test_B5_ten_thousand_calls_and_a_thousand_evictions_leave_memory_flat():
    captured = dlarray(X)
    accfun = dlaccelerate(lambda x, k: (x * k + captured, m.sum(x, "all")))
    accfun.CacheSize = 5
    process = psutil.Process()

    def work(calls, evictions):
        x = dlarray(X)
        for _ in range(calls):
            y = accfun(x, 0)
        for k in range(evictions):
            y = accfun(x, k)
        return y

    work(100, 60)
    gc.collect()
    tracemalloc.start()
    try:
        work(1000, 120)
        gc.collect()
        before, rss = tracemalloc.get_traced_memory()[0], process.memory_info().rss
        work(9000, 880)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 100_000, f"{grown} bytes are still there"
    assert process.memory_info().rss - rss < 30e6
    assert accfun.NumTraces == 5 and sum(map(len, accfun._cache.plans.values())) <= 5 and len(accfun._misses) <= 100


def test_B6_a_thousand_traces_are_found_each_by_its_own():
    accfun = dlaccelerate(lambda x, k: x * k)
    accfun.CacheSize = 1000
    for k in range(300):
        accfun(dlarray(X), k)
    with no_retrace():
        for k in range(0, 300, 7):
            assert_same(accfun(dlarray(X), k), X * np.float32(k))


# C1: a longer function ----------------------------------------------------------------------------------------------
def forty(x, w):
    """Forty calls, of all kinds, with random numbers and a gradient."""
    y = x @ w.a + w.b
    for k in range(8):
        y = m.tanh(y * (1 + k) - m.mean(y, 0)) + m.rand(1, 2, like=x) * 0.1
    y = m.sum(m.sort(m.cumsum(y, 0), 1), "all")
    return y, m.dlgradient(y, w)


def test_C1_a_fault_at_every_op_of_a_long_function(monkeypatch, backend):
    from minidl.backends import BACKENDS

    run, count, limit = BACKENDS[backend].run, 0, None

    class Fault(Exception):
        pass

    def faulty(*args):
        nonlocal count
        count += 1
        if count == limit:
            raise Fault
        return run(*args)

    monkeypatch.setattr(BACKENDS[backend], "run", faulty)
    expected = flat(m.dlfeval(forty, dlarray(X), WEIGHTS))
    total, accfun = count, dlaccelerate(forty)
    assert total >= 40
    for limit in range(1, total + 1):  # noqa: B007
        m.rng("default")
        before, count = m.rng(), 0
        with pytest.raises(Fault):
            m.dlfeval(accfun, dlarray(X), WEIGHTS)
        assert m.rng() == before and not open_tapes() and accfun.NumTraces == 0 and accfun._cache.calls == 0
    limit = None
    for _ in range(3):
        m.rng("default")
        assert_close(flat(m.dlfeval(accfun, dlarray(X), WEIGHTS)), expected, 1e-4)
    assert accfun.NumTraces == 1 and m.rng()["Draws"] == 8


# C2: threads --------------------------------------------------------------------------------------------------------
def test_C2_eight_threads_a_thousand_calls_each_equal_serial():
    scale = dlarray(np.float32(0.5))
    accfun = dlaccelerate(lambda x, p: {"y": m.tanh(x * p["a"] + scale), "s": m.sum(x * x, "all")})
    inputs = [(dlarray(X * k), {"a": dlarray(X + k)}) for k in range(16)] + [(dlarray(X[:1]), {"a": dlarray(X[:1])})]
    expected = [flatten(accfun.Function(*x))[0] for x in inputs]
    wrong, errors = [], []

    def work(start):
        try:
            for i in range(1000):
                k = (start + i) % len(inputs)
                found = flatten(accfun(*inputs[k]))[0]
                if not all(np.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(found, expected[k])):
                    wrong.append(k)
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and not errors and accfun.NumTraces == 2 and accfun._cache.calls == 8000


# D2: NaN and Inf ----------------------------------------------------------------------------------------------------
def test_D2_the_first_op_that_is_not_finite_is_named():
    def function(x):
        y = m.log(x)  # HERE
        return m.sum(m.exp(y) * y, "all")

    accfun = dlaccelerate(function)
    accfun.CheckFinite = True
    with warnings.catch_warnings():
        warnings.simplefilter("error", AccelerationWarning)
        for _ in range(3):
            accfun(dlarray(np.abs(X)))
    line = function.__code__.co_firstlineno + 1
    with pytest.warns(NonFiniteWarning) as caught:
        found = accfun(dlarray(X))
    text = str(caught[0].message)
    assert f"first op that gave them is log (forward, at {__file__}:{line})" in text
    assert np.isnan(found.item()) and accfun.NumTraces == 1
    with pytest.warns(NonFiniteWarning, match=r"its input v0 .array 0 of the arguments and captures. has them already"):
        accfun(dlarray(X * np.nan))


def test_D2_on_the_way_back():
    def loss(x):
        y = m.sum(m.sqrt(x), "all")  # HERE
        return y, m.dlgradient(y, x)

    accfun = dlaccelerate(loss)
    accfun.CheckFinite = True
    m.dlfeval(accfun, dlarray(np.abs(X)))
    with pytest.warns(NonFiniteWarning, match=rf"gradient, on the way back through {re.escape(__file__)}:") as caught:
        m.dlfeval(accfun, dlarray(X * 0))
    assert f":{loss.__code__.co_firstlineno + 1})" in str(caught[0].message)
    with pytest.raises(m.OptionError, match="CheckFinite is True or False"):
        accfun.CheckFinite = "yes"


# D4: for test suites ------------------------------------------------------------------------------------------------
HIDDEN = Hidden("hidden", default=0)


def hidden_constant(x):
    HIDDEN.set(HIDDEN.get() + 1)
    return x * HIDDEN.get()


def hidden_branch(x):
    HIDDEN.set(HIDDEN.get() + 1)
    return m.exp(x) if HIDDEN.get() % 2 else m.sin(x)


def hidden_option(x):
    HIDDEN.set(HIDDEN.get() + 1)
    return m.sum(x, HIDDEN.get() % 2)


def hidden_length(x):
    HIDDEN.set(HIDDEN.get() + 1)
    return x * 2 if HIDDEN.get() % 2 else x * 2 + 1


def hidden_array(x):
    HIDDEN.set(HIDDEN.get() + 1)
    return x + dlarray(np.full((2, 3), HIDDEN.get(), np.float32))


def cancelling(x):
    return (x + 1e8) - 1e8


def printing(x):
    print("here")
    return x * 2


GOOD = {
    "map": (lambda x: m.exp(x) * 2, dlarray(X)),
    "layer": (layer, dlarray(X), WEIGHTS),
    "a loss with its gradient": (
        lambda w, x: (y := m.sum(layer(x, w) ** 2, "all"), m.dlgradient(y, w)), WEIGHTS, dlarray(X),
    ),
    "random": (training_step, WEIGHTS, dlarray(X)),
    "accelerated": (dlaccelerate(layer), dlarray(X), WEIGHTS),
    "plain arguments": (lambda x, k, mode: x * k, dlarray(X), 3, "train"),
    "integers as results": (lambda x: {"n": len(x), "y": [x > 0, x * x]}, dlarray(X)),
}
BAD = {
    "a look": (lambda x: x * float(m.sum(x, "all")), "looks at a traced number"),
    "a print": (printing, r"does more than compute: print at \S+test_explain.py:\d+ .output."),
    "another constant": (hidden_constant, r"a constant of times at \S+:\d+ changed .*then.*Pass it as an argument"),
    "another array": (hidden_array, r"a constant of plus at \S+:\d+ changed"),
    "another op": (hidden_branch, r"(exp|sin) at \S+:\d+ became (sin|exp) at"),
    "another option": (hidden_option, r"had .* and then .*, computed by Python from values"),
    "another length": (hidden_length, "only one of them goes on to plus at"),
    "precision": (cancelling, "in double precision, the result differs"),
}


@pytest.mark.parametrize("name", GOOD)
def test_D4_functions_fit_for_acceleration(name):
    m.rng(5)
    before = m.rng()
    function, *args = GOOD[name]
    assert_accelerable(function, *args)
    assert m.rng() == before  # the generator is left as it was


@pytest.mark.parametrize("name", BAD)
def test_D4_functions_that_are_not(name):
    function, pattern = BAD[name]
    with pytest.raises(AssertionError, match="assert_accelerable: .*" + pattern):
        assert_accelerable(function, dlarray(X))
    assert not open_tapes()


def test_D4_wrong_results_are_found(monkeypatch, backend):
    if backend != "cpu":
        pytest.skip("the reference backend has no compiled programs that could be wrong")
    from minidl.engine.program import Program

    right = Program.run
    monkeypatch.setattr(Program, "run", lambda self, arrays: [y + 1 for y in right(self, arrays)])
    with pytest.raises(AssertionError, match="replayed fast, the result differs by"):
        assert_accelerable(lambda x: x * 2, dlarray(X))


def test_D4_no_retrace():
    accfun = dlaccelerate(step)
    accfun(dlarray(X), dlarray(X), 0.1)
    with no_retrace():
        accfun(dlarray(X), dlarray(X), 0.1)
        with pytest.raises(TraceError, match=r"no_retrace: step would be recorded anew: rate: 0\.1 -> 0\.2"):
            accfun(dlarray(X), dlarray(X), 0.2)
        with pytest.raises(TraceError, match="it has no trace yet"):
            dlaccelerate(layer)(dlarray(X), WEIGHTS)
        with no_retrace():
            pass
        with pytest.raises(TraceError):
            accfun(dlarray(X), dlarray(X), 0.2)
    accfun(dlarray(X), dlarray(X), 0.2)
    assert accfun.NumTraces == 2


def test_warnings_are_a_family_that_users_can_turn_into_errors():
    assert issubclass(TraceWarning, AccelerationWarning) and issubclass(RetraceWarning, AccelerationWarning)
    assert issubclass(NonFiniteWarning, AccelerationWarning)
    accfun = dlaccelerate(lambda x: x * float(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error", AccelerationWarning)
        for _ in range(2):
            with pytest.raises(TraceWarning):
                accfun(dlarray(2.0))
            accfun.clearCache()
    assert quietly(accfun, dlarray(2.0)).item() == 4.0


def test_a_recording_sees_what_it_needs():
    """Recording is what all of this stands on: inputs, captures and state first, results and changed state last."""
    w = dlarray(X)
    recording = Recording(lambda x: x * w + m.rand(2, 3, like=x), [dlarray(X)], flatten(((dlarray(X),), {}))[1])
    graph = recording.graph().check()
    assert len(graph.inputs) == 3 and len(graph.outputs) == 2 and not graph.constants
    assert struct(a=1) and recording.signature.pattern == (0, 1)
