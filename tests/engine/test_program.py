"""Programs: a replay returns what the function would have returned, as arrays of its own."""

from __future__ import annotations

import sys
import threading
import warnings

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import minidl as m
from engine.programs import (
    LAYOUTS,
    assert_close,
    assert_same,
    numbers,
    programs,
    recorded,
    rounding,
    values,
)
from minidl.backends import cpu, reference
from minidl.core.dlarray import dlarray
from minidl.core.random import GENERATOR
from minidl.engine.compile import compile_graph
from minidl.engine.layout import order_of
from minidl.engine.program import ExactProgram, Program
from minidl.kernels.cpu.threads import set_thread_count

X = np.arange(6, dtype=np.float32).reshape(2, 3) + 1
MODES = ("fast", "exact")


def compiled(function, *inputs, mode="fast", backend=cpu):
    graph, fresh, _ = recorded(function, *inputs)
    return compile_graph(graph, [order_of(value.data) for value in fresh], backend, is_exact=mode == "exact")


def run(program, *inputs):
    return program.run([x._value.data for x in inputs] + [GENERATOR.value.data])


layouts = st.lists(st.integers(0, len(LAYOUTS) - 1), min_size=3, max_size=3)


@settings(max_examples=100, derandomize=True)
@given(programs(), layouts)
def test_exact_is_bit_for_bit(drawn, orders):
    function, specs = drawn
    program = compiled(function, *[values(spec, 0) for spec in specs], mode="exact")
    for seed in (0, 1):
        inputs = [values(spec, seed, k) for spec, k in zip(specs, orders)]
        assert_same(run(program, *inputs), function(*inputs))


@settings(max_examples=50, derandomize=True)
@given(programs(most_steps=6), layouts)
def test_fast_is_equal_to_rounding(drawn, orders):
    function, specs = drawn
    program = compiled(function, *[values(spec, 0, k) for spec, k in zip(specs, orders)])
    for seed in (0, 1):
        inputs = [values(spec, seed, k + 3 * seed) for spec, k in zip(specs, orders)]
        before = [x._value.data.copy() for x in inputs]
        found = run(program, *inputs)
        assert_close(found, function(*inputs), rounding(program.graph))
        assert all(map(np.array_equal, before, [x._value.data for x in inputs]))
        apart(found, [x._value.data for x in inputs] + [program._arena])


def apart(found, others):
    for i, y in enumerate(found):
        assert not any(np.may_share_memory(y, other) for other in [*others, *found[:i]])


def test_the_reference_backend_replays_call_by_call():
    def function(x):
        return m.hypot(x, 3.0) + m.softmax(x, DataFormat="CB"), m.sum(x, 0)

    program = compiled(function, dlarray(X), backend=reference)
    assert isinstance(program, ExactProgram)
    assert_close(run(program, dlarray(X * 2)), function(dlarray(X * 2)), 1e-6)


# results are independent objects ----------------------------------------------------------------------------------
CONSTANT = dlarray(np.float32([[0.5, 0.25, 4.0]] * 2))
RESULTS = {
    "computed": lambda x: m.exp(x),
    "an input": lambda x: x,
    "a view of an input": lambda x: x.T,
    "part of an input, backwards": lambda x: x[::-1, 1:],
    "a constant": lambda x: CONSTANT,
    "a view of a constant": lambda x: CONSTANT.T,
    "a constant repeated": lambda x: m.repmat(CONSTANT[:, :1], 1, 4),
    "a view of what is computed": lambda x: m.exp(x)[:, ::2],
    "the same twice": lambda x: [y := m.exp(x), y],
    "a value and a view of it": lambda x: [y := m.exp(x), y.T, m.reshape(y, 6, 1)],
    "input twice": lambda x: [x, x],
    "empty": lambda x: x[:, :0],
    "scalar": lambda x: m.sum(x, "all"),
    "logical": lambda x: x > 2,
    "an empty sum": lambda x: m.sum(x[:, :0], 1),
}


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("mode", MODES)
def test_results_are_independent(name, mode):
    function = RESULTS[name]
    program = compiled(function, dlarray(X), mode=mode)
    earlier = [X, CONSTANT._value.data] + ([program._arena] if mode == "fast" else [])
    kept = []
    for k in range(4):
        x = X * (k + 1)
        found = run(program, dlarray(x))
        assert_close(found, function(dlarray(x)), 1e-6)
        apart(found, [*earlier, x])
        earlier += found
        kept.append((found, [y.copy() for y in found]))
    for found, copies in kept:
        assert all(map(np.array_equal, found, copies))
        for y in found:
            y[...] = 7  # whoever gets a result may do what he likes with it
    assert_close(run(program, dlarray(X)), function(dlarray(X)), 1e-6)


