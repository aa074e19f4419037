"""Datastores: observations to be read one after the other, cut from arrays, combined, transformed, shuffled, split.

A MATLAB cell array is a Python list: an n x 1 cell is a list of n observations, an n x k cell a list of n rows.
Inside the house a store is asked for whole batches by number (`take`, `take_arrays`), never row by row.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeAlias, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from minidl import backends
from minidl.core.device import gpu_array, host, is_on_gpu
from minidl.core.dlarray import DLArray, adopted, check_plain
from minidl.core.errors import DataError, DTypeError, EmptyDataError, OptionError, ShapeError, choice, truth
from minidl.core.options import options
from minidl.core.properties import Properties
from minidl.core.random import permutation
from minidl.core.struct import struct

Array: TypeAlias = NDArray[Any]
Index: TypeAlias = NDArray[np.intp]
D = TypeVar("D", bound="Datastore")
Columns: TypeAlias = list[list[Any]]  # for each variable the list of its observations

_COPY_LIMIT_BYTES = 2**30  # larger arrays are read where they lie, however scattered an observation is


class Source(Properties, ABC):
    """What can be read to its end and started anew: a datastore or a minibatchqueue."""

    @abstractmethod
    def hasdata(self) -> bool:
        """Whether there is something left to read."""

    @abstractmethod
    def reset(self) -> None:
        """Start again at the beginning."""

    @abstractmethod
    def shuffle(self) -> Any:
        """Put the observations in random order."""

    @abstractmethod
    def partition(self, n: int, i: int) -> Any:
        """Part i of n."""


class Datastore(Source):
    """Base of the datastores. They differ in how observations are made; order and position are the same for all."""

    def __init__(self, count: int) -> None:
        self._order: Index = np.arange(count)  # the observations of this store, as numbers of what it reads from
        self._position = 0

    # what a kind of datastore has to say
    @property
    @abstractmethod
    def ReadSize(self) -> int:
        """How many observations one read returns."""

    @abstractmethod
    def _columns(self, index: Index) -> Columns:
        """The observations of these numbers, a list for each variable."""

    def _arrays(self, index: Index) -> list[Any]:
        """The same, collated: an array for each variable."""
        return [collate(column) for column in self._columns(index)]

    @abstractmethod
    def _read(self, index: Index) -> Any:
        """The same, as a read of them returns it."""

    # for the queue
    def take(self, start: int, stop: int) -> Columns:
        """Observations start .. stop-1 of this store in its order: for each variable the list of its observations."""
        return self._columns(self._order[start:stop])

    def take_arrays(self, start: int, stop: int) -> list[Any]:
        """The same, collated: for each variable one array."""
        return self._arrays(self._order[start:stop])

    # for everyone
    def __len__(self) -> int:
        return len(self._order)

    def hasdata(self) -> bool:
        """Whether there is something left to read."""
        return self._position < len(self)

    def reset(self) -> None:
        """Start again at the first observation."""
        self._position = 0

    def read(self, *, nargout: Literal[1, 2] = 1) -> Any:
        """The next ReadSize observations, or what is left of them; with nargout=2 also which ones."""
        if not self.hasdata():
            raise EmptyDataError(
                f"read: all {len(self)} observations have been read. Call reset(ds) to begin again, or ask hasdata(ds)."
            )
        index = self._order[self._position : self._position + self.ReadSize]
        data = self._read(index)
        self._position += len(index)
        return data if nargout == 1 else (data, self._info(index))

    def readall(self) -> Any:
        """All observations, wherever the store stands, which does not change."""
        return self._read(self._order)

    def preview(self) -> Any:
        """What the first read returns. The store stays where it is."""
        return self._read(self._order[: self.ReadSize])

    def shuffle(self: D) -> D:
        """A new store with the same observations in random order (from the global generator: see `rng`)."""
        return self._with_order(self._order[permutation(len(self))])

    def subset(self: D, indices: Any) -> D:
        """A new store with the chosen observations: numbers from 0, a range, or an array of truth values."""
        return self._with_order(self._order[_indices(indices, len(self))])

    def partition(self: D, n: int, i: int) -> D:
        """A new store with part i (from 0) of n nearly equal parts, each a run of neighbouring observations."""
        count = len(self)
        if not is_whole(n) or not 1 <= n <= count:
            raise DataError(f"partition: the number of parts is 1 to {count} for {count} observations; got {n!r}.")
        if not is_whole(i) or not 0 <= i < n:
            raise DataError(f"partition: parts are counted from 0 to {n - 1}; got {i!r}.")
        return self._with_order(self._order[i * count // n : (i + 1) * count // n])

    def numpartitions(self) -> int:
        """Into how many parts the store can be split at most: its number of observations."""
        return len(self)

    def combine(self, *others: Datastore, ReadOrder: str = "associated") -> CombinedDatastore:
        """See `minidl.combine`."""
        return combine(self, *others, ReadOrder=ReadOrder)

    def transform(self, fcn: Callable[..., Any], *, IncludeInfo: bool = False) -> TransformedDatastore:
        """See `minidl.transform`."""
        return transform(self, fcn, IncludeInfo=IncludeInfo)

    def _info(self, index: Index) -> struct:
        return struct(Observations=index.copy())

    def _with_order(self: D, order: Index) -> D:
        if not len(order):
            raise EmptyDataError("subset: no observation is chosen. Choose at least one.")
        new = copy.copy(self)
        new._order, new._position = order, 0
        return new


class ArrayDatastore(Datastore):
    """Observations cut from one array. Make one with `arrayDatastore(A)`."""

    def __init__(self, A: Any, read_size: int, dimension: int, output_type: str) -> None:
        self._data = _as_data(A)
        self._on_gpu: DLArray | None = None  # the data, where they are on the GPU
        self._dimension, self._output_type = dimension, output_type
        self.ReadSize = read_size
        self._cut()

    @property
    def ReadSize(self) -> int:
        """How many observations one read returns."""
        return self._read_size

    @ReadSize.setter
    def ReadSize(self, value: int) -> None:
        if not is_whole(value) or value < 1:
            raise OptionError(f"arrayDatastore: ReadSize is a whole number of observations >= 1; got {value!r}.")
        self._read_size = int(value)

    @property
    def IterationDimension(self) -> int:
        """The dimension, counted from 0, that counts the observations. Setting it resets the store."""
        return self._dimension

    @IterationDimension.setter
    def IterationDimension(self, value: int) -> None:
        self._set(value, self._output_type)

    @property
    def OutputType(self) -> str:
        """What a read gives: "cell", a list of observations; "same", an array like the data. Setting it resets."""
        return self._output_type

    @OutputType.setter
    def OutputType(self, value: str) -> None:
        self._set(self._dimension, choice("arrayDatastore", "OutputType", value, ["cell", "same"]))

    def __repr__(self) -> str:
        return (
            f"ArrayDatastore with properties:\n\n{'ReadSize':>25}: {self._read_size}\n"
            f"{'IterationDimension':>25}: {self._dimension}\n{'OutputType':>25}: '{self._output_type}'"
        )

    def _set(self, dimension: int, output_type: str) -> None:
        before = self._dimension, self._output_type
        self._dimension, self._output_type = dimension, output_type
        try:
            self._cut()
        except Exception:
            self._dimension, self._output_type = before
            raise

    def _cut(self) -> None:
        """Lay the data out with the observations first."""
        data, dim = self._data, self._dimension
        if isinstance(data, list):
            if dim != 0:
                raise OptionError(f"arrayDatastore: a list of observations has dimension 0 alone; got {dim!r}.")
            self._rows: Any = data
            super().__init__(len(data))
            return
        if not is_whole(dim) or not -data.ndim <= dim < data.ndim:
            raise OptionError(
                f"arrayDatastore: IterationDimension is 0 to {data.ndim - 1} for an array of shape {data.shape}; got "
                f"{dim!r}. Dimensions are counted from 0: what MATLAB calls 4 is 3 here."
            )
        dim %= data.ndim
        if self._output_type == "same" and dim != 0:
            raise OptionError(
                f'arrayDatastore: OutputType "same" needs IterationDimension 0; it is {dim}. Use "cell", or permute '
                "the data so that the observations come first."
            )
        if data.shape[dim] == 0:
            raise EmptyDataError(f"arrayDatastore: the array of shape {data.shape} has no observations along {dim}.")
        if isinstance(data, DLArray):
            self._on_gpu, data = data, np.broadcast_to(np.False_, data.shape)  # a stand-in: sizes without numbers
        rows = np.moveaxis(data, dim, 0)
        is_small = rows.nbytes <= _COPY_LIMIT_BYTES and not isinstance(data, np.memmap) and self._on_gpu is None
        if not rows.flags.c_contiguous and is_small:
            rows = np.ascontiguousarray(rows)  # once, so that each observation is one piece
        self._rows, self._dimension = rows, dim
        # An observation drops the last dimension and keeps any other with size 1, as A(i,:) and A(:,:,i) do in MATLAB.
        is_dropped = data.ndim > 1 and dim == data.ndim - 1
        self._keep: Any = ... if is_dropped else (slice(None),) * (dim + 1) + (None,)
        self._back = (*range(1, dim + 1), 0, *range(dim + 1, data.ndim))
        super().__init__(len(rows))

    def _columns(self, index: Index) -> Columns:
        if isinstance(self._rows, list):
            return [[_on_host(self._rows[i]) for i in index.tolist()]]
        return [list(self._taken(index)[self._keep])]

    def _arrays(self, index: Index) -> list[Any]:
        if isinstance(self._rows, list):
            return super()._arrays(index)
        if self._on_gpu is not None:
            return [self._on_gpu[(slice(None),) * self._dimension + (index,)]]
        return [self._rows.take(index, axis=0).transpose(self._back)]

    def _taken(self, index: Index) -> Array:
        """Observations of these numbers, in front, in the host's memory."""
        if self._on_gpu is None:
            taken: Array = self._rows.take(index, axis=0)
            return taken
        return np.moveaxis(np.asarray(self._arrays(index)[0]), self._dimension, 0)

    def _read(self, index: Index) -> Any:
        if self._output_type == "same" and not isinstance(self._rows, list):
            return self._taken(index)
        return self._columns(index)[0]


