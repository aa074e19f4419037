"""Sample calls of the CUDA backend: what the checks of its kernels run (tests/cubin, mutations, sanitizers).

`of_registry` are the samples that the ops themselves declare: every op, tiny. `of_rooms` are larger ones for the ops
with kernels of their own in kernels/cuda, chosen so that every branch of a kernel has something to do: several blocks,
several warps, rows that end within a block. `of_training_step` are the calls of a step of the digits example.
"""

from __future__ import annotations

import importlib.util
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import test_every_op

from minidl import (
    DLArray,
    adamupdate,
    arrayDatastore,
    combine,
    dlaccelerate,
    dlarray,
    dlfeval,
    dlgradient,
    dlupdate,
    fullyconnect,
    gpuArray,
    hasdata,
    minibatchqueue,
    mse,
    shuffle,
)
from minidl.backends import cuda, precision
from minidl.core import contraction
from minidl.core.op import OPS, Op
from minidl.core.spec import Spec, Value
from minidl.core.tape import Tape, opened
from minidl.kernels.cuda import contract

DTYPES = ("float32", "float64")


class SampleCall(NamedTuple):
    """An op and its operands: NumPy arrays, and numbers; `setting` is the precision of sums of products."""

    op: Op
    inputs: tuple[Any, ...]
    params: dict[str, Any]
    setting: str = "float32"

    def __str__(self) -> str:
        shapes = ", ".join(f"{x.dtype}{list(x.shape)}" if isinstance(x, np.ndarray) else repr(x) for x in self.inputs)
        params = "".join(f", {name}={value!r}" for name, value in self.params.items())
        return f"{self.op.name}({shapes}{params}){', tf32' if self.setting == 'tf32' else ''}"

    @property
    def is_by_hand(self) -> bool:
        """Whether the kernel is written by hand, in kernels/cuda."""
        return self.op.name in cuda.ROOMS or self.op.contraction_rule is not None

    def run(self, library: Any) -> list[Any] | None:
        """Results on the device of a library (CuPy, or what stands in its place), which `launch` must use already."""
        inputs = [on_device(library, x) if isinstance(x, np.ndarray) else x for x in self.inputs]
        known = [Spec(x.shape, x.dtype) if isinstance(x, np.ndarray) else x for x in self.inputs]
        specs = self.op.output_specs(known, self.params)
        before = precision.choose(self.setting)
        try:
            return cuda.run(self.op, specs, inputs, self.params)
        finally:
            precision.choose(before)


class KernelCall(NamedTuple):
    """A kernel that no op has: `work` is given the library and the inputs on the device, and gives results."""

    title: str
    inputs: tuple[np.ndarray, ...]
    work: Callable[..., list[Any]]
    setting: str = "float32"
    is_by_hand: bool = True

    def __str__(self) -> str:
        return f"{self.title}, {self.inputs[0].dtype}{', tf32' if self.setting == 'tf32' else ''}"

    def run(self, library: Any) -> list[Any]:
        """Results on the device of a library."""
        return self.work(library, *[on_device(library, x) for x in self.inputs])


def on_device(library: Any, x: np.ndarray) -> Any:
    """x on the device, its dimensions in the order that they have in memory; one that repeats itself still does."""
    if x.ndim == 0:
        return library.asarray(x)
    once = x[tuple([slice(0, 1) if n == 0 else slice(None) for n in x.strides])] if x.size else x
    order = sorted(range(x.ndim), key=lambda i: -abs(once.strides[i]))
    y = library.asarray(np.ascontiguousarray(once.transpose(order))).transpose([order.index(i) for i in range(x.ndim)])
    if y.shape == x.shape:
        return y
    strides = tuple([0 if n == 0 else stride for n, stride in zip(x.strides, y.strides)])
    return library.lib.stride_tricks.as_strided(y, x.shape, strides)


def typed(inputs: Any, dtype: str) -> tuple[Any, ...]:
    """Real arrays in this type, others as they are."""
    return tuple([x.astype(dtype) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x for x in inputs])


def variants(op: Op, inputs: Any, params: dict[str, Any]) -> Iterator[SampleCall]:
    """A case in single and in double precision; sums of products in tf32, too."""
    if not any(isinstance(x, np.ndarray) and x.dtype.kind == "f" for x in inputs):
        yield SampleCall(op, tuple(inputs), params)
        return
    for dtype in DTYPES:
        yield SampleCall(op, typed(inputs, dtype), params)
    if op.contraction_rule is not None:
        yield SampleCall(op, typed(inputs, "float32"), params, "tf32")


