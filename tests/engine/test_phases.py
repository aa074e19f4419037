"""Phases: what runs side by side, what waits, and that no order of chunks changes a result."""

from __future__ import annotations

import ctypes
import random

import numpy as np
import pytest

import minidl as m
from engine.programs import assert_close, recorded
from minidl.backends import cpu
from minidl.backends.cpu.native import driver
from minidl.core.dlarray import dlarray
from minidl.engine.compile import compile_graph
from minidl.engine.layout import order_of
from minidl.engine.phases import CHUNKS
from minidl.engine.program import NativeProgram

RANDOM = np.random.default_rng(7)


def normal(*shape):
    return RANDOM.normal(size=shape).astype("float32")


def compiled(function, *inputs):
    graph, values, _ = recorded(function, *inputs)
    program = compile_graph(graph, [order_of(value.data) for value in values], cpu)
    assert isinstance(program, NativeProgram)
    return program, [value.data for value in values]


def phases(program):
    found = [phase for segment in program.plan.segments if isinstance(segment, list) for phase in segment]
    return [phase for phase in found if phase.groups]


def layer(x, w, o, s):
    y, _, _ = m.batchnorm(m.dlconv(x, w, 0, Padding="same"), o, s, nargout=3)
    return m.relu(y)


def network(x, w1, w2, v):
    one = dlarray(np.ones(16, "float32"))
    y = layer(layer(x, w1, one, one), w2, one, one)
    return m.fullyconnect(y, v, 0)


def training(x, w1, w2, v):
    def loss(x, w1, w2, v):
        y = m.softmax(network(x, w1, w2, v))
        value = m.mean(m.sum(y * y, "C"), "all")
        return value, m.dlgradient(value, [w1, w2, v])

    value, gradients = m.dlfeval(loss, x, w1, w2, v)
    return [value, *gradients]


NETWORK = (
    dlarray(normal(10, 8, 3, 16), "SSCB"), dlarray(normal(3, 3, 3, 16) * 0.2), dlarray(normal(5, 5, 16, 16) * 0.1),
    dlarray(normal(7, 10 * 8 * 16) * 0.1),
)  # fmt: skip


def test_a_chain_over_observations_is_one_phase():
    x, w, v = dlarray(normal(30, 500), "CB"), dlarray(normal(40, 30)), dlarray(normal(20, 40))
    program, _ = compiled(lambda x, w, v: m.tanh(m.fullyconnect(m.relu(m.fullyconnect(x, w, 0)), v, 0)), x, w, v)
    assert len(phases(program)) <= 2  # the weights may be brought in order first
    last = phases(program)[-1].groups[0]
    assert last.size == 500 and last.chunks == CHUNKS and last.tile > 1


def test_statistics_over_observations_end_a_phase():
    program, _ = compiled(network, *NETWORK)
    assert 3 <= len(phases(program)) <= 4
    sizes = [max(group.size for group in phase.groups) for phase in phases(program)]
    assert sizes.count(16) >= 2


def test_sums_over_the_range_are_added_up_per_chunk():
    program, arrays = compiled(lambda x: m.sum(m.exp(x), 0), dlarray(normal(40_000, 3)))
    (phase,) = phases(program)
    items = [item for item in phase.groups[0].items if item.partial]
    assert items and phase.tail
    expected = np.exp(arrays[0].astype("float64")).sum(0, keepdims=True)
    assert_close(program.run(arrays), [expected.astype("float32")], 1e-6)


def test_every_buffer_is_made_before_it_is_read():
    program, _ = compiled(training, *NETWORK)
    layout = program.plan.schedule.layout
    there = {*layout.graph.inputs, *layout.memory}
    for segment in program.plan.segments:
        for phase in segment:
            made = set()
            for group in phase.groups:
                mine = set()
                for item in group.items:
                    assert item.reads <= there | mine, "a group reads nothing that another one of its phase makes"
                    mine |= {*item.writes, *item.partial.values()}
                made |= mine
            there |= made
            for item in phase.tail:
                assert item.reads <= there
                there |= set(item.writes)


def test_scratch_of_a_tile_does_not_overlap():
    program, _ = compiled(training, *NETWORK)
    plan = program.plan
    for segment in plan.segments:
        for phase in segment:
            for group in phase.groups:
                last = {}
                for k, item in enumerate(group.items):
                    for buffer in {*item.reads, *item.writes}:
                        last[buffer] = k
                alive = {}
                for k, item in enumerate(group.items):
                    for y in item.writes:
                        if y in plan.scratch:
                            start, per_index = plan.scratch[y]
                            for other, (low, high) in alive.items():
                                apart = start >= high or start + per_index * group.tile <= low
                                assert other == y or apart, f"{y} over {other}"
                            alive[y] = start, start + per_index * group.tile
                    alive = {x: where for x, where in alive.items() if last[x] > k}


@pytest.mark.parametrize("seed", range(3))
def test_chunks_in_any_order_give_the_same_bits(seed):
    program, arrays = compiled(training, *NETWORK)
    expected = program.run(arrays)
    frame = program.frames[-1] if len(program.frames) > 1 else program.frames[0]
    (segment,) = program._segments
    (step,) = frame.steps
    table, order = step.table, random.Random(seed)
    chunk_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    tail_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
    where = table.__array_interface__["data"][0], int(table[driver.SCRATCH])
    found = [phase for phase in program.plan.segments[0] if phase.groups or phase.tail]
    for p, phase in enumerate(found):
        chunks = list(range(sum(group.chunks for group in phase.groups)))
        order.shuffle(chunks)
        for chunk in chunks:
            chunk_type(segment.code.address(f"p{p}"))(*where, chunk)
        tail_type(segment.code.address(f"p{p}tail"))(*where)
    for a, b in zip(expected, frame.results()):
        assert np.array_equal(a, b)


def test_a_training_step_is_right():
    program, arrays = compiled(training, *NETWORK)
    for _ in range(2):
        assert_close(program.run(arrays), training(*NETWORK), 3e-5)
