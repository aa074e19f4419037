"""dlarray: an array with labelled dimensions whose operations can be traced, differentiated and replayed."""

from __future__ import annotations

import html
import numbers as numbers_
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np

from minidl.core import elsewhere
from minidl.core.callee import takes_float
from minidl.core.changes import note_change
from minidl.core.device import copied, device_of, gpu_array, host, is_on_gpu, need_gpu
from minidl.core.errors import DTypeError, LabelError, ShapeError, TraceError
from minidl.core.labels import check_format, describe, stored_order
from minidl.core.places import own_line
from minidl.core.spec import TYPE_NAMES, Spec, Value
from minidl.core.tape import following, is_differentiated, note_read, note_use_elsewhere, open_tapes

Operand: TypeAlias = "DLArray | np.ndarray | float | int | bool | list[Any]"
Other: TypeAlias = "DLArray | np.ndarray | float"  # the other side of an operator
F = TypeVar("F", bound=Callable[..., Any])

FUNCTIONS: dict[str, Callable[..., Any]] = {}  # what `x.name(...)` and the operators call; the ops rooms fill it


def public(function: F) -> F:
    """Have the methods and operators of DLArray of that name call this function; one without says how to call it."""
    name = function.__name__.rstrip("_")
    FUNCTIONS[name] = function
    if name not in vars(DLArray):
        _add_missing(name, f"It is a function here: {name}(X).")
    return function


def _add_missing(name: str, remedy: str) -> None:
    """Have `X.name` say what to write instead."""
    missing = elsewhere.Method(remedy)
    missing.__set_name__(DLArray, name)
    setattr(DLArray, name, missing)


def _call(name: str, *args: Any, **options: Any) -> Any:
    return FUNCTIONS[name](*args, **options)


