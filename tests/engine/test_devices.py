"""Programs on a device: the same results as on the host, copies at the door, nothing that a later run overwrites."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import minidl as m
from engine.programs import LAYOUTS, assert_close, programs, recorded, rounding, values
from minidl import dlaccelerate, dlarray, dlfeval, dlgradient, gather, gpuArray
from minidl.core.device import host
from minidl.core.random import GENERATOR, rng
from minidl.engine.compile import compile_graph
from minidl.engine.devices import DeviceProgram, on_one_device
from minidl.engine.layout import order_of
from minidl.engine.program import ExactProgram

X = np.arange(6, dtype=np.float32).reshape(2, 3) + 1


def compiled(function, *inputs, is_exact=False):
    graph, fresh, _ = recorded(function, *inputs)
    return compile_graph(graph, [order_of(value.data) for value in fresh], None, is_exact=is_exact)


def run(program, *inputs):
    return [host(y) for y in program.run([x._value.data for x in inputs] + [GENERATOR.value.data])]


@settings(max_examples=40, derandomize=True)
@given(programs(most_steps=6), st.lists(st.integers(0, len(LAYOUTS) - 1), min_size=3, max_size=3))
def test_any_program_gives_there_what_it_gives_here(device, drawn, layouts):
    function, specs = drawn
    graph, fresh, _ = recorded(function, *[gpuArray(values(spec, 0)) for spec in specs])
    program = compile_graph(graph, [order_of(value.data) for value in fresh], None)
    for seed in (0, 1):
        inputs = [values(spec, seed, k) for spec, k in zip(specs, layouts)]
        expected = function(*inputs)
        there = [gpuArray(x) for x in inputs]
        assert_close([y.numpy() for y in function(*there)], expected, rounding(graph))
        assert_close(run(program, *there), expected, rounding(graph))


@pytest.mark.parametrize("is_exact", [False, True])
def test_results_are_copies_that_later_runs_leave_alone(device, is_exact):
    program = compiled(lambda x: [x * 2, x, m.sum(x, "all")], gpuArray(dlarray(X)), is_exact=is_exact)
    kept = [program.run([gpuArray(dlarray(X * k))._value.data, GENERATOR.value.data]) for k in range(5)]
    for k, (y, x, total) in enumerate(kept):
        assert np.array_equal(host(y), X * k * 2) and np.array_equal(host(x), X * k) and host(total) == (X * k).sum()


# the door ---------------------------------------------------------------------------------------------------------
def test_what_comes_from_the_host_is_copied_in_and_what_goes_there_out(device):
    program = compiled(lambda x, y: [gather(x * y), x + y], gpuArray(dlarray(X)), dlarray(X))
    assert isinstance(program, DeviceProgram)
    assert all(node.op.kind_name == "map" for node in program.graph.nodes)
    to_host, there = program.run([gpuArray(dlarray(X))._value.data, X * 3, GENERATOR.value.data])
    assert isinstance(to_host, np.ndarray) and np.array_equal(to_host, X * X * 3)
    assert not isinstance(there, np.ndarray) and np.array_equal(host(there), X * 4)


def test_constants_of_the_host_are_folded(device):
    weights = dlarray(X)
    program = compiled(lambda x: x * (weights + 1), gpuArray(dlarray(X)))
    assert len(program.graph.nodes) == 1 and np.array_equal(run(program, gpuArray(dlarray(X)))[0], X * (X + 1))


def to_and_fro(x, t):
    return [gpuArray(gather(x * 2) + dlarray(X)) * 3 + gather(t) ** 2, gather(x) + t, t - 1]


@pytest.mark.parametrize("is_exact", [False, True])
def test_data_that_go_to_and_fro(device, is_exact):
    """Fast programs compute all of it on the device; exact ones call by call, each call where it was made."""
    x, t = gpuArray(dlarray(X)), dlarray(np.float32(3))
    program = compiled(to_and_fro, x, t, is_exact=is_exact)
    assert isinstance(program, ExactProgram if is_exact else DeviceProgram)
    found = program.run([x._value.data, t._value.data, GENERATOR.value.data])
    assert [isinstance(y, np.ndarray) for y in found] == [False, True, True]
    for y, expected in zip(found, (X * 9 + 9, X + 3, 2.0)):
        assert np.array_equal(host(y), np.float32(expected) + np.zeros(y.shape, np.float32))


def test_the_graph_itself_stays_as_it_is(device):
    graph, _, _ = recorded(lambda x: m.zeros(2, 3, like=x) + x, gpuArray(dlarray(X)))
    before = str(graph), [spec.device for spec in graph.specs]
    assert on_one_device(graph).check() is not graph
    assert before == (str(graph), [spec.device for spec in graph.specs])


# accelerated ------------------------------------------------------------------------------------------------------
def loss(x, w):
    y = m.sum(m.square(m.tanh(x * w)), "all")
    return y, dlgradient(y, w)


def test_replays_on_the_device_equal_plain_calls(device):
    accelerated = dlaccelerate(loss)
    for k in range(4):
        x, w = gpuArray(dlarray(X * k)), gpuArray(dlarray(X + k))
        found, expected = dlfeval(accelerated, x, w), dlfeval(loss, dlarray(X * k), dlarray(X + k))
        assert found[0].device == found[1].device == "gpu"
        assert_close([y.numpy() for y in found], expected, 1e-5)
    assert accelerated.HitRate == 75


def test_each_device_has_traces_of_its_own(device):
    accelerated = dlaccelerate(loss)
    for _ in range(2):
        for place in (gpuArray, lambda x: x):
            y, g = dlfeval(accelerated, place(dlarray(X)), place(dlarray(X)))
            assert y.device == g.device == place(dlarray(X)).device
    assert accelerated.HitRate == 50 and accelerated.NumTraces == 2


def test_captured_arrays_may_change_and_move(device):
    w = dlarray(X)
    accelerated = dlaccelerate(lambda x: x * w)
    x = gpuArray(dlarray(X))
    for w in (gpuArray(dlarray(X * 2)), gpuArray(dlarray(X * 3)), dlarray(X * 4), dlarray(X * 5)):
        assert np.array_equal(accelerated(x).numpy(), X * w.numpy())
    assert accelerated.NumTraces == 2


def test_gradients_held_across_calls_stay(device):
    accelerated = dlaccelerate(loss)
    w = gpuArray(dlarray(X))
    held = [dlfeval(accelerated, gpuArray(dlarray(X * k)), w)[1] for k in range(4)]
    for k, g in enumerate(held):
        assert_close(g.numpy(), dlfeval(loss, dlarray(X * k), dlarray(X))[1], 1e-5)


def test_random_numbers_are_fresh_and_those_of_the_host(device):
    def noisy(x):
        return x + m.randn(2, 3, like=x) + m.rand(2, 3, like=x)

    rng(3)
    expected = [noisy(dlarray(X)).numpy() for _ in range(5)]
    rng(3)
    accelerated = dlaccelerate(noisy)
    found = [accelerated(gpuArray(dlarray(X))).numpy() for _ in range(5)]
    assert_close(found, expected, 1e-6)
    assert accelerated.HitRate > 0
    after = m.rand(2)  # the host goes on where the device stopped
    rng(3)
    for _ in range(5):
        noisy(dlarray(X))
    assert np.array_equal(after, m.rand(2))


@pytest.mark.parametrize("is_there", [False, True])
def test_an_audit_does_not_mind_where_the_random_state_lies(device, is_there):
    def noisy(x):
        return x + m.rand(2, 3, like=x) + m.randn(2, 3, like=x)

    x, found = gpuArray(dlarray(X)), []
    for accelerated in (noisy, dlaccelerate(noisy)):
        rng(5)
        for k in range(11):  # audits at calls 2 and 10
            m.rand(1, like=x if is_there else dlarray(X))  # now the state lies here, or there
            if k == 9:
                m.rand(1, like=dlarray(X) if is_there else x)
            found.append(accelerated(x).numpy())
    assert_close(found[:11], found[11:], 1e-6)
    assert accelerated.HitRate > 90 and accelerated.NumTraces == 1


def test_python_that_looks_is_not_replayed(device):
    accelerated = dlaccelerate(lambda x: x if float(m.sum(x, "all")) > 0 else -x)
    for sign in (1, -1, 1):
        with pytest.warns(m.TraceWarning) if sign == 1 and not accelerated.explain().misses else _nothing():
            found = accelerated(gpuArray(dlarray(X * sign)))
        assert np.array_equal(found.numpy(), X)


class _nothing:
    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


def test_an_exception_inside_leaves_everything_as_it_was(device):
    def fails(x, wrong):
        y = x * 2
        return y + dlarray(np.ones((7, 9))) if wrong else y

    accelerated = dlaccelerate(fails)
    x = gpuArray(dlarray(X))
    for _ in range(2):
        assert np.array_equal(accelerated(x, False).numpy(), X * 2)
        with pytest.raises(m.ShapeError):
            accelerated(x, True)
    assert np.array_equal(accelerated(x, False).numpy(), X * 2)


def test_precision_is_part_of_the_signature(device):
    accelerated = dlaccelerate(lambda a, b: a @ b)
    a, b = np.float32(1 + np.arange(12).reshape(3, 4) / 1000), np.float32(np.ones((4, 8)))
    results = {}
    for name in ("float32", "tf32", "float32", "tf32"):
        with m.Precision(name):
            for _ in range(2):
                y = accelerated(gpuArray(dlarray(a)), gpuArray(dlarray(b))).numpy()
                assert results.setdefault(name, y).tobytes() == y.tobytes()
    assert accelerated.NumTraces == 2 and m.Precision.current() == "float32"
    np.testing.assert_allclose(results["float32"], a @ b, rtol=1e-6)
    np.testing.assert_allclose(results["tf32"], a @ b, rtol=2e-3)
    assert not np.array_equal(results["float32"], results["tf32"])