class CombinedDatastore(Datastore):
    """Several datastores read as one. Make one with `combine(ds1, ds2, ...)`."""

    def __init__(self, sources: Sequence[Datastore], read_order: str) -> None:
        self._underlying = [copy.copy(source) for source in sources]
        self._read_order = read_order
        sizes = [len(source) for source in sources]
        self._starts = np.cumsum([0, *sizes])
        super().__init__(sum(sizes) if read_order == "sequential" else sizes[0])

    @property
    def UnderlyingDatastores(self) -> list[Datastore]:
        """The stores that are read."""
        return self._underlying

    @property
    def ReadOrder(self) -> str:
        """"associated": side by side; "sequential": one after the other."""
        return self._read_order

    @property
    def ReadSize(self) -> int:
        """How many observations one read returns: that of the underlying stores."""
        return self.UnderlyingDatastores[0].ReadSize

    def __repr__(self) -> str:
        kinds = ", ".join(type(source).__name__ for source in self.UnderlyingDatastores)
        return (
            f"CombinedDatastore with properties:\n\n{'UnderlyingDatastores':>25}: [{kinds}]\n"
            f"{'ReadOrder':>25}: '{self.ReadOrder}'"
        )

    def _columns(self, index: Index) -> Columns:
        if self.ReadOrder == "associated":
            return [column for source in self.UnderlyingDatastores for column in source._columns(source._order[index])]
        rows: list[Any] = [None] * len(index)
        which = np.searchsorted(self._starts, index, side="right") - 1
        for number in np.unique(which).tolist():
            source, places = self.UnderlyingDatastores[number], np.flatnonzero(which == number)
            columns = source._columns(source._order[index[places] - self._starts[number]])
            for place, row in zip(places.tolist(), zip(*columns, strict=True), strict=True):
                rows[place] = row
        if len({len(row) for row in rows}) > 1:
            raise DataError("combine: the datastores give rows of different length. Give each the same variables.")
        return [list(column) for column in zip(*rows, strict=True)]

    def _arrays(self, index: Index) -> list[Any]:
        if self.ReadOrder == "associated":
            return [array for source in self.UnderlyingDatastores for array in source._arrays(source._order[index])]
        return super()._arrays(index)

    def _read(self, index: Index) -> Any:
        if self.ReadOrder == "associated" and all(_gives_arrays(source) for source in self.UnderlyingDatastores):
            return np.concatenate([s._read(s._order[index]) for s in self.UnderlyingDatastores], axis=1)
        columns = self._columns(index)
        if self.ReadOrder == "sequential" and len(columns) == 1:
            return columns[0]
        return [list(row) for row in zip(*columns, strict=True)]