LARGE = np.linspace(0.5, 2, 64 * 64, dtype=np.float32).reshape(64, 64)
LARGE_CONSTANT = dlarray(LARGE)
EXACT = {  # name: (function, which results are handed out without a copy)
    "computed": (lambda x: [m.exp(x), x @ x, m.cumsum(x, 0), m.hypot(x, 3.0)], "yyyy"),
    "a view of what is computed": (lambda x: m.softmax(x, DataFormat="CB").T, "y"),
    "computed, and from that": (lambda x: [y := m.exp(x), y * 2], "yy"),
    "an input": (lambda x: [x, x.T], "nn"),
    "a constant": (lambda x: [LARGE_CONSTANT, LARGE_CONSTANT.T], "nn"),
    "the same twice": (lambda x: [y := m.exp(x), y], "nn"),
    "a value and a view of it": (lambda x: [y := m.exp(x), y.T], "nn"),
    "part of what is computed": (lambda x: [m.exp(x)[:, ::2], m.exp(x)[:32], m.exp(x)[::-1]], "nnn"),
    "repeated": (lambda x: m.repmat(m.exp(x)[:1], 64, 1), "n"),
    "small": (lambda x: m.sum(x, 0), "n"),
}


def addresses_made(monkeypatch, *, kept=None):
    """Addresses of all arrays that the CPU backend makes from now on; `kept` gets the arrays."""
    made, compute = set(), cpu.run

    def noting(*args):
        found = compute(*args)
        for y in found or ():
            made.add(y.__array_interface__["data"][0])
            if kept is not None:
                kept.append(y)
        return found

    monkeypatch.setattr(cpu, "run", noting)
    return made


@pytest.mark.parametrize("name", EXACT)
def test_exact_hands_out_what_nobody_else_sees(name, monkeypatch):
    function, expected = EXACT[name]
    program = compiled(function, dlarray(LARGE), mode="exact")
    made = addresses_made(monkeypatch)
    earlier = [LARGE, LARGE_CONSTANT._value.data]
    for k in (1, 2, 3):
        made.clear()
        x = dlarray(LARGE * k)
        found = run(program, x)
        fresh = "".join("ny"[y.__array_interface__["data"][0] in made] for y in found)
        apart(found, [*earlier, x._value.data])
        earlier += found
        assert_same(found, function(x))
        assert fresh == expected or not getattr(sys, "_is_gil_enabled", lambda: True)()


def test_exact_copies_what_a_kernel_keeps(monkeypatch):
    program = compiled(lambda x: [m.exp(x), m.exp(x * 2).T], dlarray(LARGE), mode="exact")
    kept = []
    addresses_made(monkeypatch, kept=kept)
    found = run(program, dlarray(LARGE))
    assert kept
    apart(found, kept)


@pytest.mark.parametrize("mode", MODES)
def test_constants_may_be_read_only_unaligned_and_repeated(mode):
    for layout in LAYOUTS:
        constant = dlarray(layout(X * 0.5))
        function = lambda x, c=constant: [x * c, c @ x.T, m.sum(c, 0)]  # noqa: E731
        program = compiled(function, dlarray(X), mode=mode)
        assert_close(run(program, dlarray(X + 1)), function(dlarray(X + 1)), 1e-6)


def test_inputs_of_another_memory_layout_than_the_recorded_one():
    weights = dlarray(np.random.default_rng(0).normal(size=(3, 3, 2, 4)).astype("float32"))

    def function(x):
        y = m.relu(m.dlconv(x, weights, 0, Padding="same"))
        return y, m.sum(y, "S"), m.softmax(m.sum(y, "S"))

    x = np.random.default_rng(1).normal(size=(5, 6, 2, 3)).astype("float32")
    program = compiled(function, dlarray(x, "SSCB"))
    expected = function(dlarray(x, "SSCB"))
    for layout in (*LAYOUTS[:5], *LAYOUTS[6:]):
        assert_close(run(program, dlarray(layout(x), "SSCB")), expected)


# size ------------------------------------------------------------------------------------------------------------
def network(x, w):
    y = m.tanh(x @ w) * 2 + 0.5
    z = y - m.mean(y, 0)
    z = z / m.sqrt(m.mean(m.square(z), 0) + 1e-5)
    return z, m.sum(z, 1), m.max(y, [], "all"), m.any(z > 2, 0), m.cumsum(m.sum(m.exp(-m.square(z)), 1))


@pytest.mark.parametrize("rows", [1, 7, 1024, 30_000])
def test_large_sizes_behave_like_small_ones(rows):
    random = np.random.default_rng(0)
    w = dlarray(random.normal(size=(8, 33)))

    def function(x, w):
        def both(x, w):
            outputs = network(x, w)
            return [*outputs, m.dlgradient(m.sum(outputs[0] * outputs[1], "all"), w)]

        return m.dlfeval(both, x, w)

    x = dlarray(random.normal(size=(rows, 8)))
    found = run(compiled(function, x, w), x, w)
    assert_close(found, function(x, w), 1e-9)


def test_results_do_not_depend_on_the_number_of_threads():
    random = np.random.default_rng(0)
    x, w = dlarray(random.normal(size=(20_000, 8)).astype("f")), dlarray(random.normal(size=(8, 33)).astype("f"))
    program = compiled(network, x, w)
    try:
        found = []
        for threads in (1, 2, 4):
            set_thread_count(threads)
            found.append(run(program, x, w))
    finally:
        set_thread_count()
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])


