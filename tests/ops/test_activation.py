"""Activations: values against NumPy, corners, labels, derivatives, wrong input."""

import math

import numpy as np
import pytest
from finite_differences import check_derivatives, gradients, total

from minidl.core.dlarray import dlarray
from minidl.core.errors import LabelError, OptionError, ShapeError
from minidl.ops.activation import gelu, leakyrelu, relu, sigmoid, softmax, softmax_last, softmax_last_grad

RNG = np.random.default_rng(0)
POINTS = np.array([-8.0, -1.5, -0.25, 0.0, 0.25, 1.5, 8.0])
ERF = np.vectorize(math.erf)

VALUES = {
    "relu": (relu, lambda x: np.maximum(x, 0)),
    "leakyrelu": (leakyrelu, lambda x: np.where(x >= 0, x, 0.01 * x)),
    "leakyrelu 0.3": (lambda x: leakyrelu(x, 0.3), lambda x: np.where(x >= 0, x, 0.3 * x)),
    "sigmoid": (sigmoid, lambda x: 1 / (1 + np.exp(-x))),
    "gelu": (gelu, lambda x: x / 2 * (1 + ERF(x / math.sqrt(2)))),
    "gelu tanh": (
        lambda x: gelu(x, Approximation="Tanh"),
        lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    ),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_types_and_labels(name):
    function, plain = VALUES[name]
    for dtype in (np.float64, np.float32):
        y = function(dlarray(POINTS.astype(dtype).reshape(7, 1), "CB"))
        assert (y.dims(), y.dtype) == ("CB", dtype)
        eps = np.finfo(dtype).eps
        np.testing.assert_allclose(np.asarray(y)[:, 0], plain(POINTS), rtol=20 * eps, atol=20 * eps)
    assert np.isnan(function(dlarray(math.nan)).item()), "NaN stays NaN"


@pytest.mark.parametrize("name", VALUES)
def test_derivatives(name):
    check_derivatives(VALUES[name][0], POINTS[POINTS != 0] + 0.1)


def test_slopes_at_0():
    """matlab-api.md 9: relu has slope 0 there, leakyrelu takes 0 as positive."""
    for function, slope in ((relu, 0.0), (leakyrelu, 1.0), (sigmoid, 0.25), (gelu, 0.5)):
        assert gradients(lambda x, f=function: total(f(x)), [np.zeros(3)])[0].tolist() == [slope] * 3


def test_sigmoid_never_overflows():
    for dtype in (np.float32, np.float64):
        x = np.array([-1e4, -800, -100, 100, 1e4, -np.inf, np.inf], dtype)
        y = np.asarray(sigmoid(dlarray(x)))
        assert np.isfinite(y).all() and y[0] == 0 and y[4] == 1
        assert np.isfinite(gradients(lambda x: total(sigmoid(x)), [x])[0]).all()


def test_trained_slope():
    """leakyrelu's factor may be a dlarray, one per channel."""
    x, factor = RNG.normal(size=(3, 4)), RNG.uniform(0.1, 0.5, size=(3, 1))
    y = leakyrelu(dlarray(x, "CB"), dlarray(factor, "CB"))
    np.testing.assert_allclose(np.asarray(y), np.where(x >= 0, x, x * factor))
    check_derivatives(leakyrelu, x, factor)


def plain_softmax(x, axis):
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


@pytest.mark.parametrize(("labels", "axis"), [("CB", 0), ("SSCB", 2), ("CBT", 0), ("SCU", 1), ("CU", 0)])
def test_softmax_is_over_the_channels(labels, axis):
    x = RNG.normal(size=tuple(range(3, 3 + len(labels))))
    y = softmax(dlarray(x, labels))
    assert y.dims() == labels
    np.testing.assert_allclose(np.asarray(y), plain_softmax(x, axis), rtol=1e-12)
    check_derivatives(lambda x: softmax(dlarray(x, labels)), x)


@pytest.mark.parametrize(("fmt", "axis"), [("CB", 0), ("BC", 1), ("C", 0), ("UCB", 1), ("CBU", 0), ("BCT", 1)])
def test_softmax_with_data_format(fmt, axis):
    x = RNG.normal(size=(4, 3, 5)[: max(len(fmt), 2)])
    if fmt == "C":
        x = x[:, :1]
    y = softmax(x, DataFormat=fmt)
    assert (y.dims(), y.shape) == ("", x.shape)
    np.testing.assert_allclose(np.asarray(y), plain_softmax(x, axis), rtol=1e-12)


def test_softmax_of_a_vector():
    """One label names a row, a column or a plain vector; a label without a dimension changes nothing."""
    wanted = plain_softmax(np.arange(4.0), 0)
    for shape, fmt in (((4,), "C"), ((4, 1), "C"), ((1, 4), "C"), ((4,), "CB")):
        y = softmax(dlarray(np.arange(4.0).reshape(shape)), DataFormat=fmt)
        assert y.shape == shape
        np.testing.assert_allclose(np.asarray(y).ravel(), wanted)


def test_softmax_corners():
    y = np.asarray(softmax(dlarray(np.array([[1e4, 1e4, -np.inf], [0, 1e4, 1]], np.float32), "BC")))
    np.testing.assert_allclose(y.T, [[0.5, 0.5, 0], [0, 1, 0]])
    assert np.isnan(np.asarray(softmax(dlarray([[np.nan, 1.0]], "BC")))).all()
    assert softmax(dlarray(np.zeros((3, 0)), "CB")).shape == (3, 0)


@pytest.mark.parametrize("op", [softmax_last, softmax_last_grad], ids=lambda op: op.name)
def test_derivatives_of_the_ops(op):
    for inputs, params in op.samples(np.random.default_rng(0)):
        check_derivatives(lambda *xs, p=params: op(*xs, **p), *inputs)


@pytest.mark.parametrize("function", [relu, leakyrelu, sigmoid, gelu], ids=lambda f: f.__name__)
def test_data_format_may_be_given(function):
    x = RNG.normal(size=(3, 4))
    y = function(x, DataFormat="BC")
    assert y.dims() == ""
    np.testing.assert_array_equal(np.asarray(y), np.asarray(function(dlarray(x))))


WRONG = [
    (lambda: relu([1.0], DataFormat="X"), LabelError, "'X'"),
    (lambda: relu(dlarray([1.0], "C"), DataFormat="C"), OptionError, "is formatted"),
    (lambda: relu([1.0], dataformat="C"), OptionError, "Did you mean DataFormat"),
    (lambda: leakyrelu([1.0], "steep"), OptionError, "scaleFactor"),
    (lambda: leakyrelu(np.zeros((2, 3)), np.zeros((4, 5))), ShapeError, "do not fit"),
    (lambda: gelu([1.0], Approximation="fast"), OptionError, '"none", "tanh"'),
    (lambda: softmax([1.0, 2.0]), LabelError, "DataFormat"),
    (lambda: softmax(dlarray(np.zeros((2, 3)), "SB")), LabelError, "C (channel)"),
    (lambda: softmax(np.zeros((2, 3, 4)), DataFormat="CB"), LabelError, "2 labels"),
    (lambda: softmax(dlarray(np.zeros((0, 3)), "CB")), ShapeError, "no channels"),
]


@pytest.mark.parametrize("i", range(len(WRONG)))
def test_wrong_input_is_explained(i):
    call, kind, word = WRONG[i]
    with pytest.raises(kind) as caught:
        call()
    assert word in str(caught.value)
