"""What acceleration promises, tried out: small functions in minidl, torch.compile and jax.jit, each asked whether it
returns what the plain function returns when the world around it changes.

    python benchmarks/promises.py [--write]

Every outcome but those of MATLAB, which are from its documentation, is found by running.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from typing import Any

import measure
import numpy as np

import minidl as m

X = np.float32([[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]])
CALLS = 4


class Framework:
    """How the same function is written and accelerated."""

    name = "minidl"

    def array(self, x: Any) -> Any:
        return m.dlarray(np.float32(x))

    def accelerate(self, function: Any) -> Any:
        self.accelerated = m.dlaccelerate(function)
        return self.accelerated

    def sum(self, x: Any) -> Any:
        return m.sum(x, "all")

    def mean(self, x: Any) -> Any:
        return m.mean(x, "all")

    def rand(self, x: Any) -> Any:
        return m.rand(*x.shape, like=x)

    def seed(self) -> None:
        m.rng(1)

    def traces(self) -> int:
        return int(self.accelerated.NumTraces)


class Torch(Framework):
    name = "torch.compile"

    def __init__(self) -> None:
        import torch

        self.torch = torch

    def array(self, x: Any) -> Any:
        return self.torch.tensor(np.float32(x))

    def accelerate(self, function: Any) -> Any:
        self.torch._dynamo.reset()
        self.torch._dynamo.utils.counters.clear()
        return self.torch.compile(function)

    def sum(self, x: Any) -> Any:
        return x.sum()

    def mean(self, x: Any) -> Any:
        return x.mean()

    def rand(self, x: Any) -> Any:
        return self.torch.rand_like(x)

    def seed(self) -> None:
        self.torch.manual_seed(1)

    def traces(self) -> int:
        return int(self.torch._dynamo.utils.counters["stats"]["unique_graphs"])


class Jax(Framework):
    name = "jax.jit"

    def __init__(self) -> None:
        import jax
        import jax.numpy as jnp

        self.jax, self.jnp = jax, jnp

    def array(self, x: Any) -> Any:
        return self.jnp.asarray(np.float32(x))

    def accelerate(self, function: Any) -> Any:
        self.accelerated = self.jax.jit(function)
        return self.accelerated

    def sum(self, x: Any) -> Any:
        return x.sum()

    def mean(self, x: Any) -> Any:
        return x.mean()

    def traces(self) -> int:
        return int(self.accelerated._cache_size())


# situations: each yields pairs (accelerated result, plain result) ---------------------------------------------------
RATE = 2.0


def captured_number(f: Framework) -> Any:
    k = 2.0
    function = lambda x: x * k
    fast, x = f.accelerate(function), f.array(X)
    for k in (2.0, 2.0, 3.0, 3.0):  # noqa: B007
        yield fast(x), function(x)


def global_number(f: Framework) -> Any:
    global RATE
    function = lambda x: x * RATE
    fast, x = f.accelerate(function), f.array(X)
    for RATE in (2.0, 2.0, 3.0, 3.0):  # noqa: B007
        yield fast(x), function(x)


def attribute(f: Framework) -> Any:
    class Model:
        scale = 1.0

        def forward(self, x: Any) -> Any:
            return x * self.scale

    model = Model()
    fast, x = f.accelerate(model.forward), f.array(X)
    for model.scale in (2.0, 2.0, 3.0, 3.0):
        yield fast(x), model.forward(x)


def captured_array(f: Framework) -> Any:
    w = f.array(X)
    function = lambda x: x * w
    fast, x = f.accelerate(function), f.array(X)
    for k in (1, 1, 2, 3):
        w = f.array(X * k)
        yield fast(x), function(x)


def numpy_in_place(f: Framework) -> Any:
    w = X.copy()
    function = lambda x: x * w
    fast, x = f.accelerate(function), f.array(X)
    for _ in range(CALLS):
        w += 1
        yield fast(x), function(x)


def branch(f: Framework) -> Any:
    function = lambda x: x * 2 if f.sum(x) > 0 else x * 3
    fast = f.accelerate(function)
    for x in (X, -X, X, -X):
        yield fast(f.array(x)), function(f.array(x))


def number_from_array(f: Framework) -> Any:
    function = lambda x: x * float(f.sum(x))
    fast = f.accelerate(function)
    for k in range(CALLS):
        yield fast(f.array(X + k)), function(f.array(X + k))


def mask(f: Framework) -> Any:
    function = lambda x: f.mean(x[x > 0])
    fast = f.accelerate(function)
    for x in (X, -X, X + 1, X - 1):
        yield fast(f.array(x)), function(f.array(x))


def host_random(f: Framework) -> Any:
    function = lambda x: x * np.random.rand()
    yield from same_sequence(f, function, lambda: np.random.seed(1))


def own_random(f: Framework) -> Any:
    yield from same_sequence(f, lambda x: x * f.rand(x), f.seed)


def same_sequence(f: Framework, function: Any, seed: Callable[[], Any]) -> Any:
    fast, x = f.accelerate(function), f.array(X)
    seed()
    found = [np.array(fast(x)) for _ in range(CALLS)]
    seed()
    yield from zip(found, [np.array(function(x)) for _ in range(CALLS)])


def counting(f: Framework) -> Any:
    counts = {"fast": 0, "plain": 0}

    def make(name: str) -> Any:
        def function(x: Any) -> Any:
            counts[name] += 1
            return x * counts[name]

        return function

    fast, plain, x = f.accelerate(make("fast")), make("plain"), f.array(X)
    for _ in range(CALLS):
        yield fast(x), plain(x)


def appending(f: Framework) -> Any:
    rows: list[float] = []

    def function(x: Any) -> Any:
        rows.append(1.0)
        return x * 2

    fast, x = f.accelerate(function), f.array(X)
    for k in range(1, CALLS + 1):
        fast(x)
        yield len(rows), k


def printing(f: Framework) -> Any:
    def function(x: Any) -> Any:
        print("called")
        return x * 2

    fast, x, out = f.accelerate(function), f.array(X), io.StringIO()
    for k in range(1, CALLS + 1):
        with contextlib.redirect_stdout(out):
            fast(x)
        yield out.getvalue().count("called"), k


def changing_number(f: Framework) -> Any:
    function = lambda x, rate: x * rate
    fast, x = f.accelerate(function), f.array(X)
    for k in range(20):
        yield fast(x, 0.1 * k), function(x, 0.1 * k)


def one_array_twice(f: Framework) -> Any:
    function = lambda x, y: x * y + x
    fast, a, b = f.accelerate(function), f.array(X), f.array(X + 1)
    for x, y in ((a, a), (a, b), (b, b), (b, a)):
        yield fast(x, y), function(x, y)


def results_kept(f: Framework) -> Any:
    function = lambda x: x * 2
    fast = f.accelerate(function)
    inputs = [f.array(np.full((64, 64), k)) for k in range(8)]
    kept = [fast(x) for x in inputs]
    yield from zip(kept, [function(x) for x in inputs])


SITUATIONS: list[tuple[str, Callable[[Framework], Any], str]] = [  # what, how, MATLAB's documentation
    ("a captured number changes", captured_number, "the old one is used, silently"),
    ("a global number changes", global_number, "the old one is used, silently"),
    ("an attribute of self changes", attribute, "the old one is used, silently"),
    ("a captured array is replaced", captured_array, "the old one is used, silently"),
    ("a captured NumPy array changes in place", numpy_in_place, "-"),
    ("`if sum(x) > 0`", branch, "the first branch is used, silently"),
    ("`float(x)`, `extractdata`", number_from_array, "the first number is used, silently"),
    ("`mean(x[x > 0])`", mask, "the first count is used, silently"),
    ("random numbers of NumPy (MATLAB: untied ones)", host_random, "the first ones are used, silently"),
    ("random numbers of its own, from a seed", own_random, "fresh ones"),
    ("a counter that the function changes and uses", counting, "the first count is used, silently"),
    ("`list.append` inside", appending, "happens when recording only"),
    ("`print` inside", printing, "happens when recording only"),
    ("a Python number that changes each call", changing_number, "a trace each time"),
    ("one array given twice, then two", one_array_twice, "-"),
    ("results kept from earlier calls", results_kept, "right"),
]


def outcome(f: Framework, situation: Callable[[Framework], Any]) -> str:
    """What happened, in words."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            pairs = [(np.array(a), np.array(b)) for a, b in situation(f)]
        except Exception as error:  # noqa: BLE001
            return f"error: {type(error).__name__}"
        traces = f.traces()
    is_right = all(a.shape == b.shape and np.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in pairs)
    is_told = any(issubclass(w.category, m.AccelerationWarning) for w in caught) if f.name == "minidl" else False
    how = "right" if is_right else "not what the plain function does"
    if f.name == "minidl" and traces == 0:
        how += ", not replayed"
    elif traces > 2:
        how += f", {traces} traces"
    return how + (", and says so" if is_told else "" if is_right else ", silently")


def main() -> None:
    """Try all and print."""
    options = measure.parser(__doc__, rounds=1).parse_args()
    frameworks: list[Framework] = [Framework()]
    frameworks += [Torch()] if measure.installed("torch") else []
    frameworks += [Jax()] if measure.installed("jax") else []
    lines = []
    for what, situation, matlab in SITUATIONS:
        found = []
        for f in frameworks:
            is_missing = situation is own_random and type(f).rand is Framework.rand and f.name != "minidl"
            found.append("keys are arguments" if is_missing else outcome(f, situation))
        lines.append([what, *found, matlab])
        print(*lines[-1], sep=" | ", flush=True)
    intro = (
        f"Each function is called {CALLS} times or more while something changes, accelerated and plain; the results "
        "are compared. Where there are more than two traces (torch: graphs, JAX: compilations), their number is given. "
        "MATLAB: what the documentation of dlaccelerate says; it was not run."
    )
    names = [f.name for f in frameworks]
    table = measure.table(["what happens", *names, "MATLAB dlaccelerate"], lines)
    page = "\n\n".join(["# What acceleration promises", measure.setting(), intro, table])
    measure.publish(page, "promises", options.write)


if __name__ == "__main__":
    main()
