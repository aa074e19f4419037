"""Results without copies: nobody ever sees one change, and in a loop the same few pieces of memory serve again."""

from __future__ import annotations

import ctypes
import functools
import gc
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings

import minidl as m
from engine.programs import assert_same, programs, values
from engine.test_program import compiled, run
from minidl.core.dlarray import adopted, dlarray
from minidl.engine import program as programs_of_engine
from minidl.engine.program import LARGE_BYTES, MOST_FRAMES, SMALL_BYTES

LARGE = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)  # well above SMALL_BYTES
assert LARGE.nbytes > SMALL_BYTES

pytestmark = pytest.mark.skipif(
    not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="without the lock all results are copied"
)


def address(array):
    return array.__array_interface__["data"][0]


def doubled(x):
    return [x * 2, m.sum(x, "all")]


def test_results_kept_are_never_overwritten():
    program = compiled(doubled, dlarray(LARGE))
    kept = [run(program, dlarray(LARGE * k)) for k in range(12)]
    for k, (large, small) in enumerate(kept):
        assert np.array_equal(large, LARGE * np.float32(k) * 2) and small == pytest.approx((LARGE * k).sum(), rel=1e-5)
    assert len({address(large) for large, _ in kept}) == 12 and len(program.frames) == 1 + MOST_FRAMES


def test_a_loop_takes_the_same_memory_again():
    program = compiled(doubled, dlarray(LARGE))
    places, history = set(), []
    for k in range(30):
        large, small = run(program, dlarray(LARGE + k))  # the one before is still held while this one is made
        places.add(address(large))
        history.append(small)  # small results may be kept
    assert len(places) == 2 and len(program.frames) == 3
    assert [float(x) for x in history] == pytest.approx([float((LARGE + k).sum()) for k in range(30)], rel=1e-5)


def test_results_fed_back():
    program = compiled(lambda x: x * 0.5 + 1, dlarray(LARGE))
    x, expected = LARGE, LARGE
    for _ in range(50):
        (x,) = run(program, adopted(x))
        expected = expected * np.float32(0.5) + 1
        assert np.array_equal(x, expected)
    assert len(program.frames) <= 1 + MOST_FRAMES


