"""Plain facts about arrays (sizes, labels, types), the data out of them, and other types in.

Facts are Python numbers, texts and truths, never traced; NumPy arrays and numbers may be asked too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minidl.core.device import gpu_array, gpu_complaint, host, is_on_gpu, need_gpu
from minidl.core.dlarray import DLArray, Operand, dlarray, gathered, plain_array, public, shape_of
from minidl.core.errors import DTypeError, LabelError, OptionError, nearest
from minidl.core.labels import LETTERS, check_format
from minidl.core.spec import DOUBLE, LOGICAL, SINGLE, TYPE_NAMES
from minidl.core.tree import flatten
from minidl.ops.axes import Dim, array, axes_of
from minidl.ops.views import cast as cast_op
from minidl.ops.views import on, reorder, view_as

# sizes ----------------------------------------------------------------------------------------------------------


def size(X: Any, dim: Dim = None) -> Any:
    """Sizes of X: a tuple, or one number where `dim` is one dimension (a number, or a label that occurs once).

    Beyond the last dimension sizes are 1, as in MATLAB.

    >>> X = array(np.zeros((2, 3)))
    >>> size(X), size(X, 1), size(X, 4), size(X, (0, 1))
    ((2, 3), 3, 1, (2, 3))
    """
    shape = shape_of(X)
    if dim is None:
        return shape
    if isinstance(dim, (int, np.integer)) and dim >= len(shape):
        return 1
    found = tuple(shape[i] for i in axes_of("size", dim, shape, dims(X)))
    return found[0] if len(found) == 1 else found


def numel(X: Any) -> int:
    """Number of elements.

    >>> numel(array(np.zeros((2, 3))))
    6
    """
    count = 1
    for n in shape_of(X):
        count *= n
    return count


def ndims(X: Any) -> int:
    """Number of dimensions; unformatted arrays may have 0 or 1, unlike MATLAB's.

    >>> ndims(array(np.zeros((2, 3, 1))))
    3
    """
    return len(shape_of(X))


def length(X: Any) -> int:
    """The largest size; 0 if X has no elements, 1 for a scalar.

    >>> length(array(np.zeros((2, 3))))
    3
    """
    shape = shape_of(X)
    return 0 if 0 in shape else max(shape, default=1)


def isempty(X: Any) -> bool:
    """Whether X has no elements.

    >>> isempty(array(np.zeros((0, 3))))
    True
    """
    return 0 in shape_of(X)


def isreal(X: Any) -> bool:
    """Whether X holds real numbers; dlarrays always do.

    >>> isreal(array(1.0))
    True
    """
    return isinstance(X, DLArray) or gathered("isreal", X) is not None or not np.iscomplexobj(X)


# labels ---------------------------------------------------------------------------------------------------------


def dims(X: Any) -> str:
    """Labels of the dimensions of X in stored order; "" if it is unformatted.

    >>> dims(array(1.0))
    ''
    """
    found = X if isinstance(X, DLArray) else gathered("dims", X)
    return "" if found is None else found._labels


@public
def finddim(X: Any, label: str) -> tuple[int, ...]:
    """Dimensions of X with that label, from 0 on; an empty tuple if there are none or X is unformatted.

    size(X, finddim(X, "B")) is the number of observations.
    Source: MathWorks, reference page "finddim".

    >>> finddim(array(1.0), "B")
    ()
    """
    if not isinstance(label, str) or len(label) != 1 or label not in LETTERS:
        raise LabelError(f'finddim: one label of "{LETTERS}" is wanted; got {label!r}.')
    return tuple(i for i, letter in enumerate(dims(X)) if letter == label)


@public
def stripdims(X: Operand, fmt: str | None = None) -> DLArray:
    """X without labels, still traced.

    fmt : the order of dimensions wanted, as labels: undoes the reordering of dlarray(X, fmt). Labels that X does not
          have become dimensions of size 1. By default the dimensions stay in stored order.
    Raises LabelError if a label of X is missing in `fmt`.
    Source: MathWorks, reference page "stripdims".

    >>> X = dlarray([[1.0, 2.0, 3.0]], "BC")  # stored as C x B
    >>> stripdims(X).shape, stripdims(X, "BC").shape
    ((3, 1), (1, 3))
    """
    x = array(X)
    labels = x._labels
    x = DLArray(x._value)
    if fmt is None or not labels:
        return x
    check_format("stripdims", fmt)
    missing = [letter for letter in LETTERS if labels.count(letter) > fmt.count(letter)]
    if missing:
        raise LabelError(
            f'stripdims: X has the labels "{labels}", the format "{fmt}" lacks {", ".join(missing)}. '
            "Name every dimension of X."
        )
    free = {letter: [i for i, own in enumerate(labels) if own == letter] for letter in LETTERS}
    order = [free[letter].pop(0) if free[letter] else -1 for letter in fmt]
    kept = tuple(i for i in order if i >= 0)
    if kept != tuple(range(len(kept))):
        x = reorder(x, order=kept)
    if len(kept) < len(order):
        own = iter(x._value.spec.shape)
        x = view_as(x, shape=tuple([next(own) if i >= 0 else 1 for i in order]))
    return x


# data out -------------------------------------------------------------------------------------------------------


def extractdata(X: Any) -> Any:
    """The plain data of X, in stored order and not traced, as a copy: a NumPy array, or a CuPy array if X is on a GPU.

    A plain array is returned as it is; a list with dlarrays in it is stacked first, as `dlarray` does it.

    >>> extractdata(array([1.0, 2.0]))
    array([1., 2.])
    """
    if isinstance(X, DLArray):
        return X.extractdata()
    found = gathered("extractdata", X)
    if found is not None:
        return found.extractdata()
    return X if is_on_gpu(X) else plain_array("extractdata", X)


@public
def gather(X: Any) -> Any:
    """X in the host's memory: a dlarray with its labels, traced; of a plain array on a GPU a NumPy array.

    Where X is on the host already, it is X. The gradient goes back to the GPU.
    Source: MathWorks, reference page "gather".

    >>> gather(array(2.0)).item()
    2.0
    """
    if isinstance(X, DLArray):
        return on(array(X), "cpu")
    return host(X) if is_on_gpu(X) and hasattr(X, "get") else X


def gpuArray(X: Any) -> Any:
    """X in the memory of the GPU. Whatever is computed from it is computed there, until it is gathered.

    X : a dlarray: the result is one, with the same labels, and traced; anything else becomes a CuPy array, which
        dlarray(X, fmt) takes as it is. Arrays of other libraries on the GPU (`__cuda_array_interface__`) are not copied
        through the host. For containers: dlupdate(gpuArray, parameters).
    An operation of an array on the GPU and one on the host gives a result on the GPU.
    Raises DeviceError if there is no GPU that can be used (and says why), DeviceMemoryError if it has no room.
    Source: MathWorks, reference page "gpuArray".

    >>> X = array([1.0, 2.0])
    >>> X = gpuArray(X) if canUseGPU() else X
    """
    need_gpu("gpuArray")
    if isinstance(X, DLArray) or gathered("gpuArray", X) is not None:
        return on(array(X), "gpu")
    return gpu_array("gpuArray", X if is_on_gpu(X) else plain_array("gpuArray", X))


def canUseGPU() -> bool:
    """Whether `gpuArray` works here. The first call looks for a GPU and computes a little on it.

    The environment variable MINIDL_DEVICE=cpu makes it False.
    Source: MathWorks, reference page "canUseGPU".

    >>> canUseGPU() in (False, True)
    True
    """
    return not gpu_complaint()


def isequal(X: Any, *others: Any) -> bool:
    """Whether all are equal: sizes, numbers, labels where both have them; containers field by field. NaN is not.

    Looks at the numbers, so a recorded function that asks is not replayed.

    >>> isequal(array([1.0, 2.0]), [1.0, 2.0]), isequal({"a": 1}, {"a": 2})
    (True, False)
    """
    return all(_is_equal(X, other) for other in others)


def _is_equal(a: Any, b: Any) -> bool:
    if _is_arraylike(a) or _is_arraylike(b):
        if isinstance(a, (dict, str)) or isinstance(b, (dict, str)):
            return False
        if dims(a) and dims(b) and dims(a) != dims(b):
            return False
        return shape_of(a) == shape_of(b) and bool(np.array_equal(host(extractdata(a)), host(extractdata(b))))
    (xs, structure), (ys, other) = flatten(a), flatten(b)
    if structure != other:
        return False
    if structure == "*":
        return bool(a == b)
    return all(_is_equal(x, y) for x, y in zip(xs, ys))


def _is_arraylike(x: Any) -> bool:
    return isinstance(x, (DLArray, np.ndarray, np.generic)) or is_on_gpu(x)


# types ----------------------------------------------------------------------------------------------------------

_DTYPES: dict[str, np.dtype[Any]] = {"single": SINGLE, "double": DOUBLE, "logical": LOGICAL}


def underlyingType(X: Any) -> str:
    """"single", "double" or "logical" (of another plain array: NumPy's name of its type).

    >>> underlyingType(array(np.float32([1.0]))), underlyingType(1.0)
    ('single', 'double')
    """
    found = gathered("underlyingType", X)
    dtype = (X if found is None else found).dtype if hasattr(X, "dtype") or found is not None else np.asarray(X).dtype
    return TYPE_NAMES.get(dtype, dtype.name)


def isUnderlyingType(X: Any, typename: str) -> bool:
    """Whether the data of X are of that type.

    >>> isUnderlyingType(array(1.0), "double")
    True
    """
    return underlyingType(X) == typename


def mustBeUnderlyingType(X: Any, typenames: str | Sequence[str]) -> None:
    """Raises DTypeError unless the data of X are of (one of) the named types.

    >>> mustBeUnderlyingType(array(1.0), ["single", "double"])
    """
    names = [typenames] if isinstance(typenames, str) else list(typenames)
    found = underlyingType(X)
    if found not in names:
        raise DTypeError(f"mustBeUnderlyingType: {' or '.join(names)} is wanted, X is {found}. Use cast(X, type).")


@public
def cast(X: Any, type: Any) -> Any:
    """X in another type.

    type : "single", "double" or "logical", or a NumPy dtype of one of them. Logical: whether other than 0.
    Returns a dlarray for a dlarray, traced and with its labels; a CuPy array for one on a GPU; otherwise a NumPy array.
    Raises DTypeError for other types: dlarrays hold no integers.

    >>> cast(array([0.0, 2.0]), "logical").tolist()
    [False, True]
    """
    dtype = _dtype(type)
    found = X if isinstance(X, DLArray) else gathered("cast", X)
    if found is None:
        if is_on_gpu(X):
            return cast(dlarray(X), type).extractdata()
        data = plain_array("cast", X)
        if data.dtype.kind not in "fiub":
            raise DTypeError(f"{TYPE_NAMES[dtype]}: real numbers are wanted; got {data.dtype}. Encode them first.")
        return data.astype(dtype, copy=False)
    if found.dtype == dtype:
        return array(found)
    return DLArray(cast_op(found, dtype=dtype.name)._value, found._labels)


def _dtype(type: Any) -> np.dtype[Any]:
    if isinstance(type, str) and type in _DTYPES:
        return _DTYPES[type]
    try:
        dtype = np.dtype(type)
    except TypeError:
        meant = nearest(str(type), _DTYPES)
        remedy = f'Did you mean "{meant}"?' if meant else 'Give "single", "double" or "logical".'
        raise OptionError(f"cast: there is no type {type!r}. {remedy}") from None
    if dtype not in _DTYPES.values():
        raise DTypeError(
            f'cast: dlarrays are single, double or logical; got {dtype}. Use one of these, or np.asarray(X) for others.'
        )
    return dtype


def single(X: Any) -> Any:
    """X in single precision. See `cast`.

    >>> single(array(1.0)).dtype.name
    'float32'
    """
    return cast(X, "single")


def double(X: Any) -> Any:
    """X in double precision. See `cast`.

    >>> double(np.float32([1.0])).dtype.name
    'float64'
    """
    return cast(X, "double")


def logical(X: Any) -> Any:
    """Whether each element of X is other than 0. NaN counts as true (MATLAB would raise an error).

    >>> logical(array([0.0, 3.0])).tolist()
    [False, True]
    """
    return cast(X, "logical")


