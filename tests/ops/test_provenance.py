"""N1: what softmax and sigmoid made knows its logits; logarithms and crossentropy, and their derivatives, use them."""

from __future__ import annotations

import gc
import math
import weakref

import numpy as np
import pytest

import minidl as m
from minidl import crossentropy, dlaccelerate, dlarray, dlfeval, dlgradient, gather, softmax

RNG = np.random.default_rng(5)
T2 = np.array([[0.0], [1.0]])
MODES = {"plain": lambda f: f, "fast": dlaccelerate, "exact": lambda f: dlaccelerate(f, Numerics="exact")}


@pytest.fixture(params=MODES)
def run(request):
    """Call a function by dlfeval as it is, or twice accelerated: recorded and replayed results must agree."""

    def call(f, *args):
        f = MODES[request.param](f)
        results = [dlfeval(f, *args) for _ in range(2)]
        first, second = (np.concatenate([np.ravel(x) for x in _each(r)]) for r in results)
        np.testing.assert_allclose(second, first, rtol=2e-6, atol=1e-30)
        if request.param != "plain":
            assert f.HitRate == 50
        return results[1]

    return call


def _each(result):
    return [x.numpy() for x in (result if isinstance(result, tuple) else (result,))]


def arrays(result):
    return [x.numpy() for x in result]


# confident wrong answers --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [20.0, 30.0, 100.0, 1000.0])
def test_N1_confident_wrong_answers_have_a_gradient(run, dtype, size):
    def f(z):
        loss = crossentropy(softmax(z), T2)
        return loss, dlgradient(loss, z)

    loss, g = arrays(run(f, dlarray(np.array([[size], [0.0]], dtype), "CB")))
    np.testing.assert_allclose(loss, size + math.log1p(math.exp(-size)), rtol=1e-6)
    np.testing.assert_allclose(g, [[1.0], [-1.0]], rtol=1e-6)


