"""dlarrays on a GPU are dlarrays: all that Python, NumPy and MATLAB ask of one.

Beside arrays on the host the result is on the GPU, and gradients go back to where an operand came from.
"""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import minidl as m
from minidl import (
    DTypeError,
    LabelError,
    SubscriptError,
    adamupdate,
    dlaccelerate,
    dlarray,
    dlfeval,
    dlgradient,
    dlupdate,
    extractdata,
    gather,
    gpuArray,
    rmspropupdate,
    rng,
    sgdmupdate,
    struct,
)

pytestmark = pytest.mark.usefixtures("device")
A = np.arange(12.0).reshape(3, 4)


@pytest.fixture
def X():
    """3 x 4 on the GPU, without labels."""
    return gpuArray(dlarray(A))


def on_gpu(x, fmt=None):
    return gpuArray(dlarray(np.asarray(x, float), fmt))


# in and out ---------------------------------------------------------------------------------------------------------
def test_there_and_back(device, X):
    assert X.device == "gpu" and "gpuArray dlarray" in repr(X) and "11" in str(X)
    Y = gather(X)
    assert Y.device == "cpu" and np.array_equal(Y, A) and gather(Y) is not X
    assert X.gather().device == "cpu"
    assert isinstance(X.numpy(), np.ndarray) and np.array_equal(X.numpy(), A)
    data = extractdata(X)
    assert isinstance(data, device.library.ndarray) and np.array_equal(gather(data), A)
    assert gather(dlarray(1.0)).device == "cpu" and gather(3.0) == 3.0


def test_what_gpuArray_takes(device):
    for x in (A, A.T, A[::2, 1:], A > 3, 3.0, [1.0, 2.0], np.float32(2), np.zeros((0, 3)), A.astype("float32")):
        y = gpuArray(x)
        assert isinstance(y, device.library.ndarray)
        assert np.array_equal(gather(y), x) and gather(y).dtype == np.asarray(x).dtype
        if np.asarray(x).dtype.kind in "fb":
            z = dlarray(y)
            assert z.device == "gpu" and np.array_equal(z, x)
    with pytest.raises(DTypeError, match="Convert it"):
        dlarray(gpuArray(np.arange(3)))


def test_a_dlarray_has_numbers_of_its_own(device, X):
    data = device.array(A)
    Y = dlarray(data, "SS")
    data.set(np.zeros((3, 4)))
    assert np.array_equal(Y, A)
    out = X.extractdata()
    out.set(np.zeros((3, 4)))
    assert np.array_equal(X, A)


def test_labels(device):
    X = dlarray(device.array(np.arange(24.0).reshape(2, 3, 4)), "BSC")
    assert (X.dims(), X.shape, X.device) == ("SCB", (3, 4, 2), "gpu")
    assert np.array_equal(X, np.arange(24.0).reshape(2, 3, 4).transpose(1, 2, 0))
    assert gpuArray(dlarray(A, "CB")).dims() == gather(on_gpu(A, "CB")).dims() == "CB"
    with pytest.raises(LabelError, match="the data has 3"):
        dlarray(gpuArray(np.zeros((2, 2, 2))), "CB")


def test_another_library(device, X):
    held = device.array(A)

    class Theirs:
        __cuda_array_interface__ = held.__cuda_array_interface__

    assert np.array_equal(gather(gpuArray(Theirs())), A)
    assert np.array_equal(dlarray(Theirs(), "CB"), A)
    assert np.array_equal(X + dlarray(Theirs()), 2 * A)
    # A pointer into a copy that dies with the call is no offer: others take extractdata(X), which they can hold.
    assert not hasattr(X, "__cuda_array_interface__")
    assert np.array_equal(gather(gpuArray(X.extractdata())), A)


