"""The CUDA backend: CuPy's arrays and memory, kernels of our own in CUDA C++ (kernels/cuda), loops printed by us.

CuPy is imported when the first array goes to a GPU, not before. Every launch is on CuPy's current stream, in the order
of the calls whichever that is (`streams`); nothing here waits for the GPU.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from minidl.backends import precision, reference
from minidl.backends.cache import Shelf
from minidl.backends.cuda import detect, graph, loops, many, rows, slots, streams
from minidl.backends.cuda.detect import complaint as complaint
from minidl.backends.cuda.memory import new_bytes, release_all
from minidl.backends.cuda.memory import releasing as releasing
from minidl.backends.cuda.memory import with_room as with_room
from minidl.backends.cuda.streams import begin as begin
from minidl.backends.cuda.streams import end as end
from minidl.kernels.cuda import compiler, launch

STORE = Shelf("cuda", ".cubin")  # machine code of earlier runs
compiler.keep_in(STORE)

# op -> room in kernels/cuda; a kernel is called like its op and takes dense arrays
ROOMS = {
    "batchnorm_train": "batchnorm", "batchnorm_grad": "batchnorm",
    "softmax_last": "softmax", "softmax_last_grad": "softmax",
    "random": "random",
    "gather": "indexing", "scatter_add": "indexing", "scatter": "indexing",
    "argsort": "sorting", "argmax": "sorting",
    "cumsum_along": "scan", "cumprod_along": "scan",
    "full": "elements", "spacing": "elements",
}  # fmt: skip


def run(op: Any, specs: tuple[Any, ...], arrays: list[Any], params: dict[str, Any]) -> Any:
    """Results of `op` as arrays on the device, or None if it is to be computed by its body."""
    return with_room(lambda: _run(op, specs, arrays, params), op.name, specs)


def _run(op: Any, specs: tuple[Any, ...], arrays: list[Any], params: dict[str, Any]) -> Any:
    kind = op.kind_name
    if kind == "map":
        return loops.run_map(op, specs, arrays, params)
    if kind == "view":
        return [VIEWS[op.name](arrays[0], **params)]
    if kind == "reduce":
        return loops.run_reduce(op, specs, arrays[0], **params)
    if not has_kernel(op):
        return None
    cupy = launch.cupy()
    if op.name in ROOMS:
        arrays = [dense(x) if hasattr(x, "strides") else x for x in arrays]
    outputs = [cupy.empty(spec.shape, spec.dtype) for spec in specs]
    bind_kernel(op, outputs, arrays, params)()
    return outputs


def run_each(op: Any, rows: list[tuple[Any, Any]], params: dict[str, Any]) -> list[list[Any]]:
    """Results of a MAP op with a body for many (specs, arrays), in one launch."""
    specs = tuple([spec for row, _ in rows for spec in row])
    return with_room(lambda: many.run_each(op, rows, params), op.name, specs)


def has_kernel(op: Any) -> bool:
    """Whether this backend computes `op` itself, without its body."""
    return (
        op.kind_name != "kernel" or op.contraction_rule is not None or op.name in ROOMS or op.name in KERNELS
        or "gpu" in op.kernels
    )  # fmt: skip


def needs_dense(op: Any) -> bool:
    """Whether the kernel wants its inputs in plain C order."""
    return op.name in ROOMS or "gpu" in op.kernels


def view(op: Any, x: np.ndarray, params: dict[str, Any]) -> np.ndarray:
    """What a VIEW op makes of an array, on a stand-in in host memory."""
    return reference.VIEWS[op.name](x, **params)


def bind_loop(loop: Any, flat: Callable[[Any], Any]) -> Callable[[], Any]:
    """A loop of the engine as a function without arguments; flat(buffer) is the memory of a buffer."""
    return loops.bind_loop(loop, flat)


def bind_side_by_side(side: Any, flat: Callable[[Any], Any]) -> Callable[[], Any]:
    """Several loops as one launch."""
    return loops.bind_side_by_side(side, flat)


def bind_block(block: Any, flat: Callable[[Any], Any]) -> Callable[[], Any]:
    """Several small loops as one launch of one block, one after the other."""
    return loops.bind_block(block, flat)


def bind_kernel(op: Any, outputs: list[Any], inputs: list[Any], params: dict[str, Any]) -> Callable[[], Any]:
    """The kernel of `op` as a function without arguments, bound to its arrays; scratch is made here, once."""
    if op.kind_name in ("map", "reduce"):
        return loops.bind_call(op, outputs, inputs, params)
    if "gpu" in op.kernels:
        return lambda: op.kernels["gpu"](*outputs, *inputs, **params)
    if op.contraction_rule is not None:
        return _bind_contraction(op, outputs[0], inputs, params)
    if op.name not in ROOMS:
        return lambda: KERNELS[op.name](*outputs, *inputs, **params)
    module = importlib.import_module(f"minidl.kernels.cuda.{ROOMS[op.name]}")
    kernel, scratch_rule = getattr(module, op.name), getattr(module, f"{op.name}_scratch", None)
    if scratch_rule is None:
        return lambda: kernel(*outputs, *inputs, **params)
    shapes = [getattr(x, "shape", ()) for x in (*outputs, *inputs)]
    scratch = _new_arrays(scratch_rule(*shapes, dtype=outputs[0].dtype, **params))
    return lambda: kernel(*outputs, *inputs, **params, scratch=scratch)


def _new_arrays(needed: Iterable[tuple[tuple[int, ...], Any]]) -> tuple[Any, ...]:
    """Arrays of these (shape, dtype)."""
    cupy = launch.cupy()
    return tuple([cupy.empty(shape, dtype) for shape, dtype in needed])


_plans: dict[Any, Any] = {}  # plans of contractions, by op, parameters, precision and layouts
MOST_PLANS = 1024


def _bind_contraction(op: Any, y: Any, inputs: list[Any], params: dict[str, Any]) -> Callable[[], Any]:
    from minidl.kernels.cuda import contract

    a, b = inputs
    layouts = [contract.layout_of(x) for x in (y, a, b)]
    key = op.name, precision.current(), y.dtype, tuple(params.items()), *layouts
    plan = _plans.get(key)
    if plan is None:
        if len(_plans) >= MOST_PLANS:
            _plans.clear()
        nests = op.contraction_rule(a, b, **params)
        plan = _plans[key] = contract.plan(nests, *layouts, dtype=y.dtype, precision=precision.current())
    plan.prepare()
    scratch, counters = slots.new_scratch(plan)
    return lambda: plan.run(y, a, b, scratch=scratch, counters=counters)


def dense(x: Any) -> Any:
    """x in plain C order: itself, or a copy."""
    if x.flags.c_contiguous:
        return x
    y = launch.cupy().empty(x.shape, x.dtype)
    loops.copy(y, x)
    return y


# views ----------------------------------------------------------------------------------------------------------
def _broadcast(x: Any, *, shape: tuple[int, ...], dims: tuple[int, ...]) -> Any:
    strides = [0] * len(shape)
    for size, stride, dim in zip(x.shape, x.strides, dims):
        strides[dim] = stride if size == shape[dim] else 0
    return launch.cupy().lib.stride_tricks.as_strided(x, shape, tuple(strides))


def _view_as(x: Any, *, shape: tuple[int, ...]) -> Any:
    return (x if _can_reshape(x, shape) else dense(x)).reshape(shape)


def _can_reshape(x: Any, shape: tuple[int, ...]) -> bool:
    """Whether strides can say it: asked of NumPy, of an array without memory."""
    if x.flags.c_contiguous:
        return True
    like = np.lib.stride_tricks.as_strided(np.empty(1, x.dtype), x.shape, x.strides, writeable=False)
    try:
        np.reshape(like, shape, copy=False)
    except ValueError:
        return False
    return True


VIEWS: dict[str, Callable[..., Any]] = {
    "broadcast": _broadcast,
    "view_as": _view_as,
    "reorder": lambda x, order: x.transpose(order),
    "crop": lambda x, slices: x[reference.as_slices(slices)] if slices else x.view(),
    **{name: lambda x, **params: x.view() for name in ("alias", "stopgradient", "log_of", "log_rest_of", "square_of")},
}


# kernels that are copies, and those of CuPy -----------------------------------------------------------------------
def _place(y: Any, x: Any, *, shape: tuple[int, ...], slices: tuple[tuple[int, int, int], ...]) -> None:
    if x.shape != tuple(shape):
        loops.copy(y, 0.0)
    loops.copy(y[reference.as_slices(slices)] if slices else y, x)


def _assign(y: Any, x: Any, v: Any, *, slices: tuple[tuple[int, int, int], ...]) -> None:
    loops.copy(y, x)
    loops.copy(y[reference.as_slices(slices)] if slices else y, v)


def _concatenate(y: Any, *xs: Any, axis: int) -> None:
    start = 0
    for x in xs:
        stop = start + x.shape[axis]
        loops.copy(y[(slice(None),) * axis + (slice(start, stop),)], x)
        start = stop


def _transfer(y: Any, x: Any, *, device: str) -> None:
    if not isinstance(x, np.ndarray):
        loops.copy(y, x)
    elif y.flags.c_contiguous:
        y.set(np.asarray(x, order="C"))
    else:  # CuPy sets memory without gaps in C or Fortran order alone
        loops.copy(y, launch.cupy().asarray(np.asarray(x, order="C")))


def _solve(y: Any, a: Any, b: Any, *, is_strict: bool = False) -> None:  # to look whether it is singular is to wait
    loops.copy(y, launch.cupy().linalg.solve(a, b))


def _lstsq(y: Any, a: Any, b: Any) -> None:
    loops.copy(y, launch.cupy().linalg.lstsq(a, b, rcond=None)[0])


LIBRARY = {"solve", "lstsq"}  # what CuPy computes by libraries of CUDA, which allocate and wait
KERNELS: dict[str, Callable[..., None]] = {
    "place": _place, "assign": _assign, "concatenate": _concatenate, "transfer": _transfer,
    "solve": _solve, "lstsq": _lstsq,
}  # fmt: skip


# memory, for programs --------------------------------------------------------------------------------------------
def as_array(x: Any, who: str = "gpuArray") -> Any:
    """An array of NumPy's, or of another library on the GPU, as CuPy's: a copy if it was on the host."""
    made = with_room(lambda: launch.cupy().asarray(x), "gpuArray", (x,) if hasattr(x, "shape") else ())
    streams.check_device(who, made)
    return made


def fetched(x: Any) -> np.ndarray:
    """The numbers of an array, in the host's memory."""
    if not streams.has_begun():
        return np.asarray(x.get())
    streams.check_device("gather", x)
    found: np.ndarray = with_room(x.get, "gather", ())
    return found