class TransformedDatastore(Datastore):
    """A datastore whose reads pass through a function. Make one with `transform(ds, fcn)`."""

    def __init__(self, source: Datastore, fcn: Callable[..., Any], include_info: bool) -> None:
        self._underlying = [copy.copy(source)]
        self._transforms, self._include_info = [fcn], include_info
        super().__init__(len(source))

    @property
    def UnderlyingDatastores(self) -> list[Datastore]:
        """The store that is read, in a list."""
        return self._underlying

    @property
    def Transforms(self) -> list[Callable[..., Any]]:
        """The function, in a list."""
        return self._transforms

    @property
    def IncludeInfo(self) -> bool:
        """Whether the function is given, and returns, information about the observations too."""
        return self._include_info

    @property
    def ReadSize(self) -> int:
        """How many observations of the underlying store one read takes."""
        return self.UnderlyingDatastores[0].ReadSize

    def __repr__(self) -> str:
        return (
            "TransformedDatastore with properties:\n\n"
            f"{'UnderlyingDatastores':>25}: [{type(self.UnderlyingDatastores[0]).__name__}]\n"
            f"{'Transforms':>25}: {{@{getattr(self.Transforms[0], '__name__', 'fcn')}}}\n"
            f"{'IncludeInfo':>25}: {int(self.IncludeInfo)}"
        )

    def readall(self) -> Any:
        """All that reads would return, one below the other. The store stays where it is."""
        parts = [self._read(index) for index in self._pieces(self._order)]
        if all(isinstance(part, list) for part in parts):
            return [row for part in parts for row in part]
        return np.concatenate(parts) if all(isinstance(part, np.ndarray) and part.ndim for part in parts) else parts

    def _read(self, index: Index) -> Any:
        return self._read_with_info(index)[0]

    def _info(self, index: Index) -> Any:
        return self._read_with_info(index)[1] if self.IncludeInfo else super()._info(index)

    def _read_with_info(self, index: Index) -> tuple[Any, Any]:
        source, fcn = self.UnderlyingDatastores[0], self.Transforms[0]
        below = source._order[index]
        data, info = source._read(below), source._info(below)
        if not self.IncludeInfo:
            result = fcn(data)
            check_plain("transform", result)
            return result, info
        result = fcn(data, info)
        if not isinstance(result, tuple) or len(result) != 2:
            raise DataError(
                f"transform: with IncludeInfo=True the function returns (data, info); it returned {kind_of(result)}."
            )
        check_plain("transform", result[0])
        return result

    def _pieces(self, index: Index) -> list[Index]:
        size = self.ReadSize
        return [index[start : start + size] for start in range(0, len(index), size)]

    def _columns(self, index: Index) -> Columns:
        rows = [row for piece in self._pieces(index) for row in _rows(self._read(piece), len(piece))]
        if len({len(row) for row in rows}) > 1:
            raise DataError(
                "transform: the function returned rows of different length. Return the same variables always."
            )
        return [list(column) for column in zip(*rows, strict=True)]


