"""New arrays: constants and random numbers, plain or like a dlarray.

Without `like` they are plain NumPy arrays. Like a dlarray they are dlarrays of its type, carry its labels if the number
of dimensions fits, and are made by ops: a recorded function makes them anew, with fresh random numbers, on each replay.
Sizes are MATLAB's: zeros(3) is 3x3, zeros(2, 3) and zeros((2, 3)) are 2x3, zeros() is a scalar; zeros((3,)) has one
dimension of size 3.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from minidl.backends import reference
from minidl.core import random as generator
from minidl.core.dlarray import DLArray
from minidl.core.errors import DTypeError, OptionError
from minidl.core.op import KERNEL, case, op
from minidl.core.options import options
from minidl.core.spec import DOUBLE, LOGICAL, SINGLE, Spec
from minidl.ops.axes import array
from minidl.ops.elementwise import floor
from minidl.ops.shape import sizes
from minidl.ops.views import labelled, on


@op(KERNEL, samples=lambda r: [case(shape=(2, 3), value=1.5, dtype="float32", device="cpu")])
def full(*, shape, value, dtype, device="cpu"):
    """One number everywhere."""


@full.infer
def _(*, shape, value, dtype, device="cpu"):
    return Spec(shape, np.dtype(dtype), device)


def _draws(r):
    return [case(np.array([7, 0], np.uint64), shape=(2, 3), dtype="float32", law="normal"),
            case(np.array([7, 1], np.uint64), shape=(4,), dtype="float64", law="uniform")]  # fmt: skip


@op(KERNEL, types="a->ff", samples=_draws, is_constant=True)
def random(state, *, shape, dtype, law):
    """Random numbers and the generator's next state: "uniform" in [0, 1) or "normal" with mean 0 and variance 1.

    A pure function of seed, draw and place in the array, with the same bits on every device. Word i of 64 bits is the
    uniform number i in double, its halves are two in single; the normal number i is the inverse of the normal
    distribution function at word i, in double and rounded.
    """


@random.infer
def _(state, *, shape, dtype, law):
    return Spec(shape, np.dtype(dtype), state.device), state


# what the arguments say -----------------------------------------------------------------------------------------

_TYPES = {"double": DOUBLE, "single": SINGLE, "logical": LOGICAL}


def _asked(who: str, size: tuple[Any, ...], like: Any) -> tuple[tuple[int, ...], np.dtype[Any], Any]:
    """(shape, type, prototype) from sizes, a type's name, and "like", x or like=x."""
    dtype: Any = None
    if len(size) > 1 and isinstance(size[-2], str) and size[-2].lower() == "like":
        if like is not None:
            raise OptionError(f"{who}: there are two prototypes. Give like=x once.")
        size, like = size[:-2], size[-1]
    elif size and isinstance(size[-1], str):
        if size[-1] not in _TYPES:
            raise OptionError(f'{who}: the type is "single", "double", "logical" or that of like=x; got {size[-1]!r}.')
        size, dtype = size[:-1], _TYPES[size[-1]]
    if like is not None:
        if dtype is not None:
            raise OptionError(f'{who}: the type is given twice, as "{dtype}" and by like=x. Give one.')
        dtype = getattr(like, "dtype", DOUBLE)
        if dtype not in _TYPES.values():
            raise DTypeError(f"{who}: like=x needs x to be single, double or logical; got {dtype}. Convert x first.")
    shape = sizes(who, size)
    if len(size) == 1 and not isinstance(size[0], (tuple, list, np.ndarray)):
        shape = shape * 2  # MATLAB: n stands for n by n
    return shape, DOUBLE if dtype is None else dtype, like


def _like(y: DLArray, like: DLArray) -> DLArray:
    return labelled(y, like._labels) if len(like._labels) == y.ndim else y


def _constant(who: str, size: tuple[Any, ...], like: Any, value: float) -> Any:
    shape, dtype, like = _asked(who, size, like)
    if isinstance(like, DLArray):
        return _like(full(shape=shape, value=value, dtype=dtype.name, device=like.device), like)
    return np.full(shape, value, dtype)


# constants ------------------------------------------------------------------------------------------------------


