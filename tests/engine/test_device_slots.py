"""Loops in the slots of contractions: fewer kernels, and what the function computes, no less exactly."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import minidl as m
from engine.programs import recorded
from engine.test_native_networks import Layer, Network, assert_as_exact, errors, networks
from minidl import dlarray, gpuArray
from minidl.core.contraction import Contraction, index
from minidl.core.device import host
from minidl.core.random import GENERATOR
from minidl.engine import compile as compiling
from minidl.engine.branches import levels, needs
from minidl.engine.compile import compile_graph
from minidl.engine.devices import DeviceProgram
from minidl.engine.fused import Fused, split_nest
from minidl.engine.graph import Node
from minidl.engine.layout import order_of
from minidl.engine.loops import Loop


def compiled(function, inputs):
    graph, fresh, _ = recorded(function, *[gpuArray(x) for x in inputs])
    program = compile_graph(graph, [order_of(value.data) for value in fresh], None)
    assert isinstance(program, DeviceProgram)
    return program


def run(program, inputs):
    there = [gpuArray(x)._value.data for x in inputs] + [GENERATOR.value.data]
    return [host(y) for y in program.run(there)]


def without_slots():
    patch = pytest.MonkeyPatch()
    patch.setattr(compiling, "slotted", lambda schedule, objection: schedule)
    patch.setattr(compiling, "openable", lambda graph: set())
    return patch


def depth(program):
    return 1 + max(levels(needs(program.plan.schedule.tasks)))


@pytest.fixture(autouse=True)
def no_blocks(monkeypatch):
    """Here what is small is to stay as it is: these tests are about contractions."""
    monkeypatch.setattr("minidl.engine.blocks.SMALL", 0)
    monkeypatch.setattr("minidl.engine.blocks.SMALL_BEHIND", 0)


def works(program):
    return [task.work for task in program.plan.schedule.tasks]


def check(device, network, dtype):
    """As exact as the function itself; the same bits in every order of threads; nothing read that was not written."""
    inputs = network.inputs(dtype)
    program = compiled(network, inputs)
    found = []
    for order in device.orders():
        device.set_order(order)
        found.append(run(program, inputs))
    for other in found[1:]:
        assert [x.tobytes() for x in other] == [x.tobytes() for x in found[0]]
    eager = network(*inputs)
    assert [(x.shape, x.dtype) for x in found[0]] == [(x.shape, x.dtype) for x in eager]
    if dtype == "float64":
        assert max(errors(found[0], eager)) < 1e-10
        return program
    assert_as_exact(network, inputs, found[0])
    return program


@settings(max_examples=5, derandomize=True)
@given(networks(), st.sampled_from(["float32", "float32", "float64"]))
def test_any_network(device, network, dtype):
    check(device, network, dtype)


# what goes where --------------------------------------------------------------------------------------------------
def conv(filters, channels, size=3, stride=1):
    options = {"Stride": stride, "DilationFactor": 1, "Padding": "same"}
    return Layer("conv", options, ((size, size, channels, filters), (filters,)))


def batchnorm(channels):
    return Layer("batchnorm", None, ((channels,), (channels,)))


def dense(outputs, inputs):
    return Layer("fullyconnect", None, ((outputs, inputs), (outputs,)))


RELU = Layer("relu", None)
FORWARD = Network((conv(8, 3), batchnorm(8), RELU, conv(16, 8), RELU), "mse", (6, 6, 3), 4, 0, "none")
NETWORK = Network(
    (conv(8, 3), batchnorm(8), RELU, conv(8, 8, 1), batchnorm(8), Layer("skip", "relu"), conv(16, 8, stride=2), RELU,
     dense(3, 144)), "crossentropy", (6, 6, 3), 4, 1, "none",
)  # fmt: skip


def test_forward_each_convolution_is_one_task(device):
    program = check(device, FORWARD, "float32")
    first, second, *rest = works(program)
    assert first.name == second.name and first.end is not None and len(first.sums) == 2
    assert second.loads[0] is not None and second.tail is not None and not second.sums
    assert not any(isinstance(work, Fused) for work in rest)


def test_a_fused_program_has_fewer_tasks_and_a_shorter_way(device):
    inputs = NETWORK.inputs("float32")
    patch = without_slots()
    before = compiled(NETWORK, inputs)
    patch.undo()
    after = check(device, NETWORK, "float32")
    assert len(works(after)) <= 0.7 * len(works(before)) and depth(after) <= 0.6 * depth(before)
    assert after.plan.arena_bytes < before.plan.arena_bytes
    assert max(errors(run(after, inputs), run(before, inputs))) < 1e-5


def test_memory_may_be_shared(device, monkeypatch):
    inputs = NETWORK.inputs("float32")
    apart = compiled(NETWORK, inputs)
    monkeypatch.setattr(compiling, "CACHED_BYTES", 0)
    shared = compiled(NETWORK, inputs)
    assert shared.plan.arena_bytes < apart.plan.arena_bytes
    for _ in range(2):
        found = run(shared, inputs)
        assert [x.tobytes() for x in found] == [x.tobytes() for x in run(apart, inputs)]


def test_double_precision(device):
    """Its variance takes a second pass over what the first one makes: that kernel stays."""
    names = [work.op.name for work in works(check(device, NETWORK, "float64")) if isinstance(work, Node)]
    assert names.count("batchnorm_train") == 2


def test_statistics_that_find_no_place_stay_a_kernel(device):
    def function(x, offset, scale):
        return m.batchnorm(x, offset, scale)

    x = dlarray(np.random.default_rng(0).normal(size=(5, 7, 4, 3)).astype("f"), "SSCB")
    program = compiled(function, [x, dlarray(np.ones(4, "f")), dlarray(np.ones(4, "f"))])
    assert [work.op.name for work in works(program) if isinstance(work, Node)] == ["batchnorm_train"]


def test_results_are_stored_whatever_is_made_of_them(device):
    def function(x, w):
        y = x @ w
        return y, m.relu(y), m.sum(y, 0)

    r = np.random.default_rng(0)
    inputs = [dlarray(r.normal(size=size).astype("f")) for size in ((40, 17), (17, 9))]
    program = compiled(function, inputs)
    (fused,) = works(program)
    assert fused.keeps_y and len(fused.writes) == 3
    assert max(errors(run(program, inputs), function(*inputs))) < 1e-6


def product(function, size=(64, 300)):
    """The tasks of a sum of products of what a function makes of x."""
    r = np.random.default_rng(0)
    inputs = [dlarray(r.normal(size=size).astype("f")) for size in (size, (300, 256))]
    program = compiled(lambda x, w: function(x) @ w, inputs)
    assert max(errors(run(program, inputs), [function(inputs[0]) @ inputs[1]])) < 1e-5
    return works(program)


def test_what_is_cheap_is_made_on_load(device):
    (fused,) = product(lambda x: m.relu(x * 2 + 1))
    assert fused.loads[0] is not None


def test_a_copy_for_a_product_is_none(device):
    (fused,) = product(lambda x: m.reshape(m.permute(x, [1, 2, 0]), 64, 300, Order="C"), (15, 64, 20))
    assert fused.loads == (None, None) and fused.places[1].shape == (64, 20, 15)


def test_what_costs_more_than_a_kernel_is_made_once(device, monkeypatch):
    monkeypatch.setattr("minidl.engine.slots.LAUNCH", 0.0)
    tasks = product(lambda x: m.tanh(m.exp(x * 0.1)))
    assert len(tasks) == 2 and isinstance(tasks[0], Loop)


def test_a_tail_waits_for_what_else_it_reads(device):
    """The first product can only be stored when the second is there; what reads the first in between forbids it."""

    def later(x, w):
        return m.relu(x @ w + m.tanh(x * 2) @ w)

    def between(x, w):
        y = x @ w
        return m.relu(y + m.tanh(y) @ w)

    r = np.random.default_rng(0)
    inputs = [dlarray(r.normal(size=(9, 9)).astype("f")) for _ in range(2)]
    for function, count in ((later, 2), (between, 2)):
        program = compiled(function, inputs)
        assert len(works(program)) == count
        assert max(errors(run(program, inputs), [function(*inputs)])) < 1e-5


def test_sums_do_not_wait_for_what_they_do_not_need(device):
    """The second sum could be taken where `e` is made, too; but that waits for the first one."""

    def function(x, w):
        d = x * w
        e = d - m.sum(d, 0)
        return d, e, m.sum(e, 0), m.sum(d * x, 0)

    r = np.random.default_rng(0)
    inputs = [dlarray(r.normal(size=(100, 60)).astype("f")) for _ in range(2)]
    program = compiled(function, inputs)
    first, *_ = program.plan.schedule.tasks
    outputs = program.plan.schedule.layout.graph.outputs
    access = program.plan.schedule.layout.access
    assert access[outputs[3]].buffer in first.writes and access[outputs[2]].buffer not in first.writes
    assert max(errors(run(program, inputs), function(*inputs))) < 1e-5


def test_a_tail_goes_to_the_contraction_that_waits_for_most(device):
    """The second branch is longer, so what joins them waits for it in any case."""

    def function(x, w, v):
        return m.relu(m.tanh(m.tanh(x @ w) @ w) @ v + x @ v)

    def other(x, w, v):
        return m.relu(x @ v + m.tanh(m.tanh(x @ w) @ w) @ v)

    r = np.random.default_rng(0)
    inputs = [dlarray(r.normal(size=(9, 9)).astype("f")) for _ in range(3)]
    for each in (function, other):
        program = compiled(each, inputs)
        assert len(works(program)) == 4 and depth(program) == 3
        assert max(errors(run(program, inputs), [each(*inputs)])) < 1e-5


def test_a_product_of_one_term_is_a_loop(device):
    """An outer product joins what is made of it; a window that reaches beyond the image does not."""

    def outer(x, w):
        return m.relu(x[:, :1] @ w[:1] + 1)

    r = np.random.default_rng(0)
    inputs = [dlarray(r.normal(size=(9, 9)).astype("f")) for _ in range(2)]
    program = compiled(outer, inputs)
    (work,) = works(program)
    assert isinstance(work, Loop) and max(errors(run(program, inputs), [outer(*inputs)])) < 1e-6

    def scaled(x, w):
        return m.dlconv(m.reshape(x, 9, 9, 1, 1), m.reshape(w[0, :4], 1, 1, 1, 4), 0, DataFormat="SSCB", Padding=1)

    program = compiled(scaled, inputs)
    assert not any(isinstance(work, Loop) and len(work.reads) > 1 for work in works(program)[:1])
    assert max(errors(run(program, inputs), [scaled(*inputs)])) < 1e-6


def test_exact_programs_stay_as_they_are(device):
    graph, fresh, _ = recorded(FORWARD, *[gpuArray(x) for x in FORWARD.inputs("float32")])
    program = compile_graph(graph, [order_of(value.data) for value in fresh], None, is_exact=True)
    assert not any(isinstance(work, Fused) for work in works(program))


def test_tensor_cores(device):
    inputs = NETWORK.inputs("float32")
    with m.Precision("tf32"):
        program = compiled(NETWORK, inputs)
        found = run(program, inputs)
    assert any(isinstance(work, Fused) for work in works(program))
    assert max(errors(found[:2], NETWORK(*inputs)[:2])) < 5e-3


def test_a_trace_shows_what_is_where(device):
    text = str(compiled(NETWORK, NETWORK.inputs("float32")))
    assert "conv; load of a: " in text and "; then t" in text and "; then per column t" in text


# subscripts -------------------------------------------------------------------------------------------------------
def evaluated(nest, y_shape, a, b):
    """What a nest means."""
    y = np.zeros(y_shape)
    for at in np.ndindex(*nest.sizes):
        places = [tuple(s.start + sum(f * at[i] for i, f in s.factors) for s in x) for x in (nest.y, nest.a, nest.b)]
        if all(0 <= p < n for p, n in zip(places[1], a.shape)) and all(0 <= p < n for p, n in zip(places[2], b.shape)):
            y[places[0]] += a[places[1]] * b[places[2]]
    return y


def test_finer_dimensions_mean_the_same():
    r = np.random.default_rng(0)
    a, b = r.normal(size=(4, 12)), r.normal(size=(12, 6))
    nest = Contraction((4, 6, 12), (index(0), index(1)), (index(0), index(2)), (index(2), index(1)))
    expected = evaluated(nest, (4, 6), a, b)
    np.testing.assert_allclose(expected, a @ b)
    finer = split_nest(nest, 1, (4, 12), ((4,), (2, 3, 2)))
    again = split_nest(finer, 2, (12, 6), ((6, 2), (2, 3)))
    third = split_nest(again, 0, (4, 6), ((2, 2), (6,)))
    np.testing.assert_allclose(evaluated(finer, (4, 6), a.reshape(4, 2, 3, 2), b), expected)
    np.testing.assert_allclose(evaluated(again, (4, 6), a.reshape(4, 2, 3, 2), b.reshape(6, 2, 2, 3)), expected)
    found = evaluated(third, (2, 2, 6), a.reshape(4, 2, 3, 2), b.reshape(6, 2, 2, 3))
    np.testing.assert_allclose(found.reshape(4, 6), expected)


def test_dimensions_that_slide_are_not_split():
    nest = Contraction((6, 3), (index(0),), (index(0, 1, (1, 1), start=-1),), (index(1),))
    assert split_nest(nest, 1, (6,), ((2, 3),)) is None
    assert split_nest(nest, 0, (6,), ((2, 3),)) is not None
    assert split_nest(nest, 0, (6,), ((4, 2),)) is None