@options
def arrayDatastore(
    A: Any, *, ReadSize: int = 1, IterationDimension: int = 0, OutputType: Literal["cell", "same"] = "cell"
) -> ArrayDatastore:
    """A datastore of the observations in an array.

    A  : array whose dimension IterationDimension counts the observations; a list of numbers, texts or lists of them
         becomes one; a list of arrays (a MATLAB cell) has an observation in each entry. An array on the GPU stays
         there: a minibatchqueue that collates takes mini-batches from it on the GPU; reads give observations in host
         memory.
    ReadSize           : how many observations a read returns.
    IterationDimension : counted from 0: images 28x28x1x5000 have their observations along 3.
    OutputType         : "cell": a read gives a list of ReadSize observations. "same": an array like A with ReadSize
                         observations; needs IterationDimension 0.
    An observation drops the iterated dimension if it is the last (28x28x1x5000 along 3: each is 28x28x1; only a vector
    keeps it: each is of shape (1,)) and keeps it with size 1 otherwise (5000x1 along 0: each is 1x1).
    So np.stack(cells, axis=3) puts images together, np.concatenate(cells) labels and np.concatenate(cells, axis=1) a
    row of angles. The three options are properties that can be set; the last two reset the store. An array whose
    observations already lie in one piece each is not copied.
    Raises EmptyDataError if there is no observation, OptionError for options out of range, DTypeError for no array.
    Source: MathWorks, reference page "arrayDatastore".

    >>> import numpy as np
    >>> ds = arrayDatastore(np.arange(6.0).reshape(2, 3), IterationDimension=1)
    >>> ds.read()
    [array([0., 3.])]
    >>> len(ds), hasdata(ds)
    (3, True)
    """
    choice("arrayDatastore", "OutputType", OutputType, ["cell", "same"])
    return ArrayDatastore(A, ReadSize, IterationDimension, OutputType.lower())


