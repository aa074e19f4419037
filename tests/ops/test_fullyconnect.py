"""fullyconnect: MATLAB's order of features, formats, both ways of computing, derivatives, wrong input."""

import numpy as np
import pytest
from finite_differences import check_derivatives

from minidl.core.dlarray import dlarray
from minidl.core.errors import LabelError, OptionError, ShapeError
from minidl.core.op import VIEW
from minidl.core.tape import Tape, opened
from minidl.ops.fullyconnect import fullyconnect

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape)


def columns(x, kept):
    """x with its last `kept` dimensions kept and the others flattened, the first one fastest."""
    return x.reshape(-1, *x.shape[x.ndim - kept :], order="F") if kept else x.reshape(-1, order="F")


CASES = [  # labels, shape, how many dimensions are kept, labels of the result
    ("SSCB", (3, 4, 2, 7), 1, "CB"),
    ("SSCB", (3, 4, 2, 1), 1, "CB"),
    ("SSCB", (1, 4, 2, 3), 1, "CB"),
    ("SSSCB", (2, 3, 2, 2, 5), 1, "CB"),
    ("CB", (6, 4), 1, "CB"),
    ("CBT", (6, 4, 3), 2, "CBT"),
    ("SSCBT", (3, 2, 2, 4, 3), 2, "CBT"),
    ("SCT", (3, 2, 4), 1, "CT"),
    ("SSB", (3, 2, 4), 1, "CB"),
    ("SSC", (3, 2, 4), 0, "CU"),
]


@pytest.mark.parametrize(("labels", "shape", "kept", "result"), CASES)
@pytest.mark.parametrize("outputs", [2, 10])  # fewer and more than there are observations: either side is rearranged
def test_features_are_counted_as_matlab_does(labels, shape, kept, result, outputs):
    """matlab-api.md 7: column j of the weights is feature j, row fastest, then column, then channel."""
    x = normal(*shape)
    features = columns(x, kept)
    w, b = normal(outputs, len(features)), normal(outputs)
    wanted = np.tensordot(w, features, 1) + b.reshape(-1, *(1,) * kept)
    by_dimension = w.reshape(outputs, *shape[: len(shape) - kept], order="F")
    memory = np.ascontiguousarray(np.moveaxis(x, -1, 0)) if kept else x
    for weights in (w, dlarray(w), dlarray(w, "CU"), dlarray(w.T, "UC"), by_dimension):
        for data in (dlarray(x, labels), dlarray(memory, labels[-1] + labels[:-1]) if kept else dlarray(x, labels)):
            y = fullyconnect(data, weights, b)
            assert (y.dims(), y.shape) == (result, wanted.shape if kept else (outputs, 1))
            np.testing.assert_allclose(np.asarray(y).reshape(wanted.shape), wanted, rtol=1e-11, atol=1e-12)
    y = fullyconnect(dlarray(x, labels), w.T, 0, WeightsFormat="UC")
    wanted = np.tensordot(w, features, 1)
    np.testing.assert_allclose(np.asarray(y).reshape(wanted.shape), wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("fmt", "result"),
    [("SSCB", (5, 4)), ("BSSC", (4, 5)), ("BC", (4, 5)), ("SBS", (5, 4)), ("BTC", (4, 3, 5)), ("SSC", (5,))],
)
def test_data_format_keeps_the_order_of_dimensions(fmt, result):
    shape = tuple({"B": 4, "T": 3}.get(letter, 2) for letter in fmt)
    x = normal(*shape)
    w = normal(5, int(np.prod([n for n, letter in zip(shape, fmt) if letter not in "BT"])))
    y, formatted = fullyconnect(x, w, 1, DataFormat=fmt), fullyconnect(dlarray(x, fmt), w, 1)
    assert (y.dims(), y.shape) == ("", result)
    wanted = np.asarray(formatted)
    order = {"BSSC": (1, 0), "BC": (1, 0), "BTC": (1, 2, 0)}.get(fmt, (0, 1))
    wanted = wanted.transpose(order).reshape(result)
    np.testing.assert_allclose(np.asarray(y), wanted, rtol=1e-12)


