"""batchnorm: every call form, its statistics, its derivatives, against PyTorch, wrong input."""

import numpy as np
import pytest
from finite_differences import check_derivatives, total

from minidl.autodiff import dlfeval, dlgradient
from minidl.core.dlarray import dlarray
from minidl.core.errors import LabelError, OptionError, ShapeError
from minidl.core.op import VIEW
from minidl.core.tape import Tape, opened
from minidl.ops.normalization import batchnorm, batchnorm_fixed, batchnorm_grad, batchnorm_train

RNG = np.random.default_rng(0)
EPSILON = 1e-5


def normal(*shape):
    return RNG.normal(size=shape)


def plain(x, offset, scale, mu, var, epsilon=EPSILON):
    """Batch normalisation with C last."""
    return (x - mu) / np.sqrt(var + epsilon) * scale + offset


LAYOUTS = {  # orders that bring C to the end
    "SSCB": (3, 0, 1, 2), "CB": (1, 0), "CBT": (1, 2, 0), "SCU": (0, 2, 1), "CU": (1, 0), "SSCBT": (3, 4, 0, 1, 2)
}  # fmt: skip
OFFSET, SCALE = normal(3), RNG.uniform(0.5, 2, size=3)
MU, VAR = normal(3), RNG.uniform(0.5, 2, size=3)


def data(labels):
    return normal(*(3 if letter == "C" else 4 + i for i, letter in enumerate(labels)))


@pytest.mark.parametrize("labels", LAYOUTS)
def test_call_forms(labels):
    """matlab-api.md 8.1: the number of outputs decides between training and prediction."""
    x = data(labels)
    last = x.transpose(LAYOUTS[labels])
    mu, var = last.reshape(-1, 3).mean(0), last.reshape(-1, 3).var(0)
    trained, given = plain(last, OFFSET, SCALE, mu, var), plain(last, OFFSET, SCALE, MU, VAR)
    moved_mu, moved_var = 0.1 * mu + 0.9 * MU, 0.1 * var + 0.9 * VAR
    X, column = dlarray(x, labels), MU[:, None]

    def check(got, y, *columns):
        got = got if isinstance(got, tuple) else (got,)
        assert got[0].dims() == labels and [c.shape for c in got[1:]] == [(3, 1)] * len(columns)
        np.testing.assert_allclose(np.asarray(got[0]).transpose(LAYOUTS[labels]), y, rtol=1e-10, atol=1e-12)
        for c, wanted in zip(got[1:], columns):
            assert c.dims() == ""
            np.testing.assert_allclose(np.asarray(c)[:, 0], wanted, rtol=1e-12)

    check(batchnorm(X, OFFSET, SCALE), trained)
    check(batchnorm(X, OFFSET, SCALE, nargout=3), trained, mu, var)
    check(batchnorm(X, OFFSET, SCALE, nargout=2), trained, mu)
    check(batchnorm(X, OFFSET, SCALE, column, VAR), given)
    check(batchnorm(X, OFFSET, SCALE, dlarray(column), VAR, nargout=3), trained, moved_mu, moved_var)
    check(batchnorm(X, OFFSET, SCALE, dlarray(MU, "C"), VAR[None], nargout=2), trained, moved_mu)
    got = batchnorm(X, OFFSET, SCALE, MU, VAR, nargout=3, MeanDecay=0.25, VarianceDecay=1, Epsilon=0.5)
    check(got, plain(last, OFFSET, SCALE, mu, var, 0.5), 0.25 * mu + 0.75 * MU, var)


@pytest.mark.parametrize("order", ["SSCB", "BSSC", "CBSS"])
@pytest.mark.parametrize("state", [(), (MU, VAR)])
def test_data_format_keeps_the_order_of_dimensions(order, state):
    x = data("SSCB")
    wanted = np.asarray(batchnorm(dlarray(x, "SSCB"), OFFSET, SCALE, *state))
    seen = {"SSCB": (0, 1, 2, 3), "BSSC": (3, 0, 1, 2), "CBSS": (2, 3, 0, 1)}[order]
    y = batchnorm(x.transpose(seen), OFFSET, SCALE, *state, DataFormat=order)
    assert y.dims() == ""
    np.testing.assert_allclose(np.asarray(y), wanted.transpose(seen), rtol=1e-12, atol=1e-12)


def test_one_number_for_all_channels():
    X = dlarray(data("SSCB"), "SSCB")
    wanted = batchnorm(X, np.full(3, 2.0), np.full((1, 3), 3.0), np.full(3, 1.0), np.full(3, 4.0), nargout=3)
    for got, want in zip(batchnorm(X, 2, 3.0, 1, dlarray(4.0), nargout=3), wanted):
        np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=1e-12)


def test_large_mean_keeps_its_digits():
    """A one-pass variance would lose them all (cpu.md, section 3)."""
    x = (normal(200, 2) + 1000).astype(np.float32)
    _, _, var = batchnorm(dlarray(x, "BC"), np.zeros(2), np.ones(2), nargout=3)
    assert var.dtype == np.float32
    np.testing.assert_allclose(np.asarray(var)[:, 0], x.astype(np.float64).var(0), rtol=1e-4)


def test_memory_stays_channel_last():
    y = batchnorm(dlarray(normal(2, 4, 5, 3), "BSSC"), OFFSET, SCALE)
    assert np.asarray(y).transpose(3, 0, 1, 2).flags.c_contiguous