@options
def combine(
    *datastores: Datastore, ReadOrder: Literal["associated", "sequential"] | str = "associated"
) -> CombinedDatastore:
    """One datastore that reads several.

    ReadOrder : "associated": side by side; a read gives a list of rows, each with an observation of every store.
                "sequential": one after the other.
    The stores are copied (not their data): reading one of them later does not move the combined one.
    Raises DataError if stores to be read side by side have different lengths. (MATLAB stops at the shortest and loses
    the rest silently.)
    Source: MathWorks, reference page "combine" (datastores).

    >>> X, T = arrayDatastore([[1.0, 2.0], [3.0, 4.0]]), arrayDatastore(["cat", "dog"])
    >>> combine(X, T).read()
    [[array([[1., 2.]]), array(['cat'], dtype='<U3')]]
    """
    ReadOrder = choice("combine", "ReadOrder", ReadOrder, ["associated", "sequential"])
    if not datastores:
        raise DataError("combine: expected at least one datastore; got none.")
    for store in datastores:
        check_datastore("combine", store)
    sizes = [len(store) for store in datastores]
    if ReadOrder == "associated" and len(set(sizes)) > 1:
        raise DataError(
            f"combine: side by side the datastores need equally many observations; they have {_listed(sizes)}. "
            f"Check IterationDimension of each, cut the longer ones with subset(ds, range({min(sizes)})), "
            'or read one after the other with ReadOrder="sequential".'
        )
    read_sizes = [store.ReadSize for store in datastores]
    if len(set(read_sizes)) > 1:
        raise DataError(
            f"combine: the datastores need the same ReadSize; they have {_listed(read_sizes)}. Set one for all."
        )
    return CombinedDatastore(datastores, ReadOrder)


@options
def transform(ds: Datastore, fcn: Callable[..., Any], *, IncludeInfo: bool = False) -> TransformedDatastore:
    """A datastore whose reads are `fcn(read(ds))`.

    fcn         : takes what a read of ds returns. A minibatchqueue needs as many observations from it as it got: a list
                  with an entry (or a row: a list or tuple) for each, or the bare observation (a tuple is one row).
    IncludeInfo : call `data, info = fcn(data, info)` instead; info.Observations says which observations they are.
    Raises DTypeError if fcn cannot be called.
    Source: MathWorks, reference page "transform" (datastores).

    >>> ds = transform(arrayDatastore([1.0, 2.0]), lambda cells: [10 * x for x in cells])
    >>> readall(ds)
    [array([10.]), array([20.])]
    """
    check_datastore("transform", ds)
    if not callable(fcn):
        raise DTypeError(f"transform: expected a function of what read returns; got {kind_of(fcn)}.")
    return TransformedDatastore(ds, fcn, truth("transform", "IncludeInfo", IncludeInfo))


