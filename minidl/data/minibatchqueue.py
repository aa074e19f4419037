"""minibatchqueue: mini-batches from a datastore, preprocessed, cast and wrapped as dlarrays."""

from __future__ import annotations

import copy
import inspect
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from minidl.core.device import gpu_array, gpu_complaint, host, is_on_gpu
from minidl.core.dlarray import DLArray, adopted, check_plain, dlarray, kept_data
from minidl.core.errors import (
    DataError,
    DeviceError,
    DTypeError,
    EmptyDataError,
    MinidlError,
    OptionError,
    ShapeError,
    choice,
    truth,
)
from minidl.core.labels import check_format
from minidl.core.options import options
from minidl.data.datastore import Datastore, Source, check_datastore, is_whole, kind_of
from minidl.data.resident import Resident, resident, variables_of
from minidl.ops.facts import cast as cast_to
from minidl.ops.views import on, view_as

Array: TypeAlias = NDArray[Any]

_CASTS: dict[str, Any] = {"": None, "single": np.float32, "double": np.float64, "logical": np.bool_}
_CASTS |= {f"{sign}int{bits}": getattr(np, f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)}
_AHEAD = 2


class EndOfDataError(EmptyDataError, StopIteration):
    """A minibatchqueue has no further mini-batch; a StopIteration, so that Python's `next` and `for` understand it."""


class _Output(NamedTuple):
    """What is done to one output of the mini-batch function."""

    cast: str
    as_dlarray: bool
    format: str
    environment: str


class _Recipe:
    """How observations start .. stop-1 become the arrays of a mini-batch. Knows nothing of the queue that owns it."""

    def __init__(self, ds: Datastore, fcn: Callable[..., Any] | None, inputs: int, outputs: list[_Output]) -> None:
        self.ds, self.fcn, self.inputs, self.outputs = ds, fcn, inputs, outputs
        self.casts = [_CASTS[output.cast] for output in outputs]
        self._devices: list[str] = []

    def prepare(self, start: int, stop: int) -> list[Any]:
        """The cast arrays of one mini-batch, not yet wrapped; those that will be are nobody else's."""
        count = len(self.outputs)
        if self.fcn is None:
            arrays = self.ds.take_arrays(start, stop)[:count]
            for i, output in enumerate(self.outputs):
                arrays[i] = _with_channel(arrays[i], output.format)
        else:
            try:
                result = self.fcn(*self.ds.take(start, stop)[: self.inputs])
            except StopIteration as error:  # it would end the user's for loop without a word
                raise DataError(f"minibatchqueue: MiniBatchFcn {_name(self.fcn)} raised StopIteration.") from error
            is_several = isinstance(result, tuple) or (isinstance(result, list) and (count > 1 or len(result) == 1))
            arrays = list(result) if is_several else [result]
            if len(arrays) != count or result is None:
                raise ShapeError(
                    f"minibatchqueue: MiniBatchFcn {_name(self.fcn)} is expected to return {count} "
                    f"array{'s as a tuple' if count > 1 else ''}; got {kind_of(result)}. Give numOutputs, the second "
                    "argument, the number of arrays that it returns."
                )
        made = [_cast(x, cast, i) for i, (x, cast) in enumerate(zip(arrays, self.casts, strict=True))]
        if self.fcn is None:
            return made
        return [_own(y, x) if output.as_dlarray else y for y, x, output in zip(made, arrays, self.outputs, strict=True)]

    def wrap(self, arrays: list[Any]) -> list[Any]:
        """The arrays as the user gets them, where he wants them."""
        wrapped = []
        for i, (x, output, device) in enumerate(zip(arrays, self.outputs, self.devices(), strict=True)):
            try:
                is_new = type(x) is np.ndarray
                if device == "gpu" and is_new and (output.as_dlarray or x.dtype.kind in "fiub"):
                    x = gpu_array("minibatchqueue", x)
                if output.as_dlarray:
                    x = on((adopted if is_new else dlarray)(x, output.format or None), device)
                else:
                    x = _plain(x, device)
            except MinidlError as error:
                raise type(error)(f"minibatchqueue: output {i}: {error}") from None
            wrapped.append(x)
        return wrapped

    def devices(self) -> list[str]:
        """Where each output goes. Whether there is a GPU is asked at the first mini-batch."""
        if not self._devices:
            places = [output.environment for output in self.outputs]
            auto = "gpu" if "auto" in places and not gpu_complaint() else "cpu"
            self._devices = [auto if place == "auto" else place for place in places]
        return self._devices