HOLDERS = {  # ways to hold on to a result after the result itself is gone
    "a view": lambda y: y[3:5, ::2],
    "a view of a view": lambda y: y.T[2:][::-1],
    "a memoryview": lambda y: memoryview(y),
    "a read-only view": lambda y: np.asarray(adopted(y)),
    "another type": lambda y: y.view(np.uint8),
    "an iterator": lambda y: np.nditer(y),
    "flat": lambda y: y.flat,
    "a dlarray of a view": lambda y: m.permute(adopted(y), [1, 0]),
    "a container": lambda y: {"y": [y]},
    "dlpack": lambda y: np.from_dlpack(y),
    "what it is a view of": lambda y: y.base,
    "a matrix": lambda y: y.view(np.matrix),
    "its address with ctypes": lambda y: y.ctypes.data_as(ctypes.POINTER(ctypes.c_float * y.size)),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_whoever_holds_a_part_keeps_it(name):
    program = compiled(doubled, dlarray(LARGE))
    held = HOLDERS[name](run(program, dlarray(LARGE))[0])
    before = np.array(read(held))
    for k in range(2 * MOST_FRAMES):
        run(program, dlarray(LARGE + 10 + k))
    assert np.array_equal(read(held), before)


def read(held):
    if isinstance(held, dict):
        return held["y"][0]
    if isinstance(held, np.nditer):
        return held.operands[0]
    if hasattr(held, "contents"):
        return np.ctypeslib.as_array(held.contents)
    if isinstance(held, m.DLArray):
        return held._value.data
    return np.array(held)


def test_an_array_seen_again_has_the_numbers_of_before():
    big = np.ones((256, 256), np.float32)
    assert big.nbytes >= LARGE_BYTES
    first, second = compiled(lambda x: x * 2, dlarray(big)), compiled(lambda x: x + 1, dlarray(big))
    for k in range(4):
        (y,) = first.run([big * k, None])
        assert np.array_equal(second.run([y, None])[0], big * 2 * k + 1)  # it knows the large inputs of before
        del y  # its memory serves again, as another array


def test_what_an_owner_did_to_a_result_goes_with_it():
    program = compiled(doubled, dlarray(LARGE))
    for _ in range(2 * MOST_FRAMES):
        y = run(program, dlarray(LARGE))[0]
        assert y.shape == LARGE.shape and y.flags.writeable and np.array_equal(y, LARGE * 2)
        y[...] = 7
        y.shape, y.flags.writeable = (LARGE.size,), False


def network(x, w):
    y = m.tanh(x @ w)
    return [y, m.sum(y, 1), m.sum(y, 0), m.softmax(y, DataFormat="BC")]


def test_sets_share_scratch_and_constants():
    x, w = dlarray(np.ones((2000, 64), np.float32)), dlarray(np.full((64, 2000), 0.1, np.float32))
    program = compiled(network, x, w)
    kept = [run(program, x, w) for _ in range(MOST_FRAMES)]
    assert len(program.frames) == 1 + MOST_FRAMES
    first, *others = [frame.steps for frame in program.frames]
    bound_anew = 0
    for steps in others:
        for step, before in zip(steps, first):
            bound_anew += step is not before
            if hasattr(step, "held"):
                assert step.held[-1] is before.held[-1]  # the code, with its scratch
            elif hasattr(step, "rebind"):
                assert step.rebind.args[0] is before.rebind.args[0]  # what is printed, with its scratch
            else:
                assert isinstance(step, functools.partial) and step.func is before.func
                assert step.keywords.get("scratch") is before.keywords.get("scratch")
    assert bound_anew >= MOST_FRAMES
    for found in kept:
        assert_same(found, run(program, x, w))


def test_all_sets_in_use():
    program = compiled(doubled, dlarray(LARGE))
    kept = [run(program, dlarray(LARGE * k))[0] for k in range(MOST_FRAMES)]
    more = [run(program, dlarray(LARGE * k))[0] for k in range(5)]
    assert all(np.array_equal(y, LARGE * np.float32(k) * 2) for k, y in enumerate(more))
    del kept[0]
    assert address(run(program, dlarray(LARGE))[0]) not in {address(y) for y in (*kept, *more)}


def test_results_of_one_buffer_inputs_and_constants():
    constant = dlarray(LARGE)
    program = compiled(lambda x: [y := m.exp(x), y.T, x, x.T, constant, y], dlarray(LARGE))
    rounds = [run(program, dlarray(LARGE * k)) for k in range(5)]
    for k, (y, transposed, x, x_transposed, fixed, again) in enumerate(rounds):
        assert np.allclose(y, np.exp(LARGE * k), rtol=1e-6) and np.array_equal(y, again)
        assert np.array_equal(transposed, y.T) and np.array_equal(x, LARGE * np.float32(k))
        assert np.array_equal(x_transposed, x.T) and np.array_equal(fixed, LARGE)
        assert not np.may_share_memory(x, y) and not np.may_share_memory(fixed, constant._value.data)
    arrays = [set(map(address, found)) for found in rounds]
    assert all(not a & b for i, a in enumerate(arrays) for b in arrays[:i])


def test_an_input_that_nobody_reads_is_not_copied():
    program = compiled(lambda x, unused: x + 1, dlarray(LARGE), dlarray(LARGE))
    for array in (LARGE, None):  # it is not even looked at
        (y,) = program.run([LARGE, array, None])
        assert np.array_equal(y, LARGE + 1)


@pytest.mark.parametrize("is_native", [True, False])
def test_a_large_input_is_copied_once_and_never_confused(is_native, monkeypatch):
    monkeypatch.setenv("MINIDL_NATIVE", str(int(is_native)))
    big = np.ones((256, 256), np.float32)
    assert big.nbytes >= LARGE_BYTES
    program = compiled(lambda x: m.sum(x, 0), dlarray(big))
    state = [None]
    for k in range(4):
        array = np.full_like(big, k)
        for _ in range(3):
            assert program.run([array, *state])[0][0, 0] == 256 * k
        number = id(array)
        del array  # the next one may get the same id
        assert number
    array = np.full_like(big, 7)
    program.run([array, *state])
    array[0, 0] = 8  # nobody may: it shows that the array was not copied again, or, natively, never
    assert program.run([array, *state])[0][0, 0] == 256 * 7 + is_native


def test_a_fault_leaves_no_trust_in_what_was_copied():
    big = np.ones((256, 256), np.float32)
    program = compiled(lambda x: m.sum(x, 0), dlarray(big))

    program.run([big, None])
    with pytest.raises(ValueError, match="broadcast"):
        program.run([np.ones((3, 3), np.float32), None])
    assert program.run([big, None])[0][0, 0] == 256


def test_memory_comes_back_without_the_collector():
    program = compiled(doubled, dlarray(LARGE))
    kept = run(program, dlarray(LARGE))[0]
    arena, frame = programs_of_engine.weakref.ref(program._arena), programs_of_engine.weakref.ref(program.frames[1])
    gc.disable()
    try:
        del program
        assert arena() is None and frame() is None and np.array_equal(kept, LARGE * 2)
    finally:
        gc.enable()


def test_bytes_are_counted():
    program = compiled(doubled, dlarray(LARGE))
    before = program.nbytes
    run(program, dlarray(LARGE))
    assert program.nbytes == before + LARGE.nbytes


def test_threads_keep_their_results():
    program = compiled(doubled, dlarray(LARGE))
    wrong = []

    def work(start):
        held = []
        for i in range(200):
            k = start + i % 7
            held.append((k, run(program, dlarray(LARGE * k))[0]))
            held = held[-3:]
            if not all(np.array_equal(y, LARGE * np.float32(k) * 2) for k, y in held):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@settings(max_examples=60, derandomize=True)
@given(programs(most_steps=6))
def test_any_program_with_every_result_in_a_frame(drawn):
    function, specs = drawn
    before, programs_of_engine.SMALL_BYTES = programs_of_engine.SMALL_BYTES, 0
    try:
        program = compiled(function, *[values(spec, 0) for spec in specs])
        inputs = [[values(spec, seed) for spec in specs] for seed in range(4)]
        kept = [run(program, *x) for x in inputs]
        fresh = [[y.copy() for y in run(compiled(function, *x), *x)] for x in inputs]
    finally:
        programs_of_engine.SMALL_BYTES = before
    for found, expected in zip(kept, fresh):
        assert_same(found, expected)