# the second call form -------------------------------------------------------------------------------------------
def hasdata(source: Source) -> bool:
    """Whether a datastore or minibatchqueue has something left to read.

    >>> hasdata(arrayDatastore([1.0]))
    True
    """
    return check_source("hasdata", source).hasdata()


def reset(source: Source) -> None:
    """Start a datastore or minibatchqueue again at its beginning.

    >>> ds = arrayDatastore([1.0]); _ = read(ds); reset(ds); hasdata(ds)
    True
    """
    check_source("reset", source).reset()


def shuffle(source: Source) -> Any:
    """Random order: for a datastore a NEW store (dsnew = shuffle(ds)); a minibatchqueue is shuffled itself and reset.

    The order comes from the global generator: `rng(seed)` repeats it.

    >>> sorted(x.item() for x in readall(shuffle(arrayDatastore([1.0, 2.0, 3.0]))))
    [1.0, 2.0, 3.0]
    """
    return check_source("shuffle", source).shuffle()


def partition(source: Source, n: int, i: int) -> Any:
    """Part i (counted from 0) of n nearly equal parts of a datastore or minibatchqueue, as a new one.

    Raises DataError if there is no such part.

    >>> len(partition(arrayDatastore([1.0, 2.0, 3.0]), 2, 1))
    2
    """
    return check_source("partition", source).partition(n, i)


@overload
def read(ds: Datastore) -> Any: ...
@overload
def read(ds: Datastore, *, nargout: Literal[2]) -> tuple[Any, Any]: ...
@options
def read(ds: Datastore, *, nargout: Literal[1, 2] = 1) -> Any:
    """The next ReadSize observations of a datastore, or what is left of them; with nargout=2 also information on them.

    Raises EmptyDataError if nothing is left.

    >>> read(arrayDatastore([1.0, 2.0], OutputType="same"))
    array([1.])
    """
    return check_datastore("read", ds).read(nargout=nargout)


def readall(ds: Datastore) -> Any:
    """All observations of a datastore, which stays where it is.

    >>> readall(arrayDatastore([1.0, 2.0], OutputType="same"))
    array([1., 2.])
    """
    return check_datastore("readall", ds).readall()


def preview(ds: Datastore) -> Any:
    """What the first read of a datastore returns. The store stays where it is.

    >>> preview(arrayDatastore(["cat", "dog"]))
    [array(['cat'], dtype='<U3')]
    """
    return check_datastore("preview", ds).preview()


def subset(ds: D, indices: Any) -> D:
    """A new datastore with the chosen observations: numbers from 0, a range, or an array of truth values.

    Raises DataError for numbers out of range, EmptyDataError if none is chosen.

    >>> readall(subset(arrayDatastore([1.0, 2.0, 3.0]), [2, 0]))
    [array([3.]), array([1.])]
    """
    check_datastore("subset", ds)
    return ds.subset(indices)


def numpartitions(ds: Datastore) -> int:
    """Into how many parts a datastore can be split at most: its number of observations.

    >>> numpartitions(arrayDatastore([1.0, 2.0, 3.0]))
    3
    """
    return check_datastore("numpartitions", ds).numpartitions()


# pieces ---------------------------------------------------------------------------------------------------------
def collate(cells: list[Any]) -> Array:
    """Observations as one array: numbers and rows (1xF) below each other, all else along a new last dimension."""
    arrays = [np.asarray(_on_host(cell)) for cell in cells]
    shape = arrays[0].shape
    for array in arrays:
        if array.shape != shape:
            raise ShapeError(
                f"collate: observations of one shape are expected; got {shape} and {array.shape}. "
                "Give minibatchqueue a MiniBatchFcn that pads or crops them."
            )
    if 1 <= len(shape) <= 2 and shape[0] == 1:
        return np.concatenate(arrays)
    return np.stack(arrays, axis=-1)


def _on_host(x: Any) -> Any:
    """An observation, in the host's memory."""
    check_plain("collate", x)
    if isinstance(x, (np.ndarray, DLArray)) or not is_on_gpu(x):
        return x
    return host(x)


