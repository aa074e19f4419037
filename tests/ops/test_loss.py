"""Losses: formulas, every option, targets with and without labels, derivatives, against PyTorch, wrong input."""

import numpy as np
import pytest
from finite_differences import check_derivatives, gradients

from minidl.autodiff import dlfeval, dlgradient
from minidl.core.dlarray import dlarray
from minidl.core.errors import DTypeError, LabelError, OptionError, ShapeError
from minidl.core.tape import Tape, opened
from minidl.ops.activation import softmax
from minidl.ops.loss import crossentropy, huber, l1loss, l2loss, mse

RNG = np.random.default_rng(0)
Y = RNG.dirichlet([1.0] * 4, size=5).T  # C x B
T = np.eye(4)[RNG.integers(0, 4, 5)].T
A, B = RNG.normal(size=(3, 5)), RNG.normal(size=(3, 5))


def huber_of(d, delta):
    return np.where(np.abs(d) <= delta, d**2 / 2, delta * (np.abs(d) - delta / 2))


MULTILABEL = -(T * np.log(Y) + (1 - T) * np.log(1 - Y))
ELEMENTS = {
    "crossentropy": (crossentropy, {}, Y, T, -T * np.log(Y)),
    "single-label": (crossentropy, {"ClassificationMode": "Single-Label"}, Y, T, -T * np.log(Y)),
    "exclusive": (crossentropy, {"TargetCategories": "exclusive"}, Y, T, -T * np.log(Y)),
    "multilabel": (crossentropy, {"ClassificationMode": "multilabel"}, Y, T, MULTILABEL),
    "independent": (crossentropy, {"TargetCategories": "independent"}, Y, T, MULTILABEL),
    "l1loss": (l1loss, {}, A, B, np.abs(A - B)),
    "l2loss": (l2loss, {}, A, B, (A - B) ** 2),
    "huber": (huber, {}, A, B, huber_of(A - B, 1)),
    "huber 0.5": (huber, {"TransitionPoint": 0.5}, A, B, huber_of(A - B, 0.5)),
}


def check(got, wanted):
    assert (got.shape, got.dims()) == ((), "")
    np.testing.assert_allclose(got.item(), wanted, rtol=1e-12)


@pytest.mark.parametrize("name", ELEMENTS)
def test_every_option(name):
    """matlab-api.md 11: loss = 1/N sum_j mask_j weight_j element_j."""
    function, options, y, t, e = ELEMENTS[name]
    c, b = y.shape
    Yf = dlarray(y, "CB")
    check(function(Yf, t, **options), e.sum() / b)
    check(function(Yf, t, NormalizationFactor="all-elements", **options), e.sum() / e.size)
    check(function(Yf, t, NormalizationFactor="none", **options), e.sum())
    mask = RNG.integers(0, 2, size=(c, b)).astype(bool)
    mask[0, 0] = True
    check(function(Yf, t, Mask=mask, **options), e[mask].sum() / b)
    included = {"NormalizationFactor": "mask-included", **options}
    check(function(Yf, t, **included), e.sum() / e.size)
    check(function(Yf, t, Mask=mask.astype(float), **included), e[mask].sum() / mask.sum())
    row = mask[:1] | (np.arange(b) == 0)
    check(function(Yf, t, Mask=dlarray(row), **included), (e * row).sum() / (row.sum() * c))
    wc, wb, w = RNG.random(c), RNG.random(b), RNG.random((c, b))
    check(function(Yf, t, wc, WeightsFormat="C", **options), (wc[:, None] * e).sum() / b)
    check(function(Yf, t, wc[None], WeightsFormat="UC", **options), (wc[:, None] * e).sum() / b)
    check(function(Yf, t, dlarray(wb, "B"), **options), (wb * e).sum() / b)
    check(function(Yf, t, w, Mask=mask, **options), (w * e)[mask].sum() / b)
    check(function(Yf, t, 3.0, **options), 3 * e.sum() / b)
    kept = function(Yf, t, wc, WeightsFormat="C", Mask=mask, Reduction="None", **options)
    assert kept.dims() == "CB"
    np.testing.assert_allclose(np.asarray(kept), wc[:, None] * e * mask, rtol=1e-12)


