"""One-hot coding: labels to vectors and back."""

from __future__ import annotations

import numpy as np
import pytest

from minidl.core.dlarray import dlarray
from minidl.core.errors import DTypeError, LabelError, OptionError, ShapeError
from minidl.data import categories, onehotdecode, onehotencode

nan = np.nan
CLASSES = ["a", "b", "c"]
EYE = np.eye(3)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["dog", "cat", "dog"], ["cat", "dog"]),
        (np.array(["10", "9", "10"]), ["10", "9"]),
        ([3, 1, 3], [1, 3]),
        (np.array([[2.5, nan], [1.0, 2.5]]), [1.0, 2.5]),
        (np.array(["b", None, nan, "a", "<undefined>"], dtype=object), ["a", "b"]),
        ([], []),
    ],
)
def test_categories(labels, expected):
    assert categories(labels).tolist() == expected


@pytest.mark.parametrize(
    ("shape", "dim", "result"),
    [
        ((), 0, (3, 1)),
        ((5,), 0, (3, 5)),
        ((5,), 1, (5, 3)),
        ((5,), 2, (5, 1, 3)),
        ((1, 5), 0, (3, 5)),
        ((5, 1), 1, (5, 3)),
        ((4, 5), 2, (4, 5, 3)),
        ((4, 1, 5), 1, (4, 3, 5)),
        ((4, 5), 3, (4, 5, 1, 3)),
        ((0,), 0, (3, 0)),
    ],
)
def test_encode_shapes(shape, dim, result):
    rng = np.random.default_rng(0)
    code = rng.integers(0, 3, shape)
    encoded = onehotencode(np.array(CLASSES)[code], dim, ClassNames=CLASSES)
    assert encoded.shape == result and encoded.dtype == np.float64
    assert np.array_equal(encoded.argmax(dim).ravel(), np.ravel(code))
    assert (encoded.sum(dim) == 1).all()


def test_matrix_round_trip():
    labels = np.array(["b", "a", "c", "b"])
    for dim in (0, 1):
        assert np.array_equal(onehotdecode(onehotencode(labels, dim, ClassNames=CLASSES), CLASSES, dim), labels)
    deep = labels.reshape(2, 1, 2)
    assert np.array_equal(onehotdecode(onehotencode(deep, 1, ClassNames=CLASSES), CLASSES, 1), deep)


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        (["c", "a"], CLASSES, EYE[[2, 0]]),
        (["c", "a"], ["c", "a"], np.eye(2)),
        (["a", "z"], CLASSES, [[1, 0, 0], [nan] * 3]),
        (np.array(["a", None, nan, "<undefined>"], object), CLASSES, [[1, 0, 0]] + [[nan] * 3] * 3),
        ([30, 10], [10, 20, 30], EYE[[2, 0]]),
        ([30.0, nan], [10, 20, 30], [[0, 0, 1], [nan] * 3]),
        ([True, False], [False, True], [[0, 1], [1, 0]]),
    ],
)
def test_encode_values(labels, classes, expected):
    assert np.array_equal(onehotencode(labels, 1, ClassNames=classes), expected, equal_nan=True)


@pytest.mark.parametrize("typename", ["single", "int8", "uint64", "logical", np.float16])
def test_encode_types(typename):
    encoded = onehotencode(["b"], 0, typename, ClassNames=CLASSES)
    assert encoded.dtype == {"single": np.float32, "logical": bool}.get(typename, typename)
    assert encoded.ravel().tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: onehotencode(["a"], 0), OptionError, "Give ClassNames=categories"),
        (lambda: onehotencode(["a"], 0, ClassNames=["a", "a"]), OptionError, "all different"),
        (lambda: onehotencode(["a"], 0, classnames=CLASSES), OptionError, "Did you mean ClassNames"),
        (lambda: onehotencode(["a"], 0, "duoble", ClassNames=CLASSES), OptionError, "Did you mean 'double'"),
        (lambda: onehotencode(["z"], 0, "int8", ClassNames=CLASSES), DTypeError, "'z' is none of the classes"),
        (lambda: onehotencode([1, 2], 0, ClassNames=["1", "2"]), DTypeError, "cannot be equal"),
        (lambda: onehotencode([["a", "b"]], 1, ClassNames=CLASSES), ShapeError, "Use featureDim=0"),
        (lambda: onehotencode([["a"] * 2] * 2, 1, ClassNames=CLASSES), ShapeError, "Use featureDim=2"),
        (lambda: onehotencode(["a"], -1, ClassNames=CLASSES), ShapeError, "counted from 0"),
        (lambda: onehotdecode(EYE, ["a", "b"], 0), ShapeError, "2 classes, but scores"),
        (lambda: onehotdecode(EYE, CLASSES, 2), ShapeError, "featureDim is 0 to 1"),
        (lambda: onehotdecode(EYE, CLASSES, "C"), LabelError, "one label that the scores have"),
        (lambda: onehotdecode(EYE, CLASSES, 0, "int8"), DTypeError, "classes are text"),
        (lambda: onehotdecode([[nan], [nan]], [1, 2], 0, "int8"), DTypeError, "no NaN"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("scores", "classes", "typename", "expected"),
    [
        ([[0.2, 0.9], [0.8, 0.1]], ["x", "y"], "categorical", ["y", "x"]),
        ([[0.5, 0.5], [0.5, 0.5]], ["x", "y"], "categorical", ["x", "x"]),
        ([[nan, nan], [0.1, nan]], ["x", "y"], "categorical", ["y", "<undefined>"]),
        ([[0, 1], [1, 0]], [5, 7], "categorical", [7, 5]),
        ([[0, 1], [1, 0]], [5, 7], "string", ["7", "5"]),
        ([[0, 1], [1, 0]], [5, 7], "single", [7.0, 5.0]),
        ([[nan, 1], [nan, 0]], [5, 7], "double", [nan, 5.0]),
    ],
)
def test_decode(scores, classes, typename, expected):
    decoded = onehotdecode(scores, classes, 0, typename)
    assert decoded.shape == (2,)
    equal_nan = decoded.dtype.kind == "f"
    assert np.array_equal(decoded, expected, equal_nan=equal_nan)


def test_decode_dlarray_by_label():
    scores = dlarray(EYE[:, [2, 0, 1, 1]], "CB")
    assert onehotdecode(scores, CLASSES, "C").tolist() == ["c", "a", "b", "b"]
    assert onehotdecode(scores, CLASSES, 0).tolist() == ["c", "a", "b", "b"]
    images = dlarray(np.zeros((4, 5, 3, 2)), "SSCB")
    assert onehotdecode(images, CLASSES, "C").shape == (4, 5, 1, 2)


def test_pandas_categoricals_know_their_classes():
    pandas = pytest.importorskip("pandas")
    labels = pandas.Categorical(["b", None, "a"], categories=["c", "b", "a"])
    expected = [[0, 1, 0], [nan] * 3, [0, 0, 1]]
    for A in (labels, pandas.Series(labels)):
        assert categories(A).tolist() == ["c", "b", "a"]
        assert np.array_equal(onehotencode(A, 1), expected, equal_nan=True)
    assert onehotencode(pandas.Series(["b", "a"]), 0, ClassNames=["a", "b"]).tolist() == [[0, 1], [1, 0]]