@options
def zeros(*size: Any, like: Any = None) -> Any:
    """Zeros. `size` may end in a type's name ("single", "double", "logical") or in "like", x.

    Returns a NumPy array (double by default), or a dlarray of the type and labels of `like` if that is a dlarray.
    Source: MathWorks, reference page "zeros".

    >>> zeros(2, 3, "single").dtype.name, zeros(1, 2, like=array(1.0)).tolist()
    ('float32', [[0.0, 0.0]])
    """
    return _constant("zeros", size, like, 0.0)


@options
def ones(*size: Any, like: Any = None) -> Any:
    """Ones. See `zeros` for sizes, types and `like`.

    >>> ones(1, 2).tolist()
    [[1.0, 1.0]]
    """
    return _constant("ones", size, like, 1.0)


@options
def eye(*size: Any, like: Any = None) -> Any:
    """The identity matrix, n by n or rows by columns. See `zeros` for types and `like`.

    >>> eye(2).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    shape, dtype, like = _asked("eye", size, like)
    if len(shape) not in (0, 2):
        raise OptionError(f"eye: a size is n, or rows and columns; got {len(shape)} sizes. It has no pages.")
    y = np.eye(*(shape or (1, 1)), dtype=dtype)
    return _like(on(DLArray(array(y)._value), like.device), like) if isinstance(like, DLArray) else y


# random numbers -------------------------------------------------------------------------------------------------


def _random(who: str, size: tuple[Any, ...], like: Any, law: str) -> Any:
    shape, dtype, like = _asked(who, size, like)
    if dtype.kind != "f":
        raise DTypeError(f'{who}: random numbers are single or double; logical ones were asked for. Use rand(n) < 0.5.')
    if isinstance(like, DLArray):
        cell = generator.GENERATOR
        with generator.LOCK:
            y, new = random(on(DLArray(cell.value), like.device), shape=shape, dtype=dtype.name, law=law)
            cell.value = new._value
        return _like(y, like)
    y, new = np.empty(shape, dtype), np.empty(2, np.uint64)
    reference.KERNELS["random"](y, new, generator.host_state(), shape=shape, dtype=dtype.name, law=law)
    return y


@options
def rand(*size: Any, like: Any = None) -> Any:
    """Random numbers, uniform in [0, 1), from the generator that `rng` seeds. See `zeros` for sizes, types and `like`.

    Like a dlarray they are drawn anew on each replay of an accelerated function; a function that draws plain ones is
    not replayed.

    >>> x = rand(2, 3)
    >>> x.shape, bool((x < 1).all())
    ((2, 3), True)
    """
    return _random("rand", size, like, "uniform")


@options
def randn(*size: Any, like: Any = None) -> Any:
    """Random numbers, normal with mean 0 and variance 1. See `rand`.

    A seed gives the same bits on every device.

    >>> randn(2, like=array(np.float32([1.0]))).dtype.name
    'float32'
    """
    return _random("randn", size, like, "normal")


@options
def randi(limits: Any, *size: Any, like: Any = None) -> Any:
    """Random whole numbers, all equally likely: 1 to `limits`, or from limits[0] to limits[1], both included.

    The numbers are MATLAB's, from 1 on; as subscripts use randi([0, n - 1], ...). See `rand` for the rest.

    >>> x = randi([3, 5], 1, 100)
    >>> sorted(set(x.ravel().tolist()))
    [3.0, 4.0, 5.0]
    """
    try:
        low, high = (operator.index(n) for n in (limits if np.ndim(limits) else (1, limits)))
    except (TypeError, ValueError):
        raise OptionError(f"randi: limits are a whole number, or two of them; got {limits!r}.") from None
    if low > high:
        raise OptionError(f"randi: the lower limit {low} is above the upper one, {high}. Exchange them.")
    u = _random("randi", size, like, "uniform")
    if isinstance(u, DLArray):
        return floor(u * (high - low + 1)) + low
    return np.floor(u * (high - low + 1)) + u.dtype.type(low)


def randperm(n: int, k: int | None = None) -> np.ndarray:
    """The numbers 0 to n - 1 in random order, or the first k of them: subscripts that shuffle.

    >>> sorted(randperm(4).tolist())
    [0, 1, 2, 3]
    """
    try:
        n, k = operator.index(n), operator.index(n if k is None else k)
    except TypeError:
        raise OptionError(f"randperm: whole numbers are wanted; got {n!r} and {k!r}.") from None
    if not 0 <= k <= n:
        raise OptionError(f"randperm: of {n} numbers {k} cannot be drawn. Give 0 <= k <= n.")
    return generator.permutation(n)[:k]


