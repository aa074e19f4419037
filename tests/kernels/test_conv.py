"""Convolution kernels against plain NumPy sums over taps in float64."""

from itertools import product

import numpy as np
import pytest

from minidl.kernels.cpu import conv as module
from minidl.kernels.cpu.conv import conv, conv_input_grad, conv_weight_grad
from minidl.kernels.cpu.threads import set_thread_count

# name: batch, spatial size, kernel, channels of x and y in a group, groups, stride, dilation, padding
CASES = {
    "digits 1": (3, (28, 28), (5, 5), (1, 16), 1, (1, 1), (1, 1), ((2, 2), (2, 2))),
    "digits skip": (2, (28, 28), (1, 1), (16, 32), 1, (2, 2), (1, 1), ((0, 0), (0, 0))),
    "digits 2": (2, (28, 28), (3, 3), (16, 32), 1, (2, 2), (1, 1), ((0, 1), (0, 1))),
    "digits 3": (3, (14, 14), (3, 3), (32, 32), 1, (1, 1), (1, 1), ((1, 1), (1, 1))),
    "1-D": (2, (19,), (4,), (3, 5), 1, (3,), (2,), ((2, 0),)),
    "1-D of one value": (1, (1,), (1,), (1, 1), 1, (1,), (1,), ((0, 0),)),
    "3-D": (2, (5, 6, 7), (2, 3, 2), (3, 4), 1, (2, 1, 3), (1, 2, 1), ((1, 0), (2, 1), (0, 3))),
    "3-D stride 2": (1, (4, 6, 4), (3, 3, 3), (2, 17), 1, (2, 2, 2), (1, 1, 1), ((1, 1), (1, 1), (1, 1))),
    "odd channels": (2, (9, 7), (3, 2), (17, 33), 1, (1, 1), (1, 1), ((1, 0), (0, 1))),
    "many columns": (1, (4, 5), (2, 2), (5, 67), 1, (1, 1), (1, 1), ((0, 0), (1, 1))),
    "groups": (2, (8, 9), (3, 3), (4, 6), 3, (1, 2), (2, 1), ((2, 2), (1, 1))),
    "groups of one input": (2, (8, 9), (3, 3), (1, 3), 4, (1, 1), (1, 1), ((1, 1), (1, 1))),
    "groups of one output": (2, (8, 9), (3, 3), (3, 1), 4, (2, 2), (1, 1), ((1, 1), (1, 1))),
    "channel-wise": (2, (9, 11), (3, 3), (1, 1), 19, (1, 1), (1, 1), ((1, 1), (1, 1))),
    "channel-wise, strided": (2, (9, 11), (3, 2), (1, 1), 37, (2, 3), (2, 1), ((2, 1), (0, 4))),
    "channel-wise 1-D": (1, (30,), (5,), (1, 1), 2, (1,), (3,), ((6, 6),)),
    "dilation and stride share a factor": (2, (13, 12), (3, 4), (2, 3), 1, (4, 2), (2, 2), ((3, 3), (1, 2))),
    "dilation is a multiple of stride": (2, (13, 12), (3, 2), (2, 3), 1, (2, 3), (4, 6), ((3, 3), (1, 2))),
    "stride beyond the kernel": (2, (11, 12), (2, 1), (3, 4), 1, (3, 5), (1, 1), ((0, 0), (0, 0))),
    "kernel beyond the input": (1, (3, 2), (5, 7), (2, 3), 1, (1, 1), (1, 1), ((2, 2), (4, 3))),
    "padding beyond the kernel": (2, (4, 3), (2, 2), (3, 2), 1, (1, 1), (1, 1), ((5, 4), (0, 6))),
    "input cut off": (2, (9, 8), (3, 3), (2, 4), 1, (2, 2), (1, 1), ((-2, -1), (0, -2))),
    "rows left over": (2, (10, 11), (3, 3), (3, 4), 1, (4, 3), (1, 1), ((0, 0), (0, 0))),
    "one image": (1, (16, 16), (3, 3), (8, 64), 1, (1, 1), (1, 1), ((1, 1), (1, 1))),
    "no image": (0, (5, 5), (3, 3), (2, 3), 1, (1, 1), (1, 1), ((1, 1), (1, 1))),
    "no output": (2, (2, 5), (3, 3), (2, 3), 1, (1, 1), (1, 1), ((0, 0), (0, 0))),
}