def of_registry() -> Iterator[SampleCall]:
    """What every op declares as its samples, or is given as a MAP op."""
    for name in test_every_op.NAMES:
        for inputs, params in test_every_op.cases(OPS[name]):
            yield from variants(OPS[name], inputs, params)


# larger calls ------------------------------------------------------------------------------------------------------
def _rows(r: Any) -> Iterator[Any]:
    """Matrices: few long rows, many short ones, one, none."""
    for shape in [(3, 1500), (300, 5), (40, 70), (1, 1), (0, 4)]:
        yield r.standard_normal(shape)


def _batchnorm(r: Any) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    for shape in [(700, 5), (300, 33), (40, 130), (5, 1)]:
        vectors = [r.standard_normal(shape[1]) for _ in range(2)]
        yield (r.standard_normal(shape) + 1, *vectors), dict(epsilon=1e-5)


def _batchnorm_grad(r: Any) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    for (x, _, scale), params in _batchnorm(r):
        yield (r.standard_normal(x.shape), x, x.mean(0), x.var(0), scale), params


def _convolutions(r: Any) -> Iterator[tuple[Any, Any, dict[str, Any]]]:
    """(image, weights, geometry): as in the digits example, and by groups, dilated, of other dimensions."""
    yield (r.standard_normal((2, 9, 10, 3)), r.standard_normal((1, 3, 3, 3, 20)),
           dict(stride=(1, 1), dilation=(1, 1), padding=((1, 1), (1, 1))))  # fmt: skip
    yield (r.standard_normal((2, 9, 9, 16)), r.standard_normal((1, 3, 3, 16, 33)),
           dict(stride=(2, 2), dilation=(1, 1), padding=((0, 1), (0, 1))))  # fmt: skip
    yield (r.standard_normal((1, 8, 7, 6)), r.standard_normal((2, 2, 3, 3, 4)),
           dict(stride=(1, 2), dilation=(2, 1), padding=((0, 0), (2, 1))))  # fmt: skip
    yield (r.standard_normal((2, 5, 6, 19)), r.standard_normal((19, 3, 3, 1, 1)),
           dict(stride=(1, 1), dilation=(1, 1), padding=((1, 1), (1, 1))))  # fmt: skip
    yield (r.standard_normal((3, 40, 4)), r.standard_normal((1, 5, 4, 8)),
           dict(stride=(1,), dilation=(1,), padding=((2, 2),)))  # fmt: skip


def _conv(r: Any) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    for x, w, geometry in _convolutions(r):
        yield (x, w), geometry


def _conv_output(x: Any, w: Any, geometry: dict[str, Any]) -> tuple[int, ...]:
    return OPS["conv"].output_specs([Spec(x.shape, x.dtype), Spec(w.shape, w.dtype)], geometry)[0].shape


def _conv_input_grad(r: Any) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    for x, w, geometry in _convolutions(r):
        yield (r.standard_normal(_conv_output(x, w, geometry)), w), dict(size=x.shape[1:-1], **geometry)


def _conv_weight_grad(r: Any) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    for x, w, geometry in _convolutions(r):
        yield (r.standard_normal(_conv_output(x, w, geometry)), x), dict(size=w.shape[:-2], **geometry)


def _matmul(r: Any) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    for *batch, m, k, n in [(70, 50, 90), (7, 1500, 9), (130, 3, 130), (2048, 16, 64), (2, 33, 17, 9), (3, 0, 2)]:
        yield (r.standard_normal((*batch, m, k)), r.standard_normal((*batch, k, n))), {}


def _softmax(r: Any) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    for x in _rows(r):
        x[:1, :1] = x[1:2, 255:256] = 1000  # exp of it would overflow
        yield (3 * x,), {}


def _softmax_grad(r: Any) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    for x in _rows(r):
        e = np.exp(x)
        yield (r.standard_normal(x.shape), e / e.sum(1, keepdims=True)), {}


def _along(r: Any) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    for shape, axis in [((3, 1500), 1), ((40, 70), 0), ((5000,), 0), ((4, 30, 3), 1), ((2, 0), 1)]:
        yield (r.uniform(0.9, 1.1, shape) * r.choice([-1, 1], shape),), dict(axis=axis)


