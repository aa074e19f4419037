"""Streams: whatever stream is current, calls come one after the other. Devices: there is one, others are refused.

On the shim, whose streams are as late as they may be: without an order they would still have to begin.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import cusim
import numpy as np
import pytest
from cusim import graphs

import minidl as m
from minidl import DeviceError, adamupdate, arrayDatastore, dlaccelerate, dlarray, gpuArray, minibatchqueue, sgdmupdate
from minidl.backends.cuda import streams

X = np.arange(12, dtype=np.float32).reshape(3, 4) / 8


@pytest.fixture(params=["shim"])
def device(request):
    """These tests are about the shim's streams."""
    from conftest import in_use

    with in_use("shim") as found:
        yield found


def there(x):
    return gpuArray(dlarray(x))


def stream(**kind):
    return cusim.cuda.Stream(**(kind or {"non_blocking": True}))


# F4: streams --------------------------------------------------------------------------------------------------------
def function(x, w):
    y = m.tanh(x @ w)
    return m.sum(y, "all"), w - 0.1 * (x.T @ y)


def rounds(accelerated, others, count=8):
    """Calls that go on with each other's results, each on another stream; all of them (loss, w)."""
    x, w, found = there(X), there(X.T), []
    for k in range(count):
        with others[k % len(others)]:
            loss, w = accelerated(x, w)
            found.append((loss, w))
    return found


def checked(found, others):
    expected = rounds(function, [cusim.cuda.Stream.null], len(found))
    for k, (each, right) in reversed(list(enumerate(zip(found, expected)))):
        with others[k % len(others)]:
            for a, b in zip(each, right):
                np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5)


