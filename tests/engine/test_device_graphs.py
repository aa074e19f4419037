"""Programs on a device as graphs: captured once, bound to inputs where they lie, results in frames of their own."""

from __future__ import annotations

import gc
import os
import threading
import traceback

import cusim
import hypothesis.strategies as st
import numpy as np
import pytest
from cusim.graphs import Stream, driver
from hypothesis import given, settings

import minidl as m
from engine.programs import LAYOUTS, assert_same, programs, recorded, values
from minidl import TraceWarning, dlaccelerate, dlarray, gpuArray
from minidl.backends import cuda
from minidl.core.device import host
from minidl.core.op import KERNEL, OPS, op
from minidl.core.random import GENERATOR
from minidl.engine import devices
from minidl.engine.compile import compile_graph
from minidl.engine.layout import order_of
from minidl.kernels.cuda import launch

X = np.arange(12, dtype=np.float32).reshape(3, 4) + 1


@pytest.fixture(params=["shim"])
def device(request):
    """These tests look into the shim's graphs."""
    from conftest import in_use

    Stream.graphs.clear()
    with in_use("shim") as found:
        yield found
    Stream.graphs.clear()


def compiled(function, *inputs, is_exact=False):
    graph, fresh, _ = recorded(function, *inputs)
    return compile_graph(graph, [order_of(value.data) for value in fresh], None, is_exact=is_exact)


def there(x):
    return gpuArray(dlarray(x))


def run(program, *inputs):
    return program.run([x if isinstance(x, (np.ndarray, cusim.ndarray)) else x._value.data for x in inputs]
                       + [GENERATOR.value.data])  # fmt: skip


def launches(action):
    """How many kernels were launched, graphs' included, by name."""
    before = dict(cusim.RawModule.launches)
    action()
    return {k: n - before.get(k, 0) for k, n in cusim.RawModule.launches.items() if n != before.get(k, 0)}


def step(x, w):
    y = m.tanh(x @ w)
    return m.sum(y, "all"), w - 0.1 * (x.T @ y)


# capture ----------------------------------------------------------------------------------------------------------
def test_the_second_run_of_a_binding_is_captured_and_later_ones_are_one_launch(device):
    program = compiled(step, there(X), there(X.T))
    x, w = there(X), there(X.T)
    results = []
    for k in range(5):
        results.append([host(y) for y in run(program, x, w)])
        assert len(Stream.graphs) == (k > 0)
    (graph,) = Stream.graphs
    assert graph.count == 4 and program.failures == 0
    assert all(np.array_equal(a, b) for found in results for a, b in zip(found, results[0]))


def test_the_order_of_a_graph_is_that_of_the_plan(device):
    program = compiled(step, there(X), there(X.T))
    plain = launches(lambda: run(program, there(X), there(X.T)))
    x, w = there(X), there(X.T)
    for _ in range(3):
        run(program, x, w)
    (graph,) = Stream.graphs
    assert sorted(graph.names) == sorted(name for name, n in plain.items() for _ in range(n) if name != "copy_each")
    assert len(graph.names) == sum(1 for name in graph.names) > len(program.plan.schedule.tasks) - 1
    assert graph.names[0] == "contract"


@settings(max_examples=25, derandomize=True)
@given(programs(most_steps=6), st.lists(st.integers(0, len(LAYOUTS) - 1), min_size=3, max_size=3))
def test_graphs_give_the_bits_of_single_launches_and_exact_ones_those_of_plain_calls(device, drawn, layouts):
    function, specs = drawn
    for is_exact in (False, True):
        graph, fresh, _ = recorded(function, *[gpuArray(values(spec, 0)) for spec in specs])
        program = compile_graph(graph, [order_of(value.data) for value in fresh], None, is_exact=is_exact)
        inputs = [gpuArray(values(spec, 1, k)) for spec, k in zip(specs, layouts)]
        found = [[host(y) for y in run(program, *inputs)] for _ in range(3)]
        assert_same(found[1], found[0])
        assert_same(found[2], found[0])
        assert getattr(program, "failures", 0) == 0
        if is_exact:
            assert_same(found[0], [y.numpy() for y in function(*inputs)])


def test_what_libraries_compute_is_not_captured(device):
    a = there(np.float64(np.eye(3) + 0.1))
    program = compiled(lambda a, b: m.mldivide(a, b) * 2, a, there(np.ones((3, 2))))
    for _ in range(3):
        run(program, a, there(np.ones((3, 2))))
    assert not Stream.graphs and program.failures == 0