# Python and NumPy ---------------------------------------------------------------------------------------------------
def test_python_habits(X):
    one = X[1, 2]
    assert float(one) == one.item() == 6 and int(one) == 6 and f"{one:.1f}" == "6.0" and bool(one)
    assert [0, 1, 2, 3, 4, 5, 6][one] == 6
    assert len(X) == 3 and X.tolist() == A.tolist()
    assert [x.device for x in X] == ["gpu"] * 3 and [x.tolist() for x in X] == A.tolist()
    assert (X.ndim, X.size, X.shape, X.dtype) == (2, 12, (3, 4), "float64")
    assert np.array_equal(np.asarray(X), A) and np.asarray(X, "float32").dtype == "float32"
    assert np.array_equal(np.array([x for x in X[0]]), A[0])
    assert m.isequal(X, A) and m.isequal(X, dlarray(A)) and not m.isequal(X, A + 1)
    assert m.numel(X) == 12 and m.size(X, 1) == 4 and m.underlyingType(X) == "double"
    with pytest.raises(m.ShapeError):
        bool(X)


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x)), lambda x: +x])
def test_copies(again, X):
    for x in (X, on_gpu(A, "CB"), X[::-1], X > 3, on_gpu(1.0), on_gpu(np.zeros((0, 2)))):
        y = again(x)
        assert (y.device, y.dims(), y.dtype) == ("gpu", x.dims(), x.dtype) and np.array_equal(y, x)
    y = again(X)
    y[0] = 5
    assert np.array_equal(X, A)


def test_a_pickle_needs_a_gpu(X, monkeypatch):
    data = pickle.dumps(X)
    monkeypatch.setenv("MINIDL_DEVICE", "cpu")
    with pytest.raises(m.DeviceError, match="unpickling"):
        pickle.loads(data)


def test_dlpack_asks_the_array(X, device):
    made = []
    kind = type(X._value.data)
    if device.name == "gpu":
        assert device.library.array_equal(device.library.from_dlpack(X), device.array(A))
        return
    with pytest.MonkeyPatch.context() as patch:  # the shim has no capsules
        patch.setattr(kind, "__dlpack__", lambda x, **options: made.append((x, options)), raising=False)
        patch.setattr(kind, "__dlpack_device__", lambda x: (2, 0), raising=False)
        X.__dlpack__(stream=1)
        assert X.__dlpack_device__() == (2, 0)
    ((data, options),) = made
    assert data is not X._value.data and options == {"stream": 1} and np.array_equal(data.get(), A)


NUMPY = [
    np.sin, np.square, np.sqrt, np.rint, lambda x: np.sum(x, axis=0), np.mean, np.max, lambda x: np.min(x, axis=1),
    np.var, np.median, np.argmax, lambda x: np.argmin(x, axis=0), np.sort, np.argsort, np.cumsum,
    lambda x: np.cumprod(x, axis=1), lambda x: np.concatenate([x, x], axis=1), lambda x: np.stack([x, A]),
    lambda x: np.where(x > 3, x, 0),
    np.transpose, lambda x: np.reshape(x, (4, 3)), lambda x: np.clip(x, 2, 7), lambda x: A + x, lambda x: A @ x.T,
    lambda x: np.tile(x, 2), lambda x: np.repeat(x, 2), np.flip, np.isnan, np.ravel, lambda x: np.roll(x, 1),
    lambda x: np.maximum(A.T.reshape(3, 4), x), np.zeros_like, np.ones_like, lambda x: np.exp(x) / np.exp(x).sum(1),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(NUMPY)))
def test_numpy_functions(number, X):
    expected = NUMPY[number](dlarray(A))
    found = NUMPY[number](X)
    assert found.device == "gpu" and found.shape == expected.shape and found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-12)


# beside arrays on the host ------------------------------------------------------------------------------------------
MIXED = [
    lambda x, y: x + y, lambda x, y: y - x, lambda x, y: x * y / (1 + y * y), lambda x, y: x @ y.T,
    lambda x, y: y @ x.T, lambda x, y: m.cat(0, x, y), lambda x, y: m.where(x > 4, x, y), lambda x, y: x > y,
    lambda x, y: m.atan2(x, y),
    lambda x, y: m.max(x, y), lambda x, y: m.hypot(x, y), lambda x, y: m.power(x, y), lambda x, y: m.dot(x, y),
    lambda x, y: m.mse(x, y, DataFormat="CB"), lambda x, y: m.huber(x, y, DataFormat="CB"),
    lambda x, y: m.batchnorm(dlarray(x, "CB"), y[:, 0], y[:, 1] * 0 + 1),
    lambda x, y: m.fullyconnect(dlarray(x, "CB"), y.T, y[0]),
    lambda x, y: m.dlconv(dlarray(x, "SC"), m.reshape(y[:2], (2, 4, 1)), 0),
    lambda x, y: m.mldivide(x[:, :3] + 9 * m.eye(3), y), lambda x, y: m.crossentropy(m.softmax(dlarray(x, "CB")), y),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(MIXED)))