NULL = graphs.NULL
KINDS = {
    "default and another": lambda: [NULL, stream()],
    "two others": lambda: [stream(), stream()],
    "three": lambda: [stream(), NULL, stream()],
    "one that heeds the default": lambda: [stream(non_blocking=False), NULL, stream()],
    "one": lambda: [stream()],
    "ever new ones": lambda: [stream() for _ in range(40)],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_accelerated", [True, False])
def test_F4_calls_on_several_streams_come_one_after_the_other(device, kind, is_accelerated):
    others = KINDS[kind]()
    accelerated = dlaccelerate(function) if is_accelerated else function
    with graphs.lazily():
        found = rounds(accelerated, others, max(8, len(others)))
        checked(found, others)


def test_F4_one_program_on_two_streams_is_one_memory(device):
    """The results of both were handed out before either stream has begun."""
    accelerated, others, found = dlaccelerate(lambda x: m.sum(m.exp(x) @ x.T, "all") + 0), [stream(), stream()], []
    values = [there(X * k) for k in range(6)]
    for value in values:
        accelerated(value)  # recorded, captured
    with graphs.lazily():
        for k in range(6):
            with others[k % 2]:
                found.append(accelerated(values[k]))
        for k, y in reversed(list(enumerate(found))):
            with others[k % 2]:
                right = (np.exp(X * k) @ (X * k).T).sum(dtype=np.float64)
                np.testing.assert_allclose(y.numpy(), right, rtol=1e-5)


def test_F4_constants_counters_and_tables_are_there_before_another_stream_reads_them(device):
    """Bound on one stream, run at once on another: copies from the host and zeros may be late."""
    constant = there(np.ones((3000, 4)))
    accelerated = dlaccelerate(lambda x: m.tanh(x @ constant / 1e4))
    x = there(np.ones((4, 3000)))
    accelerated(x)
    others = [stream(), stream(), NULL]
    with graphs.lazily():
        for k in range(6):
            with others[k % 3]:
                y = accelerated(x)
        with others[5 % 3]:
            np.testing.assert_allclose(y.numpy(), np.full((4, 4), np.tanh(0.3)), rtol=1e-12)


def test_F4_solvers(device):
    """A step on one stream reads what a step on another has made; nothing else is called in between."""
    others = [stream(), stream(), NULL]
    gradients, _ = sgdmupdate([there(X), there(X.T)], [there(X + 1), there(X.T)], None, 0.5)  # known again and again

    def steps(streams_of):
        found, averages = [there(X), there(X.T * 2)], (None, None)
        for k in range(1, 21):
            with streams_of[k % len(streams_of)]:
                found, *averages = adamupdate(found, gradients, *averages, k)
        with streams_of[20 % len(streams_of)]:
            return [x.numpy() for x in found]

    wanted = steps([NULL])
    with graphs.lazily():
        for a, b in zip(steps(others), wanted):
            assert np.array_equal(a, b)


def test_F4_mini_batches(device):
    """Orders are put there on one stream, picked from on others; slots are used again while others may read them."""
    data, others = np.arange(42, dtype=np.float32).reshape(21, 2), [stream(), NULL, stream()]
    queues = [
        minibatchqueue(arrayDatastore(data), MiniBatchSize=3, OutputEnvironment=place, MiniBatchFormat="BC")
        for place in ("cpu", "gpu")
    ]
    kept = []
    with graphs.lazily():
        for epoch in range(4):
            for queue in queues:
                m.rng(epoch)
                with others[(epoch + 2) % 3]:
                    m.shuffle(queue) if epoch % 2 else m.reset(queue)
            k = 0
            while m.hasdata(queues[0]):
                right = next(queues[0])
                with others[(k + epoch) % 3]:
                    kept.append((next(queues[1]) * 1, right.numpy(), others[(k + epoch) % 3]))
                k += 1
        for batch, right, its_own in reversed(kept):
            with its_own:
                assert np.array_equal(batch.numpy(), right)


def test_F4_copies(device):
    x, (one, other) = there(X), (stream(), stream())
    with graphs.lazily():
        with one:
            y = x * 2
        with other:
            assert np.array_equal(y.extractdata().get(), X * 2)


def test_F4_numbers_that_are_kept_are_moved_in_time(device):
    """A loss that the user keeps gets memory of its own at the next call, on whatever stream that is."""
    accelerated, others = dlaccelerate(lambda x: (m.sum(x, "all"), x + 1)), [stream(), stream()]
    with graphs.lazily():
        x, losses = there(X), []
        for k in range(9):
            with others[k % 2]:
                loss, x = accelerated(x)
                losses.append(loss)
        for k, loss in reversed(list(enumerate(losses))):
            with others[(k + 1) % 2]:
                assert loss.numpy() == np.float32((X + k).sum())


def test_F4_each_thread_its_own_default_stream(device):
    """One name, another stream in each thread (CUPY_CUDA_PER_THREAD_DEFAULT_STREAM=1)."""
    accelerated, x = dlaccelerate(function), there(X)

    def call(w):
        with cusim.cuda.Stream.ptds:
            return accelerated(x, w)[1]

    def numbers(w):
        with cusim.cuda.Stream.ptds:
            return w.numpy()

    w = right = there(X.T)
    for _ in range(6):
        right = function(x, right)[1]
    right = right.numpy()
    streams.forget()
    with graphs.lazily(), ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        for k in range(6):
            w = (one, other)[k % 2].submit(call, w).result()
        np.testing.assert_allclose(other.submit(numbers, w).result(), right, rtol=1e-5)


def test_F4_one_stream_costs_no_events(device, monkeypatch):
    made = []
    monkeypatch.setattr(cusim.cuda, "Event", lambda **kind: made.append(1) or graphs.Event(**kind))
    monkeypatch.setenv("MINIDL_CUDA_GRAPHS", "0")
    for only in (NULL, stream()):
        streams.forget()
        with only:
            accelerated, x, w = dlaccelerate(function), there(X), there(X.T)
            for _ in range(4):
                accelerated(x, w)
    assert not made


def test_F4_streams_that_are_done_are_forgotten(device):
    for _ in range(100):
        with stream():
            there(X)
    assert len(streams._state.marks) <= streams.MOST_MARKS + 1
    assert set(streams._state.waited) <= set(streams._state.marks)


@pytest.mark.parametrize("call", ["x + 1", "accelerated(x)", "gpuArray(X)", "dlarray(x)", "x.numpy()"])
def test_F4_a_stream_that_its_owner_captures_is_refused(device, explained, call):
    accelerated, x = dlaccelerate(lambda x: x * 2), there(X)
    for _ in range(3):
        accelerated(x)
    mine = stream()
    with mine:
        mine.begin_capture()
        names = {"accelerated": accelerated, "x": x, "X": X, "gpuArray": gpuArray, "dlarray": dlarray}
        if call == "dlarray(x)":
            call, names["raw"] = "dlarray(raw)", x._value.data
        explained(lambda: eval(call, names), DeviceError, "is being captured")
        mine.end_capture()
        assert np.array_equal(accelerated(x).numpy(), X * 2)


def test_F4_the_first_look_at_a_gpu_is_refused_too_while_a_stream_is_captured(device, explained):
    mine = stream()
    with mine:
        mine.begin_capture()
        explained(lambda: gpuArray(X), DeviceError, "is being captured")
        mine.end_capture()
        assert np.array_equal(gpuArray(X).get(), X) and m.canUseGPU()


# F5: devices --------------------------------------------------------------------------------------------------------
@pytest.fixture
def two(device):
    with cusim.devices(2):
        streams.forget()
        yield
        cusim.cuda.Device(0).use()


ENTRIES = {
    "gpuArray": lambda raw, x: gpuArray(raw),
    "dlarray": lambda raw, x: dlarray(raw),
    "an operand": lambda raw, x: x + raw,
    "an operand in front": lambda raw, x: m.plus(raw, x),
    "an index": lambda raw, x: x[raw],
    "dlfeval": lambda raw, x: m.dlfeval(lambda a: x + a, raw),
    "dlaccelerate": lambda raw, x: dlaccelerate(lambda a: x + a)(raw),
    "a datastore": lambda raw, x: next(
        minibatchqueue(arrayDatastore(gpuArray(raw)), MiniBatchSize=1, OutputEnvironment="gpu")
    ),
    "an array in a datastore": lambda raw, x: next(minibatchqueue(arrayDatastore(raw), MiniBatchSize=1)),
    "gather": lambda raw, x: m.gather(raw),
    "isequal": lambda raw, x: m.isequal(x, raw),
    "a gradient": lambda raw, x: adamupdate([x], [raw], None, None, 1),
    "a part that is assigned": lambda raw, x: x.copy().__setitem__(slice(None), raw),
    "another library's": lambda raw, x: gpuArray(OtherLibrary(raw)),
}


class OtherLibrary:
    """An array with nothing but the interface."""

    def __init__(self, array):
        self.__cuda_array_interface__ = array.__cuda_array_interface__
        self.device = array.device


@pytest.mark.parametrize("entry", ENTRIES)
def test_F5_arrays_of_another_device_are_refused(two, explained, entry):
    x = there(X)
    with cusim.cuda.Device(1):
        raw = cusim.asarray(X if entry != "an index" else np.array([0, 1]))
    error = explained(lambda: ENTRIES[entry](raw, x), DeviceError, "an array lies on device 1")
    assert "CUDA_VISIBLE_DEVICES" in str(error) and "device 0" in str(error)
    assert np.array_equal((x + 1).numpy(), X + 1)


CALLS = {
    "plain": lambda x, acc: x + 1,
    "accelerated": lambda x, acc: acc(x),
    "gpuArray": lambda x, acc: gpuArray(X),
    "numbers": lambda x, acc: x.numpy(),
    "a solver": lambda x, acc: adamupdate([x], [x], None, None, 1),
    "random numbers": lambda x, acc: m.rand(3, 4, like=x),
}


@pytest.mark.parametrize("call", CALLS)
def test_F5_work_while_another_device_is_current_is_refused(two, explained, call):
    x, accelerated = there(X), dlaccelerate(lambda x: x * 2)
    for _ in range(3):
        accelerated(x)
    with cusim.cuda.Device(1):
        error = explained(lambda: CALLS[call](x, accelerated), DeviceError, "device 1 is current")
    assert "device 0" in str(error) and "CUDA_VISIBLE_DEVICES" in str(error)
    assert np.array_equal(accelerated(x).numpy(), X * 2)


def test_F5_any_device_may_be_the_one(two):
    with cusim.cuda.Device(1):
        x = there(X)
        assert np.array_equal((x + 1).numpy(), X + 1)
