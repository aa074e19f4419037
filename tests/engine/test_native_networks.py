"""Recorded networks as native programs: what the function computes, no less exactly, with any number of threads."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any, NamedTuple

import hypothesis.strategies as st
import llvmlite.binding as llvm
import numpy as np
import pytest
from hypothesis import given, settings

import minidl as m
from engine.programs import assert_same, numbers, recorded
from minidl.backends import cpu
from minidl.backends.cpu.native.compiler import unavailable
from minidl.backends.cpu.native.target import host
from minidl.core.dlarray import dlarray
from minidl.core.random import GENERATOR
from minidl.engine.compile import compile_graph
from minidl.engine.layout import order_of
from minidl.engine.program import NativeProgram
from minidl.kernels.cpu.threads import set_thread_count

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

EPS = float(np.finfo(np.float32).eps)
ACTIVATIONS = {
    "relu": m.relu, "leakyrelu": m.leakyrelu, "tanh": m.tanh, "sigmoid": m.sigmoid, "gelu": m.gelu, "none": lambda x: x,
    "softplus": lambda x: m.log1p(m.exp(-m.abs(x))) + m.max(x, 0),
}  # fmt: skip


class Layer(NamedTuple):
    """A kind of layer, its options, and the shapes of its parameters."""

    kind: str
    options: Any
    shapes: tuple[tuple[int, ...], ...] = ()


class Network(NamedTuple):
    """Layers, the loss, the size of an observation [S.., C], the batch, and what is computed of it."""

    layers: tuple[Layer, ...]
    loss: str
    shape: tuple[int, ...]
    batch: int
    order: int  # of gradients
    solver: str

    @property
    def labels(self):
        return "S" * (len(self.shape) - 1) + "CB"

    def parameters(self):
        return [shape for layer in self.layers for shape in layer.shapes]

    def outputs(self, X, parameters):
        """The network's prediction."""
        given = iter(parameters)
        for layer in self.layers:
            mine = [next(given) for _ in layer.shapes]
            if layer.kind == "conv":
                X = m.dlconv(X, mine[0], mine[1], **layer.options)
            elif layer.kind == "batchnorm":
                X = m.batchnorm(X, mine[0], mine[1])
            elif layer.kind == "fixed batchnorm":
                X = m.batchnorm(X, mine[0], mine[1], mine[2], m.square(mine[3]) + 0.5)
            elif layer.kind == "skip":
                X = X + ACTIVATIONS[layer.options](X)
            elif layer.kind == "fullyconnect":
                X = m.fullyconnect(X, mine[0], mine[1])
            else:
                X = ACTIVATIONS[layer.kind](X)
        return X

    def loss_of(self, Y, T):
        if self.loss == "crossentropy":
            return m.crossentropy(m.softmax(Y), m.softmax(T))
        return m.mse(Y, T) if self.loss == "mse" else m.huber(Y, T)

    def __call__(self, X, T, *parameters):
        """Loss, prediction, gradients, and parameters after a step."""

        def all_of_it(X, T, *parameters):
            Y = self.outputs(X, parameters)
            loss = self.loss_of(Y, T)
            found = [loss, Y]
            if not parameters:
                return found + ([m.dlgradient(loss, X)] if self.order else [])
            gradients: list[Any] = []
            if self.order:
                gradients = m.dlgradient(loss, [X, *parameters], EnableHigherDerivatives=self.order > 1)
                found += gradients
            if self.order > 1:
                square = sum((m.sum(m.square(m.stripdims(g)), "all") for g in gradients[1:]), 0.0 * loss)
                found += m.dlgradient(square, [X, *parameters])
            if gradients and self.solver == "adam":
                state = [p * 0.0 for p in parameters]
                found += sum(m.adamupdate(list(parameters), gradients[1:], state, [s + 1 for s in state], 2), [])
            if gradients and self.solver == "sgdm":
                velocity = [p * 0.5 for p in parameters]
                found += sum(m.sgdmupdate(list(parameters), gradients[1:], velocity), [])
            return found

        return m.dlfeval(all_of_it, X, T, *parameters)

    def inputs(self, dtype, seed=0):
        r = np.random.default_rng(seed)
        X = dlarray(r.normal(size=(*self.shape, self.batch)).astype(dtype), self.labels)
        parameters = []
        for shape in self.parameters():
            scale = 1 / np.sqrt(max(1, np.prod(shape[:-1]))) if len(shape) > 1 else 1
            parameters.append(dlarray((r.normal(size=shape) * scale + 0.1).astype(dtype)))
        with np.errstate(all="ignore"):
            Y = self.outputs(X, parameters)
        T = dlarray(r.normal(size=Y.shape).astype(dtype), Y.dims())
        return [X, T, *parameters]