class _Ahead:
    """A thread that prepares mini-batches before they are asked for. Ends with its data, an error, or `close`."""

    def __init__(self, recipe: _Recipe, bounds: Iterator[tuple[int, int]]) -> None:
        self._ready: deque[Any] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, args=(recipe, bounds), name="minibatchqueue", daemon=True)
        self._thread.start()

    def _work(self, recipe: _Recipe, bounds: Iterator[tuple[int, int]]) -> None:
        for start, stop in bounds:
            with self._changed:
                while len(self._ready) >= _AHEAD and not self._is_closed:
                    self._changed.wait()
                if self._is_closed:
                    return
            try:
                item: Any = recipe.prepare(start, stop)
            except BaseException as error:  # raised again in next()
                item = error
            with self._changed:
                self._ready.append(item)
                self._changed.notify_all()
            if isinstance(item, BaseException):
                return

    def next(self) -> list[Any]:
        """The next prepared mini-batch; the error of the one that failed, with its traceback."""
        with self._changed:
            while not self._ready:
                self._changed.wait()
            item = self._ready.popleft()
            self._changed.notify_all()
        if isinstance(item, BaseException):
            raise item
        arrays: list[Any] = item
        return arrays

    def close(self) -> None:
        """Have the thread end after the mini-batch it is working on."""
        with self._changed:
            self._is_closed = True
            self._ready.clear()
            self._changed.notify_all()