@pytest.mark.parametrize("name", [*ELEMENTS, "mse"])
def test_labels_of_targets(name):
    """Formatted, unformatted, numeric, in any order; DataFormat; only T formatted."""
    function, options, y, t, e = ELEMENTS.get(name, (mse, {}, A, B, (A - B) ** 2 / 2))
    wanted = e.sum() / y.shape[1]
    for Yf, Tf, extra in [
        (dlarray(y, "CB"), t, {}),
        (dlarray(y, "CB"), dlarray(t), {}),
        (dlarray(y, "CB"), dlarray(t, "CB"), {}),
        (dlarray(y, "CB"), dlarray(t.T, "BC"), {}),
        (dlarray(y, "CB"), dlarray(t[None, None], "SSCB"), {}),
        (dlarray(y[None], "SCB"), dlarray(t, "CB"), {}),
        (y, dlarray(t, "CB"), {}),
        (y, dlarray(t), {"DataFormat": "CB"}),
        (y.T, t.T, {"DataFormat": "BC"}),
        (y.T, dlarray(t, "CB"), {"DataFormat": "BC"}),
    ]:
        check(function(Yf, Tf, **options, **extra), wanted)


def test_mse_counts_observations():
    """matlab-api.md 11: 1/(2N), N observations; without a B one."""
    x, t = RNG.normal(size=(4, 5, 2, 3)), RNG.normal(size=(4, 5, 2, 3))
    check(mse(dlarray(x, "SSCB"), t), ((x - t) ** 2).sum() / 6)
    check(mse(dlarray(x, "SSCT"), t), ((x - t) ** 2).sum() / 2)
    check(mse(dlarray(x, "SSCB"), dlarray(t, "SSCB")), ((x - t) ** 2).sum() / 6)


def test_reduction_none_keeps_the_shape():
    kept = crossentropy(Y.T, T.T, DataFormat="BC", Reduction="none")
    assert kept.dims() == ""
    np.testing.assert_allclose(np.asarray(kept), (-T * np.log(Y)).T, rtol=1e-12)