def copied(x: Any) -> Any:
    """A copy of an array, as it lies in memory."""
    return with_room(lambda: x.copy("K"), "dlarray", (x,))


def dense_copy(x: Any) -> Any:
    """A copy of an array in plain C order."""
    return with_room(x.copy, "gpuArray", (x,))


def put(target: Any, values: np.ndarray) -> None:
    """target[...] = values, from the host, the same in shape, type and without gaps."""
    with_room(lambda: target.set(values), "gpuArray", ())


def placed(memory: Any, shape: tuple[int, ...], offset: int, strides: tuple[int, ...]) -> Any:
    """An array within flat memory; offset and strides count elements."""
    size = memory.itemsize
    if math.prod(shape) == 0:
        return launch.cupy().empty(shape, memory.dtype)
    return launch.cupy().lib.stride_tricks.as_strided(memory[offset:], shape, tuple([n * size for n in strides]))


def at(address: int, size: int, dtype: Any) -> Any:
    """Memory of somebody else's at an address, as a flat array; it is not kept alive."""
    cuda = launch.cupy().cuda
    pointer = cuda.MemoryPointer(cuda.UnownedMemory(address, size * dtype.itemsize, None, cuda.Device().id), 0)
    return launch.cupy().ndarray((size,), dtype, pointer)