class MiniBatchQueue(Source):
    """Mini-batches of a datastore, one after the other. Make one with `minibatchqueue(ds, ...)`."""

    def __init__(self, recipe: _Recipe, size: int, partial: str, environment: str) -> None:
        self._recipe = recipe
        self._size, self._partial, self._preprocessing = size, partial, environment
        self._position = 0
        self._ahead: _Ahead | None = None
        self._finalizer: Any = None
        self._resident: Resident | None = None  # where data and order lie on the GPU
        self._is_renewed = False  # since the last change of the order

    # properties, as in MATLAB fixed when the queue is made
    @property
    def MiniBatchSize(self) -> int:
        """Observations in a mini-batch."""
        return self._size

    @property
    def PartialMiniBatch(self) -> str:
        """What becomes of a last batch that is smaller: "return" or "discard"."""
        return self._partial

    @property
    def MiniBatchFcn(self) -> Any:
        """The user's function, or "collate"."""
        return "collate" if self._recipe.fcn is None else self._recipe.fcn

    @property
    def PreprocessingEnvironment(self) -> str:
        """Who prepares the mini-batches: "serial", the caller; "background", a thread."""
        return self._preprocessing

    @property
    def DispatchInBackground(self) -> bool:
        """The older name: whether PreprocessingEnvironment is "background"."""
        return self._preprocessing == "background"

    @property
    def NumOutputs(self) -> int:
        """How many arrays a mini-batch has."""
        return len(self._recipe.outputs)

    @property
    def OutputCast(self) -> list[str]:
        """Type of each output, "" for unchanged."""
        return [output.cast for output in self._recipe.outputs]

    @property
    def OutputAsDlarray(self) -> list[bool]:
        """Whether each output becomes a dlarray."""
        return [output.as_dlarray for output in self._recipe.outputs]

    @property
    def MiniBatchFormat(self) -> list[str]:
        """Dimension labels of each output."""
        return [output.format for output in self._recipe.outputs]

    @property
    def OutputEnvironment(self) -> list[str]:
        """Where each output is placed."""
        return [output.environment for output in self._recipe.outputs]

    def __repr__(self) -> str:
        fcn = "'collate'" if self._recipe.fcn is None else f"@{_name(self._recipe.fcn)}"
        count = self.NumOutputs
        flags = " ".join(str(int(flag)) for flag in self.OutputAsDlarray)
        lines = [
            ("Mini-batch creation:", None),
            ("MiniBatchSize", str(self._size)),
            ("PartialMiniBatch", f"'{self._partial}'"),
            ("MiniBatchFcn", fcn),
            ("PreprocessingEnvironment", f"'{self._preprocessing}'"),
            ("Outputs:", None),
            ("OutputCast", _cell(self.OutputCast)),
            ("OutputAsDlarray", flags if count == 1 else f"[{flags}]"),
            ("MiniBatchFormat", _cell(self.MiniBatchFormat)),
            ("OutputEnvironment", _cell(self.OutputEnvironment)),
        ]
        head = f"minibatchqueue with {count} output{'s' if count != 1 else ''} and properties:"
        return "\n".join([head, *(f"   {name}" if text is None else f"{name:>28}: {text}" for name, text in lines)])

    # reading
    def __iter__(self) -> MiniBatchQueue:
        return self

    def __next__(self) -> Any:
        start = self._position
        stop = min(start + self._size, self._end())
        if stop <= start:
            raise EndOfDataError(
                f"next: the minibatchqueue has no further mini-batch ({len(self._recipe.ds)} observations, "
                f"MiniBatchSize {self._size}, PartialMiniBatch '{self._partial}'). Ask hasdata(mbq) first; reset(mbq) "
                "or shuffle(mbq) begins anew."
            )
        if not self._is_renewed:
            self._renew()
        if self._resident is not None and stop - start == self._size:
            picked = self._resident.next(start)
            if picked is not None:
                self._position = stop
                return picked[0]
        try:
            if self._preprocessing == "background" and self._resident is None:
                arrays = self._worker().next()
            else:
                arrays = self._recipe.prepare(start, stop)
        except BaseException as error:
            self._stop()  # whatever it was, the next call starts over from here
            if self._recipe.fcn is not None and isinstance(error, Exception):
                _tell(error, self._which(start, stop))
            raise
        try:
            outputs = self._recipe.wrap(arrays)
        except MinidlError:
            self._stop()
            raise
        self._position = stop
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def next(self) -> Any:
        """The next mini-batch: one array, or a tuple of NumOutputs arrays. The same as `next(mbq)`."""
        return self.__next__()

    def hasdata(self) -> bool:
        """Whether there is a further mini-batch."""
        return self._position < self._end()

    def reset(self) -> None:
        """Start again at the first mini-batch, in the present order."""
        self._stop()
        self._position, self._is_renewed = 0, False

    def shuffle(self) -> None:
        """Put the observations in a new random order (from the global generator: see `rng`) and start again."""
        recipe = self._recipe
        ds = recipe.ds.shuffle()
        self.reset()
        self._recipe = _Recipe(ds, recipe.fcn, recipe.inputs, recipe.outputs)

    def partition(self, n: int, i: int) -> MiniBatchQueue:
        """A new queue with the same properties over part i (from 0) of n of the observations in their present order."""
        recipe = self._recipe
        part = _Recipe(recipe.ds.partition(n, i), recipe.fcn, recipe.inputs, recipe.outputs)
        return MiniBatchQueue(part, self._size, self._partial, self._preprocessing)

    def _renew(self) -> None:
        """Have the data on the GPU, in the present order, if that is where the mini-batches go to as they are."""
        self._is_renewed, recipe = True, self._recipe
        outputs = recipe.outputs
        if recipe.fcn is not None or not all(output.as_dlarray for output in outputs):
            return
        if set(recipe.devices()) != {"gpu"}:
            return
        variables = variables_of(recipe.ds, recipe.casts, [output.format for output in outputs])
        if variables is None:
            self._resident = None
        elif self._resident is not None:
            self._resident.renew(variables)
        else:
            self._resident = resident(variables, self._size)

    def _which(self, start: int, stop: int) -> str:
        """Which mini-batch that is, for messages."""
        numbers = self._recipe.ds._order[start:stop].tolist()
        if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
            shown = f"{numbers[0]} to {numbers[-1]}"
        else:
            shown = ", ".join(map(str, numbers[:8])) + (" ..." if len(numbers) > 8 else "")
        return (
            f"minibatchqueue: MiniBatchFcn {_name(self._recipe.fcn)}, mini-batch {start // self._size} "
            f"(from 0), observations {shown}."  # as the datastore counts them
        )

    def _end(self) -> int:
        count = len(self._recipe.ds)
        return count - count % self._size if self._partial == "discard" else count

    def _worker(self) -> _Ahead:
        if self._ahead is None:
            end, size = self._end(), self._size
            bounds = ((start, min(start + size, end)) for start in range(self._position, end, size))
            self._ahead = _Ahead(self._recipe, bounds)
            self._finalizer = weakref.finalize(self, self._ahead.close)
        return self._ahead

    def _stop(self) -> None:
        if self._ahead is not None:
            self._finalizer()
            self._ahead = None