def _argsort(r: Any) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    for (x,), params in _along(r):
        yield (x.round(2),), dict(descending=x.ndim == 2, **params)


def _argmax(r: Any) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    for shape, axes in [((3, 1500), (1,)), ((300, 9), (0,)), ((9000,), (0,)), ((5, 6, 7), (0, 2)), ((400, 3), (1,))]:
        yield (r.standard_normal(shape).round(1),), dict(axes=axes)


def _reduce(r: Any) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    for shape, axes in [((3, 1500), (1,)), ((1500, 3), (0,)), ((20000,), (0,)), ((5, 6, 7), (0, 2)), ((400, 3), (1,))]:
        yield (r.standard_normal(shape),), dict(axes=axes)


def _random(r: Any) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    for law in ("uniform", "normal"):
        for dtype in DTYPES:
            yield (np.array([7, 3], np.uint64),), dict(shape=(3001,), dtype=dtype, law=law)


def _gather(r: Any) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    yield (r.standard_normal((40, 50)), r.integers(-2000, 2000, 3000)), {}
    yield (r.standard_normal((6, 50, 7)), r.integers(-50, 50, 90)), dict(axis=1)


def _scatter_add(r: Any) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    yield (r.standard_normal(3000), r.integers(-200, 200, 3000)), dict(shape=(10, 20))
    yield (r.standard_normal((6, 90, 7)), r.integers(-50, 50, 90)), dict(shape=(6, 50, 7), axis=1)


def _scatter(r: Any) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    yield (r.standard_normal((10, 20)), r.standard_normal(3000), r.integers(-200, 200, 3000)), {}
    yield (r.standard_normal((10, 40)), r.standard_normal(300), r.permutation(400)[:300]), {}
    yield (r.standard_normal((6, 50, 7)), r.standard_normal((6, 90, 7)), r.integers(-50, 50, 90)), dict(axis=1)


def _spacing(r: Any) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    yield (r.standard_normal(3000),), {}


LARGER = {
    "batchnorm_train": _batchnorm, "batchnorm_grad": _batchnorm_grad, "softmax_last": _softmax,
    "softmax_last_grad": _softmax_grad, "random": _random, "gather": _gather, "scatter_add": _scatter_add,
    "scatter": _scatter, "spacing": _spacing, "argsort": _argsort, "argmax": _argmax, "cumsum_along": _along,
    "cumprod_along": _along, "matmul": _matmul, "conv": _conv, "conv_input_grad": _conv_input_grad,
    "conv_weight_grad": _conv_weight_grad, "reduce_sum": _reduce,
}  # fmt: skip


def of_rooms() -> Iterator[SampleCall | KernelCall]:
    """Larger calls of ops with kernels in kernels/cuda, and of sums as loops."""
    for name, cases in LARGER.items():
        r = np.random.default_rng(zlib.crc32(name.encode()))
        for inputs, params in cases(r):
            yield from variants(OPS[name], inputs, params)
    for dtype, setting in [("float32", "float32"), ("float64", "float32"), ("float32", "tf32")]:
        yield _sums((3000, 9, 50), dtype, setting)
        yield _sums((40, 1500, 50), dtype, setting)
        yield _sums((300, 5, 2100), dtype, setting)


def _product(m: int, k: int, n: int, dtype: str) -> tuple[Any, tuple[Any, ...]]:
    """(the nest of a matrix product, its operands and a number for each column)."""
    r = np.random.default_rng(5)
    inputs = tuple([r.standard_normal(shape).astype(dtype) for shape in ((m, k), (k, n), (n,))])
    y, a, b = [tuple([contraction.index(i) for i in axes]) for axes in ((0, 1), (0, 2), (2, 1))]
    return contraction.Contraction((m, n, k), y, a, b), inputs