def test_losses_of_the_digits_network():
    """One-hot 10xB and angles 1xB without labels, single precision; few calls."""
    t1, t2 = dlarray(np.eye(10, dtype=np.float32)), dlarray(np.arange(10, dtype=np.float32)[None])
    y1, y2 = softmax(dlarray(np.zeros((10, 10), np.float32), "CB")), dlarray(np.zeros((1, 10), np.float32), "CB")
    with opened(Tape(everything=True)) as tape:
        for x in (y1, y2, t1, t2):
            tape.add_root(x._value)
        loss = crossentropy(y1, t1) + 0.1 * mse(y2, t2)
    assert len(tape.calls) <= 10
    assert not tape.reads, "a loss looks at no number"
    assert loss.dtype == np.float32
    np.testing.assert_allclose(loss.item(), np.log(10) + 0.1 * 285 / 20, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("mode", ["single-label", "multilabel"])
def test_predictions_of_0_and_1_are_bounded(dtype, mode):
    """log(0) is log(eps); gradients are finite, to second order too."""
    y, t = np.array([[0.0, 1.0, 0.0]], dtype), np.array([[1.0, 0.0, 0.0]], dtype)
    eps = float(np.finfo(dtype).eps)

    def loss(y):
        return crossentropy(dlarray(y, "CB"), t, ClassificationMode=mode)

    wanted = -np.log(eps) / 3 * (2 if mode == "multilabel" else 1)
    np.testing.assert_allclose(loss(dlarray(y)).item(), wanted, rtol=1e-6, atol=1e-6)
    g = gradients(loss, [y])[0]
    np.testing.assert_allclose(g[0, 0], -1 / eps / 3, rtol=1e-6)
    assert np.isfinite(g).all() and np.isfinite(gradients(loss, [y], [np.ones_like(y)])[0]).all()
    assert np.isnan(crossentropy(dlarray([[np.nan]], "CB"), [[1.0]]).item()), "NaN stays NaN"


@pytest.mark.parametrize("name", [*ELEMENTS, "mse"])
def test_derivatives(name):
    function, options, y, t, _ = ELEMENTS.get(name, (mse, {}, A, B, None))
    if function is crossentropy:
        y, t = np.clip(y, 0.1, 0.9), np.clip(t, 0.1, 0.9)
    check_derivatives(lambda y, t: function(dlarray(y, "CB"), t, **options), y, t)
    if function is not mse:
        w, mask = RNG.random(y.shape), RNG.integers(0, 2, size=y.shape).astype(bool)
        check_derivatives(
            lambda y, t, w: function(dlarray(y, "CB"), t, w, Mask=mask, Reduction="none", **options), y, t, w
        )


@pytest.mark.torch
def test_against_torch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; the comparison with it is optional")
    x, labels, weights = RNG.normal(size=(6, 9)), RNG.integers(0, 6, 9), RNG.random(6)
    tx = torch.tensor(x.T.copy(), requires_grad=True)
    loss = torch.nn.functional.cross_entropy(tx, torch.tensor(labels), torch.tensor(weights), reduction="sum") / 9
    loss.backward()

    def fun(x):
        y = crossentropy(softmax(x), np.eye(6)[labels].T, weights, WeightsFormat="C")
        return y, dlgradient(y, x)

    y, g = dlfeval(fun, dlarray(x, "CB"))
    np.testing.assert_allclose(y.item(), loss.item(), rtol=1e-12)
    np.testing.assert_allclose(np.asarray(g).T, tx.grad, rtol=1e-10, atol=1e-14)


YF = dlarray(Y, "CB")
WRONG = [
    (lambda: crossentropy(Y, T), LabelError, "DataFormat"),
    (lambda: mse(dlarray(Y), dlarray(T)), LabelError, "Y (4×5) is unformatted"),
    (lambda: crossentropy(YF, T, DataFormat="CB"), OptionError, "is formatted"),
    (lambda: crossentropy(YF, T.T), ShapeError, "(4, 5)"),
    (lambda: mse(dlarray(A[:1], "CB"), A[0]), ShapeError, "(1, 5)"),
    (lambda: crossentropy(YF, dlarray(T[:3], "CB")), ShapeError, "does not fit"),
    (lambda: crossentropy(YF, dlarray(T, "CT")), LabelError, "time"),
    (lambda: crossentropy(YF, np.array([["a"] * 5] * 4)), DTypeError, "onehotencode"),
    (lambda: crossentropy(YF, T, np.ones(4)), LabelError, "WeightsFormat"),
    (lambda: crossentropy(YF, T, np.ones(3), WeightsFormat="C"), ShapeError, "weights"),
    (lambda: crossentropy(YF, T, WeightsFormat="C"), OptionError, "weights"),
    (lambda: crossentropy(YF, T, np.ones((2, 4)), WeightsFormat="SC"), LabelError, "spatial"),
    (lambda: crossentropy(YF, T, Mask=np.ones((4, 4))), ShapeError, "Mask"),
    (lambda: crossentropy(YF, T, Reduction="mean"), OptionError, '"sum", "none"'),
    (lambda: crossentropy(YF, T, NormalizationFactor="batch"), OptionError, '"batch-size"'),
    (lambda: crossentropy(YF, T, ClassificationMode="multi"), OptionError, '"multilabel"'),
    (lambda: crossentropy(YF, T, TargetCategories="multilabel"), OptionError, '"independent"'),
    (lambda: crossentropy(YF, T, TargetCategories="exclusive", ClassificationMode="multilabel"), OptionError, "names"),
    (lambda: huber(YF, T, TransitionPoint=0), OptionError, "TransitionPoint"),
    (lambda: l2loss(YF, T, reduction="none"), OptionError, "Did you mean Reduction"),
    (lambda: mse(dlarray(np.zeros((3, 0)), "CB"), np.zeros((3, 0))), ShapeError, "empty"),
]


@pytest.mark.parametrize("i", range(len(WRONG)))
def test_wrong_input_is_explained(i):
    call, kind, word = WRONG[i]
    with pytest.raises(kind) as caught:
        call()
    assert word in str(caught.value)