@pytest.fixture
def waiting():
    """A user's op whose kernel copies to the host."""

    @op(KERNEL, types="f->f")
    def waiting_square(x):
        """x * x, by a kernel that cannot be captured."""
        return x * x

    waiting_square.infer(lambda x: x)
    waiting_square.kernels["gpu"] = lambda y, x: y.set(x.get() ** 2)
    yield waiting_square
    del OPS["waiting_square"]


def test_a_capture_that_fails_is_told_once_and_launches_go_on_one_by_one(device, waiting):
    accelerated = dlaccelerate(lambda x: waiting(x * 1) + 1)
    x = there(X)
    with pytest.warns(TraceWarning, match="could not be captured as a CUDA graph.*copy to the host") as told:
        for _ in range(5):
            assert np.array_equal(accelerated(x).numpy(), X * X + 1)
    assert len([w for w in told if "captured" in str(w.message)]) == 1
    assert accelerated.trace().program.failures == 1 and not Stream.graphs
    assert not cusim.graphs.current().is_capturing()
    assert np.array_equal((x + 1).numpy(), X + 1)


def test_graphs_can_be_switched_off(device, monkeypatch):
    monkeypatch.setenv("MINIDL_CUDA_GRAPHS", "0")
    program = compiled(step, there(X), there(X.T))
    x, w = there(X), there(X.T)
    for _ in range(3):
        run(program, x, w)
    assert not Stream.graphs


# inputs -----------------------------------------------------------------------------------------------------------
def test_a_training_loop_copies_nothing_and_needs_few_bindings(device):
    accelerated = dlaccelerate(lambda x, w, m_: (step(x, w)[1], m_ * 0.5 + w))
    x, w, average = there(X), there(X.T / 50), there(X.T)
    expected = X.T / np.float32(50), X.T
    for k in range(12):
        if k == 8:
            before = dict(cusim.RawModule.launches)
            captured = len(Stream.graphs)
        w, average = accelerated(x, w, average)
        h = dlarray(expected[0])
        expected = step(dlarray(X), h)[1].numpy(), expected[1] * np.float32(0.5) + expected[0]
        np.testing.assert_allclose(w.numpy(), expected[0], rtol=1e-5)
        np.testing.assert_allclose(average.numpy(), expected[1], rtol=1e-5)
    program = accelerated.trace().program
    assert len(program._device_frames) <= 3 and len(program._executables) <= devices.MOST_EXECUTABLES
    assert len(Stream.graphs) == captured, "after eight steps nothing is captured any more"
    names = {name for name, n in cusim.RawModule.launches.items() if n != before.get(name, 0)}
    assert "copy_each" not in names


def test_inputs_at_ever_new_addresses_are_copied(device):
    program = compiled(step, there(X), there(X.T))
    kept = []
    for k in range(40):
        x, w = there(X * k / 40), there(X.T)
        kept += [x, w]  # so that no address comes twice
        found = [host(y) for y in run(program, x, w)]
        for y, z in zip(found, step(dlarray(X * np.float32(k / 40)), dlarray(X.T))):
            np.testing.assert_allclose(y, z.numpy(), rtol=1e-5)
    assert program._bound_count <= 2 * devices.PATIENCE + 4
    assert launches(lambda: run(program, there(X), there(X.T)))["copy_each"] == 1
    assert Stream.graphs[-1].count > 10


# graphs that are changed ------------------------------------------------------------------------------------------
def with_large_inputs(device, monkeypatch, **options):
    """(a program, the driver, a function that runs it and checks the result): its first input counts as large."""
    fake = driver(**options)
    launch.use(cusim, fake)
    monkeypatch.setattr(devices, "REDIRECT_BYTES", X.nbytes)
    program = compiled(lambda x, w: step(x, w)[1], there(X), there(X.T / 50))
    weights, kept = there(X.T / 50), []

    def check(k):
        x = there(X + k)
        kept.append(x)  # so that no address comes twice
        for _ in range(2):  # the second run of a binding is captured
            found = [host(y) for y in run(program, x, weights)]
            expected = host(step(x, weights)[1]._value.data)
            np.testing.assert_allclose(found[0], expected, rtol=1e-6)

    return program, fake, check


