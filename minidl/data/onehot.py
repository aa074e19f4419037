"""One-hot coding of class labels: NumPy arrays (text, whole numbers, objects), lists, or pandas Categoricals."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from minidl.core.device import gpu_array, host, is_on_gpu
from minidl.core.dlarray import DLArray, plain_array
from minidl.core.errors import DTypeError, LabelError, OptionError, ShapeError, nearest
from minidl.core.options import options

Array: TypeAlias = NDArray[Any]

UNDEFINED = "<undefined>"  # MATLAB's word for the label of an observation without a class
_TYPES: dict[str, Any] = {"double": np.float64, "single": np.float32, "logical": np.bool_}
_TYPES |= {f"{sign}int{bits}": getattr(np, f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)}


def categories(labels: Any) -> Array:
    """The classes that occur in labels, each once, in order (text: alphabetical), without undefined ones.

    labels : array or list of text, numbers or objects (None, NaN and "<undefined>" are undefined); a pandas
             Categorical, or Series of one, knows its categories and their order itself.

    >>> categories(["dog", "cat", "dog"])
    array(['cat', 'dog'], dtype='<U3')
    """
    known = _pandas_categorical(labels)
    if known is not None:
        return np.array(known.categories.tolist())
    flat = plain_array("categories", labels).ravel()
    return np.array(sorted({x for x in flat.tolist() if _is_defined(x)}))


@options
def onehotencode(A: Any, featureDim: int, typename: DTypeLike = "double", *, ClassNames: Any = None) -> Array:
    """Labels as vectors with a 1 at their class and 0 elsewhere.

        B[..., c, ...] = 1 if A[...] is class c, else 0

    A          : labels, an array or list of any shape.
    featureDim : the dimension of the result that counts the classes; A must have size 1 there, or end before it. For n
                 labels in one dimension, 0 gives classes x n (as the output of fullyconnect), 1 gives n x classes.
    typename   : type of the result: "double", "single", "int8" ... "uint64", "logical", or a NumPy dtype.
    ClassNames : the classes, in the order wanted; needed unless A is a pandas Categorical, since a batch of plain
                 labels does not know the classes it lacks. Usually `categories(all_labels)`.
    A label that is not among the classes, None, NaN or undefined becomes a vector of NaN.
    Raises ShapeError if featureDim does not fit; OptionError without ClassNames or if they repeat; DTypeError if an
    integer or logical type would have to hold NaN, or labels and classes are text and numbers.
    Source: MathWorks, reference page "onehotencode".

    >>> onehotencode(["b", "a", "b"], 0, ClassNames=["a", "b"])
    array([[0., 1., 0.],
           [1., 0., 1.]])
    """
    dtype = _dtype("onehotencode", typename)
    labels, classes = _labels_and_classes(A, ClassNames)
    shape = _shape_around(labels.shape, featureDim)
    place = {c: i for i, c in enumerate(classes)}
    if len(place) < len(classes):
        raise OptionError(f"onehotencode: ClassNames are expected to be all different; got {classes}.")
    flat = labels.ravel().tolist()
    codes = [place.get(x, -1) for x in flat]
    encoded: Array = np.zeros((len(flat), len(classes)), dtype)
    if -1 in codes:
        _check_unknown(flat, codes, classes, dtype)
        unknown = np.equal(codes, -1)
        encoded[unknown] = np.nan
        encoded[~unknown, np.array(codes)[~unknown]] = 1
    else:
        encoded[np.arange(len(flat)), codes] = 1
    rank = len(shape)
    return encoded.reshape(*shape, len(classes)).transpose(*range(featureDim), rank, *range(featureDim, rank))


@options
def onehotdecode(B: Any, classes: Any, featureDim: int | str, typename: DTypeLike = "categorical") -> Array:
    """The class with the highest score: the inverse of `onehotencode`, and the decision of a classifier.

    B          : scores or probabilities, array or dlarray; from the GPU they are copied.
    classes    : the classes, one for each entry along featureDim.
    featureDim : the dimension that counts the classes, from 0; for a formatted dlarray also its label, "C".
    typename   : "categorical" (labels of the type that classes have), "string", or for numeric classes a numeric type.
    Returns labels: n of them in one dimension for a matrix B; otherwise B's shape with size 1 along featureDim.
    Of equal scores the first class wins. NaN scores do not count; where all are NaN the label is undefined:
    "<undefined>" for text, NaN for numbers.
    Raises ShapeError or LabelError if featureDim or the number of classes does not fit; DTypeError if the labels cannot
    have the type.
    Source: MathWorks, reference page "onehotdecode".

    >>> onehotdecode([[0.1, 0.8], [0.9, 0.2]], ["cat", "dog"], 0)
    array(['dog', 'cat'], dtype='<U11')
    """
    dim = _feature_dim(B, featureDim)
    is_foreign = not isinstance(B, DLArray) and is_on_gpu(B)
    scores = host(gpu_array("onehotdecode", B)) if is_foreign else plain_array("onehotdecode", B)
    known = _pandas_categorical(classes)
    names = np.asarray(known.categories.tolist() if known is not None else classes).ravel()
    if scores.dtype.kind not in "fiub":
        raise DTypeError(f"onehotdecode: expected scores as numbers; got {scores.dtype}.")
    if not -scores.ndim <= dim < scores.ndim:
        raise ShapeError(
            f"onehotdecode: featureDim is 0 to {scores.ndim - 1} for scores {scores.shape}; got {featureDim!r}."
        )
    if scores.shape[dim] != len(names):
        raise ShapeError(
            f"onehotdecode: there are {len(names)} classes, but scores {scores.shape} have {scores.shape[dim]} entries "
            f"along dimension {dim}. Is featureDim right?"
        )
    undefined = None
    if scores.dtype.kind == "f":
        isnan = np.isnan(scores)
        if isnan.any():
            undefined = isnan.all(axis=dim)
            scores = np.where(isnan, -np.inf, scores)
    decoded = _typed(names, typename, undefined)[scores.argmax(axis=dim)]
    if undefined is not None and undefined.any():
        decoded[undefined] = np.nan if decoded.dtype.kind == "f" else UNDEFINED
    return decoded if scores.ndim <= 2 else np.expand_dims(decoded, dim)


# pieces ---------------------------------------------------------------------------------------------------------
def _pandas_categorical(labels: Any) -> Any:
    """The Categorical in a pandas object, or None. Told by the module's name, so that pandas need not be there."""
    if type(labels).__module__.partition(".")[0] != "pandas":
        return None
    values = getattr(labels, "array", labels)  # a Series holds its Categorical in .array
    return values if hasattr(values, "categories") and hasattr(values, "codes") else None