@options
def minibatchqueue(
    ds: Datastore,
    numOutputs: int | None = None,
    *,
    MiniBatchSize: int = 128,
    PartialMiniBatch: Literal["return", "discard"] = "return",
    MiniBatchFcn: str | Callable[..., Any] = "collate",
    PreprocessingEnvironment: Literal["serial", "background"] = "serial",
    DispatchInBackground: bool | None = None,
    OutputCast: str | list[str] = "single",
    OutputAsDlarray: bool | list[bool] = True,
    MiniBatchFormat: str | list[str] = "",
    OutputEnvironment: str | list[str] = "auto",
) -> MiniBatchQueue:
    """Mini-batches of a datastore, one after the other: `while hasdata(mbq): X, T = next(mbq)`, or `for X, T in mbq`.

    ds         : datastore with an observation (or a row of several variables) per read.
    numOutputs : arrays in a mini-batch; default: one for each variable of ds.
    MiniBatchSize    : observations in a mini-batch.
    PartialMiniBatch : "return" or "discard" a last mini-batch that is smaller.
    MiniBatchFcn     : "collate": the observations of the first numOutputs variables put together again along the
                       dimension they were cut from (28x28x1 images: 28x28x1xN; rows of an N x F matrix: N x F; from
                       stores that are no plain array: rows and numbers below each other, all else along a new last
                       dimension); if the format has more labels, missing dimensions of size 1 go before the last.
                       Or a function: each parameter without default is given the list of the observations of one
                       variable, in the order of the variables (*args: all of them); it returns numOutputs arrays, as
                       a tuple.
    PreprocessingEnvironment : "serial", or "background": a thread prepares up to two mini-batches ahead. Same results,
                       same order. DispatchInBackground=True is its older name.
    OutputCast, OutputAsDlarray, MiniBatchFormat, OutputEnvironment : one value for all outputs, or a list with one for
                       each: type ("" for unchanged), whether to wrap as dlarray, dimension labels ("" for none), and
                       place: "auto", on the GPU if there is one that can be used (see canUseGPU), otherwise in host
                       memory; "cpu"; "gpu". On the GPU plain numbers are CuPy arrays. MiniBatchFcn gets data in host
                       memory and returns such, or arrays that it has put on the GPU itself. With "collate" the data
                       themselves are kept on the GPU if they take no more than a quarter of its free memory; an array
                       of the user's that they come from is read again at reset and shuffle.
    The queue is an object with a position; `shuffle(mbq)` and `reset(mbq)` change it. After an error in a mini-batch
    the queue stands before that mini-batch.
    Raises OptionError for unknown options and values, DTypeError if ds is no datastore; while reading ShapeError if
    MiniBatchFcn returns another number of arrays or observations differ in shape, LabelError if a format does not fit,
    EndOfDataError (an EmptyDataError and StopIteration) at the end. DeviceError if OutputEnvironment is "gpu" and no
    GPU can be used.
    Source: MathWorks, reference page "minibatchqueue".

    >>> from minidl.data.datastore import arrayDatastore, combine
    >>> X = np.arange(12.0).reshape(2, 6)
    >>> mbq = minibatchqueue(arrayDatastore(X, IterationDimension=1), MiniBatchSize=4, MiniBatchFormat="CB")
    >>> [x.shape for x in mbq]
    [(2, 4), (2, 2)]
    """
    who = "minibatchqueue"
    check_datastore(who, ds)
    if not is_whole(MiniBatchSize) or MiniBatchSize < 1:
        raise OptionError(f"{who}: MiniBatchSize is a whole number of observations >= 1; got {MiniBatchSize!r}.")
    if numOutputs is not None and (not is_whole(numOutputs) or numOutputs < 1):
        raise OptionError(f"{who}: numOutputs is a whole number >= 1; got {numOutputs!r}.")
    partial = choice(who, "PartialMiniBatch", PartialMiniBatch, ["return", "discard"])
    environment = choice(who, "PreprocessingEnvironment", PreprocessingEnvironment, ["serial", "background"])
    if DispatchInBackground is not None:
        environment = "background" if truth(who, "DispatchInBackground", DispatchInBackground) else "serial"
    variables = len(ds.take(0, 1))
    count = variables if numOutputs is None else int(numOutputs)
    fcn: Callable[..., Any] | None
    if callable(MiniBatchFcn):
        fcn, inputs = MiniBatchFcn, _input_count(MiniBatchFcn, variables, numOutputs)
    else:
        if not isinstance(MiniBatchFcn, str) or MiniBatchFcn.lower() != "collate":
            raise OptionError(f'{who}: MiniBatchFcn is "collate" or a function; got {MiniBatchFcn!r}.')
        if count > variables:
            raise OptionError(
                f"{who}: {count} outputs are wanted, but the datastore has {variables} variable{'s' * (variables > 1)}."
                " Give a smaller numOutputs, or a MiniBatchFcn that makes the others."
            )
        fcn, inputs = None, count
    casts = _per_output("OutputCast", OutputCast, count, str)
    formats = [check_format(who, fmt) for fmt in _per_output("MiniBatchFormat", MiniBatchFormat, count, str)]
    places = _per_output("OutputEnvironment", OutputEnvironment, count, str)
    flags = _per_output("OutputAsDlarray", OutputAsDlarray, count, (bool, int, np.bool_, np.integer))
    outputs = [
        _Output(
            choice(who, "OutputCast", cast, _CASTS),
            truth(who, "OutputAsDlarray", flag),
            fmt,
            choice(who, "OutputEnvironment", place, ["auto", "cpu", "gpu"]),
        )
        for cast, flag, fmt, place in zip(casts, flags, formats, places, strict=True)
    ]
    _check_outputs(outputs)
    return MiniBatchQueue(_Recipe(copy.copy(ds), fcn, inputs, outputs), int(MiniBatchSize), partial, environment)