def test_few_calls():
    x, v = dlarray(np.zeros((2, 4, 4, 3), np.float32), "BSSC"), dlarray(np.ones((3, 1), np.float32))
    with opened(Tape(everything=True)) as tape:
        batchnorm(x, v, v, v, v, nargout=3)
    assert len(tape.calls) <= 11
    with opened(Tape(everything=True)) as tape:
        batchnorm(x, v, v, v, v)
    assert [call.op.name for call in tape.calls if call.op.kind is not VIEW] == ["batchnorm_factor", "batchnorm_fixed"]


# derivatives ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("op", [batchnorm_train, batchnorm_grad, batchnorm_fixed], ids=lambda op: op.name)
def test_derivatives_of_the_ops(op):
    """batchnorm_train with the gradients of its statistics, too."""
    inputs, params = op.samples(np.random.default_rng(0))[0]
    check_derivatives(lambda *xs: op(*xs, **params), *inputs)


@pytest.mark.parametrize("state", [(), (MU, VAR)])
@pytest.mark.parametrize("nargout", [1, 3])
def test_derivatives(state, nargout):
    def fun(x, offset, scale, *state):
        return batchnorm(dlarray(x, "SCB"), offset, scale, *state, nargout=nargout)

    check_derivatives(fun, normal(4, 3, 2), OFFSET, SCALE, *state)


def test_statistics_alone_have_gradients():
    check_derivatives(lambda x: batchnorm(dlarray(x, "CB"), 0, 1, nargout=3)[1:], normal(3, 4))


@pytest.mark.torch
def test_against_torch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; the comparison with it is optional")
    x, g = normal(6, 5, 3, 4), normal(6, 5, 3, 4)  # SSCB
    order = (3, 2, 0, 1)
    tx, to, ts = (torch.tensor(a.copy(), requires_grad=True) for a in (x.transpose(order), OFFSET, SCALE))
    mu, var = torch.tensor(MU.copy()), torch.tensor(VAR.copy())
    ty = torch.nn.functional.batch_norm(tx, mu, var, ts, to, True, 0.1, EPSILON)
    ty.backward(torch.tensor(g.transpose(order).copy()))

    def fun(x, offset, scale):
        y, mu, var = batchnorm(x, offset, scale, MU, VAR, nargout=3)
        return (y, mu, var, *dlgradient(total(y * g), x, offset, scale))

    found = dlfeval(fun, dlarray(x, "SSCB"), dlarray(OFFSET), dlarray(SCALE))
    y, mean, variance, dx, doffset, dscale = map(np.asarray, found)
    np.testing.assert_allclose(y.transpose(order), ty.detach(), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(mean[:, 0], mu, rtol=1e-10)
    n = 6 * 5 * 4  # PyTorch moves towards the sample variance, MATLAB towards the population variance
    np.testing.assert_allclose(0.9 * VAR + (variance[:, 0] - 0.9 * VAR) * n / (n - 1), var, rtol=1e-10)
    np.testing.assert_allclose(dx.transpose(order), tx.grad, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(doffset, to.grad, rtol=1e-10)
    np.testing.assert_allclose(dscale, ts.grad, rtol=1e-10)


# wrong input ------------------------------------------------------------------------------------------------------
IMAGES = dlarray(np.zeros((4, 4, 3, 2)), "SSCB")
WRONG = [
    (lambda: batchnorm(np.zeros((4, 3)), 0, 1), LabelError, "DataFormat"),
    (lambda: batchnorm(dlarray(np.zeros((4, 3)), "SB"), 0, 1), LabelError, "C (channel)"),
    (lambda: batchnorm(IMAGES, np.zeros(4), 1), ShapeError, "offset"),
    (lambda: batchnorm(IMAGES, 0, np.ones((3, 3))), ShapeError, "scale"),
    (lambda: batchnorm(IMAGES, 0, dlarray(np.ones(3), "B")), LabelError, "scale"),
    (lambda: batchnorm(IMAGES, 0, 1, np.zeros(2), np.ones(3)), ShapeError, "mu"),
    (lambda: batchnorm(IMAGES, 0, 1, np.zeros(3)), OptionError, "come together"),
    (lambda: batchnorm(IMAGES, 0, 1, np.zeros(3), np.ones(4), nargout=3), ShapeError, "sigmaSq"),
    (lambda: batchnorm(IMAGES, 0, 1, Epsilon=1e-6), OptionError, "1e-5"),
    (lambda: batchnorm(IMAGES, 0, 1, epsilon=1e-3), OptionError, "Did you mean Epsilon"),
    (lambda: batchnorm(IMAGES, 0, 1, MU, VAR, MeanDecay=2, nargout=3), OptionError, "MeanDecay"),
    (lambda: batchnorm(IMAGES, 0, 1, nargout=4), OptionError, "nargout"),
    (lambda: batchnorm(dlarray(np.zeros((3, 0)), "CB"), 0, 1), ShapeError, "no observations"),
    (lambda: batchnorm(dlarray(np.zeros((0, 3)), "CB"), 0, 1), ShapeError, "no channels"),
]


@pytest.mark.parametrize("i", range(len(WRONG)))
def test_wrong_input_is_explained(i):
    call, kind, word = WRONG[i]
    with pytest.raises(kind) as caught:
        call()
    assert word in str(caught.value)
