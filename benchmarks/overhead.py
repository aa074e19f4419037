"""What a call costs besides its arithmetic: microseconds per eager op, per traced op, per gradient, per cache hit.

    python benchmarks/overhead.py [--rounds 20] [--threads N] [--write]

The arrays are tiny, so nearly all of the time is minidl's own. PyTorch and JAX do the same beside it where installed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import measure
import numpy as np
from measure import Contestant

from minidl import dlaccelerate, dlarray, dlfeval, dlgradient, relu, struct

OPS = 100  # calls per piece of work
FEW, MANY = 20, 1000  # leaves of a tree; traces of a cache
LEAF = np.ones(16, np.float32)
IMAGE, CHANNEL = np.ones((4, 4, 8, 2), np.float32), np.ones(8, np.float32)


def chain(x: Any) -> Any:
    """OPS additions, one after the other."""
    for _ in range(OPS):
        x = x + x
    return x


def repeated(f: Callable[[], Any]) -> Callable[[int], Any]:
    """OPS independent calls as one piece of work."""

    def run(i: int) -> Any:
        for _ in range(OPS - 1):
            f()
        return f()

    return run


def tree(leaf: Any, leaves: int) -> Any:
    """Parameters as a training loop has them: layers of two arrays each."""
    return {f"layer{i}": {"Weights": leaf, "Bias": leaf + 1} for i in range(leaves // 2)}


def first_leaf(parameters: Any) -> Any:
    """A function of a whole tree that computes next to nothing."""
    return parameters["layer0"]["Weights"] + 1


def all_leaves(parameters: Any) -> Any:
    """A function that reads every leaf of a tree."""
    total = 0.0
    for layer in parameters.values():
        total = total + layer["Weights"] * layer["Bias"]
    return total


def new_leaves(parameters: Any) -> Any:
    """A function that returns a tree like its argument."""
    return {name: {"Weights": x["Weights"] + 1, "Bias": x["Bias"] + 1} for name, x in parameters.items()}


TREES = {"": first_leaf, ", all read": all_leaves, ", as many results": new_leaves}


# rows: (what, pieces per run, contestants) ------------------------------------------------------------------------
Row = tuple[str, int, dict[str, Contestant]]


def minidl_rows() -> list[Row]:
    """What minidl's calls cost."""
    x, image = dlarray(LEAF), dlarray(IMAGE, "SSCB")
    channel = dlarray(CHANNEL[:, None], "CB")

    def gradient(x: Any) -> Any:
        return dlgradient(chain(x).sum("all"), x)

    rows: dict[str, tuple[int, Callable[[int], Any]]] = {
        "x + x": (OPS, repeated(lambda: x + x)),
        "relu(x)": (OPS, repeated(lambda: relu(x))),
        "image + channel (broadcast)": (OPS, repeated(lambda: image + channel)),
        "x + x, traced": (OPS, lambda i: dlfeval(chain, x)),
        "x + x, traced, with its gradient": (OPS, lambda i: dlfeval(gradient, x)),
        "x + x, accelerated": (OPS, replayed(chain, x)),
    }
    for leaves in (FEW, MANY):
        parameters = struct(tree(x, leaves))
        for more, function in TREES.items():
            rows[hit(leaves) + more] = 1, replayed(function, parameters)
        rows[f"{hit(leaves)}, inside dlfeval"] = 1, inside(first_leaf, parameters)
    rows[f"{hit(FEW)}, and 20 captured leaves"] = 1, capturing(x)
    rows[f"{hit(FEW)}, {MANY:,} traces in the cache"] = 1, crowded(struct(tree(x, FEW)))
    return [(what, pieces, {"minidl": Contestant(f"minidl {what}", run)}) for what, (pieces, run) in rows.items()]


def hit(leaves: int) -> str:
    return f"cache hit, {leaves:,} leaves"


def replayed(function: Any, argument: Any) -> Callable[[int], Any]:
    """Calls of an accelerated function that find their trace."""
    accfun = dlaccelerate(function)
    accfun(argument)
    return lambda i: accfun(argument)