# pieces ---------------------------------------------------------------------------------------------------------
def _input_count(fcn: Callable[..., Any], variables: int, num_outputs: int | None) -> int:
    """How many variables a mini-batch function takes: one for each parameter that has no default."""
    try:
        parameters = inspect.signature(fcn).parameters.values()
    except (TypeError, ValueError):  # some built-in functions do not tell
        return min(num_outputs or variables, variables)
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return variables
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = sum(p.default is p.empty for p in positional) or min(len(positional), variables)
    if not 1 <= needed <= variables:
        raise OptionError(
            f"minibatchqueue: MiniBatchFcn {_name(fcn)} takes {needed} variables, the datastore has {variables}. Give "
            "the function one parameter for each variable it uses, and defaults to its other parameters."
        )
    return needed


def _per_output(option: str, value: Any, count: int, kind: Any) -> list[Any]:
    values = list(value) if isinstance(value, (list, tuple, np.ndarray)) else [value] * count
    if len(values) != count:
        raise OptionError(
            f"minibatchqueue: {option} is one value for all outputs or a list of {count}, one for each; got "
            f"{len(values)} in {value!r}. (numOutputs, the second argument, sets how many there are.)"
        )
    for one in values:
        if not isinstance(one, kind):
            wanted = "text" if kind is str else "True or False"
            raise OptionError(f"minibatchqueue: {option} is {wanted}, for all outputs or in a list; got {one!r}.")
    return values