def _as_data(A: Any) -> Any:
    check_plain("arrayDatastore", A)
    if isinstance(A, DLArray):
        return DLArray(A._value) if A.device == "gpu" and A.ndim else np.asarray(A)
    if is_on_gpu(A) and A.dtype.kind in "fb":
        return adopted(backends.gpu().dense_copy(gpu_array("arrayDatastore", A)))
    if isinstance(A, tuple):
        A = list(A)
    if isinstance(A, list):
        if not A:
            raise EmptyDataError("arrayDatastore: the list has no observations.")
        if not all(isinstance(x, (int, float, str, list, np.generic)) for x in A):
            return list(A)
    elif isinstance(A, (str, bytes, dict)) or not (hasattr(A, "__array__") or hasattr(A, "__len__")):
        raise DTypeError(f"arrayDatastore: expected an array or a list of observations; got {kind_of(A)}.")
    try:
        data = A if isinstance(A, np.ndarray) else np.asarray(A)
    except ValueError as error:
        raise ShapeError(f"arrayDatastore: the nested lists are no array ({error}). Give a list of arrays.") from None
    if data.ndim == 0:
        raise DTypeError(f"arrayDatastore: expected an array or a list of observations; got {kind_of(A)}.")
    return data


def _rows(data: Any, count: int) -> list[Sequence[Any]]:
    """What a transform returned for `count` observations, as a row for each."""
    if isinstance(data, tuple):
        rows: list[Sequence[Any]] = [data]
    elif isinstance(data, list):
        rows = [row if isinstance(row, (list, tuple)) else (row,) for row in data]
    elif count > 1 and isinstance(data, np.ndarray) and data.ndim:
        rows = [(data[i : i + 1],) for i in range(len(data))]
    else:
        rows = [(data,)]
    if len(rows) != count:
        raise DataError(
            f"transform: from {count} observations the function made {len(rows)}; a mini-batch needs one for each. "
            "Return a list with an entry for each observation; several variables make a row of their own: [[X, T]]."
        )
    return rows


def _gives_arrays(source: Datastore) -> bool:
    return isinstance(source, ArrayDatastore) and source.OutputType == "same" and not isinstance(source._rows, list)


def _indices(indices: Any, count: int) -> Index:
    index = np.asarray(list(indices) if isinstance(indices, Iterable) else indices)
    if index.dtype == bool and index.shape == (count,):
        return np.flatnonzero(index)
    if index.size == 0:
        return np.empty(0, np.intp)
    if index.dtype.kind not in "iu" or index.ndim > 1:
        raise DataError(
            f"subset: indices are whole numbers, or one truth value for each of the {count} observations; got "
            f"{index.dtype} of shape {index.shape}."
        )
    index = np.atleast_1d(index)
    if index.min() < 0 or index.max() >= count:
        wrong = index[(index < 0) | (index >= count)][0]
        raise DataError(f"subset: observations are counted from 0 to {count - 1}; got {wrong}.")
    return index.astype(np.intp)


def is_whole(x: object) -> bool:
    """A Python or NumPy integer, and no truth value."""
    return isinstance(x, (int, np.integer)) and not isinstance(x, bool)


def kind_of(x: object) -> str:
    """What x is, for messages."""
    return f"{type(x).__name__} of length {len(x)}" if isinstance(x, (list, tuple, dict)) else type(x).__name__


def _listed(sizes: list[int]) -> str:
    return f"{', '.join(map(str, sizes[:-1]))} and {sizes[-1]}"


def check_source(who: str, source: Any) -> Source:
    """`source` if it is a datastore or a queue; otherwise a DTypeError with the remedy."""
    if not isinstance(source, Source):
        raise _wrong_kind(who, "a datastore or minibatchqueue", source)
    return source


def check_datastore(who: str, ds: Any) -> Datastore:
    """`ds` if it is a datastore; otherwise a DTypeError with the remedy."""
    if not isinstance(ds, Datastore):
        raise _wrong_kind(who, "a datastore", ds)
    return ds


def _wrong_kind(who: str, wanted: str, got: Any) -> DTypeError:
    remedy = " Wrap it: arrayDatastore(X, IterationDimension=...)." if isinstance(got, (np.ndarray, list)) else ""
    return DTypeError(f"{who}: expected {wanted}; got {kind_of(got)}.{remedy}")
