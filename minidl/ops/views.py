"""The primitive views: other subscripts for the same numbers, by position and without labels.

Also `place`, which undoes a crop, and `cast`, the same numbers in another type.
"""

# mypy: disable-error-code="has-type"

from __future__ import annotations

import numpy as np

from minidl.core.dlarray import DLArray, public
from minidl.core.errors import ShapeError
from minidl.core.labels import describe
from minidl.core.op import KERNEL, MAP, VIEW, case, named, op
from minidl.core.spec import Spec

# the same numbers in another type -------------------------------------------------------------------------------


@op(MAP, text="cast({0})", types="a->f", samples=lambda r: [case(r.normal(size=(2, 3)), dtype="float32")])
def cast(x, *, dtype):
    """The same numbers in another type (NumPy's name of it)."""


@cast.infer
def _(x, *, dtype):
    return Spec(x.shape, np.dtype(dtype), x.device)


def _cast_grad(g, y, x, *, dtype):
    is_smooth = x.dtype.kind == "f" and y.dtype.kind == "f"
    return cast(g, dtype=x.dtype.name) if is_smooth else None


cast.vjps(_cast_grad, is_singular=False)
cast.tells(passes_on=True)


# the same numbers on another device -----------------------------------------------------------------------------


@op(KERNEL, types="a->f", samples=lambda r: [case(r.normal(size=(2, 3)), device="cpu")])
def transfer(x, *, device):
    """The same numbers in the memory of a device: "cpu" or "gpu"."""


transfer.infer(lambda x, device: Spec(x.shape, x.dtype, device))
transfer.vjps(lambda g, y, x, device: transfer(g, device=x.device))
transfer.tells(passes_on=True)


def on(x: DLArray, device: str) -> DLArray:
    """x on that device: itself if it is there."""
    return x if x._value.spec.device == device else DLArray(transfer(x, device=device)._value, x._labels)


# views ----------------------------------------------------------------------------------------------------------


@op(VIEW, types="a->f", samples=lambda r: [case(r.normal(size=(3, 1)), shape=(2, 3, 4), dims=(1, 2))])
def broadcast(x, *, shape, dims):
    """x repeated to `shape`; its dimension i stands at dims[i]."""


@broadcast.infer
def _(x, *, shape, dims):
    return Spec(shape, x.dtype, x.device)


@broadcast.vjps
def _(g, y, x, *, shape, dims):
    repeated = tuple(i for i in range(len(shape)) if i not in dims or (x.shape[dims.index(i)] != shape[i]))
    g = named("reduce_sum")(g, axes=repeated) if repeated else g
    if list(dims) != sorted(dims):
        g = reorder(g, order=tuple([i for i in range(len(shape)) if i not in dims]) + dims)
    return g if g.shape == x.shape else view_as(g, shape=x.shape)


@op(VIEW, types="a->f", samples=lambda r: [case(r.normal(size=(3, 4)), shape=(2, 6)),
                                               case(r.normal(size=(4,)), shape=(1, 4, 1))])  # fmt: skip
def view_as(x, *, shape):
    """The elements of x, last dimension fastest (NumPy's order), under another shape."""


@view_as.infer
def _(x, *, shape):
    if Spec(shape).size != x.size:
        raise ShapeError(
            f"reshape: {describe(x.shape)} has {x.size} elements, {describe(shape)} would have {Spec(shape).size}. "
            "Give sizes with the same product."
        )
    return Spec(shape, x.dtype, x.device)


view_as.vjps(lambda g, y, x, shape: view_as(g, shape=x.shape))


@op(VIEW, types="a->f", samples=lambda r: [case(r.normal(size=(2, 3, 4)), order=(2, 0, 1))])
def reorder(x, *, order):
    """Dimensions in another order: dimension i of the result is dimension order[i] of x."""


@reorder.infer
def _(x, *, order):
    return Spec(tuple([x.shape[i] for i in order]), x.dtype, x.device)


reorder.vjps(lambda g, y, x, order: reorder(g, order=tuple([order.index(i) for i in range(len(order))])))


@op(VIEW, types="a->f", samples=lambda r: [case(r.normal(size=(4, 5)), slices=((1, 2, 1), (4, 3, -2)))])
def crop(x, *, slices):
    """Evenly spaced elements of each dimension: slices[i] = (start, count, step), step may be negative."""


@crop.infer
def _(x, *, slices):
    return Spec(tuple([count for _, count, _ in slices]), x.dtype, x.device)


crop.vjps(lambda g, y, x, slices: place(g, shape=x.shape, slices=slices))


@op(KERNEL, types="a->f", samples=lambda r: [case(r.normal(size=(2, 3)), shape=(4, 5), slices=((1, 2, 1), (4, 3, -2)))])
def place(x, *, shape, slices):
    """Zeros of the given shape with x where a crop with these slices would take it from."""


@place.infer
def _(x, *, shape, slices):
    return Spec(shape, x.dtype, x.device)


place.assembly(lambda x, shape, slices: [slices])
place.vjps(lambda g, y, x, shape, slices: crop(g, slices=slices))


@op(VIEW, types="a->f", samples=lambda r: [case(r.normal(size=(2, 3)))])
def alias(x):
    """The same array under a new name on the tape."""


@alias.infer
def _(x):
    return x


alias.vjps(lambda g, y, x: g)


@op(VIEW, types="a->f", samples=lambda r: [case(r.normal(size=(2, 3)))], is_constant=True)
def stopgradient_(x):
    """The same array, as if it were a constant."""


@stopgradient_.infer
def _(x):
    return x


# what dlarray(...) and the other rooms call ---------------------------------------------------------------------


@public
def view_as_(x: DLArray, shape: tuple[int, ...]) -> DLArray:
    """`view_as` with its parameter by position."""
    return view_as(x, shape=shape)


@public
def reorder_(x: DLArray, order: tuple[int, ...]) -> DLArray:
    """`reorder` with its parameter by position."""
    return reorder(x, order=order)


def labelled(y: DLArray, labels: str) -> DLArray:
    """y with these labels; last dimensions of size 1 labelled U are dropped after the second, as dlarrays have it."""
    if labels and labels[-1] == "U":
        shape = y._value.spec.shape
        rank = len(labels)
        while rank > 2 and labels[rank - 1] == "U" and shape[rank - 1] == 1:
            rank -= 1
        if rank < len(labels):
            return DLArray(view_as(y, shape=shape[:rank])._value, labels[:rank])
    return DLArray(y._value, labels)


def whole(shape: tuple[int, ...]) -> tuple[tuple[int, int, int], ...]:
    """Slices that take everything."""
    return tuple([(0, n, 1) for n in shape])


def part(x: DLArray, axis: int, start: int, count: int, step: int = 1) -> DLArray:
    """Evenly spaced elements along one axis."""
    slices = whole(x._value.spec.shape)
    return crop(x, slices=(*slices[:axis], (start, count, step), *slices[axis + 1 :]))