class DLArray:
    """Array for deep learning: numbers, dimension labels and a place on the tape. Make one with `dlarray(X, fmt)`.

    A handle: the numbers it names never change, `X[i] = v` makes it name new ones.
    """

    __slots__ = ("_value", "_labels", "__weakref__")
    __array_priority__ = 1000.0
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: Value, labels: str = "") -> None:
        self._value = value
        self._labels = labels

    # what it is -------------------------------------------------------------------------------------------------
    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes in stored order (S..., C, B, T, U...)."""
        return self._value.spec.shape

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self._value.spec.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return self._value.spec.size

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy dtype of the data: float32, float64 or bool."""
        return self._value.spec.dtype

    @property
    def device(self) -> str:
        """"cpu" or "gpu": whose memory the data lie in."""
        return self._value.spec.device

    @property
    def _is_traced(self) -> bool:
        """Whether `dlgradient` can differentiate by what is computed from it, here and now."""
        return is_differentiated(self._value)

    @property
    def T(self) -> DLArray:
        """The transpose."""
        return _call("transpose", self)

    def dims(self) -> str:
        """Labels of the dimensions; '' if unformatted."""
        return self._labels

    def _head(self) -> str:
        """Size, labels and type: the first line of what is printed."""
        spec = self._value.spec
        kind = TYPE_NAMES.get(spec.dtype, str(spec.dtype))
        kind = ("" if kind == "double" else kind + " ") + ("gpuArray " if spec.device == "gpu" else "")
        note = " (abstract)" if self._value.data is None else "" if spec.size else " (empty)"
        return f"{describe(spec.shape, self._labels)} {kind}dlarray{note}"

    def __repr__(self) -> str:
        """One line, for lists of dlarrays and the like; `print` shows more."""
        head = self._head()
        if self._value.data is None or not self.size:
            return head
        data = numbers(self)
        text = np.array2string(data, threshold=9, edgeitems=1 if data.ndim > 1 else 3, precision=4, separator=", ")
        return f"{head}: {' '.join(text.split())}" if len(text) <= 200 else head

    def __str__(self) -> str:
        """The display of MATLAB: size, labels and type, then numbers, of large arrays those at the corners."""
        head = self._head()
        return head if self._value.data is None or not self.size else f"{head}\n\n{_displayed(numbers(self))}"

    def _repr_html_(self) -> str:
        """What a notebook shows: a small table."""
        head = html.escape(self._head())
        if self._value.data is None or not self.size:
            return f"<div>{head}</div>"
        data = numbers(self)
        if data.ndim > 2:
            return f"<div>{head}</div><pre>{html.escape(_displayed(data))}</pre>"
        columns = data.reshape(data.shape[0], -1) if data.ndim else data.reshape(1, 1)
        down, along = _shown_places(columns.shape[0]), _shown_places(columns.shape[1])
        cells = ""
        for i in down:
            row = ["…" if i is None or k is None else f"{columns[i, k]:.5g}" for k in along]
            cells += "<tr>" + "".join(f"<td>{html.escape(x)}</td>" for x in row) + "</tr>"
        return f"<div>{head}</div><table>{cells}</table>"

    def __len__(self) -> int:
        if not self.shape:
            raise ShapeError("len: a scalar dlarray has no length. Use numel(X) for the number of elements.")
        return self.shape[0]

    def __dir__(self) -> list[str]:
        return [name for name in object.__dir__(self) if type(vars(DLArray).get(name)) is not elsewhere.Method]

    # numbers out (the tape is told) -----------------------------------------------------------------------------
    def extractdata(self) -> Any:
        """The plain data, in stored order, not traced: a copy of its own, a NumPy array or on the GPU a CuPy array."""
        return copied(_data(self)) if self.device == "gpu" else np.array(_data(self))

    def numpy(self) -> np.ndarray:
        """The plain data as a NumPy array of its own (from any device)."""
        return np.array(numbers(self))

    def to_numpy(self) -> np.ndarray:
        """The plain data as a NumPy array of its own: what matplotlib and pandas ask for. See `__array__`."""
        return np.array(self.__array__())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        _keep_traced(self, "is converted to a NumPy array")
        data = numbers(self)
        if copy or (dtype is not None and np.dtype(dtype) != data.dtype):
            return np.array(data, dtype=dtype)
        return np.asarray(data.data.toreadonly())  # a view's view of `data` could be made writeable again

    def item(self) -> Any:
        """The one number of a scalar."""
        if self.size != 1:
            raise ShapeError(
                f"item: a single number is wanted; this dlarray is {describe(self.shape, self._labels)}. "
                "Reduce it first, for example sum(X, 'all')."
            )
        return numbers(self).reshape(()).item()

    def __float__(self) -> float:
        if following and is_differentiated(self._value):
            name = takes_float(sys._getframe(1))
            if name is not None:
                _keep_traced(self, f"becomes a plain number ({name})")
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        number = self.item()
        if number != int(number):
            raise DTypeError(f"dlarray: {number} is no whole number and cannot be a subscript. Use floor or round.")
        return int(number)

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ShapeError(
                f"if: the truth of a {describe(self.shape, self._labels)} dlarray is ambiguous. "
                "Use any(X, 'all') or all(X, 'all')."
            )
        return bool(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else str(self)

    def __iter__(self) -> Iterator[DLArray]:
        if not self.shape:  # at once: np.iterable asks by beginning
            raise DTypeError("iteration: a scalar dlarray has no elements to go through. Use X.item() for its number.")
        return (self[i] for i in range(len(self)))

    def tolist(self) -> Any:
        """The data as nested Python lists."""
        return numbers(self).tolist()

    def __dlpack__(self, **options: Any) -> Any:
        """A copy for other libraries: not all of them know of memory that must not be written to."""
        if options.get("copy") is False:
            raise BufferError("dlarray: its memory is not shared, others might write to it. Ask for a copy.")
        _keep_traced(self, "is given to another library (DLPack)")
        return copied(_data(self)).__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return _data(self).__dlpack_device__()

    # copies -----------------------------------------------------------------------------------------------------
    def __reduce__(self) -> tuple[Any, ...]:
        _keep_traced(self, "is pickled")
        return _restore, (np.array(numbers(self), order="C"), self._labels, self.device)

    def __copy__(self) -> DLArray:
        return DLArray(self._value, self._labels)

    def __deepcopy__(self, memo: dict[int, Any]) -> DLArray:
        return DLArray(self._value, self._labels)  # values never change: naming the same one is a copy

    copy = __copy__

    # NumPy's protocols ------------------------------------------------------------------------------------------
    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return _call("numpy_ufunc", ufunc, method, inputs, options)

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        return _call("numpy_function", function, args, options)

    # subscripts -------------------------------------------------------------------------------------------------
    def __getitem__(self, key: Any) -> DLArray:
        return _call("getitem", self, key)

    def __setitem__(self, key: Any, value: Operand) -> None:
        new = _call("setitem", self, key, value)
        self._value, self._labels = new._value, new._labels
        note_change()

    # operators --------------------------------------------------------------------------------------------------
    def __add__(self, other: Other) -> DLArray:
        return _call("plus", self, other)

    def __radd__(self, other: Other) -> DLArray:
        return _call("plus", other, self)

    def __sub__(self, other: Other) -> DLArray:
        return _call("minus", self, other)

    def __rsub__(self, other: Other) -> DLArray:
        return _call("minus", other, self)

    def __mul__(self, other: Other) -> DLArray:
        return _call("times", self, other)

    def __rmul__(self, other: Other) -> DLArray:
        return _call("times", other, self)

    def __truediv__(self, other: Other) -> DLArray:
        return _call("rdivide", self, other)

    def __rtruediv__(self, other: Other) -> DLArray:
        return _call("rdivide", other, self)

    def __floordiv__(self, other: Other) -> DLArray:
        return _call("floor_divide", self, other)

    def __rfloordiv__(self, other: Other) -> DLArray:
        return _call("floor_divide", other, self)

    def __mod__(self, other: Other) -> DLArray:
        return _call("remainder", self, other)

    def __rmod__(self, other: Other) -> DLArray:
        return _call("remainder", other, self)

    def __divmod__(self, other: Other) -> tuple[DLArray, DLArray]:
        return _call("floor_divide", self, other), _call("remainder", self, other)

    def __rdivmod__(self, other: Other) -> tuple[DLArray, DLArray]:
        return _call("floor_divide", other, self), _call("remainder", other, self)

    def __pow__(self, other: Other) -> DLArray:
        return _call("power", self, other)

    def __rpow__(self, other: Other) -> DLArray:
        return _call("power", other, self)

    def __matmul__(self, other: Other) -> DLArray:
        return _call("matmul", self, other)

    def __rmatmul__(self, other: Other) -> DLArray:
        return _call("matmul", other, self)

    def __neg__(self) -> DLArray:
        return _call("uminus", self)

    def __pos__(self) -> DLArray:
        return DLArray(self._value, self._labels)  # another handle: assigning to it leaves this one alone

    def __abs__(self) -> DLArray:
        return _call("abs", self)

    def __eq__(self, other: Other) -> DLArray:  # type: ignore[override]
        return _call("eq", self, other)

    def __ne__(self, other: Other) -> DLArray:  # type: ignore[override]
        return _call("ne", self, other)

    def __lt__(self, other: Any) -> DLArray:
        return _call("lt", self, other)

    def __le__(self, other: Any) -> DLArray:
        return _call("le", self, other)

    def __gt__(self, other: Any) -> DLArray:
        return _call("gt", self, other)

    def __ge__(self, other: Any) -> DLArray:
        return _call("ge", self, other)

    def __and__(self, other: Other) -> DLArray:
        return _call("and", self, other)

    def __rand__(self, other: Other) -> DLArray:
        return _call("and", other, self)

    def __or__(self, other: Other) -> DLArray:
        return _call("or", self, other)

    def __ror__(self, other: Other) -> DLArray:
        return _call("or", other, self)

    def __xor__(self, other: Other) -> DLArray:
        return _call("xor", self, other)

    def __rxor__(self, other: Other) -> DLArray:
        return _call("xor", other, self)

    def __invert__(self) -> DLArray:
        return _call("not", self)

    # the second call form of the commonest functions: x.sum("C") is sum(x, "C") ----------------------------------
    def finddim(self, label: str) -> tuple[int, ...]:
        """Dimensions with that label."""
        return _call("finddim", self, label)

    def stripdims(self, fmt: str | None = None) -> DLArray:
        """The same array without labels, still traced."""
        return _call("stripdims", self, fmt)

    def gather(self) -> DLArray:
        """The same array on the host."""
        return _call("gather", self)

    def underlyingType(self) -> str:
        """'single', 'double' or 'logical'."""
        return TYPE_NAMES[self.dtype]

    def astype(self, dtype: Any) -> DLArray:
        """The same numbers in another type: single, double or logical (names or NumPy dtypes)."""
        return _call("cast", self, dtype)

    def sum(self, *args: Any, **options: Any) -> DLArray:
        """See `minidl.sum`."""
        return _call("sum", self, *args, **options)

    def mean(self, *args: Any, **options: Any) -> DLArray:
        """See `minidl.mean`."""
        return _call("mean", self, *args, **options)

    def prod(self, *args: Any, **options: Any) -> DLArray:
        """See `minidl.prod`."""
        return _call("prod", self, *args, **options)

    def max(self, *args: Any, **options: Any) -> DLArray:
        """See `minidl.max`."""
        return _call("max", self, *args, **options)

    def min(self, *args: Any, **options: Any) -> DLArray:
        """See `minidl.min`."""
        return _call("min", self, *args, **options)

    def std(self, *args: Any, **options: Any) -> DLArray:
        """See `minidl.std`."""
        return _call("std", self, *args, **options)

    def var(self, *args: Any, **options: Any) -> DLArray:
        """See `minidl.var`."""
        return _call("var", self, *args, **options)

    def median(self, *args: Any, **options: Any) -> DLArray:
        """See `minidl.median`."""
        return _call("median", self, *args, **options)

    def any(self, *args: Any, **options: Any) -> DLArray:
        """See `minidl.any`."""
        return _call("any", self, *args, **options)

    def all(self, *args: Any, **options: Any) -> DLArray:
        """See `minidl.all`."""
        return _call("all", self, *args, **options)

    def cumsum(self, *args: Any, **options: Any) -> DLArray:
        """See `minidl.cumsum`."""
        return _call("cumsum", self, *args, **options)

    def reshape(self, *size: Any, **options: Any) -> DLArray:
        """See `minidl.reshape`."""
        return _call("reshape", self, *size, **options)

    def permute(self, *order: Any, **options: Any) -> DLArray:
        """See `minidl.permute`."""
        return _call("permute", self, *order, **options)

    def transpose(self, *args: Any, **options: Any) -> DLArray:
        """See `minidl.transpose`."""
        return _call("transpose", self, *args, **options)

    def squeeze(self, *args: Any, **options: Any) -> DLArray:
        """See `minidl.squeeze`."""
        return _call("squeeze", self, *args, **options)

    def repmat(self, *counts: Any, **options: Any) -> DLArray:
        """See `minidl.repmat`."""
        return _call("repmat", self, *counts, **options)

    def flip(self, *args: Any, **options: Any) -> DLArray:
        """See `minidl.flip`."""
        return _call("flip", self, *args, **options)


for _name in elsewhere.METHODS.keys() - vars(DLArray).keys():
    _add_missing(_name, elsewhere.METHODS[_name])


_LINES = 24  # of a display, at most


def _displayed(data: np.ndarray) -> str:
    """Numbers as text, not many lines of it."""
    for corner in (3, 2, 1):
        text = np.array2string(data, prefix="", threshold=200, edgeitems=corner, precision=4)
        if text.count("\n") < _LINES:
            return text
    return "\n".join([*text.splitlines()[: _LINES - 1], "..."])


def _shown_places(n: int) -> list[int | None]:
    """Which rows or columns a table shows; None for those left out."""
    return list(range(n)) if n <= 10 else [0, 1, 2, 3, None, n - 3, n - 2, n - 1]


def dlarray(X: Any, fmt: str | None = None) -> DLArray:
    """Wrap data as a dlarray, with dimension labels if `fmt` is given.

    X   : dlarray, NumPy array (or anything that becomes one) of double, single or logical; Python numbers and lists
          of them become double. The data are copied, in the same order in memory, so that changing the array
          afterwards does not change the dlarray. An array that owns its data and is read-only is not copied
          (X.flags.writeable = False; views of X that were made before must not be written to), nor is a dlarray.
          A list (or tuple, nested ones too) may have dlarrays in it, all of one size: they are stacked as NumPy stacks
          arrays, along a new first dimension, [x, y] of two scalars being a vector; the result is traced as they are.
          Formatted ones are stacked along a new last dimension, labelled U, and must have one format; where `fmt` is
          given, it labels the new first dimension and theirs. All functions that take arrays take such lists.
    fmt : a label per dimension of X: S spatial, C channel, B batch, T time, U unspecified. The result's dimensions
          stand in the order S..., C, B, T, U...: X of size 3x4 with "TS" becomes 4(S) x 3(T). More labels than
          dimensions add dimensions of size 1. One label for a vector gives a column, n x 1, labelled with U.
          If X is formatted already, `fmt` replaces its labels.
    Raises LabelError for wrong labels, DTypeError for data of another type (integers, complex, text) and for arrays
    that are more than their numbers (a mask, units, records), ShapeError for a list of dlarrays of unlike sizes.
    Source: MathWorks, reference page "dlarray".

    >>> dlarray([[1.0, 2.0, 3.0]], "BC").shape
    (3, 1)
    >>> dlarray([1.0, 2.0], "C")
    2(C) × 1(U) dlarray: [[1.], [2.]]
    """
    if isinstance(X, DLArray):
        return DLArray(X._value, X._labels) if fmt is None else _label(X._value, fmt)
    if type(X) not in _PLAIN and (type(X) is not np.ndarray or X.dtype.kind == "O"):
        found = gathered("dlarray", X, is_labelled=fmt is None)
        if found is not None:
            return found if fmt is None else _label(found._value, fmt)
    return _wrapped(kept_data(check_data("dlarray", X), X), fmt)


def adopted(data: Any, fmt: str | None = None) -> DLArray:
    """`dlarray` without a copy: only for an array just made, that nobody outside of minidl has seen."""
    return _wrapped(check_data("dlarray", data), fmt)


def _wrapped(data: np.ndarray, fmt: str | None) -> DLArray:
    value = Value(Spec(data.shape, data.dtype, device_of(data)), data)
    return DLArray(value) if fmt is None else _label(value, fmt)


def isdlarray(x: object) -> bool:
    """Whether x is a dlarray.

    >>> isdlarray(dlarray(1.0)), isdlarray(1.0)
    (True, False)
    """
    return isinstance(x, DLArray)


def numbers(x: DLArray) -> np.ndarray:
    """The data of x, in the host's memory, for use outside of minidl's ops; recordings are told that Python looked."""
    return host(_data(x))


def _data(x: DLArray) -> Any:
    """The same wherever they lie."""
    value = x._value
    if value.data is None:
        raise TraceError("dlarray: an abstract array has no numbers. Compute with ops only inside the body of an op.")
    if open_tapes():
        note_read(value)
    elif following:
        note_use_elsewhere(value)
    return value.data


def _keep_traced(x: DLArray, what: str) -> None:
    """Raise TraceError if numbers that leave x now would lose their derivative. Logical ones have none."""
    if following and x._value.spec.dtype.kind == "f" and is_differentiated(x._value):
        raise TraceError(
            f"dlarray: at {own_line()} a traced dlarray ({describe(x.shape, x._labels)}) {what}: what is computed "
            "from that would be a constant to dlgradient. Use a function of minidl, or of NumPy's on the dlarray "
            "itself (A @ X, np.sum(X), sin(X), vertcat(X, Y)); extractdata(X) if no derivative is wanted; or @op for a "
            "function of your own."
        )


def is_unchangeable(data: Any) -> bool:
    """Whether nobody can change these numbers: a read-only NumPy array that owns them, or a view of such ones."""
    while type(data) is np.ndarray and not data.flags.writeable:
        if data.flags.owndata:
            return True
        data = data.base
    return False


def kept_data(data: np.ndarray, source: Any) -> np.ndarray:
    """What a Value keeps of `data`, which is `source` as an array: itself if nobody can change it, else a copy."""
    return data if type(source) in _COPIED or is_unchangeable(data) else data.copy("K")


_COPIED = {bool, int, float, list, tuple, range, np.float32, np.float64, np.bool_}  # of these NumPy makes new arrays


def gathered(who: str, X: Any, *, is_labelled: bool = True) -> DLArray | None:
    """A list with dlarrays in it, at any depth, as one dlarray, traced; None for anything else.

    is_labelled : whether the elements' labels count (see `dlarray`).
    """
    if type(X) in _PLAIN:
        return None
    if isinstance(X, np.ndarray) and X.dtype.kind != "O":
        return None
    if getattr(getattr(X, "dtype", None), "kind", "") == "O":  # NumPy's or pandas' arrays of objects
        X = np.asarray(X).tolist()
        if isinstance(X, DLArray):  # an array of no dimensions
            return DLArray(X._value, X._labels if is_labelled else "")
    if not _is_list(X) or not _has_dlarrays(who, X):
        return None
    elements = [_element(who, x, is_labelled) for x in X]
    return _call("stacked", who, elements)


def plain_array(who: str, X: Any) -> Any:
    """Numbers or labels as a plain array in the host's memory, for what has no derivative: a NumPy array as it is.

    Recordings are told where dlarrays are looked at. Arrays that are more than their numbers are refused.
    """
    if isinstance(X, np.ndarray):
        check_plain(who, X)
    found = X if isinstance(X, DLArray) else gathered(who, X)
    return np.asarray(X) if found is None else np.asarray(numbers(found))


def shape_of(X: Any) -> tuple[int, ...]:
    """Sizes of anything that an array can be made of."""
    if isinstance(X, DLArray):
        return X._value.spec.shape
    found = gathered("size", X)
    return np.shape(X) if found is None else found._value.spec.shape


def _is_list(X: Any) -> bool:
    return isinstance(X, (list, tuple)) or isinstance(X, Sequence) and not isinstance(X, _NO_LISTS)


_NO_LISTS = (str, bytes, bytearray, memoryview, range)
_PLAIN = {bool, int, float, str, type(None), np.float32, np.float64, np.bool_, np.int32, np.int64, np.str_}


def _has_dlarrays(who: str, X: Any, depth: int = 1) -> bool:
    """Whether a list has dlarrays in it, at any depth. Elements that are no plain arrays are refused on the way."""
    if depth > 64:
        raise DTypeError(f"{who}: a list is nested too deeply. Arrays have up to 64 dimensions; is it in itself?")
    if _PLAIN.issuperset(map(type, X)):
        return False
    found = False
    for x in X:
        if isinstance(x, DLArray):
            found = True
        elif isinstance(x, np.ndarray):
            check_plain(who, x)
            found |= x.dtype.kind == "O" and _has_dlarrays(who, x.reshape(-1).tolist(), depth + 1)
        elif _is_list(x):
            found |= _has_dlarrays(who, x, depth + 1)
    return found


def _element(who: str, x: Any, is_labelled: bool) -> DLArray:
    """An element of such a list."""
    if isinstance(x, DLArray):
        return x if is_labelled else DLArray(x._value)
    found = gathered(who, x, is_labelled=is_labelled)
    if found is not None:
        return found
    if is_on_gpu(x):
        return dlarray(x)
    data = check_data(who, [x])  # as NumPy has it, whole numbers in lists are real ones
    return _wrapped(data.reshape(data.shape[1:]), None)


def check_plain(who: str, x: Any) -> None:
    """Raise DTypeError for an array that is more than its numbers: with a mask, with units, a record."""
    kind: Any = type(x)
    if kind is np.ndarray or isinstance(x, (np.memmap, np.matrix)):
        return
    if isinstance(x, np.ma.MaskedArray):
        remedy = "Its mask would be lost: fill it, x.filled(value), or take what is not masked, x.compressed()."
    elif hasattr(kind, "magnitude") and hasattr(kind, "units"):
        remedy = "Its units would be lost: convert it to those that you mean, and take x.magnitude."
    elif isinstance(x, np.ndarray):
        remedy = "What it is beside its numbers would be lost. If they alone are meant: np.asarray(x)."
    else:
        return
    raise DTypeError(f"{who}: a plain array is wanted; got {kind.__name__}. {remedy}")


def refuse_matrix(who: str, x: Any) -> None:
    """Raise DTypeError for a np.matrix where its own meaning of * would be lost."""
    if isinstance(x, np.matrix):
        raise DTypeError(
            f"{who}: the * of a {type(x).__name__} is a matrix product, that of a dlarray is not. "
            "Write np.asarray(x), and @ for the product."
        )


def check_data(who: str, X: Any) -> np.ndarray:
    """X as a NumPy array of a type that a dlarray can hold; otherwise a DTypeError with the remedy."""
    if type(X) not in _COPIED:
        check_plain(who, X)
    is_plain = isinstance(X, (bool, int, float, list, tuple, range))
    try:
        data = gpu_array(who, X) if type(X) not in _COPIED and is_on_gpu(X) else np.asarray(X)
    except (ValueError, TypeError) as error:
        raise DTypeError(f"{who}: a rectangular array is wanted; got {type(X).__name__} ({error}).") from None
    if data.dtype.kind == "f" and data.dtype.itemsize in (4, 8) or data.dtype.kind == "b":
        return data if data.dtype.isnative else data.astype(data.dtype.newbyteorder("="))
    if is_plain and data.dtype.kind in "iu":
        return data.astype(np.float64)
    raise DTypeError(
        f"{who}: dlarray is supported only for full arrays of data type double, single or logical; "
        f"got {type(X).__name__}{_type_of(X, data)}. {_remedy(X, data.dtype)}"
    )


def _type_of(X: Any, data: np.ndarray) -> str:
    return f" of {data.dtype}" if data.dtype.kind != "O" or hasattr(X, "dtype") or isinstance(X, (list, tuple)) else ""


def _remedy(X: Any, dtype: np.dtype[Any]) -> str:
    """What can be done with something that is no array for dlarrays."""
    home = type(X).__module__.partition(".")[0]
    if X is None:
        return "There is no value; a function that returns nothing gives None."
    if home == "PIL":
        return "An image as numbers: np.asarray(image, 'float32') / 255."
    if hasattr(X, "toarray"):
        return "A sparse matrix as a full one: X.toarray()."
    if dtype.kind != "O":
        return {
            "c": "Complex numbers are not supported: work on real(x) and imag(x) as two arrays.",
            "i": "Convert it: x.astype('float32').",
            "u": "Convert it: x.astype('float32') (and divide by 255 if it is an image).",
            "f": "Convert it: x.astype('float32').",
            "M": "Count from a moment of your own: (x - x[0]) / np.timedelta64(1, 's').",
            "m": "Divide by a unit: x / np.timedelta64(1, 's').",
        }.get(dtype.kind, "Encode it as numbers first (labels: onehotencode).")
    if isinstance(X, numbers_.Number) or home == "decimal":
        return "Convert it: float(x)."
    if isinstance(X, dict):
        return "Wrap its fields one by one: dlupdate(dlarray, S) does it for all."
    if isinstance(X, (list, tuple, np.ndarray)):
        kinds = {type(x).__name__ for x in np.asarray(X, dtype=object).reshape(-1)}
        return f"It holds {' and '.join(sorted(kinds))}. Convert each element: [float(x) for x in X]."
    if isinstance(X, Iterable) and not hasattr(X, "dtype"):
        return "Make a list of it: list(x)."
    if callable(X):
        return "It is a function: call it."
    return "Encode it as numbers first (labels: onehotencode)."


def operand(who: str, x: Any, *, is_kept: bool = True) -> Any:
    """An operand that is no DLArray: a number stays a number (it has no type of its own), an array is wrapped.

    is_kept : whether somebody will read the operand after this call, a tape or a result that is a view of it.
    """
    kind = type(x)
    if kind is float or kind is int or kind is bool:
        return x
    if kind is not np.ndarray:
        check_plain(who, x)
        refuse_matrix(who, x)
    if isinstance(x, np.generic) or (isinstance(x, np.ndarray) and x.ndim == 0):
        x = x.item()
    if isinstance(x, (bool, int, float)):
        return x
    if type(x) is not np.ndarray or x.dtype.kind == "O":
        found = DLArray(x._value, x._labels) if isinstance(x, DLArray) else gathered(who, x)
        if found is not None:
            return found
    data = check_operand(who, x)
    return _wrapped(kept_data(data, x) if is_kept else data, None)


def check_operand(who: str, x: Any) -> np.ndarray:
    """Like check_data, but subscripts (integer arrays) pass: some ops take them."""
    if type(x) is np.ndarray and x.dtype.kind in "iu" and x.dtype.itemsize == 8:
        return x
    return check_data(who, x)


def _label(value: Value, fmt: str) -> DLArray:
    fmt = check_format("dlarray", fmt)
    shape = value.spec.shape
    if not fmt:
        return DLArray(value)
    if len(fmt) == 1:
        if sum(n != 1 for n in shape) > 1:
            raise LabelError(
                f'dlarray: one label ("{fmt}") is enough for a vector only; the data is {describe(shape)}. '
                "Give a label for each dimension."
            )
        return _arranged(value, (value.spec.size, 1), fmt + "U")
    while len(shape) > len(fmt) and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > len(fmt):
        raise LabelError(
            f'dlarray: "{fmt}" labels {len(fmt)} dimensions, the data has {len(shape)} ({describe(shape)}). '
            "Give a label for each dimension."
        )
    return _arranged(value, shape + (1,) * (len(fmt) - len(shape)), fmt)


def _arranged(value: Value, shape: tuple[int, ...], fmt: str) -> DLArray:
    """Put the dimensions in stored order and drop trailing singleton U dimensions after the second."""
    order = stored_order(fmt)
    labels = "".join(fmt[i] for i in order)
    final = [shape[i] for i in order]
    while len(final) > 2 and labels[-1] == "U" and final[-1] == 1:
        final.pop()
        labels = labels[:-1]
    x = DLArray(value)
    if shape != value.spec.shape:
        x = _call("view_as", x, shape)
    if order != tuple(range(len(order))):
        x = _call("reorder", x, order)
    if len(final) != len(order):
        x = _call("view_as", x, tuple(final))
    return DLArray(x._value, labels)


def _restore(data: np.ndarray, labels: str, device: str = "cpu") -> DLArray:
    """From a pickle, on the device where it was; its buffers may be the caller's."""
    if device == "gpu":
        need_gpu("unpickling a dlarray that was on a GPU")
        return DLArray(_wrapped(gpu_array("dlarray", data), None)._value, labels)
    return DLArray(_wrapped(kept_data(data, data), None)._value, labels)
