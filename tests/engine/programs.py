"""Random programs of public functions on small dlarrays, and inputs for them in every memory layout."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import hypothesis.strategies as st
import numpy as np

import minidl as m
from minidl.core.dlarray import DLArray, dlarray
from minidl.core.errors import MinidlError
from minidl.core.random import GENERATOR
from minidl.core.spec import Value
from minidl.core.tape import Tape, opened
from minidl.engine.graph import Graph, from_tape

LARGEST = 100.0  # numbers grow no further, so that rounding stays small
NUMBERS = (0.5, -1.0, 2.0, 1, 0, 0.0, -0.0, 3, True)


# memory layouts ---------------------------------------------------------------------------------------------------
def spaced(x: np.ndarray) -> np.ndarray:
    large = np.full([2 * n + 1 for n in x.shape], 7, x.dtype)
    inner = large[(slice(1, None, 2),) * x.ndim] if x.ndim else large
    inner[...] = x
    return inner


def unaligned(x: np.ndarray) -> np.ndarray:
    raw = np.zeros(x.nbytes + 1, np.uint8)
    y = raw[1:].view(x.dtype).reshape(x.shape)
    y[...] = x
    return y


def read_only(x: np.ndarray) -> np.ndarray:
    x = np.array(x)
    x.flags.writeable = False
    return x


LAYOUTS: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    lambda x: np.array(x, order="C"),
    lambda x: np.array(x, order="F"),
    spaced,
    lambda x: np.flip(x).copy()[(slice(None, None, -1),) * x.ndim],
    lambda x: np.moveaxis(x, 0, -1).copy().transpose(x.ndim - 1, *range(x.ndim - 1)) if x.ndim else x,
    lambda x: np.broadcast_to(x[:1], x.shape) if x.ndim and x.shape[0] else x,  # read-only, other numbers
    read_only,
    unaligned,
)


# instructions -----------------------------------------------------------------------------------------------------
class Step(NamedTuple):
    """One instruction: a function by number, operands by number in what is there already, two free numbers."""

    name: int
    a: int
    b: int
    p: int
    q: int


def dims(x: DLArray, p: int) -> list[int]:
    """Some dimensions of x, by the bits of p; at least one if it has any."""
    return [i for i in range(x.ndim) if (p >> i) & 1] or list(range(x.ndim))[:1]


def factors(n: int, p: int) -> tuple[int, ...]:
    """n as a product of up to three sizes."""
    if n == 0:
        return ((0, 2), (0,), (3, 0))[p % 3]
    pairs = [k for k in range(1, n + 1) if n % k == 0]
    k = pairs[p % len(pairs)]
    return ((k, n // k), (n,), (1, n // k, k))[p % 3]


def cropped(x: DLArray, p: int, q: int) -> DLArray:
    key = []
    for i, n in enumerate(x.shape):
        start, step = (p >> i) % (n or 1), (1, -1, 2, -2)[(q + i) % 4]
        key.append(slice(start, None, step))
    return x[tuple(key)]


def permuted(x: DLArray, p: int) -> DLArray:
    orders = list(itertools.permutations(range(x.ndim)))
    return m.permute(m.stripdims(x), orders[p % len(orders)])


def number(p: int) -> Any:
    return NUMBERS[p % len(NUMBERS)]


FUNCTIONS: dict[str, Callable[[DLArray, DLArray, int, int], Any]] = {
    "plus": lambda a, b, p, q: a + b,
    "minus": lambda a, b, p, q: a - b,
    "times": lambda a, b, p, q: a * b,
    "divide": lambda a, b, p, q: a / (m.square(b) + 1),
    "plus number": lambda a, b, p, q: a + number(p) if q % 2 else number(p) - a,
    "times number": lambda a, b, p, q: a * number(p) if q % 2 else number(p) * a,
    "divide number": lambda a, b, p, q: a / 2.0 if q % 2 else 1.0 / (m.abs(a) + 1),
    "tanh": lambda a, b, p, q: m.tanh(a),
    "exp": lambda a, b, p, q: m.exp(-m.abs(a)),
    "sqrt": lambda a, b, p, q: m.sqrt(m.square(a) + 0.25),
    "sin": lambda a, b, p, q: m.sin(a),
    "hypot": lambda a, b, p, q: m.hypot(a, b + 3.0),
    "max of two": lambda a, b, p, q: m.max(a, b),
    "where": lambda a, b, p, q: m.where(a > b, a, b * 2),
    "where numbers": lambda a, b, p, q: m.where(a > 0.1, number(p), number(q)) + (a if q % 2 else 0.5),
    "compare": lambda a, b, p, q: (a > b, a < b, a >= b, a != b)[p % 4],
    "compare number": lambda a, b, p, q: (a > number(q), a <= number(q))[p % 2],
    "logic": lambda a, b, p, q: (m.and_(a, b), m.or_(a, b), m.xor(a, b), m.not_(a))[p % 4],
    "cast": lambda a, b, p, q: m.cast(a, ("single", "double", "logical")[p % 3]),
    "sum": lambda a, b, p, q: m.sum(a, dims(a, p)),
    "sum all": lambda a, b, p, q: m.sum(a, "all"),
    "mean": lambda a, b, p, q: m.mean(a, dims(a, p)),
    "max": lambda a, b, p, q: m.max(a, [], dims(a, p)),
    "min": lambda a, b, p, q: m.min(a, [], dims(a, p)),
    "prod": lambda a, b, p, q: m.prod(a, dims(a, p)),
    "any": lambda a, b, p, q: m.any(a > 0.3, dims(a, p)) if q % 2 else m.all(a > -0.3, dims(a, p)),
    "permute": lambda a, b, p, q: permuted(a, p),
    "flip": lambda a, b, p, q: m.flip(a, dims(a, p)),
    "crop": lambda a, b, p, q: cropped(a, p, q),
    "reshape": lambda a, b, p, q: m.reshape(a, factors(a.size, p), Order="FC"[q % 2]),
    "repmat": lambda a, b, p, q: m.repmat(a, 1 + p % 2, 1 + q % 2),
    "matmul": lambda a, b, p, q: m.stripdims(a).T @ m.stripdims(a) if a.ndim == 2 else m.stripdims(a) @ m.stripdims(b),
    "cumsum": lambda a, b, p, q: m.cumsum(a, p % max(a.ndim, 1), ("forward", "reverse")[q % 2]),
    "cat": lambda a, b, p, q: m.cat(p % max(a.ndim, 1), a, b if q % 2 else a),
    "sort": lambda a, b, p, q: m.sort(a, p % max(a.ndim, 1), ("ascend", "descend")[q % 2]),
    "assign": lambda a, b, p, q: assigned(a, p, q),
    "constant": lambda a, b, p, q: a * dlarray(np.float32([[0.5, 0.25]])) if p % 2 else a + dlarray(np.float32(0.5)),
    "zeros": lambda a, b, p, q: m.zeros(*a.shape, like=a) + (a if q % 2 else 1.0),
    "std": lambda a, b, p, q: m.std(a, 0, dims(a, p)) + m.var(a, 1, dims(a, p)),
}  # fmt: skip
NAMES = tuple(FUNCTIONS)


def assigned(a: DLArray, p: int, q: int) -> DLArray:
    y = a * 1.5
    y[tuple(slice((p >> i) % (n or 1), None) for i, n in enumerate(a.shape))] = float(q)
    return y


class Program(NamedTuple):
    """Steps that fit the inputs; how many of the last arrays are its outputs; the order of their gradient (0: none)."""

    steps: tuple[Step, ...]
    count: int
    order: int

    def __call__(self, *inputs: DLArray) -> list[DLArray]:
        if not self.order:
            return self.run(inputs)
        return m.dlfeval(self.gradients, *inputs)

    def run(self, inputs: Any) -> list[DLArray]:
        pool = list(inputs)
        for step in self.steps:
            pool.append(FUNCTIONS[NAMES[step.name]](pool[step.a], pool[step.b], step.p, step.q))
        return pool[-self.count :]

    def gradients(self, *inputs: DLArray) -> list[DLArray]:
        return gradients_of(lambda *inputs: self.run(inputs), self.order, *inputs)

    def __repr__(self) -> str:
        lines = [f"  {i}: {NAMES[s.name]} of {s.a}, {s.b} with {s.p}, {s.q}" for i, s in enumerate(self.steps)]
        return "\n".join([f"program, {self.count} outputs, gradients to order {self.order}", *lines])


def gradients_of(function: Callable[..., list[DLArray]], order: int, *inputs: DLArray) -> list[DLArray]:
    """Results of a function and the gradients of their sum, of the sum of the squares of those, ... up to `order`."""
    outputs = function(*inputs)
    found = list(outputs)
    loss = total(outputs)
    wanted = [x for x in inputs if x.dtype.kind == "f"]
    for _ in range(order if wanted else 0):
        loss = loss + 0.0 * total(inputs)  # keeps it on the tape, whatever it depends on
        g = m.dlgradient(loss, wanted, EnableHigherDerivatives=True)
        found += g
        loss = total([x * x for x in g])
    return found


def total(arrays: Any) -> Any:
    loss: Any = dlarray(0.0)
    for x in arrays:
        if x.dtype.kind == "f":
            loss = loss + m.sum(m.stripdims(x), "all")
    return loss


SIZES = {"S": 3, "C": 2, "B": 4, "T": 3}
FORMATS = ("SCB", "CB", "SS", "SC", "BT", "CT", "SSCB", "UU")


@st.composite
def arrays(draw: Any, seed: int = 0) -> tuple[tuple[int, ...], str, str]:
    """(shape, labels, dtype) of an input."""
    dtype = draw(st.sampled_from(["float32", "float32", "float64", "bool"]))
    if draw(st.booleans()):
        labels = draw(st.sampled_from(FORMATS))
        return tuple(1 if draw(st.integers(0, 3)) == 0 else SIZES.get(c, 2) for c in labels), labels, dtype
    shape = (2, 3, 4, 5)[draw(st.integers(0, 4)) :]
    return tuple(draw(st.sampled_from([n, n, n, n, 1, 0])) for n in shape), "", dtype


def values(spec: tuple[tuple[int, ...], str, str], seed: int, layout: int = 0) -> DLArray:
    """An input with fresh numbers, laid out in memory as LAYOUTS[layout] has it."""
    shape, labels, dtype = spec
    r = np.random.default_rng([seed, len(shape)])
    x = r.normal(size=shape)
    x = np.asarray(x > 0 if dtype == "bool" else x.astype(dtype))
    x = LAYOUTS[layout % len(LAYOUTS)](x)
    return dlarray(x, labels) if labels else dlarray(x)


@st.composite
def programs(draw: Any, *, most_steps: int = 8, orders: tuple[int, ...] = (0, 0, 1, 2)) -> Any:
    """(program, specs of its inputs): only steps that fit, whose numbers stay of moderate size."""
    specs = draw(st.lists(arrays(), min_size=1, max_size=3))
    pool = [values(spec, 0) for spec in specs]
    steps = []
    for _ in range(draw(st.integers(1, most_steps))):
        for _ in range(3):
            small = st.integers(0, 63)
            n = len(pool)
            a = n - 1 - min(draw(st.integers(0, 2 * n)) // 2, n - 1)
            step = Step(draw(st.integers(0, len(NAMES) - 1)), a, draw(st.integers(0, n - 1)), draw(small), draw(small))
            try:
                with np.errstate(all="ignore"):
                    y = FUNCTIONS[NAMES[step.name]](pool[step.a], pool[step.b], step.p, step.q)
            except MinidlError:
                continue
            data = y.extractdata()
            if data.size > 500 or (data.dtype.kind == "f" and not np.all(np.abs(data) <= LARGEST)):
                continue
            steps.append(step)
            pool.append(y)
            break
    count = draw(st.integers(1, min(3, len(pool))))
    return Program(tuple(steps), count, draw(st.sampled_from(orders))), specs


# recording and comparing ------------------------------------------------------------------------------------------
def recorded(function: Callable[..., Any], *inputs: DLArray) -> tuple[Graph, list[Value], list[DLArray]]:
    """(graph, input values, outputs) of one call, as dlaccelerate records it."""
    tape = Tape(everything=True)
    fresh = [Value(x._value.spec, x._value.data) for x in inputs] + [GENERATOR.value]
    for value in fresh:
        tape.add_root(value)
    with opened(tape):
        outputs = function(*[DLArray(v, x._labels) for v, x in zip(fresh, inputs)])
    outputs = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
    assert not tape.reads
    return from_tape(tape, fresh, [y._value for y in outputs]), fresh, outputs


def rounding(graph: Graph) -> float:
    """How much two ways of computing a graph may differ: much less if all of it is double."""
    return 3e-5 if any(spec.dtype == np.float32 for spec in graph.specs) else 1e-11


def numbers(outputs: Any) -> list[np.ndarray]:
    outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    return [np.array(y.extractdata() if isinstance(y, DLArray) else y) for y in outputs]


def assert_same(found: Any, expected: Any) -> None:
    """Bit for bit (and any NaN for any NaN)."""
    found, expected = numbers(found), numbers(expected)
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        if a.dtype.kind == "f":
            assert np.array_equal(np.signbit(a), np.signbit(b)) or np.isnan(a).any()


def assert_close(found: Any, expected: Any, rounding: float = 3e-5) -> None:
    """Equal up to rounding, measured by the largest number of each array (or 1); logical arrays equal."""
    found, expected = numbers(found), numbers(expected)
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        if a.dtype.kind != "f":
            assert np.array_equal(a, b)
            continue
        scale = max(1.0, float(np.max(np.abs(b), initial=0.0, where=np.isfinite(b))))
        np.testing.assert_allclose(a, b, rtol=0, atol=rounding * scale)