WAYS = {
    "relabelled": lambda Y: dlarray(m.stripdims(Y), "CB"),
    "stripdims": lambda Y: m.stripdims(Y),
    "reshape": lambda Y: m.reshape(m.reshape(Y, 1, 3, 4), 3, 4),
    "squeeze": lambda Y: m.squeeze(m.reshape(Y, 1, 3, 4)),
    "permute": lambda Y: m.permute(m.permute(m.stripdims(Y), 1, 0), 1, 0),
    "copy": lambda Y: Y.copy(),
    "cast": lambda Y: m.double(Y),
    "slices put together": lambda Y: m.cat(1, Y[:, 0:1], Y[:, 1:4]),
    "picked by a list": lambda Y: Y[:, [3, 2, 1, 0]][:, [3, 2, 1, 0]],
    "picked by truth": lambda Y: Y[:, np.ones(4, bool)],
    "nested dlfeval": lambda Y: dlfeval(lambda y: y, Y),
    "1 - (1 - Y)": lambda Y: 1 - (1 - Y),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_N1_the_way_of_the_probabilities_does_not_matter(run, way):
    z = np.array([[50.0, -3.0, 0.5, 90.0], [0.0, 2.0, 1.0, -90.0], [1.0, 0.0, -1.0, 3.0]])
    T = np.eye(3)[[1, 0, 2, 1]].T

    def f(z):
        loss = crossentropy(WAYS[way](softmax(z)), T, DataFormat=None if way in LABELLED else "CB")
        g = dlgradient(loss, z, EnableHigherDerivatives=True)
        return loss, g, dlgradient(m.sum(g * dlarray(T + 0.5, "CB"), "all"), z)

    LABELLED = {"relabelled", "copy", "cast", "slices put together", "picked by a list", "picked by truth",
                "nested dlfeval", "1 - (1 - Y)"}  # fmt: skip
    loss, g, h = arrays(run(f, dlarray(z.astype("float32"), "CB")))
    y = np.exp(z - z.max(0)) / np.exp(z - z.max(0)).sum(0)
    logs = z - z.max(0) - np.log(np.exp(z - z.max(0)).sum(0))
    np.testing.assert_allclose(loss, -(T * logs).sum() / 4, rtol=1e-5)
    np.testing.assert_allclose(g, (y - T) / 4, rtol=1e-5, atol=1e-7)
    v = T + 0.5
    np.testing.assert_allclose(h, y * (v - (y * v).sum(0)) / 4, rtol=1e-4, atol=1e-7)


def test_N1_on_a_gpu(place):
    z = place(np.array([[100.0], [0.0]], np.float32))

    def f(z):
        loss = crossentropy(softmax(z), T2)
        there = crossentropy(gather(softmax(z)), T2)
        return loss, dlgradient(loss, z, RetainData=True), dlgradient(there, z)

    for g in (f, dlaccelerate(f)):
        for _ in range(2):
            found = [x.numpy().ravel().tolist() for x in dlfeval(g, dlarray(z, "CB"))]
            assert found == [[100.0], [1.0, -1.0], [1.0, -1.0]]


# options --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("options", [
    {}, {"NormalizationFactor": "all-elements"}, {"NormalizationFactor": "none"},
    {"Mask": np.array([[1.0, 0.0, 1.0, 1.0]])},
    {"Mask": np.array([[1.0, 0.0, 1.0, 1.0]]), "NormalizationFactor": "mask-included"},
    {"weights": np.array([0.5, 2.0, 1.0]), "WeightsFormat": "C"}, {"ClassificationMode": "multilabel"},
    {"TargetCategories": "independent"}, {"Reduction": "none"},
])  # fmt: skip
@pytest.mark.parametrize("made_by", ["softmax", "sigmoid"])
def test_N1_options_mean_the_same_and_results_are_those_of_probabilities(options, made_by):
    z, T = RNG.normal(size=(3, 4)), RNG.dirichlet([1.0] * 3, size=4).T
    make = getattr(m, made_by)
    options = dict(options)
    weights = options.pop("weights", None)

    def f(z):
        loss = crossentropy(make(z), T, weights, **options)
        return loss, dlgradient(m.sum(loss * loss, "all"), z)

    def of_probabilities(z):
        return crossentropy(dlarray(make(dlarray(z, "CB")).numpy(), "CB"), T, weights, **options).numpy()

    def by_differences(k, h=1e-5):
        def value(dz):
            return float(np.sum(of_probabilities(z + dz) ** 2))

        dz = np.zeros(z.size)
        dz[k] = h
        return (value(dz.reshape(z.shape)) - value(-dz.reshape(z.shape))) / (2 * h)

    loss, g = dlfeval(f, dlarray(z, "CB"))
    np.testing.assert_allclose(loss.numpy(), of_probabilities(z), rtol=1e-12)
    np.testing.assert_allclose(g.numpy().ravel(), [by_differences(k) for k in range(z.size)], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("made_by", ["softmax", "sigmoid"])
def test_N1_multilabel_is_right_at_extremes(run, made_by):
    z = np.array([[60.0, -50.0], [-70.0, 80.0], [1.0, 2.0]])
    T = np.array([[0.0, 1.0], [1.0, 0.0], [0.25, 0.5]])

    def f(z):
        loss = crossentropy(getattr(m, made_by)(z), T, ClassificationMode="multilabel", NormalizationFactor="none")
        return loss, dlgradient(loss, z)

    loss, g = arrays(run(f, dlarray(z.astype("float32"), "CB")))
    if made_by == "sigmoid":
        expected = (np.logaddexp(0, z) - T * z).sum()
        slope = np.exp(-np.logaddexp(0, -z)) - T
    else:
        lse = np.logaddexp.reduce(z, axis=0)
        rest = np.array([np.logaddexp.reduce(np.delete(z, c, 0), axis=0) for c in range(3)]) - lse
        logs = z - lse
        expected = -(T * logs + (1 - T) * rest).sum()
        y = np.exp(logs)
        slope = -T + y * T.sum(0)
        for c in range(3):
            others = np.where(np.arange(3)[:, None] == c, 0, np.exp(z - rest[c] - lse))
            slope -= (1 - T[c]) * (others - y)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(g, slope, rtol=1e-4, atol=1e-6)


# logarithms -----------------------------------------------------------------------------------------------------------
def test_N1_logarithms_of_probabilities(run):
    def f(x):
        y = m.log(m.sigmoid(x))
        r = m.log(1 - m.sigmoid(x))
        s = m.log2(m.sigmoid(x)) + np.log10(m.sigmoid(x))
        return (y, dlgradient(m.sum(y, "all"), x, RetainData=True), r,
                dlgradient(m.sum(r, "all"), x, RetainData=True), s)  # fmt: skip

    y, dy, r, dr, s = arrays(run(f, dlarray(np.array([-800.0, 0.0, 800.0]))))
    np.testing.assert_allclose(y, [-800, -math.log(2), 0])
    np.testing.assert_allclose(dy, [1, 0.5, 0])
    np.testing.assert_allclose(r, [0, -math.log(2), -800])
    np.testing.assert_allclose(dr, [0, -0.5, -1])
    np.testing.assert_allclose(s, np.array([-800, -math.log(2), 0]) * (1 / math.log(2) + 1 / math.log(10)))


# derivatives by the probabilities themselves --------------------------------------------------------------------------
def test_N1_the_derivative_by_probabilities_is_that_of_their_logarithm(run):
    z, T = RNG.normal(size=(3, 2)), np.eye(3)[[0, 2]].T

    def f(z):
        Y = softmax(z)
        loss = crossentropy(dlarray(m.stripdims(Y), "CB"), T)
        both = dlgradient(loss, Y, z, RetainData=True)
        return *both, dlgradient(loss, Y, RetainData=True), dlgradient(loss + m.sum(Y * Y, "all"), Y, z)[0]

    dy, dz, alone, more = arrays(run(f, dlarray(z, "CB")))
    y = np.exp(z) / np.exp(z).sum(0)
    np.testing.assert_allclose(dy, -T / y / 2, rtol=1e-12)
    np.testing.assert_allclose(dz, (y - T) / 2, rtol=1e-12)
    np.testing.assert_allclose(alone, -T / y / 2, rtol=1e-12)
    np.testing.assert_allclose(more, -T / y / 2 + 2 * y, rtol=1e-12)


def test_N1_where_provenance_ends():
    z = dlarray(np.array([[100.0], [0.0]], np.float32), "CB")
    Y = softmax(z)
    eps = np.finfo(np.float32).eps
    capped = -math.log(eps)

    loss, g = dlfeval(lambda Y: (loss := crossentropy(Y, T2), dlgradient(loss, Y)), Y)  # an argument is a number
    assert loss.item() == pytest.approx(capped, rel=1e-6)
    np.testing.assert_allclose(g.numpy(), [[0], [-1 / eps]], rtol=1e-6)

    def changed(z):
        Y = softmax(z)
        Y[0, 0] = 1.0
        return crossentropy(Y, T2)

    assert dlfeval(changed, z).item() == pytest.approx(capped, rel=1e-6)
    stopped = dlfeval(lambda z: (loss := crossentropy(m.stopgradient(softmax(z)), T2)) + 0 * dlgradient(
        loss + 0 * m.sum(z, "all"), z).sum("all"), z)  # fmt: skip
    assert stopped.item() == 100
    kept = dlfeval(lambda z: crossentropy(Y, T2) + 0 * m.sum(z, "all"), z)  # Y is from before
    assert kept.item() == 100
    losses = [dlfeval(acc, Y).item() for acc in [dlaccelerate(lambda Y: crossentropy(Y, T2))] * 3]
    assert losses == pytest.approx([capped] * 3, rel=1e-6)


def test_N1_results_of_replays_know_their_logits():
    for make in (lambda z: softmax(2 * z), lambda z: dlarray(m.stripdims(softmax(2 * z)), "CB"), softmax):
        for mode in MODES.values():
            model = mode(make)
            scale = 1 if make is softmax else 2

            def f(z, model=model):
                Y = model(z)
                loss = crossentropy(Y, T2)
                return loss, *dlgradient(loss, z, Y)

            z = dlarray(np.array([[30.0], [0.0]]), "CB")
            for _ in range(3):
                loss, dz, dy = dlfeval(f, z)
                assert loss.item() == pytest.approx(30 * scale)
                np.testing.assert_allclose(dz.numpy(), [[scale], [-scale]], rtol=1e-12)
                np.testing.assert_allclose(dy.numpy()[1], -min(math.exp(30 * scale), 2.0**52), rtol=1e-9)
                assert crossentropy(model(z), T2).item() == pytest.approx(30 * scale)


def test_N1_kept_probabilities_keep_their_logits_alone():
    large = dlarray(np.ones((50, 4)), "CB")
    gone = weakref.ref(large._value)
    Y = softmax(m.fullyconnect(large, np.ones((3, 50)), np.zeros(3)))
    del large
    assert gone() is None and crossentropy(Y, np.ones((3, 4)) / 3).item() == pytest.approx(math.log(3))
    y = m.sigmoid(dlarray(1.0))
    first = weakref.ref(y._value)
    for _ in range(100):
        y = 1 - y
    gc.disable()
    assert first() is None
    gc.enable()


# training -------------------------------------------------------------------------------------------------------
def test_N1_a_linear_classifier_of_raw_digits_learns():
    X, labels, _ = m.digitTrain4DArrayData()
    X = np.asarray(X)[..., :300].reshape(784, -1).astype("float32") * 255
    names = sorted(set(np.asarray(labels)[:300].tolist()))
    T = (np.array(names)[:, None] == np.asarray(labels)[:300][None]).astype("float32")
    start = np.random.default_rng(0).normal(size=(10, 784)) * 0.01

    @dlaccelerate
    def gradient(W):
        return dlgradient(crossentropy(softmax(m.mtimes(W, X), DataFormat="CB"), T, DataFormat="CB"), W)

    def exact(W):  # the same in double, by NumPy
        z = W @ X.astype("float64")
        y = np.exp(z - z.max(0))
        return (y / y.sum(0) - T) @ X.T.astype("float64") / X.shape[1]

    scores = []
    for step in (lambda W: dlfeval(gradient, dlarray(W.astype("float32"))).numpy().astype("float64"), exact):
        W, mean, square = start.copy(), 0.0, 0.0
        for i in range(1, 41):
            g = step(W)
            mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
            W -= 0.001 * (mean / (1 - 0.9**i)) / (np.sqrt(square / (1 - 0.999**i)) + 1e-8)
        scores.append(float(np.mean((W @ X).argmax(0) == T.argmax(0))))
    assert scores[0] == pytest.approx(scores[1], abs=0.03) and scores[0] > 0.6


# the functions --------------------------------------------------------------------------------------------------
def test_logsumexp_softplus_logsigmoid_at_extremes(run):
    inf = math.inf
    X = np.array([[1000.0, 1001.0], [-inf, -inf], [-inf, 2.0], [inf, 0.0], [math.nan, 1.0], [-1000.0, -1000.0]])

    def f(x, v):
        y = m.logsumexp(x, 1)
        return y, dlgradient(m.sum(y, "all"), x, RetainData=True), m.softplus(v), m.logsigmoid(v), *dlgradient(
            m.sum(m.softplus(v), "all") + 2 * m.sum(m.logsigmoid(v), "all"), v, x
        )

    v = np.array([-inf, -1e4, -1.0, 0.0, 3.0, 1e4, inf, math.nan])
    y, dy, plus, log, dv, _ = arrays(run(f, dlarray(X), dlarray(v)))
    s = 1 / (1 + math.exp(-1))
    np.testing.assert_allclose(y[:, 0], [1001 - math.log(s), -inf, 2, inf, math.nan, -1000 + math.log(2)])
    np.testing.assert_allclose(dy[[0, 1, 2, 3, 5]], [[1 - s, s], [0, 0], [0, 1], [1, 0], [0.5, 0.5]])
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(plus, np.logaddexp(0, v))
        np.testing.assert_allclose(log, -np.logaddexp(0, -v))
        sigmoid = np.exp(-np.logaddexp(0, -v))
    np.testing.assert_allclose(dv, sigmoid + 2 * (1 - sigmoid), atol=1e-15)


def test_logsoftmax_labels_and_formats():
    x = RNG.normal(size=(3, 4))
    expected = x - np.logaddexp.reduce(x, axis=0)
    y = m.logsoftmax(dlarray(x, "CB"))
    assert y.dims() == "CB"
    np.testing.assert_allclose(y.numpy(), expected)
    np.testing.assert_allclose(m.logsoftmax(x.T, DataFormat="BC").numpy(), expected.T)
    with pytest.raises(m.LabelError, match="logsoftmax"):
        m.logsoftmax(x)


def test_logaddexp(run):
    a, b = (x.ravel() for x in np.meshgrid([-np.inf, -1e3, 0.0, 2.0, 1e3, np.inf], [-np.inf, 0.0, 1e3, np.inf]))

    def f(a, b):
        y = np.logaddexp(a, b)
        return y, *dlgradient(m.sum(y, "all"), a, b)

    y, da, db = arrays(run(f, dlarray(a), dlarray(b)))
    np.testing.assert_allclose(y, np.logaddexp(a, b))
    np.testing.assert_allclose(da + db, 1)
    assert (da[a > b] >= 0.5).all()


def test_stopgradient_is_a_constant_of_any_order(run):
    def f(x):
        y = m.sum(x * x * m.stopgradient(x), "all")
        g = dlgradient(y, x, EnableHigherDerivatives=True)
        return m.stopgradient({"x": [x]})["x"][0], g, dlgradient(m.sum(g, "all"), x)

    same, g, h = arrays(run(f, dlarray(np.array([3.0, -1.0]))))
    assert (same.tolist(), g.tolist(), h.tolist()) == ([3, -1], [18, 2], [6, -2])
    assert m.stopgradient(dlarray(np.ones((2, 3)), "CB")).dims() == "CB"