def _sums(sizes: tuple[int, int, int], dtype: str, setting: str) -> KernelCall:
    """A product with two sums of each column, in one pass or after its slices are added."""
    (m, _, n), (nest, inputs) = sizes, _product(*sizes, dtype)
    bias = contract.Change("x + bias", (contract.Read("bias", 0, (0, 1)),))
    sums = (contract.Summed("y", 1, (0, 1)), contract.Summed("(double)y * y", 2, (0, 1)))
    slots = contract.Slots(y=bias, sums=sums, kept=(1,), types=(dtype, "float64", "float64"))

    def work(library: Any, a: Any, b: Any, level: Any) -> list[Any]:
        y, total, squares = library.empty((m, n), dtype), library.empty(n, "float64"), library.empty(n, "float64")
        layouts = [contract.layout_of(x) for x in (y, a, b)]
        plan = contract.plan((nest,), *layouts, dtype=dtype, precision=setting, slots=slots)
        scratch = tuple([library.empty(*each) for each in plan.scratch])
        counters = library.zeros(plan.counters, "int32")
        plan.run(y, a, b, (level, total, squares), scratch, counters)
        return [y, total, squares]

    return KernelCall(f"contract {sizes} with sums", inputs, work, setting)


# a training step -----------------------------------------------------------------------------------------------------
class Step(NamedTuple):
    """The digits example and what a training step of it is given: parameters, batch (images, digits, angles), state."""

    example: Any
    parameters: Any
    batch: tuple[Any, ...]
    state: Any


def training_step(batch: int, dtype: str) -> Step:
    """A step on random images, in the host's memory."""
    path = Path(__file__).parents[2] / "examples" / "digits_accel.py"
    found = importlib.util.spec_from_file_location("digits_accel", path)
    assert found is not None and found.loader is not None
    example = importlib.util.module_from_spec(found)
    found.loader.exec_module(example)
    r = np.random.default_rng(0)
    typed_as = lambda x: dlarray(np.asarray(x).astype(dtype), x.dims())
    parameters, state = [dlupdate(typed_as, tree) for tree in example.modelParameters(10, 1)]
    images, angles = r.standard_normal((28, 28, 1, batch)).astype(dtype), r.standard_normal((1, batch)).astype(dtype)
    digits = np.eye(10, dtype=dtype)[:, r.integers(0, 10, batch)]
    return Step(example, parameters, (dlarray(images, "SSCB"), dlarray(digits), dlarray(angles)), state)


def of_training_step(batch: int, dtype: str, setting: str = "float32") -> Iterator[SampleCall]:
    """The calls of one step, on arrays of its sizes and memory orders, as recorded on the CPU."""
    step = training_step(batch, dtype)
    with opened(Tape(everything=True)) as tape:
        dlfeval(step.example.modelStep, step.parameters, *step.batch, step.state, [], [], 1)
    for call in tape.calls:
        yield SampleCall(call.op, tuple([x.data if type(x) is Value else x for x in call.inputs]), call.params, setting)


def go_round(dtype: str) -> None:
    """What a training loop has besides: batches picked on the GPU, losses that are kept, the solver outside."""
    images, targets = np.zeros((4, 4, 1, 12), dtype), np.zeros((12, 3), dtype)
    stores = arrayDatastore(gpuArray(images), IterationDimension=3), arrayDatastore(gpuArray(targets))
    mbq = minibatchqueue(combine(*stores), MiniBatchSize=4, MiniBatchFormat=["SSCB", "BC"], OutputEnvironment="gpu")
    weights, average, square, kept = gpuArray(dlarray(np.zeros((3, 16), dtype))), [], [], []

    def gradients(weights: DLArray, x: DLArray, t: DLArray) -> tuple[DLArray, DLArray]:
        loss = mse(fullyconnect(x, weights, np.zeros((3, 1), dtype)), t)
        return loss, dlgradient(loss, weights)

    function = dlaccelerate(gradients)
    for i in range(1, 5):
        shuffle(mbq)
        while hasdata(mbq):
            loss, found = dlfeval(function, weights, *next(mbq))
            weights, average, square = adamupdate(weights, found, average, square, i)
            kept.append(loss)


def replay_training_step(batch: int, dtype: str, setting: str = "float32") -> None:
    """Some accelerated steps on the GPU, solver included, until they are replayed."""
    step = training_step(batch, dtype)
    function = dlaccelerate(step.example.modelStep)
    before = precision.choose(setting)
    try:
        parameters, state, *arrays = dlupdate(gpuArray, [step.parameters, step.state, *step.batch])
        average, square = [], []
        for i in range(1, 5):
            iteration = dlarray(np.asarray(i, dtype))
            parameters, state, _, average, square = dlfeval(
                function, parameters, *arrays, state, average, square, iteration
            )
    finally:
        precision.choose(before)