# running ----------------------------------------------------------------------------------------------------------
def test_many_threads_run_one_program():
    program = compiled(lambda x: [m.cumsum(m.exp(x), 0), x * 2], dlarray(np.ones((300, 50))))
    wrong = []

    def work(k):
        x = np.full((300, 50), k / 10)
        for _ in range(20):
            y, z = run(program, dlarray(x))
            if not (np.allclose(y, np.cumsum(np.exp(x), 0)) and np.array_equal(z, 2 * x)):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("mode", MODES)
def test_overflow_is_a_result_like_others(mode):
    program = compiled(lambda x: [m.cumsum(x), x.T @ x, m.log(x - x), x / 0], dlarray(X * 0), mode=mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = run(program, dlarray(np.full((2, 3), 3e38, np.float32)))
    assert all(np.isinf(y).any() for y in found)


HUGE = np.linspace(1e37, 1e38, 6, dtype=np.float32).reshape(2, 3)
IMAGES = np.random.default_rng(0).normal(size=(8, 8, 2, 4)).astype("float32")
FILTERS = np.full((3, 3, 2, 3), 1e20, np.float32)
OVERFLOWING = {  # one kernel alone: no other one must be there to silence it
    "matmul": (lambda x: x @ x.T, HUGE, ""),
    "conv": (lambda x: m.dlconv(x, FILTERS, 0), IMAGES * np.float32(1e20), "SSCB"),
    "conv_weight_grad": (lambda x: gradient(lambda w: m.dlconv(x, w, 0), dlarray(FILTERS)), IMAGES * 1e10, "SSCB"),
    "conv_input_grad": (lambda x: gradient(lambda y: m.dlconv(y, FILTERS, 0), x), IMAGES, "SSCB"),
    "batchnorm": (lambda x: m.batchnorm(x, np.zeros(2, "f"), np.ones(2, "f")), IMAGES * np.float32(np.inf), "SSCB"),
    "softmax": (lambda x: m.softmax(x), np.full((2, 3), -np.inf), "BC"),
    "a loop": (lambda x: m.sum(x * x) / 0 - m.log(x - x), HUGE, ""),
    "a loop over truths": (lambda x: m.cast(x * x > 2, "single") / 0, HUGE, ""),
}


def gradient(function, x):
    def summed(x):
        y = function(x)
        return m.dlgradient(m.sum(y * y, "all"), x)

    return m.dlfeval(summed, x)


@pytest.mark.parametrize("name", OVERFLOWING)
@pytest.mark.parametrize("mode", MODES)
def test_no_kernel_warns(name, mode):
    function, x, labels = OVERFLOWING[name]
    x = dlarray(x.astype(np.float32), labels)
    program = compiled(function, x, mode=mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = run(program, x)
    assert not all(np.isfinite(y).all() for y in found)


def test_a_fault_in_one_step_leaves_the_program_usable():
    program = compiled(lambda x: m.cumsum(m.exp(x), 0) * 2, dlarray(X))
    assert isinstance(program, Program)
    whole = list(program.frames[0].steps)

    def fault():
        raise MemoryError("no memory")

    for i in range(len(whole)):
        program.frames[0].steps[i] = fault
        with pytest.raises(MemoryError):
            run(program, dlarray(X))
        program.frames[0].steps[i] = whole[i]
        assert_close(run(program, dlarray(X)), [np.cumsum(np.exp(X), 0) * 2], 1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_random_numbers_are_drawn_from_the_state_given(mode):
    def function(x):
        y = m.rand(2, 3, like=x) + m.randn(2, 3, like=x)
        return y, dlarray_of(GENERATOR.value)

    def dlarray_of(value):
        return m.DLArray(value)

    m.rng(5)
    program = compiled(function, dlarray(X), mode=mode)
    for seed in (5, 6):
        m.rng(seed)
        found, state = run(program, dlarray(X))
        m.rng(seed)
        assert_same([found], [function(dlarray(X))[0]])
        assert state.tolist() == [seed, 2]


def test_exact_keeps_no_value_longer_than_needed():
    def function(x):
        for _ in range(50):
            x = m.exp(x * 0.1)
        return x

    program = compiled(function, dlarray(np.ones(1000)), mode="exact")
    assert sum(map(len, program._done)) == 100  # all but the result (the input counts)


def test_programs_read_line_by_line():
    program = compiled(lambda x: m.cumsum(m.exp(x), 0) * 2, dlarray(X))
    graph, plan = str(program).split("\n\n")
    first, *rest = str(program.plan).splitlines()
    assert graph == str(program.graph) and plan.splitlines()[1:] == rest
    assert plan.startswith(f"{first}; 0 of 1 results in memory of their own")
    assert str(compiled(lambda x: m.exp(x), dlarray(X), mode="exact")).count("\n") == 3


def test_numbers_of_a_program_are_those_of_its_last_inputs():
    step = compiled(lambda x: x * 0.5 + 1, dlarray(np.float64(3.0)))
    x = np.array(3.0)
    for _ in range(100):
        (x,) = step.run([x, GENERATOR.value.data])  # results fed back as inputs
    assert numbers([x])[0] == pytest.approx(2.0)
    assert run(step, dlarray(8.0))[0] == 5.0