def test_mixed_operands(number, random, explained):
    a, b = random.uniform(1, 2, (3, 4)), random.uniform(1, 2, (3, 4))
    expected = MIXED[number](dlarray(a), dlarray(b))
    for found in (
        MIXED[number](on_gpu(a), dlarray(b)),
        MIXED[number](dlarray(a), on_gpu(b)),
        MIXED[number](on_gpu(a), b),
        MIXED[number](on_gpu(a), on_gpu(b)),
    ):
        assert found.device == "gpu" and found.dims() == expected.dims() and found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_plain_array_beside_a_gpu_dlarray(device, X):
    for other in (A, device.array(A), 2, 2.5, np.float64(2), np.float32(2), True, [1.0, 2.0, 3.0, 4.0]):
        plain = gather(other) if isinstance(other, device.library.ndarray) else other
        for found, expected in ((X + other, A + plain), (m.minus(other, X), plain - A)):
            assert found.device == "gpu" and np.array_equal(found, expected)
    assert np.array_equal(dlarray(A) + device.array(A), 2 * A)
    assert (X + np.float32(1)).dtype == "float64"
    labelled = on_gpu(A, "CB") + np.ones(3)[:, None]
    assert labelled.dims() == "CB" and np.array_equal(labelled, A + 1)


def test_gradients_go_back_to_where_an_operand_came_from(random):
    a, b = random.normal(size=(3, 4)), random.normal(size=(3, 4))

    def fun(x, y):
        loss = m.sum(m.exp(x * y) + y, "all")
        return loss, dlgradient(loss, x, y)

    loss, (gx, gy) = dlfeval(fun, on_gpu(a), dlarray(b))
    expected, (ex, ey) = dlfeval(fun, dlarray(a), dlarray(b))
    assert (loss.device, gx.device, gy.device) == ("gpu", "gpu", "cpu")
    for found, wanted in ((loss, expected), (gx, ex), (gy, ey)):
        np.testing.assert_allclose(found, wanted, rtol=1e-12)
    unused = dlfeval(lambda x, y: dlgradient(m.sum(x, "all"), y), on_gpu(a), on_gpu(b))
    assert unused.device == "gpu" and not np.any(unused)
    g = dlfeval(lambda x: dlgradient(m.sum(gather(gpuArray(x) ** 3), "all"), x), dlarray(a))
    assert g.device == "cpu"
    np.testing.assert_allclose(g, 3 * a**2)


def test_second_derivatives(X):
    def fun(x):
        g = dlgradient(m.sum(x * x * x, "all"), x, EnableHigherDerivatives=True)
        return dlgradient(m.sum(g * g, "all"), x)

    np.testing.assert_allclose(dlfeval(fun, X), dlfeval(fun, dlarray(A)), rtol=1e-12)


def test_accelerated_with_mixed_arguments(random):
    def fun(x, y):
        loss = m.sum(m.tanh(x @ y) ** 2, "all")
        return loss, dlgradient(loss, x, y)

    accfun = dlaccelerate(fun)
    for _ in range(3):
        a, b = random.normal(size=(3, 4)), random.normal(size=(4, 2))
        loss, (gx, gy) = dlfeval(accfun, on_gpu(a), dlarray(b))
        expected, (ex, ey) = dlfeval(fun, dlarray(a), dlarray(b))
        assert (loss.device, gx.device, gy.device) == ("gpu", "gpu", "cpu")
        for found, wanted in ((loss, expected), (gx, ex), (gy, ey)):
            np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-15)
    assert accfun.HitRate == pytest.approx(200 / 3)
    assert accfun.NumTraces == 1
    dlfeval(accfun, dlarray(a), dlarray(b))
    assert accfun.NumTraces == 2  # another device is another signature


# subscripts ---------------------------------------------------------------------------------------------------------
MASK = A > 4
KEYS = [
    0, -1, slice(None, None, -2), (slice(None), 1), (..., None), (None, 1, slice(1, 3)), [0, 2, 2], np.array([2, -1]),
    (np.array([0, 1]), np.array([1, 3])), MASK, MASK[:, 0], (slice(None), MASK[0]), [], (np.array([[0], [2]]), [1, 3]),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(KEYS)))