@st.composite
def convolutions(draw, shape, filters):
    """(layer, the shape of what it makes)."""
    *sizes, channels = shape
    is_usual = draw(st.booleans())
    groups = 1 if is_usual else draw(st.sampled_from([1, channels, *([2] if channels % 2 == 0 else [])]))
    per_group = max(1, filters // groups)
    padding = "same" if is_usual else draw(st.sampled_from(["same", 0, 1, "sides", "causal", "border"]))
    size, step = draw(st.sampled_from([1, 3, 3, 5])), draw(st.sampled_from([1, 1, 1, 2]))
    kernel, stride, dilation = [], [], []
    for n in sizes:
        k = size if is_usual else draw(st.integers(1, 4))
        d = 1 if is_usual else draw(st.sampled_from([1, 1, 2, 3]))
        if padding in (0, "border"):
            k = min(k, n)
            d = 1 if k == 1 else min(d, max(1, (n - 1) // (k - 1)))
        kernel.append(k)
        dilation.append(d)
        stride.append(step if is_usual else draw(st.sampled_from([1, 1, 2, 3])))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation)]
    options: dict[str, Any] = {"Stride": tuple(stride), "DilationFactor": tuple(dilation), "Padding": padding}
    if padding == "causal" and len(sizes) > 1:
        options["Padding"] = "same"
    if padding == 1:
        options["Padding"] = tuple([max(0, -(-(r - n) // 2)) + draw(st.integers(0, 2)) for r, n in zip(reach, sizes)])
    if padding == "sides":
        options["Padding"] = [[max(0, r - n) + draw(st.integers(0, 1)) for r, n in zip(reach, sizes)],
                              [draw(st.integers(0, 3)) for _ in sizes]]  # fmt: skip
    if padding == "border":
        options["Padding"] = tuple([min(1, n - 1) for n in sizes])
        options["PaddingValue"] = draw(st.sampled_from(["symmetric-include-edge", "replicate", 0.5]))
    weights = (*kernel, channels // groups, per_group, *([groups] if groups > 1 else []))
    ones = np.ones((*shape, 1), "f"), np.ones(weights, "f")
    probe = m.dlconv(*ones, 0, DataFormat="S" * len(sizes) + "CB", **options)
    return Layer("conv", options, (weights, (groups * per_group,))), probe.shape[:-1]


@st.composite
def networks(draw, is_large=False):
    """Small ones with odd shapes everywhere; large ones that are cut into chunks, with shapes for Winograd too."""
    rank = draw(st.sampled_from([1, 2, 2, 2, 3] if is_large else [0, 1, 1, 2, 2, 2, 3]))
    most = {0: 1, 1: 40, 2: 13, 3: 6}[rank]
    sizes = [draw(st.integers(4 if is_large else 1, most)) for _ in range(rank)]
    if is_large and draw(st.booleans()):
        sizes = [n - n % 2 for n in sizes]
    widths = st.sampled_from([16, 16, 17, 32, 3] if is_large else [1, 2, 3, 4, 5, 8, 16, 19])
    shape = start = (*sizes, draw(widths))
    layers = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["conv", "conv", "conv", "batchnorm", "fixed batchnorm", "skip", "activation"]))
        if kind == "conv" and rank:
            layer, shape = draw(convolutions(shape, draw(widths)))
        elif kind in ("batchnorm", "fixed batchnorm"):
            layer = Layer(kind, None, (shape[-1:],) * (2 if kind == "batchnorm" else 4))
        elif kind == "skip":
            layer = Layer(kind, draw(st.sampled_from(list(ACTIVATIONS))))
        else:
            layer = Layer(draw(st.sampled_from(list(ACTIVATIONS))), None)
        layers.append(layer)
    if draw(st.booleans()):
        outputs = draw(st.sampled_from([1, 3, 10, 33]))
        layers.append(Layer("fullyconnect", None, ((outputs, int(np.prod(shape))), (outputs,))))
    loss = draw(st.sampled_from(["crossentropy", "mse", "huber"]))
    order = draw(st.sampled_from([0, 1, 1, 1, 2]))
    batch = draw(st.sampled_from([8, 15, 16, 17, 33, 64] if is_large else [1, 2, 3, 5, 8, 17, 32]))
    return Network(tuple(layers), loss, start, batch, order, draw(st.sampled_from(["none", "adam", "sgdm"])))


def compiled(function, inputs):
    graph, fresh, _ = recorded(function, *inputs)
    program = compile_graph(graph, [order_of(value.data) for value in fresh], cpu)
    assert isinstance(program, NativeProgram)
    return program


def run(program, inputs):
    return program.run([x._value.data for x in inputs] + [GENERATOR.value.data])


def errors(found, expected):
    """The largest difference in each array, measured by its largest number (or 1)."""
    return [
        float(np.max(np.abs(a - b), initial=0.0)) / max(1.0, float(np.max(np.abs(b), initial=0.0)))
        for a, b in zip(numbers(found), numbers(expected), strict=True)
    ]


def single_errors(network, inputs, found=None):
    """Errors of results in single precision, by default the function's own, against the function in double."""
    exact = network(*[dlarray(x.extractdata().astype(np.float64), x.dims()) for x in inputs])
    return np.array(errors(network(*inputs) if found is None else found, exact))


def assert_as_exact(network, inputs, found):
    """Results in single precision are as near to the function in double as the function itself is there, at this place
    or at one nearby: where rounding matters much, it may do so by chance."""
    mine, plain, least = single_errors(network, inputs, found), single_errors(network, inputs), 100 * EPS
    for k in range(1, 9):
        if np.all(mine <= 8 * plain + least):
            break
        nearby = [dlarray(x.extractdata() * np.float32(1 + k * 2.0**-20), x.dims()) for x in inputs]
        plain = np.maximum(plain, single_errors(network, nearby))
    assert np.all(mine <= 8 * plain + least), (mine, plain)


def check(network, dtype):
    """Replays are as exact as the function, whatever the number of threads."""
    inputs = network.inputs(dtype)
    program = compiled(network, inputs)
    for seed in (0, 1):
        inputs = network.inputs(dtype, seed)
        found, eager = run(program, inputs), network(*inputs)
        assert [(x.shape, x.dtype) for x in numbers(found)] == [(x.shape, x.dtype) for x in numbers(eager)]
        assert_same(run(program, inputs), found)
        set_thread_count(1)
        try:
            assert_same(run(program, inputs), found)
        finally:
            set_thread_count()
        if dtype == "float64":
            assert max(errors(found, eager)) < 1e-10
            continue
        assert_as_exact(network, inputs, found)


@settings(max_examples=60, derandomize=True)
@given(networks(), st.sampled_from(["float32", "float32", "float64"]))
def test_any_small_network(network, dtype):
    check(network, dtype)


@settings(max_examples=25, derandomize=True)
@given(networks(is_large=True), st.sampled_from(["float32", "float32", "float64"]))
def test_any_large_network(network, dtype):
    check(network, dtype)


@contextlib.contextmanager
def avx2():
    """Code for 16 vector registers of 32 bytes, whatever this processor has besides."""
    features = ",".join(x for x in host().features.split(",") if "avx512" not in x and "avx10" not in x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llvm, "get_host_cpu_name", lambda: "haswell")
        patch.setattr(llvm, "get_host_cpu_features", lambda: SimpleNamespace(flatten=lambda: features))
        host.cache_clear()
        try:
            yield
        finally:
            patch.undo()
            host.cache_clear()


@pytest.mark.skipif("+avx2" not in host().features, reason="this processor has no AVX2")
@settings(max_examples=30, derandomize=True)
@given(st.booleans().flatmap(networks), st.sampled_from(["float32", "float32", "float64"]))
def test_any_network_with_vectors_of_avx2(network, dtype):
    with avx2():
        assert (host().vector_bytes, host().registers) == (32, 16)
        check(network, dtype)