def inside(function: Any, argument: Any) -> Callable[[int], Any]:
    """The same in a dlfeval, as a training loop does it."""
    accfun = dlaccelerate(function)
    return lambda i: dlfeval(accfun, argument)


def capturing(x: Any) -> Callable[[int], Any]:
    """Calls of a function with as many leaves in its arguments as in an enclosing function's variable."""
    held = struct(tree(x, FEW))
    return replayed(lambda p: all_leaves(p) * all_leaves(held), struct(tree(x, FEW)))


def crowded(argument: Any) -> Callable[[int], Any]:
    """Calls that find their trace among many."""
    accfun = dlaccelerate(first_leaf)
    accfun.CacheSize = MANY
    for size in range(1, MANY):
        accfun({"layer0": {"Weights": dlarray(np.ones(size, np.float32))}})
    accfun(argument)
    return lambda i: accfun(argument)


def torch_rows() -> dict[str, Callable[[int], Any]]:
    """The same in PyTorch."""
    import torch

    x, image, channel = torch.tensor(LEAF), torch.tensor(IMAGE), torch.tensor(CHANNEL[:, None])
    traced = torch.tensor(LEAF, requires_grad=True)

    def gradient(i: int) -> Any:
        return torch.autograd.grad(chain(traced).sum(), traced)

    rows = {
        "x + x": repeated(lambda: x + x),
        "relu(x)": repeated(lambda: torch.relu(x)),
        "image + channel (broadcast)": repeated(lambda: image + channel),
        "x + x, traced": lambda i: chain(traced),
        "x + x, traced, with its gradient": gradient,
    }
    for leaves in (FEW, MANY):
        rows[hit(leaves)] = called(torch.compile(first_leaf), tree(x, leaves))
    for more, function in TREES.items():
        rows[hit(FEW) + more] = called(torch.compile(function), tree(x, FEW))
    return rows


def jax_rows() -> dict[str, Callable[[int], Any]]:
    """The same in JAX: op by op, and jit of the same trees."""
    import jax
    import jax.numpy as jnp

    x, image, channel = jnp.asarray(LEAF), jnp.asarray(IMAGE), jnp.asarray(CHANNEL[:, None])
    rows = {
        "x + x": repeated(lambda: x + x),
        "relu(x)": repeated(lambda: jax.nn.relu(x)),
        "image + channel (broadcast)": repeated(lambda: image + channel),
        "x + x, accelerated": called(jax.jit(chain), x),
    }
    for leaves in (FEW, MANY):
        for more, function in TREES.items():
            rows[hit(leaves) + more] = called(jax.jit(function), tree(x, leaves))
    return rows


def called(function: Any, argument: Any) -> Callable[[int], Any]:
    return lambda i: function(argument)


def main() -> None:
    """Measure and print."""
    options = measure.parser(__doc__, rounds=20).parse_args()
    measure.limit_threads(options.threads)

    rows = minidl_rows()
    if measure.installed("torch"):
        found = torch_rows()
        for what, _, row in rows:
            if what in found:
                row["PyTorch"] = Contestant(f"PyTorch {what}", found[what])
    if measure.installed("jax"):
        import jax

        found = jax_rows()
        for what, _, row in rows:
            if what in found:
                row["JAX"] = Contestant(f"JAX {what}", found[what], jax.block_until_ready)

    names = ["minidl", "PyTorch", "JAX"]
    lines = []
    for what, pieces, row in rows:
        seconds = measure.interleaved(list(row.values()), options.rounds, chunk_seconds=0.02)
        times = {name: statistics.median(seconds[c.name]) / pieces * 1e6 for name, c in row.items()}
        lines.append([what, *(f"{times[name]:.2f}" if name in times else "" for name in names)])
    intro = (
        f"Microseconds per call, median over the rounds, arrays of {LEAF.size} numbers (image: {IMAGE.size}). A cache "
        "hit runs one addition (\"all read\": a sum of products; \"as many results\": one addition each); its peers "
        "are torch.compile and jax.jit of the same function of the same tree."
    )
    page = "\n\n".join(["# Overhead of a call", measure.setting(), intro, measure.table(["", *names], lines)])
    measure.publish(page, "overhead", options.write)


if __name__ == "__main__":
    main()