def test_subscripts(number, X):
    key = KEYS[number]
    found = X[key]
    expected = A[key] if not (isinstance(key, list) and not key) else A[np.array([], int)]
    assert found.device == "gpu" and np.array_equal(found, expected)
    for value in (7.0, expected + 1, on_gpu(expected + 1), dlarray(expected + 1), gpuArray(expected + 1)):
        Y, B = +X, A.copy()
        Y[key] = value
        B[key if not (isinstance(key, list) and not key) else np.array([], int)] = (
            value if isinstance(value, (float, np.ndarray)) else np.asarray(gather(value))
        )
        assert Y.device == "gpu" and np.array_equal(Y, B) and np.array_equal(X, A)


def test_subscripts_that_are_on_the_gpu(X):
    assert np.array_equal(X[X > 4], A[MASK]) and np.array_equal(dlarray(A)[X > 4], A[MASK])
    assert np.array_equal(X[on_gpu([2, 0])], A[[2, 0]]) and np.array_equal(X[gpuArray(np.array([2, 0]))], A[[2, 0]])
    assert np.array_equal(X[on_gpu(1.0)], A[1]) and np.array_equal(X[:, gpuArray(MASK[0])], A[:, MASK[0]])
    Y = +X
    Y[Y > 4] = 0
    assert np.array_equal(Y, np.where(MASK, 0, A))
    Y[on_gpu([0.0])] = on_gpu(A[1])
    assert np.array_equal(Y[0], A[1])
    with pytest.raises(SubscriptError):
        X[on_gpu([3.0])]


def test_a_gpu_value_into_a_host_array(X):
    Y = dlarray(A)
    Y[0] = X[1]
    assert Y.device == "gpu" and np.array_equal(Y[0], A[1])


def test_gradients_of_subscripts(X):
    def fun(x, v):
        x[0] = v * x[1]
        x[x > 8] = 1.5
        return m.sum(x[[2, 0, 2]] ** 2, "all")

    def gradients(x, v):
        return dlgradient(fun(+x, v), x, v)

    found, expected = dlfeval(gradients, X, dlarray(A[2])), dlfeval(gradients, dlarray(A), dlarray(A[2]))
    assert [g.device for g in found] == ["gpu", "cpu"]
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, rtol=1e-12)


# parameters, solvers, random numbers --------------------------------------------------------------------------------
def made():
    return struct(conv=struct(w=dlarray(A), b=dlarray(A[0], "C")), scale=dlarray(2.0))


@pytest.mark.parametrize("rate", [0.1, np.float64(0.1), dlarray(0.1), dlarray(np.float32(0.1))])
@pytest.mark.parametrize("solver", [
    lambda p, g, s, t, rate: adamupdate(p, g, *(s or ([], [])), t, rate),
    lambda p, g, s, t, rate: sgdmupdate(p, g, *(s or ([],)), rate),
    lambda p, g, s, t, rate: rmspropupdate(p, g, *(s or ([],)), rate),
])  # fmt: skip
def test_solvers(solver, rate):
    host_p, gpu_p = made(), dlupdate(gpuArray, made())
    assert gpu_p.conv.b.dims() == "CU" and gpu_p.conv.b.device == gpu_p.scale.device == "gpu"
    host_s = gpu_s = None
    for t in (1, 2, 3):
        host_p, *host_s = solver(host_p, dlupdate(m.square, host_p), host_s, t, rate)
        gpu_p, *gpu_s = solver(gpu_p, dlupdate(m.square, gpu_p), gpu_s, t, rate)
    for found, expected in ((gpu_p, host_p), (gpu_s[0], host_s[0])):
        dlupdate(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-300), found, expected)
        dlupdate(lambda x, y: [x.device == "gpu"] == [True] and x.dims() == y.dims() or pytest.fail(), found, expected)


def test_host_parameters_with_gradients_on_the_gpu():
    p, _, _ = adamupdate(made(), dlupdate(gpuArray, made()), [], [], 1)
    expected, _, _ = adamupdate(made(), made(), [], [], 1)
    dlupdate(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12), p, expected)
    assert p.scale.device == "gpu"