def _labels_and_classes(A: Any, ClassNames: Any) -> tuple[Array, list[Any]]:
    known = _pandas_categorical(A)
    labels = plain_array("onehotencode", A)
    if ClassNames is not None:
        given = _pandas_categorical(ClassNames)
        return labels, (np.asarray(ClassNames).ravel().tolist() if given is None else given.categories.tolist())
    if known is None:
        raise OptionError(
            f"onehotencode: plain labels ({labels.dtype}) do not say which classes there are beyond those they hold. "
            "Give ClassNames=categories(all_labels)."
        )
    return labels, known.categories.tolist()


def _is_defined(label: Any) -> bool:
    is_nan = isinstance(label, float) and math.isnan(label)
    return not (label is None or is_nan or label == UNDEFINED)


def _shape_around(shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
    """A's shape without its (size 1) dimension `dim`, filled up with ones if it ends before."""
    if not isinstance(dim, (int, np.integer)) or isinstance(dim, bool) or dim < 0:
        raise ShapeError(f"onehotencode: featureDim is a dimension of the result, counted from 0; got {dim!r}.")
    if len(shape) <= 1 and dim <= 1:
        return shape or (1,)
    shape = shape + (1,) * (dim + 1 - len(shape))
    if shape[dim] != 1:
        free = [d for d, size in enumerate(shape) if size == 1] or [len(shape)]
        raise ShapeError(
            f"onehotencode: the classes go along a dimension in which A has size 1; A {shape} has {shape[dim]} along "
            f"{dim}. Use featureDim={free[0]}."
        )
    return shape[:dim] + shape[dim + 1 :]


def _check_unknown(flat: list[Any], codes: list[int], classes: list[Any], dtype: Any) -> None:
    """Labels without a class are NaN if the type has it; text among numbers is a mistake."""
    if not np.issubdtype(dtype, np.floating):
        first = flat[codes.index(-1)]
        raise DTypeError(
            f"onehotencode: the label {first!r} is none of the classes and would become NaN, which {np.dtype(dtype)} "
            'does not have. Use typename "double" or "single", or complete ClassNames.'
        )
    if max(codes) < 0:
        label = next((x for x in flat if _is_defined(x)), None)
        if label is not None and classes and isinstance(label, str) != isinstance(classes[0], str):
            raise DTypeError(
                f"onehotencode: labels such as {label!r} and classes such as {classes[0]!r} cannot be equal. "
                "Make both text or both numbers: labels.astype(str)."
            )


def _feature_dim(B: Any, dim: int | str) -> int:
    if not isinstance(dim, str):
        return int(dim)
    labels = B.dims() if isinstance(B, DLArray) else ""
    if len(dim) != 1 or labels.count(dim) != 1:
        raise LabelError(
            f"onehotdecode: featureDim {dim!r} is expected to be one label that the scores have once; they have "
            f'"{labels}". '
            "Give the dimension as a number from 0, or a formatted dlarray."
        )
    return labels.index(dim)


def _typed(names: Array, typename: DTypeLike, undefined: Array | None) -> Array:
    """The classes in the type wanted, with room for the undefined label."""
    is_text = names.dtype.kind in "UO"
    if isinstance(typename, str) and typename in ("categorical", "string"):
        if is_text or typename == "string":
            return names.astype(np.str_).astype(np.promote_types(names.astype(np.str_).dtype, f"<U{len(UNDEFINED)}"))
        return names if undefined is None or not undefined.any() else names.astype(np.float64)
    if is_text:
        raise DTypeError(
            f"onehotdecode: classes are text and cannot become {typename!r}. Use 'categorical' or 'string'."
        )
    dtype = _dtype("onehotdecode", typename)
    if undefined is not None and undefined.any() and not np.issubdtype(dtype, np.floating):
        raise DTypeError(
            f"onehotdecode: scores that are all NaN have no class, and {np.dtype(dtype)} has no NaN. Use 'double'."
        )
    return names.astype(dtype)


def _dtype(who: str, typename: DTypeLike) -> Any:
    if isinstance(typename, str) and typename in _TYPES:
        return _TYPES[typename]
    try:
        dtype = np.dtype(typename)
    except TypeError:
        dtype = None
    if dtype is None or dtype.kind not in "fiub":
        meant = nearest(str(typename), _TYPES)
        hint = f"Did you mean {meant!r}?" if meant else f"It is one of {', '.join(_TYPES)}."
        raise OptionError(f"{who}: {typename!r} is no type of numbers. {hint}")
    return dtype.type