def test_example_of_the_reference_page():
    """12x12x32 features of ones: Y = weights*x + 1, 10(C) x 1(B)."""
    x = RNG.random((12, 12, 32, 1))
    y = fullyconnect(dlarray(x, "SSCB"), np.ones((10, 12, 12, 32)), np.ones((10, 1)))
    assert (y.dims(), y.shape) == ("CB", (10, 1))
    np.testing.assert_allclose(np.asarray(y), x.sum() + 1)


@pytest.mark.parametrize("bias", [0, 2, dlarray(2.0), [2.0, 2.0], dlarray([2.0, 2.0], "C"), [[2.0, 2.0]]])
def test_bias_in_any_form(bias):
    x, w = normal(3, 4), normal(2, 3)
    got = np.asarray(fullyconnect(dlarray(x, "CB"), w, bias))
    np.testing.assert_allclose(got, w @ x + (0 if isinstance(bias, int) and bias == 0 else 2), rtol=1e-12)


def test_the_smaller_side_is_rearranged():
    """Images lie as B, S, S, C in memory: weights of ten outputs are copied beside 32 images, but not beside one."""
    w, b = np.zeros((10, 4 * 4 * 3), np.float32), np.zeros((10, 1), np.float32)
    for batch, size in ((32, w.size), (1, 4 * 4 * 3)):
        x = dlarray(np.zeros((batch, 4, 4, 3), np.float32), "BSSC")
        with opened(Tape(everything=True)) as tape:
            fullyconnect(x, w, b)
        views = [(call.inputs[0].data, call.outputs[0].data) for call in tape.calls if call.op.kind is VIEW]
        assert [y.size for x, y in views if not np.shares_memory(x, y)] == [size]
        assert len(tape.calls) <= 11


def test_types():
    x, w = normal(3, 4), normal(2, 3)
    assert fullyconnect(dlarray(x.astype(np.float32), "CB"), w, np.zeros(2)).dtype == np.float32
    assert fullyconnect(dlarray(x, "CB"), w, 0).dtype == np.float64


@pytest.mark.parametrize(
    ("labels", "shape"), [("SSCB", (2, 2, 2, 3)), ("SSCB", (2, 2, 2, 1)), ("CBT", (3, 2, 2)), ("SC", (2, 3))]
)
def test_derivatives(labels, shape):
    def fun(x, w, b):
        return fullyconnect(dlarray(x, labels), w, b)

    features = int(np.prod(shape[: len(shape) - sum(c in "BT" for c in labels)]))
    check_derivatives(fun, normal(*shape), normal(2, features), normal(2, 1))


IMAGES = dlarray(np.zeros((3, 3, 1, 32)), "SSCB")
WRONG = [
    (lambda: fullyconnect(IMAGES, np.zeros((10, 8)), 0), ShapeError, "X 3(S) × 3(S) × 1(C) × 32(B) has 9 (S*S*C)"),
    (lambda: fullyconnect(IMAGES, np.zeros((10, 3, 2)), 0), ShapeError, "(10, 9)"),
    (lambda: fullyconnect(np.zeros((9, 4)), np.zeros((10, 9)), 0), LabelError, "DataFormat"),
    (lambda: fullyconnect(IMAGES, np.zeros((10, 9)), np.zeros(9)), ShapeError, "bias"),
    (lambda: fullyconnect(IMAGES, np.zeros((10, 9)), dlarray(np.zeros(10), "T")), LabelError, "along C"),
    (lambda: fullyconnect(dlarray(np.zeros((3, 4)), "BT"), np.zeros((10, 1)), 0), LabelError, "no S, C or U"),
    (lambda: fullyconnect(IMAGES, dlarray(np.zeros((10, 9)), "UU"), 0), LabelError, "one C"),
    (lambda: fullyconnect(IMAGES, dlarray(np.zeros((10, 9)), "CU"), 0, WeightsFormat="CU"), OptionError, "formatted"),
    (lambda: fullyconnect(IMAGES, np.zeros((10, 9)), 0, Padding=1), OptionError, "Padding"),
]


@pytest.mark.parametrize("i", range(len(WRONG)))
def test_wrong_input_is_explained(i):
    call, kind, word = WRONG[i]
    with pytest.raises(kind) as caught:
        call()
    assert word in str(caught.value)