def is_capturable(op: Any) -> bool:
    """Whether the kernel of `op` may stand in a CUDA graph; whether a user's may is found out by trying."""
    return op.name not in LIBRARY


def is_movable(op: Any) -> bool:
    """Whether launches of `op` may be changed to read elsewhere: a user's kernel may have looked at the address."""
    return "gpu" not in op.kernels


def copies(arrays: list[Any]) -> list[Any]:
    """A copy of each array, by one launch."""
    return with_room(lambda: many.copies(arrays), "dlaccelerate", tuple(arrays))


def copy_each(targets: list[Any], sources: list[Any]) -> None:
    """targets[k][...] = sources[k], by one launch for all of one type that lie alike."""
    with_room(lambda: many.copy_each(targets, sources), "dlaccelerate", tuple(targets))


bind_fused, objection = slots.bind_fused, slots.objection
putter, EachInPlace = many.putter, many.EachInPlace
Mover, bind_copies = many.Mover, many.bind_copies
bind_rows, free_bytes = rows.bind_rows, rows.free_bytes
capture, is_graph_wanted, shared = graph.capture, graph.is_wanted, graph.Shared
can_redirect, Arguments = graph.can_redirect, graph.Arguments
new_memory = new_bytes


def forget() -> None:
    """Forget what is known of the GPU and everything that lies on it, as if nothing had been computed there yet."""
    detect.forget()
    release_all()
    streams.forget()
    _plans.clear()
    loops.forget()
    many.forget()
