"""The shim itself: it computes what a GPU computes, and sees the mistakes for which it is there."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import subprocess
import sys
import textwrap
import time
import types

import numpy as np
import pytest

import cusim
from cusim import graphs
from minidl.kernels.cuda import compiler, launch

ERROR = cusim.CUDARuntimeError


@pytest.fixture(autouse=True)
def usual_order():
    cusim.order(0)
    yield
    cusim.order(0)


def kernel(text: str, name: str = "k") -> cusim.RawKernel:
    """A kernel from the text that follows portable.h."""
    code = launch.text_of("portable.h") + textwrap.dedent(text)
    return cusim.RawModule(code=code).get_function(name)


def run(k: cusim.RawKernel, grid: int, block: int, y: np.ndarray, *inputs, order: int = 0, shared: int = 0):
    """What the kernel makes of y, its first argument."""
    cusim.order(order)
    made = cusim.asarray(y)
    others = [cusim.asarray(x) if isinstance(x, np.ndarray) else x for x in inputs]
    k((grid,), (block,), (made, *others), shared_mem=shared)
    return made.get()


# threads, blocks, barriers ----------------------------------------------------------------------------------------
def test_each_thread_knows_its_place():
    k = kernel("""
        extern "C" __global__ void k(i64 *y) {
          i64 block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
          i64 thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
          i64 i = block * blockDim.x * blockDim.y * blockDim.z + thread;
          y[i] = i;
        }""")
    y = cusim.asarray(np.zeros(2 * 3 * 4 * 5 * 6 * 7, np.int64))
    k((2, 3, 4), (5, 6, 7), (y,))
    assert np.array_equal(y.get(), np.arange(y.size))


def turned(threads: int, barrier: str, order: int) -> bool:
    """Whether a block turns 0, 1, ... round by way of shared memory."""
    k = kernel(f"""
        extern "C" __global__ void k(i64 *y) {{
          __shared__ i64 place[{threads}];
          place[threadIdx.x] = threadIdx.x;
          {barrier}
          y[threadIdx.x] = place[{threads - 1} - threadIdx.x];
        }}""")
    return np.array_equal(run(k, 1, threads, np.zeros(threads, np.int64), order=order), np.arange(threads)[::-1])


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_a_missing_barrier_gives_wrong_numbers(order):
    assert turned(64, "__syncthreads();", order) and not turned(64, "", order)


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_a_missing_barrier_within_a_warp_gives_wrong_numbers(order):
    assert turned(32, "__syncwarp();", order) and not turned(32, "", order)


@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("if (threadIdx.x < 7) __syncthreads();", "barrier of line|passed by"),
        ("if (threadIdx.x < 7)\n__syncthreads();\nelse\n__syncthreads();", "waits at line"),
        ("if (threadIdx.x == 3) return;\n__syncthreads();", "barrier of line|passed by"),
        ("for (unsigned i = 0; i < threadIdx.x; i++) __syncthreads();", "barrier of line|passed by"),
        ("if (threadIdx.x < 7) __syncwarp();", "wait for others that have ended"),
        ("if (threadIdx.x & 1)\n__syncwarp();\nelse\n__syncthreads();", "wait for others that have ended"),
        ("if (threadIdx.x & 1)\n__syncwarp();\nelse\ny[0] = __shfl_sync(ALL_LANES, y[0], 0);", "within its warp"),
    ],
)
def test_threads_that_do_not_meet_are_an_error(text, message, order):
    k = kernel(f'extern "C" __global__ void k(i64 *y) {{\n{text}\n}}')
    with pytest.raises(ERROR, match=message) as found:
        run(k, 2, 40, np.zeros(1, np.int64), order=order)
    assert str(found.value).startswith("k: block (")
    assert turned(64, "__syncthreads();", order)  # the next launch is none the worse for it


def test_loops_may_meet_at_one_barrier_many_times():
    k = kernel("""
        extern "C" __global__ void k(double *y, i64 steps) {
          __shared__ double a[2][96];
          a[0][threadIdx.x] = threadIdx.x;
          for (i64 i = 0; i < steps; i++) {
            __syncthreads();
            a[(i + 1) & 1][threadIdx.x] = a[i & 1][(threadIdx.x + 1) % 96];
          }
          y[threadIdx.x] = a[steps & 1][threadIdx.x];
        }""")
    for order in 0, 1, 2, 3:
        assert np.array_equal(run(k, 1, 96, np.zeros(96), 200, order=order), (np.arange(96) + 200) % 96)


def test_orders_of_threads_and_blocks():
    k = kernel("""
        extern "C" __global__ void k(i64 *y, i64 *next) {
          y[blockIdx.x * blockDim.x + threadIdx.x] = next[0]++;
        }""")
    ranks = [run(k, 5, 40, np.zeros(200, np.int64), np.zeros(1, np.int64), order=order) for order in (0, 1, 2, 3)]
    assert np.array_equal(ranks[0], np.arange(200)) and np.array_equal(ranks[1], np.arange(200)[::-1])
    for rank in ranks[2:]:
        assert sorted(rank) == list(range(200))
        blocks, threads = rank.reshape(5, 40).min(1), rank.reshape(5, 40) - rank.reshape(5, 40).min(1, keepdims=True)
        assert np.any(np.diff(blocks) < 0) and np.any(np.diff(threads) < 0)
    assert not np.array_equal(ranks[2], ranks[3])


def test_blocks_in_turns():
    """From order 3 on other blocks run while a block waits, and each has shared memory of its own."""
    k = kernel("""
        extern "C" __global__ void k(i64 *y, i64 *clock) {
          SHARED_MEMORY(bytes);
          __shared__ i64 a[40];
          i64 *b = (i64 *)bytes;
          a[threadIdx.x] = b[threadIdx.x] = blockIdx.x;
          const i64 before = atomicAdd(clock, 1);
          __syncthreads();
          const bool is_own = a[39 - threadIdx.x] == blockIdx.x && b[39 - threadIdx.x] == blockIdx.x;
          y[blockIdx.x * 40 + threadIdx.x] = is_own ? atomicAdd(clock, 1) - before : -1;
        }""")
    for order in range(6):
        found = run(k, 9, 40, np.zeros(360, np.int64), np.zeros(1, np.int64), order=order, shared=320)
        assert found.min() > 0 and (found.max() >= 80) == (order >= 3)


def test_a_block_that_counts_too_early():
    """The last of several blocks adds up what all have written: wrong if it counts before its threads are done."""
    text = """
        extern "C" __global__ void k(i64 *total, i64 *y, int *counter) {
          __shared__ bool is_last;
          y[blockIdx.x * 64 + threadIdx.x] = 1;
          BARRIER
          if (threadIdx.x == 0) is_last = atomicAdd(counter, 1) == gridDim.x - 1;
          __syncthreads();
          if (!is_last || threadIdx.x) return;
          for (int i = 0; i < 64 * gridDim.x; i++) total[0] += y[i];
        }"""
    for barrier in ("__syncthreads();", ""):
        found = []
        for order in range(12):
            y, counter = np.zeros(64 * 20, np.int64), np.zeros(1, np.int32)
            found.append(int(run(kernel(text.replace("BARRIER", barrier)), 20, 64, np.zeros(1, np.int64), y, counter,
                                 order=order)[0]))  # fmt: skip
        assert (set(found) == {1280}) == bool(barrier)


# memory of a block --------------------------------------------------------------------------------------------------
def test_shared_memory_begins_as_nan_in_each_block():
    k = kernel("""
        extern "C" __global__ void k(double *y) {
          __shared__ double a[8];
          SHARED_MEMORY(bytes);
          double *b = (double *)bytes;
          y[2 * blockIdx.x] = a[3];
          y[2 * blockIdx.x + 1] = b[3];
          a[3] = b[3] = 1;
        }""")
    assert np.all(np.isnan(run(k, 3, 1, np.zeros(6), shared=64)))


def test_dynamic_shared_memory():
    k = kernel("""
        extern "C" __global__ void k(double *y, i64 n) {
          SHARED_MEMORY(bytes);
          double *a = (double *)bytes;
          for (i64 i = threadIdx.x; i < n; i += blockDim.x) a[i] = i;
          __syncthreads();
          for (i64 i = threadIdx.x; i < n; i += blockDim.x) y[i] = a[n - 1 - i];
        }""")
    assert np.array_equal(run(k, 1, 64, np.zeros(5000), 5000, shared=40000), np.arange(5000)[::-1])
    with pytest.raises(ERROR, match="InvalidValue"):
        run(k, 1, 64, np.zeros(1), 1, shared=49 << 10)
    k.max_dynamic_shared_size_bytes = 228 << 10
    run(k, 1, 64, np.zeros(1), 1, shared=227 << 10)
    with pytest.raises(ERROR, match="InvalidValue"):
        run(k, 1, 64, np.zeros(1), 1, shared=228 << 10)


# words of a warp ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_shuffles(order):
    k = kernel("""
        template <class T> DEVICE void all(T *y, T v) {
          int t = threadIdx.x, n = blockDim.x;
          y[t] = __shfl_sync(ALL_LANES, v, 5);
          y[n + t] = __shfl_xor_sync(ALL_LANES, v, 6);
          y[2 * n + t] = __shfl_down_sync(ALL_LANES, v, 3);
          y[3 * n + t] = __shfl_up_sync(ALL_LANES, v, 4);
        }
        extern "C" __global__ void k(double *y, i64 *z) { all(y, 0.5 * threadIdx.x); all(z, (i64)threadIdx.x); }""")
    lane = np.arange(64)
    warp, lane = lane // 32 * 32, lane % 32
    right = np.array([
        warp + 5, warp + (lane ^ 6), warp + np.where(lane + 3 < 32, lane + 3, lane),
        warp + np.where(lane >= 4, lane - 4, lane),
    ])  # fmt: skip
    y, z = cusim.empty((4, 64)), cusim.empty((4, 64), np.int64)
    cusim.order(order)
    k((1,), (64,), (y, z))
    assert np.array_equal(y.get(), 0.5 * right) and np.array_equal(z.get(), right)


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_ballot(order):
    k = kernel("""
        extern "C" __global__ void k(i64 *y) {
          y[threadIdx.x] = __ballot_sync(ALL_LANES, threadIdx.x % 3 == 0 || threadIdx.x >= 60);
        }""")
    bits = [i % 3 == 0 or i >= 60 for i in range(64)]
    words = [sum(bit << i for i, bit in enumerate(bits[start : start + 32])) for start in (0, 32)]
    assert list(run(k, 1, 64, np.zeros(64, np.int64), order=order)) == [words[0]] * 32 + [words[1]] * 32


def rounded_to_tf32(x: np.ndarray) -> np.ndarray:
    """The nearest number with 10 bits of mantissa, ties away from zero, by arithmetic instead of bits."""
    mantissa, exponent = np.frexp(x.astype(np.float64))
    return np.ldexp(np.sign(mantissa) * np.floor(np.abs(mantissa) * 2**11 + 0.5), exponent - 11)


def test_rounding_to_tf32(random):
    k = kernel("""
        extern "C" __global__ void k(float *y, const float *x) {
          i64 i = blockIdx.x * blockDim.x + threadIdx.x;
          y[i] = to_tf32(x[i]);
        }""")
    ties = np.float32([1 + 2**-11, -1 - 2**-11, 1 + 3 * 2**-11, 2 - 2**-12, np.inf, -np.inf, np.nan, 0])
    x = np.concatenate([ties, random.standard_normal(56).astype(np.float32) * 10.0 ** random.integers(-30, 30, 56)])
    x = x.astype(np.float32)
    with np.errstate(all="ignore"):
        right = np.where(np.isfinite(x), rounded_to_tf32(x), x)
    assert np.array_equal(run(k, 1, 64, np.zeros(64, np.float32), x), right, equal_nan=True)


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_matrix_product_of_a_warp(order, random):
    k = kernel("""
        extern "C" __global__ void k(float *d, const float *a, const float *b) {
          int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
          d += 128 * (threadIdx.x >> 5), a += 128 * (threadIdx.x >> 5), b += 64 * (threadIdx.x >> 5);
          float A[4] = {a[8 * g + t], a[8 * (g + 8) + t], a[8 * g + t + 4], a[8 * (g + 8) + t + 4]};
          float B[2] = {b[8 * t + g], b[8 * (t + 4) + g]};
          float *row = d + 8 * g + 2 * t, *low = row + 64;
          float D[4] = {row[0], row[1], low[0], low[1]};
          mma_tf32(D, A, B);
          row[0] = D[0], row[1] = D[1], low[0] = D[2], low[1] = D[3];
        }""")
    a, b, d = (random.standard_normal((2, *shape)).astype(np.float32) for shape in ((16, 8), (8, 8), (16, 8)))
    right = d + rounded_to_tf32(a) @ rounded_to_tf32(b)
    found = run(k, 1, 64, d, a, b, order=order)
    assert np.allclose(found, right, rtol=0, atol=1e-5)
    assert np.abs(found - (d + a.astype(float) @ b)).max() > 1e-4  # it did round


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_atomics(order):
    k = kernel("""
        extern "C" __global__ void k(i64 *y, double *sum) {
          i64 i = blockIdx.x * blockDim.x + threadIdx.x;
          atomicAdd(y, i);
          atomicMax(y + 1, i);
          atomicMin(y + 2, -i);
          y[4 + i] = atomicAdd(y + 3, 1);
          atomicAdd(sum, 0.5);
        }""")
    y, total = cusim.asarray(np.zeros(204, np.int64)), cusim.asarray(np.zeros(1))
    cusim.order(order)
    k((4,), (50,), (y, total))
    y = y.get()
    assert list(y[:4]) == [199 * 100, 199, -199, 200] and sorted(y[4:]) == list(range(200)) and total.get()[0] == 100


# launches -----------------------------------------------------------------------------------------------------------
PLAIN = """
    #define BOUND (64 + 32)
    extern "C" __global__ void __launch_bounds__(BOUND) k(float *y, const double *x, i64 n, double a, const bool *b) {}
    extern "C" __global__ void other(i64 *y, unsigned char *bytes, const float4 *four) {}"""


def arguments(**other):
    found = dict(y=cusim.empty(4, "float32"), x=cusim.empty(4), n=3, a=0.5, b=cusim.empty(4, bool)) | other
    return tuple(found.values())


@pytest.mark.parametrize(
    ("grid", "block"),
    [((0,), (1,)), ((1,), (0,)), ((1,), (97,)), ((1,), (12, 9)), ((1, 1 << 16), (1,)), ((1, 1, 1 << 16), (1,)),
     ((1 << 31,), (1,))],
)  # fmt: skip
def test_grids_and_blocks_that_a_gpu_refuses(grid, block):
    k = kernel(PLAIN)
    k((1,), (96,), arguments())
    with pytest.raises(ERROR, match="InvalidConfiguration"):
        k(grid, block, arguments())


@pytest.mark.parametrize(
    "wrong",
    [dict(n=True), dict(n=np.int32(3)), dict(n=np.bool_(True)), dict(n=3.0), dict(a=1), dict(a=np.float32(1)),
     dict(y=cusim.empty(4)), dict(x=cusim.empty(4, "float32")), dict(b=cusim.empty(4, np.int64)), dict(y=3),
     dict(n=cusim.empty(4, np.int64)), dict(y=None), dict(y=np.zeros(4, "float32")), dict(more=1)],
    ids=str,
)  # fmt: skip
def test_arguments_that_a_gpu_would_misread(wrong):
    with pytest.raises(TypeError):
        kernel(PLAIN)((1,), (1,), arguments(**wrong))


def test_arguments_that_fit():
    kernel(PLAIN)((1,), (1,), arguments(n=np.int64(3), a=np.float64(1)))
    kernel(PLAIN)((1,), (1,), arguments(x=cusim.empty(4).data.ptr))
    for dtype in (np.int64, np.uint64):
        kernel(PLAIN, "other")((1,), (1024,), (cusim.empty(1, dtype), cusim.empty(1), cusim.empty(4, "float32")))
    with pytest.raises(cusim.CUDADriverError, match="missing"):
        kernel(PLAIN, "missing")


def test_a_text_that_is_no_cuda():
    with pytest.raises(RuntimeError, match="does not compile"):
        kernel('extern "C" __global__ void k() { nonsense; }')


def test_the_cache_of_kernels_is_bounded(monkeypatch, tmp_path):
    monkeypatch.setattr(cusim, "CACHE", tmp_path)
    monkeypatch.setattr(cusim, "MOST_BYTES", 250)
    for i, age in enumerate([9000, 8000, 7000, 10]):
        (tmp_path / f"{i}.so").write_bytes(bytes(100))
        os.utime(tmp_path / f"{i}.so", (time.time() - age,) * 2)
    cusim._trim()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2.so", "3.so"]


def test_launches_are_counted():
    before = cusim.RawModule.launches.get("other", 0)
    kernel(PLAIN, "other")((1,), (1,), (cusim.empty(1, np.int64), cusim.empty(1), cusim.empty(1)))
    assert cusim.RawModule.launches["other"] == before + 1


# arrays -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "act",
    [np.asarray, np.array, np.sum, lambda x: np.zeros(3) + x, lambda x: x + np.zeros(3), lambda x: x + 1,
     lambda x: np.add(x, x), float, bool, hash, lambda x: x[x], lambda x: x[[0, 1]], lambda x: x[np.int64(1)]],
)  # fmt: skip
def test_numpy_gets_no_numbers_by_accident(act):
    x = cusim.asarray(np.zeros(3))
    if act is bool:  # as for any object with a length
        return
    with pytest.raises((TypeError, ValueError)):
        act(x)


def test_there_and_back(random):
    for x in (random.standard_normal((3, 4)), random.standard_normal((3, 4)).T, random.standard_normal((3, 4))[:, ::2]):
        on_device = cusim.asarray(x)
        assert np.array_equal(on_device.get(), x) and on_device.shape == x.shape
        assert x.flags.forc is False or on_device.strides == x.strides
        before = x.copy()
        x[...] = 0
        assert np.array_equal(cusim.asnumpy(on_device), before)
    on_device.set(np.ones_like(x))
    assert on_device[1, 0].shape == () and on_device[1:, None].shape == (2, 1, 2) and len(on_device) == 3
    assert cusim.asarray(on_device) is on_device and cusim.asarray(on_device, "float32").dtype == np.float32
    shared = cusim.lib.stride_tricks.as_strided(on_device, (2, 2), (0, 8))
    assert shared.data.ptr == on_device.data.ptr and np.array_equal(shared.get(), np.ones((2, 2)))
    with pytest.raises(ValueError):
        on_device.set(np.ones(3))


def test_F7_memory_with_gaps_or_in_another_order_cannot_be_set():
    """As in CuPy: what is neither in C nor in Fortran order is refused."""
    x = np.arange(24.0).reshape(2, 3, 4)
    on_device = cusim.asarray(x)
    for part in (on_device[:, :, ::2], on_device.transpose(1, 0, 2)):
        with pytest.raises(RuntimeError, match="non-contiguous"):
            part.set(np.zeros(part.shape))
    on_device.transpose(2, 1, 0).set(x.T * 2)
    assert np.array_equal(on_device.get(), x * 2)


def test_F7_streams_are_as_late_as_they_may_be():
    one, other, event = cusim.cuda.Stream(non_blocking=True), cusim.cuda.Stream(non_blocking=True), graphs.Event()
    k, x = kernel(ADD), cusim.asarray(np.zeros(1, np.int64))
    with graphs.lazily():
        with one:
            k((1,), (1,), (x, 5))
            event.record()
        with other:
            assert x.get() == 0, "nobody has told this stream to wait"
        assert not event.done and x.get() == 0
        other.wait_event(event)
        with other:
            assert x.get() == 5
        assert event.done
        with one:
            k((1,), (1,), (x, 5))
        assert x.get() == 5
    assert x.get() == 55


def test_new_memory_is_nan():
    assert np.all(np.isnan(cusim.empty((2, 3), "float32").get()))
    assert np.all(cusim.empty(5, np.int64).get() == -1)


def test_memory_that_runs_out():
    with cusim.limit_memory(100):
        cusim.empty(12)
        with pytest.raises(cusim.cuda.memory.OutOfMemoryError):
            cusim.empty(13)
        cusim.get_default_memory_pool().free_all_blocks()
        with pytest.raises(cusim.cuda.memory.OutOfMemoryError):
            cusim.empty(13)
    with cusim.limit_memory(100, after_freeing=200):
        with pytest.raises(MemoryError):
            cusim.empty(25)
        cusim.get_default_memory_pool().free_all_blocks()
        cusim.empty(25)
    cusim.empty(1000)


# streams and graphs -------------------------------------------------------------------------------------------------
ADD = """
    extern "C" __global__ void k(i64 *y, i64 n) { y[0] = y[0] * 10 + n; }"""


def test_a_graph_runs_what_was_captured_when_it_is_launched():
    k, y = kernel(ADD), cusim.asarray(np.zeros(1, np.int64))
    stream = cusim.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        for n in (1, 2, 3):
            k((1,), (1,), (y, n))
        graph = stream.end_capture()
    assert y.get()[0] == 0 and graph.names == ["k"] * 3 and graph.depth == 3
    for _ in range(4):  # in this order every time
        y.set(np.zeros(1, np.int64))
        graph.launch()
        assert y.get()[0] == 123


def test_a_missing_wait_between_streams_gives_wrong_numbers():
    def launched(waits: bool) -> set[int]:
        k, y = kernel(ADD), cusim.asarray(np.zeros(1, np.int64))
        first, second = cusim.cuda.Stream(non_blocking=True), cusim.cuda.Stream(non_blocking=True)
        begun, middle, end = (cusim.cuda.Event() for _ in range(3))
        with first:
            first.begin_capture()
            begun.record()
            second.wait_event(begun)
            k((1,), (1,), (y, 1))
            middle.record()
        with second:
            if waits:
                second.wait_event(middle)
            k((1,), (1,), (y, 2))
            end.record()
        first.wait_event(end)
        with first:
            graph = first.end_capture()
        seen = set()
        for _ in range(4):
            y.set(np.zeros(1, np.int64))
            graph.launch()
            seen.add(int(y.get()[0]))
        return seen

    assert launched(waits=True) == {12} and launched(waits=False) == {12, 21}


@pytest.mark.parametrize(
    "act",
    [lambda y: cusim.empty(3), lambda y: y.get(), lambda y: y.set(np.zeros(1, np.int64)),
     lambda y: cusim.cuda.get_current_stream().synchronize(), lambda y: cusim.cuda.Event().synchronize()],
)  # fmt: skip
def test_what_cannot_be_captured_is_refused_and_voids_the_capture(act):
    y, stream = cusim.asarray(np.zeros(1, np.int64)), cusim.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        with pytest.raises(RuntimeError, match="Unsupported"):
            act(y)
        with pytest.raises(RuntimeError, match="Invalidated"):
            stream.end_capture()
        act(y)  # allowed again


def test_captures_that_cannot_end():
    first, second = cusim.cuda.Stream(non_blocking=True), cusim.cuda.Stream(non_blocking=True)
    k, y, event = kernel(ADD), cusim.asarray(np.zeros(1, np.int64)), cusim.cuda.Event()
    with pytest.raises(RuntimeError, match="legacy"):
        cusim.cuda.get_current_stream().begin_capture()
    with pytest.raises(RuntimeError, match="no capture"):
        first.end_capture()
    with first:
        first.begin_capture()
        event.record()
    second.wait_event(event)
    with second:
        k((1,), (1,), (y, 1))
    with first, pytest.raises(RuntimeError, match="Unjoined"):
        first.end_capture()


# CuPy ---------------------------------------------------------------------------------------------------------------
NAMES = [
    "ndarray", "empty", "zeros", "asarray", "asnumpy", "RawModule", "RawKernel", "get_default_memory_pool",
    "lib.stride_tricks.as_strided", "linalg.solve", "linalg.lstsq", "cuda.is_available", "cuda.Device", "cuda.Stream",
    "cuda.Event", "cuda.get_elapsed_time", "cuda.UnownedMemory", "cuda.MemoryPointer",
    "cuda.get_current_stream", "cuda.memory.OutOfMemoryError", "cuda.runtime.CUDARuntimeError",
    "cuda.runtime.getDeviceCount", "cuda.runtime.getDevice", "cuda.runtime.driverGetVersion",
    "cuda.runtime.runtimeGetVersion",
    "cuda.runtime.memGetInfo", "cuda.runtime.getDeviceProperties", "cuda.Module", "cuda.driver.funcSetAttribute",
    "cuda.driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES", "cuda.nvrtc.NVRTCError", "cuda.nvrtc.getVersion",
    "cuda.nvrtc.getSupportedArchs", "cuda.nvrtc.createProgram", "cuda.nvrtc.compileProgram",
    "cuda.nvrtc.getProgramLog", "cuda.nvrtc.getCUBIN", "cuda.nvrtc.getPTX", "cuda.nvrtc.destroyProgram",
]  # fmt: skip


CLASSES = ["ndarray", "RawKernel", "RawModule", "cuda.Device", "cuda.Stream", "cuda.Event", "cuda.MemoryPointer",
           "cuda.UnownedMemory", "cuda.Module"]  # fmt: skip


def found_at(library, name):
    for part in name.split("."):
        library = getattr(library, part)
    return library


def public_names(thing) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_") or name in ("__call__", "__cuda_array_interface__")}


def parameters(function) -> set[str]:
    """Names of parameters. CuPy's compiled functions have them in the first lines of their docstrings."""
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return set(re.findall(r"\w+", function.__doc__[:400]))


