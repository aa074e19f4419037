"""What a call costs besides its arithmetic: microseconds per eager op, per traced op, per gradient, per cache hit.

    python benchmarks/overhead.py [--rounds 20] [--threads N] [--gpu] [--write]

The arrays are tiny, so nearly all of the time is minidl's own. PyTorch and JAX do the same beside it where installed.
--gpu adds what a training step on a GPU takes of Python: tests/cusim stands in for the GPU, and launches do nothing.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
from collections.abc import Callable, Iterator
from typing import Any

import digits
import measure
import numpy as np
from measure import Contestant
from training import Training, accelerated

from minidl import (
    arrayDatastore,
    combine,
    dlaccelerate,
    dlarray,
    dlfeval,
    dlgradient,
    dlupdate,
    gpuArray,
    minibatchqueue,
    relu,
    shuffle,
    struct,
)

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


# a GPU without its launches --------------------------------------------------------------------------------------
@contextlib.contextmanager
def stand_in() -> Iterator[Callable[[], None]]:
    """minidl takes tests/cusim for a GPU; what this gives, once called, has launches do nothing from then on."""
    sys.path.insert(0, str(measure.HERE.parent / "tests"))
    import cusim
    from cusim.graphs import Graph

    from minidl.kernels.cuda import launch

    before: Any = Graph.launch, cusim.Function.__call__

    def stop() -> None:
        Graph.launch = lambda graph, stream=None: None  # type: ignore[method-assign]
        cusim.Function.__call__ = lambda kernel, *arguments, **options: None  # type: ignore[method-assign]

    launch.use(cusim)
    try:
        yield stop
    finally:
        Graph.launch, cusim.Function.__call__ = before  # type: ignore[method-assign]
        launch.use(None)


def gpu_rows(stop: Callable[[], None]) -> list[Row]:
    """Training steps of the digits example, and mini-batches, as far as Python has to do with them."""
    example = measure.example()
    task = digits.problem(example, 2)
    rows: dict[str, Callable[[int], Any]] = {}
    for what, function, is_whole in (
        ("digits step", example.modelStep, True), ("digits step, Adam outside", example.modelGradients, False),
    ):  # fmt: skip
        for count in (1, digits.BATCHES):
            way = Training(accelerated(function), task, is_whole)
            way.parameters, way.state = dlupdate(gpuArray, way.parameters), dlupdate(gpuArray, way.state)
            way.batches = [dlupdate(gpuArray, batch) for batch in way.batches[:count]]
            for i in range(3 * count + 12):
                way.step(i)
            rows[f"{what}, mini-batch {'in one place' if count == 1 else 'in ever other places'}"] = way.step
    images, targets, angles = (np.concatenate(parts, -1) for parts in zip(*task.batches))
    stores = arrayDatastore(images, IterationDimension=3), arrayDatastore(targets.T), arrayDatastore(angles.T)
    mbq = minibatchqueue(combine(*stores), MiniBatchSize=2, MiniBatchFormat=["SSCB", "BC", "BC"])

    def following(i: int) -> Any:
        if not mbq.hasdata():
            shuffle(mbq)
        return next(mbq)

    for i in range(4 * digits.BATCHES):
        following(i)
    stop()
    return [(what, 1, {"minidl": Contestant(what, run)}) for what, run in {**rows, "next(mbq)": following}.items()]


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


def table_lines(rows: list[Row], names: list[str], rounds: int) -> list[list[str]]:
    """What, and microseconds of each contestant."""
    lines = []
    for what, pieces, row in rows:
        seconds = measure.interleaved(list(row.values()), rounds, chunk_seconds=0.02)
        times = {name: statistics.median(seconds[c.name]) / pieces * 1e6 for name, c in row.items()}
        lines.append([what, *(f"{times[name]:.2f}" if name in times else "" for name in names)])
    return lines


def main() -> None:
    """Measure and print."""
    parser = measure.parser(__doc__, rounds=20)
    parser.add_argument("--gpu", action="store_true", help="also what a training step on a GPU takes of Python")
    options = parser.parse_args()
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
    lines = table_lines(rows, names, options.rounds)
    intro = (
        f"Microseconds per call, median over the rounds, arrays of {LEAF.size} numbers (image: {IMAGE.size}). A cache "
        "hit runs one addition (\"all read\": a sum of products; \"as many results\": one addition each); its peers "
        "are torch.compile and jax.jit of the same function of the same tree."
    )
    parts = ["# Overhead of a call", measure.setting(), intro, measure.table(["", *names], lines)]
    if options.gpu:
        with stand_in() as stop:
            lines = table_lines(gpu_rows(stop), names[:1], options.rounds)
        parts += [
            "The Python of a step on a GPU, whose launches are left out:", measure.table(["", names[0]], lines),
        ]  # fmt: skip
    page = "\n\n".join(parts)
    measure.publish(page, "overhead", options.write)


if __name__ == "__main__":
    main()