def test_graphs_are_changed_for_large_inputs_at_ever_new_addresses(device, monkeypatch):
    program, fake, check = with_large_inputs(device, monkeypatch)
    for k in range(30):
        check(k)
    assert program.redirect_count > 20 and len(Stream.graphs) == devices.MOST_BOUND == len(program._executables)
    assert len(fake.changes) == 2 * program.redirect_count and set(fake.changes) == {"contract"}  # x @ w, x.T @ y
    assert program.failures == 0 and f"{program.redirect_count} changed for inputs elsewhere" in str(program)


def in_a_child(action):
    """What a wrong read would end is a process of its own."""
    child = os.fork()
    if not child:
        code = 1
        try:
            action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


LESS_ALIGNED = {
    "a product": lambda x, w: x @ w,
    "a loop into a product": lambda x, w: m.exp(x / 1e4) @ w,
    "a sum": lambda x, w: m.sum(x, 1) + m.sum(w, "all"),
    "rows by number": lambda x, w: x[[3, 0, 5]] @ w,
    "a softmax": lambda x, w: m.softmax(x / 1e3, DataFormat="CB") @ w,
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a wrong read ends the process")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", LESS_ALIGNED)
def test_F2_graphs_are_not_changed_to_read_at_less_aligned_addresses(device, monkeypatch, name):
    """Windows of one long array: ten at multiples of 16 bytes, for which vectors were chosen, then one in between."""
    fake, function = driver(), LESS_ALIGNED[name]
    launch.use(cusim, fake)
    big, w = np.arange(8192, dtype=np.float32), there(np.ones((8, 8), np.float32))
    monkeypatch.setattr(devices, "REDIRECT_BYTES", 64 * 8 * 4)
    signal = cusim.asarray(big)
    program = compiled(function, there(big[:512].reshape(64, 8)), w)

    def work():
        for k in [*range(0, 5120, 512), 4609, 512, 4610, 4609, 4608]:
            x = signal[k : k + 512].reshape(64, 8)
            for _ in range(2):
                found = host(run(program, x, w)[0])
                expected = function(dlarray(big[k : k + 512].reshape(64, 8)), dlarray(np.ones((8, 8), np.float32)))
                np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)
        assert program.redirect_count > 3, "none was changed"

    assert int(signal.data) % 16 == 0
    assert in_a_child(work) == 0


def test_F2_alignments():
    assert [devices._alignment(x) for x in (0, 1, 2, 4, 12, 8, 24, 16, 48, 512)] == [16, 1, 2, 4, 4, 8, 8, 16, 16, 16]


def test_F2_graphs_with_a_users_kernel_are_not_changed(device, monkeypatch):
    """It may have chosen what to launch by the address."""
    seen = []

    @op(KERNEL, types="f->f")
    def looking_double(x):
        """2 x, by a kernel that looks at the address."""
        return x * 2

    def kernel(y, x):
        seen.append(int(x.data.ptr))
        cuda.loops.copy(y, x)

    looking_double.infer(lambda x: x)
    looking_double.kernels["gpu"] = kernel
    try:
        launch.use(cusim, driver())
        monkeypatch.setattr(devices, "REDIRECT_BYTES", X.nbytes)
        program, kept = compiled(lambda x: looking_double(x) + 1, there(X)), []
        for k in range(12):
            kept.append(there(X + k))
            for _ in range(2):
                assert np.array_equal(host(run(program, kept[-1])[0]), X + k + 1)
        assert program.redirect_count == 0 and seen
    finally:
        del OPS["looking_double"]


@pytest.mark.parametrize("fails_at", [1, 2, 7])
def test_a_change_that_is_refused_costs_the_graph_alone(device, monkeypatch, fails_at):
    program, fake, check = with_large_inputs(device, monkeypatch, fails_at=fails_at)
    for k in range(20):
        check(k)
    assert program.redirect_count > 5 and len(Stream.graphs) > devices.MOST_BOUND


def test_graphs_that_hold_something_else_are_left_alone(device, monkeypatch):
    """Then large inputs are copied, like small ones."""
    program, fake, check = with_large_inputs(device, monkeypatch, other="contract")
    for k in range(30):
        check(k)
    assert program.redirect_count == 0 and not fake.changes and len(Stream.graphs) <= 8