def test_a_whole_step_in_one_trace(random):
    def step(p, x, m_, v_, t):
        loss = m.mean((p.w @ x + p.b) ** 2, "all")
        p, m_, v_ = adamupdate(p, dlgradient(loss, p), m_, v_, t, dlarray(0.1))
        return p, m_, v_, loss

    first = struct(w=dlarray(random.normal(size=(2, 3))), b=dlarray(random.normal(size=(2, 1))))
    batches = [random.normal(size=(3, 5)) for _ in range(4)]
    runs = []
    for put, run in ((lambda x: x, step), (gpuArray, dlaccelerate(step))):
        p, m_, v_ = dlupdate(put, first), [], []
        for t, x in enumerate(batches, 1):
            p, m_, v_, loss = dlfeval(run, p, put(dlarray(x)), m_, v_, dlarray(float(t)))
        runs.append((p.w, p.b, loss))
    assert [x.device for x in runs[1]] == ["gpu"] * 3
    for expected, found in zip(*runs):
        np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_random_numbers_do_not_depend_on_the_device(X):
    def draws(like):
        rng(3)
        return [m.rand(2, 3, like=like), m.randn(4, like=like), m.rand(2), m.randi(9, 2, 2, like=like), m.randn(1, 2),
                dlarray(m.randperm(5).astype(float)), m.rand(1, like=like)]  # fmt: skip

    host, gpu = draws(dlarray(A)), draws(X)
    assert [getattr(y, "device", "cpu") for y in gpu] == ["gpu", "gpu", "cpu", "gpu", "cpu", "cpu", "gpu"]
    for a, b in zip(host, gpu):
        np.testing.assert_allclose(b, a, rtol=1e-12)
    state = rng()
    assert state.Draws == 7
    y = m.rand(2, like=X)
    rng(state)
    assert np.array_equal(m.rand(2, like=dlarray(A)), y)


@pytest.mark.parametrize("make", [m.zeros, m.ones, m.eye, m.rand])
def test_new_arrays_like_one_on_the_gpu(make, X):
    y = make(2, 3, like=X)
    assert y.device == "gpu" and y.shape == (2, 3) and make(2, "like", X).device == "gpu"


def test_random_numbers_are_drawn_anew_in_replays(X):
    accfun = dlaccelerate(lambda x: x + m.rand(3, 4, like=x))
    rng(1)
    found = [accfun(X) for _ in range(3)]
    rng(1)
    expected = [dlarray(A) + m.rand(3, 4, like=dlarray(A)) for _ in range(3)]
    assert accfun.HitRate == pytest.approx(200 / 3)
    for a, b in zip(found, expected):
        assert a.device == "gpu"
        np.testing.assert_allclose(a, b, rtol=1e-12)


# functions that look at numbers, or sort them ------------------------------------------------------------------------
def test_sorting_and_places(X):
    a = np.array([[3.0, 1.0, np.nan], [2.0, 2.0, 5.0]])
    for call in (
        lambda x: m.sort(x, 1, nargout=2), lambda x: m.sort(x, "descend", nargout=2),
        lambda x: m.max(x, None, 0, nargout=2), lambda x: m.min(x, None, "all", nargout=2),
        lambda x: (m.median(x, 1), m.cumsum(x, 1)), lambda x: (m.cumprod(x, 0),),
        lambda x: (m.any(x > 2, 0), m.all(x > 2, "all")), lambda x: (m.std(x), m.var(x, 1, "all")),
    ):  # fmt: skip
        for found, expected in zip(call(on_gpu(a)), call(dlarray(a))):
            assert found.device == "gpu"
            np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_one_hot():
    scores = on_gpu([[0.1, 0.8], [0.9, 0.2]], "CB")
    assert m.onehotdecode(scores, ["cat", "dog"], "C").tolist() == ["dog", "cat"]
    assert m.onehotdecode(extractdata(scores), ["cat", "dog"], 0).tolist() == ["dog", "cat"]
    T = m.onehotencode(["b", "a"], 0, ClassNames=["a", "b"])
    assert m.crossentropy(m.softmax(scores), T).device == "gpu"


def test_plain_functions_of_plain_arrays_on_the_gpu(device):
    x = device.array(A)
    assert m.size(x) == (3, 4) and m.numel(x) == 12 and m.isequal(x, A) and m.isreal(x)
    assert m.underlyingType(x) == "double" and np.array_equal(m.exp(x), np.exp(A)) and m.exp(x).device == "gpu"
    assert m.single(x).dtype == "float32" and extractdata(x) is x


def test_text_stays_on_the_host(device):
    with pytest.raises(DTypeError, match="gpuArray: numbers are wanted; got <U3"):
        gpuArray(np.array(["one", "two"]))
