"""Data that lie on the GPU: a mini-batch is picked there by one launch, into memory that is used again.

The order of the observations is on the GPU too. Batches lie in two or three slots that take turns; one that anybody can
still see is never overwritten (`core.handout`).
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minidl import backends
from minidl.core.device import copied
from minidl.core.dlarray import DLArray, adopted, is_unchangeable
from minidl.core.errors import DeviceMemoryError
from minidl.core.handout import Handout
from minidl.core.spec import Spec, Value
from minidl.data.datastore import ArrayDatastore, CombinedDatastore, Datastore, Index
from minidl.engine.devices import DeviceFrame
from minidl.engine.program import MOST_FRAMES, has_counts

SHARE = 4  # data from the host may take a quarter of the memory that is free
_DTYPES = (np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.bool_))


class Variable(NamedTuple):
    """One output: its store, the observations as numbers of its rows, the type that is wanted, its labels."""

    store: ArrayDatastore
    order: Index
    dtype: np.dtype[Any]
    fmt: str


def variables_of(ds: Datastore, casts: Sequence[Any], formats: Sequence[str]) -> list[Variable] | None:
    """The first variables of a datastore, one for each cast; None if some cannot be picked from one array."""
    found = _columns(ds, ds._order)
    if found is None or not has_counts:
        return None
    variables = []
    for (store, order), cast, fmt in zip(found, casts, formats):
        own = store._rows.dtype if store._on_gpu is None else store._on_gpu.dtype
        dtype = np.dtype(own if cast is None else cast)
        is_right = dtype in _DTYPES and own.kind in "fbiu" and own.isnative and store._rows.size
        if not is_right or isinstance(store._data, np.memmap) or (store._on_gpu is not None and own != dtype):
            return None
        variables.append(Variable(store, order, dtype, fmt))
    return variables


def _columns(ds: Datastore, index: Index) -> list[tuple[ArrayDatastore, Index]] | None:
    if type(ds) is ArrayDatastore:
        return None if isinstance(ds._rows, list) else [(ds, index)]
    if type(ds) is not CombinedDatastore or ds.ReadOrder != "associated":
        return None
    parts = [_columns(source, source._order[index]) for source in ds.UnderlyingDatastores]
    return None if None in parts else [column for part in parts if part is not None for column in part]


def resident(variables: Sequence[Variable], size: int) -> Resident | None:
    """Mini-batches of these variables, if there is room for them on the GPU."""
    nbytes = sum(v.store._rows.size * v.dtype.itemsize for v in variables if v.store._on_gpu is None)
    if nbytes > backends.gpu().free_bytes() // SHARE:
        return None
    try:
        made = Resident(variables, size)
        return made if made.is_right else None
    except DeviceMemoryError:
        return None


class Resident:
    """Mini-batches of a fixed size, picked on the GPU."""

    def __init__(self, variables: Sequence[Variable], size: int) -> None:
        self._variables, self._size = list(variables), size
        self._rows = [_rows_there(v) for v in variables]
        self._orders = [_gpu_array(v.order.astype(np.int64)) for v in variables]
        self._slots: list[tuple[DeviceFrame, Callable[[int], None]]] = []
        self._labels: list[str] = []
        self.is_right = False
        self._add_slot()

    def renew(self, variables: Sequence[Variable]) -> None:
        """The same data in another order; what its owner may have changed is copied anew."""
        for k, (before, now) in enumerate(zip(self._variables, variables)):
            if now.order is not before.order:
                _put(self._orders[k], now.order.astype(np.int64))
            if _may_change(now.store):
                _put(self._rows[k], np.ascontiguousarray(now.store._rows, now.dtype))
        self._variables = list(variables)

    def next(self, start: int) -> tuple[Any] | None:
        """The mini-batch from this observation on, as the queue gives it, in a tuple; None if no slot is free."""
        found = next((slot for slot in self._slots if slot[0].is_free()), None)
        if found is None and len(self._slots) == MOST_FRAMES:
            return None
        frame, pick = found or self._add_slot()
        gpu = backends.gpu()
        gpu.begin("minibatchqueue")
        try:
            pick(start)
        finally:
            gpu.end()
        if frame.handout is None:
            _hand_out(frame, self._labels)
        return (frame.handout.give(),)  # type: ignore[union-attr]

    def _add_slot(self) -> tuple[DeviceFrame, Callable[[int], None]]:
        gpu, size = backends.gpu(), self._size
        places, total = [], 0
        for rows in self._rows:
            places.append(total)
            total += -(-size * math.prod(rows.shape[1:]) * rows.itemsize // 256) * 256
        whole = gpu.shared(gpu.new_memory(total), 0, total)
        targets, arrays, self._labels = [], [], []
        for v, rows, place in zip(self._variables, self._rows, places):
            shape, first = (size, *rows.shape[1:]), place // rows.itemsize
            targets.append(whole.array(shape, rows.dtype, first))
            sizes, strides = _collated(v, shape)
            made = adopted(whole.array(sizes, rows.dtype, first, strides), v.fmt or None)
            arrays.append(made._value.data)
            self._labels.append(made.dims())
        self.is_right = all(int(x.data.ptr) == int(y.data.ptr) for x, y in zip(arrays, targets))  # views, no copies
        frame = DeviceFrame(len(self._slots), {}, arrays, whole.keeper)
        self._slots.append((frame, gpu.bind_rows(self._rows, targets, self._orders, size)))
        del targets, whole, made
        frame.settle()
        return self._slots[-1]


def _hand_out(frame: DeviceFrame, labels: list[str]) -> None:
    """Have the frame handed out as the queue gives its outputs: a tuple of dlarrays, or one."""
    values = [Value(Spec(x.shape, x.dtype, "gpu"), x) for x in frame.arrays]
    leaves = list(map(DLArray, values, labels))
    tree = tuple(leaves) if len(leaves) > 1 else leaves[0]
    frame.handout = Handout(tree, values, frame.pointers, copied)
    del tree, leaves
    frame.handout.settle()


def _collated(variable: Variable, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides, in elements, of rows as the queue collates them; rows lie one after the other."""
    dense = [math.prod(shape[k + 1 :]) for k in range(len(shape))]
    sizes, strides = [shape[k] for k in variable.store._back], [dense[k] for k in variable.store._back]
    missing = len(variable.fmt) - len(sizes)
    if missing > 0 and len(sizes) >= 2 and variable.fmt[-1] in "BT":  # dimensions of size 1, for a channel
        sizes[-1:-1], strides[-1:-1] = [1] * missing, [1] * missing
    return tuple(sizes), tuple(strides)