def test_a_driver_that_lacks_a_call_changes_nothing(device, monkeypatch):
    program, fake, check = with_large_inputs(device, monkeypatch)

    def missing(*asked):
        raise RuntimeError('Function "cuFuncGetParamInfo" not found')

    fake.cuFuncGetParamInfo = missing
    for k in range(30):
        check(k)
    assert program.redirect_count == 0 and not fake.changes and len(Stream.graphs) <= 8


def test_inputs_that_share_memory_are_not_taken_for_each_other(device, monkeypatch):
    """A part of an array beside all of it: an address within both does not say which of them a kernel reads."""
    launch.use(cusim, driver())
    monkeypatch.setattr(devices, "REDIRECT_BYTES", X.nbytes // 3)
    function = lambda x, y: m.exp(x) @ m.sin(y).T
    program, kept = compiled(function, there(X), there(X[:1])), []
    for k in range(20):
        whole, part = there(X / 9 + k / 100), there(X[:1] + k)
        kept += [whole, part]
        if k < 6:
            part = dlarray(whole._value.data[:1])  # a copy
        given = whole._value.data[:1] if k < 6 else part
        for _ in range(2):
            (found,) = [host(y) for y in run(program, whole, given)]
            np.testing.assert_allclose(found, function(whole, part).numpy(), rtol=1e-5)
    assert program.redirect_count > 0


def test_without_the_driver_large_inputs_are_copied(device, monkeypatch):
    program, _, check = with_large_inputs(device, monkeypatch)
    launch.use(cusim)
    program = compiled(lambda x, w: step(x, w)[1], there(X), there(X.T / 50))
    kept = []
    for k in range(30):
        kept.append(there(X + k))
        run(program, kept[-1], there(X.T / 50))
    assert program.redirect_count == 0 and len(Stream.graphs) <= 8


def test_a_training_loop_with_large_batches_at_new_addresses(device, monkeypatch):
    """Calls that are known from before are looked up anew when a graph was changed."""
    launch.use(cusim, driver())
    monkeypatch.setattr(devices, "REDIRECT_BYTES", X.nbytes)
    accelerated, w, kept = dlaccelerate(lambda w, x: w - 0.01 * (x.T @ m.tanh(x @ w))), there(X.T / 50), []
    plain = there(X.T / 50)
    for k in range(40):
        kept.append(there(X + k % 7))
        w = accelerated(w, kept[-1])
        plain = plain - 0.01 * (kept[-1].T @ m.tanh(kept[-1] @ plain))
    np.testing.assert_allclose(w.numpy(), plain.numpy(), rtol=1e-4)
    assert accelerated.trace().program.redirect_count > 20


def test_an_address_given_to_another_array_is_read_anew(device):
    program = compiled(lambda x: x * 2, there(X))
    for k in range(20):
        x = there(X + k)
        assert np.array_equal(host(run(program, x)[0]), (X + k) * 2)
        del x
        gc.collect()


def test_inputs_laid_out_otherwise_and_on_the_host(device):
    program = compiled(lambda x, y: x * 2 + y, there(X), dlarray(X))
    for _ in range(3):
        for x in (there(X), there(np.asfortranarray(X)), there(np.repeat(X, 2, 1))[:, ::2]):
            assert np.array_equal(host(run(program, x, X * 3)[0]), X * 5)


def test_one_array_for_inputs_that_lie_in_different_orders(device):
    """Where an array lies for one input says nothing about another one, that was recorded in another order."""
    square = X[:, :3]
    program = compiled(lambda x, y: x * 2 + y, there(square), there(square.T).T)
    for k in range(4):
        x = there(square + k)
        assert np.array_equal(host(run(program, x, x)[0]), (square + k) * 3)
        assert np.array_equal(host(run(program, there(square), x)[0]), square * 2 + square + k)


# results ----------------------------------------------------------------------------------------------------------
def test_results_that_somebody_holds_are_never_overwritten(device):
    program = compiled(lambda x: [x * 2, m.sum(x, "all")], there(X))
    kept = [run(program, there(X * k)) for k in range(9)]
    for k, (y, total) in enumerate(kept):
        assert np.array_equal(host(y), X * k * 2) and host(total) == (X * k).sum()
    assert len(program._device_frames) == 4, "three sets are handed out, results of the fourth are copied"


def test_a_view_of_a_result_holds_it_too(device):
    program = compiled(lambda x: x * 2, there(X))
    views = [run(program, there(X * k))[0].reshape(-1)[2:4] for k in range(7)]
    for k, view in enumerate(views):
        assert np.array_equal(host(view), (X * k * 2).reshape(-1)[2:4])


def test_results_let_go_of_are_used_again(device):
    program = compiled(lambda x: x * 2, there(X))
    x = there(X)
    places = {run(program, x)[0].data.ptr for _ in range(10)}
    assert len(places) == 1 and len(program._device_frames) == 1


def test_one_result_twice_and_results_that_are_inputs(device):
    program = compiled(lambda x: [x * 2, x, x.T, (x * 2).T], there(X))
    kept = [run(program, there(X * k)) for k in range(6)]
    for k, (y, x, turned, both) in enumerate(kept):
        for found, expected in ((y, X * k * 2), (x, X * k), (turned, X.T * k), (both, X.T * k * 2)):
            assert np.array_equal(host(found), expected)


def test_without_counts_of_references_results_are_copied(device, monkeypatch):
    monkeypatch.setattr(devices, "has_counts", False)
    program = compiled(lambda x: x * 2, there(X))
    kept = [run(program, there(X * k))[0] for k in range(6)]
    assert all(np.array_equal(host(y), X * k * 2) for k, y in enumerate(kept))


def test_a_trace_says_how_it_runs(device):
    accelerated = dlaccelerate(lambda x: m.exp(x) * 2)
    x = there(X / 10)
    for _ in range(4):
        accelerated(x)
    text = str(accelerated.trace())
    assert "1 bindings, 1 of them captured as graphs, 0 changed for inputs elsewhere, 0 captures failed" in text


# what goes wrong --------------------------------------------------------------------------------------------------
def test_a_replay_without_room_is_an_error_by_name_and_later_ones_are_right(device):
    accelerated = dlaccelerate(lambda x, w: step(x, w)[1])
    x, w = there(X), there(X.T / 50)
    expected = [accelerated(x, w).numpy() for _ in range(4)][0]
    kept = []
    with cusim.limit_memory(8), pytest.raises(m.DeviceMemoryError, match="no room.*Use smaller"):
        for _ in range(8):
            kept.append(accelerated(x, w))
    assert all(np.array_equal(y.numpy(), expected) for y in [*kept, accelerated(x, w)])


def test_an_interrupt_in_a_replay_or_a_capture_leaves_later_ones_right(device, monkeypatch):
    accelerated = dlaccelerate(lambda x, w: step(x, w)[1])
    x, w = there(X), there(X.T / 50)
    expected = accelerated(x, w).numpy()
    launched, moment = cusim.graphs.launched, iter(range(1000))

    def interrupted(*launch):
        if next(moment) in (0, 2, 4, 5):  # a plain run, then the capture
            raise KeyboardInterrupt
        launched(*launch)

    monkeypatch.setattr(cusim.graphs, "launched", interrupted)
    count = 0
    for _ in range(12):
        try:
            assert np.array_equal(accelerated(x, w).numpy(), expected)
        except KeyboardInterrupt:
            count += 1
        assert not cusim.graphs.current().is_capturing()
    assert count == 4 and accelerated.trace().program.failures == 0


def test_threads_share_a_program(device):
    accelerated = dlaccelerate(lambda x, w: step(x, w)[1])
    x, w = there(X), there(X.T / 50)
    expected, found = accelerated(x, w).numpy(), []

    def work():
        for _ in range(10):
            found.append(accelerated(x, w).numpy())

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 30 and all(np.array_equal(y, expected) for y in found)


def test_bindings_of_a_program_share_their_scratch(device):
    """Each has launches of its own; sums of slices and counters are those of the first."""
    x, w = there(np.ones((4, 3000))), [there(np.full((3000, 4), float(k))) for k in range(4)]
    program = compiled(lambda x, w: m.tanh(x @ w / 1e4), x, w[0])
    for _ in range(3):
        for k, each in enumerate(w):
            np.testing.assert_allclose(host(run(program, x, each)[0]), np.tanh(0.3 * k), rtol=1e-12)
    steps = [executable.steps[0] for executable in program._executables.values()]
    assert len(steps) == 4 and len({id(step._scratch) for step in steps}) == 1
    assert len({id(step._counters) for step in steps}) == 1 and not steps[0]._counters.get().any()
