"""The CPU backend: readable Numba kernels, NumPy where NumPy already is the kernel, generated loops for MAP and REDUCE.

Numba is imported at the first kernel or loop, not before.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from minidl.backends import reference
from minidl.backends.cpu.memory import keep_freed_memory
from minidl.backends.environment import is_on

# op -> room in kernels/cpu; a kernel is called like its op
ROOMS = {
    "conv": "conv", "conv_input_grad": "conv", "conv_weight_grad": "conv",
    "batchnorm_train": "batchnorm", "batchnorm_grad": "batchnorm",
    "matmul": "matmul",
}  # fmt: skip
STRIDED = {"matmul"}  # kernels that take inputs of any strides; the others want plain C order


def run(op: Any, specs: tuple[Any, ...], arrays: list[Any], params: dict[str, Any]) -> Any:
    """Results of `op`: by its Numba kernel if there is one, otherwise as the reference does it."""
    room = ROOMS.get(op.name)
    if room is None:
        if op.kernels and "cpu" in op.kernels:
            return _run_users(op, specs, arrays, params)
        if op.kind_name == "map" and op.text is None and specs[0].shape:
            from minidl.backends.cpu import loops

            return loops.run_body(op, specs, arrays, params)
        return reference.run(op, specs, arrays, params)
    outputs = [np.empty(spec.shape, spec.dtype) for spec in specs]
    arrays = [np.require(x, requirements=["A", "W"] if op.name in STRIDED else ["C", "A", "W"]) for x in arrays]
    bind_kernel(op, outputs, arrays, params)()
    return outputs


def _run_users(op: Any, specs: tuple[Any, ...], arrays: list[Any], params: dict[str, Any]) -> list[np.ndarray]:
    """Results of a user's kernel."""
    outputs = [np.empty(spec.shape, spec.dtype) for spec in specs]
    op.kernels["cpu"](*outputs, *arrays, **params)
    return outputs


def run_each(op: Any, rows: list[tuple[Any, Any]], params: dict[str, Any]) -> list[list[np.ndarray]]:
    """Results of a MAP op with a body for many (specs, arrays), in one pass over all of them."""
    from minidl.backends.cpu import loops

    return loops.run_each(op, rows, params)


def has_kernel(op: Any) -> bool:
    """Whether this backend computes `op` itself, without its body."""
    return op.name in ROOMS or op.name in reference.KERNELS or op.kind_name != "kernel" or "cpu" in op.kernels


def needs_dense(op: Any) -> bool:
    """Whether the kernel wants its inputs in plain C order."""
    return op.name in ROOMS and op.name not in STRIDED or "cpu" in op.kernels


def view(op: Any, x: np.ndarray, params: dict[str, Any]) -> np.ndarray:
    """What a VIEW op makes of an array."""
    return reference.VIEWS[op.name](x, **params)


def bind_kernel(op: Any, outputs: list[np.ndarray], inputs: list[Any], params: dict[str, Any]) -> Callable[[], Any]:
    """The kernel of `op` as a function without arguments, bound to its arrays; scratch is made here, once."""
    room = ROOMS.get(op.name)
    if "cpu" in op.kernels:
        return functools.partial(op.kernels["cpu"], *outputs, *inputs, **params)
    if room is None:
        return functools.partial(reference.KERNELS[op.name], *outputs, *inputs, **params)
    kernel, scratch_rule = _kernel(op.name, room)
    params = {name: value for name, value in params.items() if name != "size"}  # outputs have their size already
    if scratch_rule is not None:
        shapes = [x.shape for x in (*outputs, *inputs)]
        needed = scratch_rule(*shapes, dtype=outputs[0].dtype, **params)
        params["scratch"] = tuple(np.empty(shape, dtype) for shape, dtype in needed)
    return functools.partial(kernel, *outputs, *inputs, **params)


def is_native() -> bool:
    """Whether traces are compiled as native programs here (see `native`)."""
    from minidl.backends.cpu.native import compiler

    reason = compiler.unavailable()
    if reason is not None and is_on("MINIDL_NATIVE"):
        _tell(reason)
    return reason is None


@functools.cache
def _tell(reason: str) -> None:
    """Say once why traces run more slowly than they could."""
    message = f"{reason} Until then accelerated functions run as Numba's loops and kernels, with the same results."
    warnings.warn(message, RuntimeWarning, stacklevel=2)


def has_native_kernel(op: Any) -> bool:
    """Whether native programs compute `op` itself, or call its reference; other ops are said by their bodies."""
    return (
        op.contraction_rule is not None or op.name in reference.KERNELS or op.kind_name != "kernel"
        or "cpu" in op.kernels
    )  # fmt: skip


def is_native_task(work: Any) -> bool:
    """Whether a task can be part of a native program."""
    from minidl.backends.cpu.native import program

    return program.is_native(work)


def panel_columns(dtype: Any) -> int:
    """Columns that a register block of a native contraction reads at once, about."""
    from minidl.backends.cpu.native.target import host

    return 2 * host().lanes(dtype.itemsize)


def takes_tail(work: Any, range: int, group: Any) -> bool:
    """Whether native code hands a contraction's values to a tail (see `engine.tails`)."""
    from minidl.backends.cpu.native import program

    return program.takes_tail(work, range, group)


def packing(dims: Any, dtype: Any) -> tuple[int, int] | None:
    """What native contractions ask of the layout: see `engine.layout.choose_layout`."""
    from minidl.backends.cpu.native import program

    return program.packing(dims, dtype)


def native_segment(phases: Any, plan: Any) -> Any:
    """The code of phases, compiled: its `bind(flat, arena)` gives a function without arguments."""
    from minidl.backends.cpu.native import program

    return program.segment(phases, plan)


def bind_loop(loop: Any, flat: Callable[[Any], np.ndarray]) -> Callable[[], Any]:
    """A loop of the engine as a function without arguments; flat(buffer) is the memory of a buffer."""
    from minidl.backends.cpu import loops

    return loops.bind_loop(loop, flat)


@functools.cache
def _kernel(name: str, room: str) -> tuple[Any, Any]:
    keep_freed_memory()
    module = importlib.import_module(f"minidl.kernels.cpu.{room}")
    return getattr(module, name), getattr(module, f"{name}_scratch", None)