def test_the_list_of_names_is_whole():
    """What stands in the shim for CuPy is what is compared with CuPy."""
    known = {name.split(".")[0] for name in NAMES}
    own = {
        "POISON", "MOST_BYTES", "CACHE", "FLAGS", "MORE_FLAGS", "HERE", "KERNEL", "LETTERS", "POINTERS", "SANITIZERS",
        "Pointer",
        "limit_memory", "order", "OutOfMemoryError", "CUDARuntimeError", "CUDADriverError", "UnownedMemory",
        "MemoryPointer", "NVRTC_VERSION", "ARCHS", "NVRTCError", "compilations", "Module", "Function",
        "flushed_to_zero", "devices",
    }  # fmt: skip
    there = {name for name, x in vars(cusim).items() if not name.startswith("_") and not inspect.ismodule(x)}
    elsewhere = {name for name in there if getattr(vars(cusim)[name], "__module__", "cusim") != "cusim"}
    there -= elsewhere - known
    assert there - own == known
    rooms = [f"cuda.{name}" for name in ("memory", "runtime", "driver", "nvrtc")]
    for room in ("cuda", *rooms, "lib", "lib.stride_tricks", "linalg"):
        for name in vars(found_at(cusim, room)):
            assert any(known.startswith(f"{room}.{name}") for known in NAMES), f"{room}.{name}"


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")
class TestAgainstCuPy:
    """Whatever minidl asks of the shim, CuPy has, with the same parameters. Works without a GPU."""

    @pytest.mark.parametrize("name", NAMES)
    def test_name(self, name):
        import cupy

        ours, theirs = found_at(cusim, name), found_at(cupy, name)
        if inspect.isfunction(ours) and ours.__name__ != "<lambda>":
            assert parameters(ours) <= parameters(theirs)

    @pytest.mark.parametrize("name", CLASSES)
    def test_attributes(self, name):
        import cupy

        own = {"RawModule": {"launches"}, "cuda.Stream": {"graphs"}, "cuda.MemoryPointer": {"interface"}}
        ours, theirs = found_at(cusim, name), found_at(cupy, name)
        missing = public_names(ours) - public_names(theirs) - own.get(name, set())
        assert not missing

    def test_a_module_and_a_launch_take_these_words(self):
        import cupy

        assert {"code", "options", "backend"} <= parameters(cupy.RawModule)
        assert {"grid", "block", "args", "shared_mem"} <= parameters(cupy.RawKernel.__call__)
        assert hasattr(cupy.RawKernel.max_dynamic_shared_size_bytes, "__set__")
        assert "cubin" in parameters(cupy.cuda.Module.load) and callable(cupy.cuda.Function.__call__)
        assert cupy.cuda.driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES == 8

    def test_its_compiler_does_as_it_is_told(self, monkeypatch):
        """NVRTC as CuPy calls it makes machine code without a GPU: all is there but the device that would run it."""
        import cupy

        try:
            cupy.cuda.nvrtc.getVersion()
        except RuntimeError:
            pytest.skip("CuPy has no NVRTC here")
        cuda = types.SimpleNamespace(nvrtc=cupy.cuda.nvrtc, Device=cusim.cuda.Device)
        made = compiler.Compiler(types.SimpleNamespace(cuda=cuda))
        text = launch.source(launch.text_of("spacing.cu"), (("T", np.dtype("float32")),))
        assert made.target == "sm_90" and made.code(text)[:4] == b"\x7fELF"
        with pytest.raises(compiler.DoesNotCompile, match=r"(?s)minidl \(f\) does not.*-ftz=false.*f.cu\(1\).*nothing"):
            made.code('extern "C" __global__ void f() { nothing; }')

    def test_makers_take_these_words(self):
        import cupy

        assert {"shape", "dtype", "memptr", "strides"} <= set(re.findall(r"\w+", cupy.ndarray.__doc__))
        for name in ("cuda.UnownedMemory", "cuda.MemoryPointer"):
            assert parameters(found_at(cusim, name)) <= parameters(found_at(cupy, name))
        assert {"launch", "upload"} <= public_names(cupy.cuda.Graph)

    def test_errors_are_of_the_same_families(self):
        import cupy

        for name in ("cuda.memory.OutOfMemoryError", "cuda.runtime.CUDARuntimeError"):
            ours, theirs = found_at(cusim, name), found_at(cupy, name)
            assert issubclass(theirs, (MemoryError, RuntimeError)) and issubclass(ours, theirs.__mro__[1])