# the data there -------------------------------------------------------------------------------------------------
_copies: dict[tuple[int, str], tuple[Any, Any]] = {}  # id of rows on the host, type -> (rows weakly, on the GPU)


def _gpu_array(x: Any) -> Any:
    return backends.as_gpu_array(x)


def _put(target: Any, values: Any) -> None:
    backends.gpu().put(target, values)


def _may_change(store: ArrayDatastore) -> bool:
    """Whether the rows are somebody else's, who may write to them."""
    if store._on_gpu is not None or is_unchangeable(store._data):
        return False
    return np.may_share_memory(store._rows, store._data)


def _rows_there(v: Variable) -> Any:
    """The observations on the GPU, one after the other in the wanted type; data of the host once for all queues."""
    if v.store._on_gpu is not None:
        rows = v.store._on_gpu._value.data
        rows = rows.transpose(tuple(np.argsort(v.store._back).tolist()))
        strides = tuple([math.prod(rows.shape[k + 1 :]) * rows.itemsize for k in range(rows.ndim)])
        is_dense = all(n == 1 or a == b for n, a, b in zip(rows.shape, rows.strides, strides))
        return rows if is_dense else backends.gpu().dense_copy(rows)
    rows = v.store._rows
    if _may_change(v.store):
        return _gpu_array(np.ascontiguousarray(rows, v.dtype))
    key = id(rows), v.dtype.name
    found = _copies.get(key)
    if found is None or found[0]() is not rows:
        there = _gpu_array(np.ascontiguousarray(rows, v.dtype))
        found = _copies[key] = weakref.ref(rows, functools.partial(_forget, _copies, key)), there
    return found[1]


def _forget(copies: dict[Any, Any], key: tuple[int, str], gone: Any) -> None:
    if copies.get(key, (None,))[0] is gone:
        del copies[key]
