"""Random numbers on the device against those of the CPU: the same bits."""

import numpy as np
import pytest

from minidl.backends import reference
from minidl.kernels.cuda import launch
from minidl.kernels.cuda.random import _TABLES, random

WORD = 2**64
STATES = [(0, 0), (1, 0), (0, 1), (7, 12345), (WORD - 1, WORD - 2), (2**63 + 5, 2**40)]
SIZES = [0, 1, 3, 4, 5, 9, 1000, 1027]


def on_cpu(state, shape, dtype, law):
    y, new = np.empty(shape, dtype), np.empty(2, np.uint64)
    reference.KERNELS["random"](y, new, state, shape=shape, dtype=dtype, law=law)
    return y, new


def on_device(device, state, shape, dtype, law):
    y, new = device.empty(shape, dtype), device.empty(2, np.uint64)
    random(y, new, device.array(state), shape=shape, dtype=dtype, law=law)
    return y.get(), new.get()


def check(device, state, shape, dtype, law):
    state = np.array(state, np.uint64)
    for found, right in zip(on_device(device, state, shape, dtype, law), on_cpu(state, shape, dtype, law), strict=True):
        assert found.dtype == right.dtype and np.array_equal(found, right)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("law", ["uniform", "normal"])
@pytest.mark.parametrize("state", STATES)
def test_bits_are_those_of_the_cpu(device, state, law, dtype):
    for order in device.orders():
        device.set_order(order)
        for size in SIZES:
            check(device, state, (size,), dtype, law)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("law", ["uniform", "normal"])
def test_bits_of_a_long_draw(device, law, dtype):
    check(device, (11, 3), (100003,), dtype, law)
    check(device, (11, 4), (7, 2, 101), dtype, law)
    check(device, (11, 5), (), dtype, law)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("law", ["uniform", "normal"])
def test_a_result_may_begin_anywhere(device, law, dtype):
    """Not at an address of 16 bytes: written one by one, and nothing beyond the end."""
    state = np.array([2, 1], np.uint64)
    around, new = device.empty(64, dtype), device.empty(2, np.uint64)
    random(around[1:51], new, device.array(state), shape=(50,), dtype=dtype, law=law)
    found = around.get()
    assert np.array_equal(found[1:51], on_cpu(state, (50,), dtype, law)[0])
    assert np.isnan(found[0]) and np.isnan(found[51:]).all()


def test_any_word_gives_the_same_normal_number(device):
    """The centre, both tails and the seams between them, through a kernel of one line."""
    text = launch.text_of("random.cu") + (
        'extern "C" __global__ void __launch_bounds__(256) of_words(double *y, const u64 *words, i64 n) {\n'
        "  for (i64 i = threadIdx.x; i < n; i += 256) y[i] = normal(words[i]);\n}\n"
    )
    constants = {"T": np.dtype(np.float64), **_TABLES}
    run = launch.compiled(launch.source(text, tuple(constants.items())), "of_words")
    seams = [int(p * 2**53) for p in (0.075, 0.925, np.exp(-25), 1 - np.exp(-25))]
    tops = [*range(50), *(2**53 - 1 - k for k in range(50)), *(2**k + d for k in range(53) for d in (-1, 0, 1))]
    tops += [seam + k for seam in seams for k in range(-40, 40)] + [2**52 + k for k in range(-20, 20)]
    words = np.array([k << 11 for k in sorted(set(tops)) if 0 <= k < 2**53], np.uint64)
    words = np.concatenate([words, words | np.uint64(2047), np.random.Philox(5).random_raw(3000)])
    y = device.empty(words.shape, np.float64)
    run(1, 256, (y, device.array(words), len(words)))
    right = reference._normal(words)
    assert np.array_equal(y.get(), right) and right.min() < -8.2 and right.max() > 8.2