HAS_DRIVER = importlib.util.find_spec("cuda") is not None and importlib.util.find_spec("cuda.bindings") is not None


@pytest.mark.skipif(not HAS_DRIVER, reason="NVIDIA's cuda-bindings are not installed")
def test_the_driver_has_the_names_that_are_asked_for():
    """Works without a GPU: names, what they are given, and how a node's arguments are said."""
    import ctypes

    from cuda.bindings import driver

    ours = graphs.driver()
    for name in set(vars(ours)) - {"changes", "CUgraphNodeType"}:
        assert callable(getattr(driver, name)), name
    for name, words in {
        "cuGraphGetNodes": ["hGraph", "numNodes"], "cuGraphNodeGetType": ["hNode"],
        "cuGraphKernelNodeGetParams": ["hNode"], "cuFuncGetParamInfo": ["func", "paramIndex"],
        "cuGraphExecKernelNodeSetParams": ["hGraphExec", "hNode", "nodeParams"],
    }.items():
        found = re.findall(r"\w+", getattr(driver, name).__doc__.split("\n")[0])
        assert [word for word in found if word in words] == words
    for kind in ("KERNEL", "EMPTY"):
        name = f"CU_GRAPH_NODE_TYPE_{kind}"
        assert getattr(driver.CUgraphNodeType, name) == getattr(ours.CUgraphNodeType, name)
    assert not driver.CUresult.CUDA_SUCCESS and driver.CUresult.CUDA_ERROR_INVALID_VALUE
    table = (ctypes.c_void_p * 2)(1, 2)
    params = driver.CUDA_KERNEL_NODE_PARAMS()
    params.kernelParams = ctypes.addressof(table)
    assert int(params.kernelParams) == ctypes.addressof(table) and int(params.func) == 0
    assert int(driver.CUgraph(5)) == 5 == int(driver.CUgraphExec(5))


def test_the_shim_asks_for_no_gpu_and_no_cupy():
    found = subprocess.run(
        [sys.executable, "-c", "import sys, cusim; print('cupy' in sys.modules)"],
        capture_output=True, text=True, cwd=cusim.HERE.parent,
    )  # fmt: skip
    assert found.stdout.strip() == "False"