class Problem:
    """Arrays and options of one case, and the three sums in plain NumPy."""

    def __init__(self, name, dtype, seed=0):
        batch, size, kernel, (inputs, outputs), groups, stride, dilation, padding = CASES[name]
        self.options = dict(stride=stride, dilation=dilation, padding=padding)
        out = [
            max(0, (n + low + high - (k - 1) * d - 1) // s + 1)
            for n, k, s, d, (low, high) in zip(size, kernel, stride, dilation, padding, strict=True)
        ]
        random = np.random.default_rng(seed)
        self.x = random.standard_normal((batch, *size, groups * inputs)).astype(dtype)
        self.w = random.standard_normal((groups, *kernel, inputs, outputs)).astype(dtype)
        self.g = random.standard_normal((batch, *out, groups * outputs)).astype(dtype)

    def taps(self):
        """For each tap: its index, and open meshes of the inputs and of the outputs that meet there."""
        options = self.options.values()
        for tap in product(*map(range, self.w.shape[1:-2])):
            meshes = []
            for k, n, o, s, d, (low, _) in zip(tap, self.x.shape[1:-1], self.g.shape[1:-1], *options, strict=True):
                pairs = [(i * s + k * d - low, i) for i in range(o)]
                meshes.append(np.array([(i, j) for i, j in pairs if 0 <= i < n], np.int64).reshape(-1, 2).T)
            yield tap, *(np.ix_(range(len(self.x)), *[mesh[side] for mesh in meshes]) for side in (0, 1))

    def sums(self, x, w, g):
        """conv, conv_input_grad, conv_weight_grad in float64."""
        x, w, g = (array.astype(np.float64) for array in (x, w, g))
        y, dx, dw = np.zeros(g.shape), np.zeros(x.shape), np.zeros(w.shape)
        groups, inputs, outputs = w.shape[0], w.shape[-2], w.shape[-1]
        for tap, read, written in self.taps():
            for group in range(groups):
                c = slice(group * inputs, (group + 1) * inputs)
                f = slice(group * outputs, (group + 1) * outputs)
                weights = w[(group, *tap)]
                y[..., f][written] += x[..., c][read] @ weights
                dx[..., c][read] += g[..., f][written] @ weights.T
                pair = (array.reshape(-1, array.shape[-1]) for array in (x[..., c][read], g[..., f][written]))
                dw[(group, *tap)] = np.einsum("nc,nf->cf", *pair)
        return y, dx, dw

    def kernels(self):
        """The same by the kernels, with outputs and scratch full of NaN beforehand."""
        x, w, g, options = self.x, self.w, self.g, self.options
        calls = (
            (conv, module.conv_scratch, np.empty_like(g), (x, w)),
            (conv_input_grad, module.conv_input_grad_scratch, np.empty_like(x), (g, w)),
            (conv_weight_grad, module.conv_weight_grad_scratch, np.empty_like(w), (g, x)),
        )
        for kernel, scratch, result, arrays in calls:
            result[...] = np.nan
            memory = scratch(*(array.shape for array in (result, *arrays)), dtype=x.dtype, **options)
            space = tuple(np.full(shape, np.nan, dtype) for shape, dtype in memory)
            kernel(result, *arrays, **options, scratch=space)
            yield result


@pytest.fixture(autouse=True)
def small_grain(monkeypatch):
    """Cut even small work into many blocks."""
    monkeypatch.setattr(module, "_GRAIN", 0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 2e-15)])
@pytest.mark.parametrize("name", CASES)
def test_sums(name, dtype, tolerance):
    problem = Problem(name, dtype)
    before = problem.x.copy(), problem.w.copy(), problem.g.copy()
    results = list(problem.kernels())
    sizes = problem.sums(*map(np.abs, before))  # of the terms: what rounding is measured by
    for result, expected, size in zip(results, problem.sums(*before), sizes, strict=True):
        assert result.shape == expected.shape
        assert np.all(np.abs(result - expected) <= tolerance * size)
    for array, old in zip((problem.x, problem.w, problem.g), before, strict=True):
        assert np.array_equal(array, old)


@pytest.mark.parametrize("name", ["digits 2", "groups", "channel-wise", "3-D stride 2", "input cut off"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_only_sums_of_a_bad_value_are_bad(name, value):
    """Bad in x: y and the gradient of w. Bad in g: the gradient of x (that of w has zeros around x times g, too)."""
    problem = Problem(name, np.float32)
    for array, affected in (problem.x, (0, 2)), (problem.g, (1,)):
        place = array.size // 3
        array.reshape(-1)[place], good = value, array.reshape(-1)[place]
        with np.errstate(invalid="ignore"):
            pairs = list(zip(problem.kernels(), problem.sums(problem.x, problem.w, problem.g), strict=True))
        for result, expected in (pairs[index] for index in affected):
            assert np.array_equal(np.isfinite(result), np.isfinite(expected))
        array.reshape(-1)[place] = good


@pytest.mark.parametrize("name", ["digits 1", "digits 2", "digits 3", "groups", "channel-wise, strided", "3-D"])
def test_any_number_of_threads_gives_the_same_bits(name):
    problem = Problem(name, np.float32)
    try:
        results = []
        for threads in 1, 2, 5:
            set_thread_count(threads)
            results.append([result.tobytes() for result in problem.kernels()])
    finally:
        set_thread_count()
    assert results[0] == results[1] == results[2]