def _check_outputs(outputs: list[_Output]) -> None:
    for i, output in enumerate(outputs):
        if output.as_dlarray and output.cast.lstrip("u").startswith("int"):
            raise OptionError(
                f"minibatchqueue: output {i}: a dlarray cannot hold {output.cast}. Use single, double or logical, or "
                "OutputAsDlarray=False for this output."
            )
    complaint = gpu_complaint() if any(output.environment == "gpu" for output in outputs) else ""
    if complaint:
        raise DeviceError(
            f'minibatchqueue: OutputEnvironment "gpu" needs a GPU, and none can be used: {complaint} '
            'Or use "auto", which takes a GPU if there is one.'
        )


def _with_channel(array: Any, fmt: str) -> Any:
    """28x28xN as 28x28x1xN if the format has a label more: singleton dimensions before the last one."""
    missing = len(fmt) - array.ndim
    if missing <= 0 or array.ndim < 2 or fmt[-1] not in "BT":
        return array
    shape = (*array.shape[:-1], *(1,) * missing, array.shape[-1])
    return view_as(array, shape=shape) if isinstance(array, DLArray) else array.reshape(shape)


def _cast(x: Any, dtype: Any, number: int) -> Any:
    if dtype is None or (type(x) is np.ndarray and x.dtype == dtype):
        return x
    if is_on_gpu(x) if not isinstance(x, DLArray) else x.device == "gpu":
        return _cast_there(x, dtype, number)
    if isinstance(x, DLArray):
        return x if x.dtype == dtype else adopted(np.asarray(x).astype(dtype), x.dims() or None)
    if hasattr(x, "codes") and hasattr(x, "categories"):  # a pandas Categorical: its codes, NaN where undefined
        x = np.where(np.asarray(x.codes) < 0, np.nan, x.codes)
    check_plain(f"minibatchqueue: output {number}", x)
    array = np.asarray(x)
    if array.dtype.kind not in "fiubc":
        raise DTypeError(
            f"minibatchqueue: output {number} holds {array.dtype} (labels?), which cannot be cast to numbers. Encode "
            'it in a MiniBatchFcn with onehotencode, or leave it as it is: OutputCast="" and OutputAsDlarray=False '
            "for this output."
        )
    return array.astype(dtype, copy=False)


def _cast_there(x: Any, dtype: Any, number: int) -> Any:
    """`_cast` of an array on the GPU, which stays there."""
    if x.dtype == dtype:
        return x
    if np.dtype(dtype).kind in "iu":
        raise DTypeError(
            f"minibatchqueue: output {number} is on the GPU and cannot become {np.dtype(dtype).name} there. Use "
            'OutputCast "single", "double" or "logical", or let MiniBatchFcn return it in host memory.'
        )
    y = cast_to(dlarray(x), dtype)
    return y if isinstance(x, DLArray) else y.extractdata()


def _plain(x: Any, device: str) -> Any:
    """A plain output on that device. What is no numbers stays in host memory."""
    if isinstance(x, DLArray):
        return on(x, device)
    return host(x) if device == "cpu" and is_on_gpu(x) else x


def _own(y: Any, x: Any) -> Any:
    """y, which is x cast, as an array that MiniBatchFcn, which made x, cannot change any more."""
    if type(y) is not np.ndarray or (isinstance(x, np.ndarray) and x.dtype != y.dtype):
        return y
    return kept_data(y, x)


def _tell(error: Exception, note: str) -> None:
    """Add a line to what an error says."""
    if note in str(error) or note in getattr(error, "__notes__", ()):
        return
    if hasattr(error, "add_note"):
        error.add_note(note)
    elif error.args and isinstance(error.args[0], str):  # Python 3.10
        error.args = (f"{error.args[0]}\n{note}", *error.args[1:])


def _name(fcn: Any) -> str:
    return getattr(fcn, "__name__", None) or type(fcn).__name__


def _cell(texts: list[str]) -> str:
    return "{" + "  ".join(f"'{text}'" for text in texts) + "}"
