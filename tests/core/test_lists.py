"""T1: dlarrays in lists stay traced, in every public function that takes arrays.

Right values: the same call with one plain array; right derivatives: central differences of it in float64.
"""

import collections

import numpy as np
import pandas as pd
import pytest

import minidl as m
from minidl import DLArray, DTypeError, LabelError, ShapeError, dlaccelerate, dlarray, dlfeval, dlgradient

R = np.random.default_rng(11)
V, W = R.uniform(0.3, 0.9, 4), R.uniform(0.3, 0.9, 4)
M, N = R.uniform(0.3, 0.9, (3, 4)), R.uniform(0.3, 0.9, (3, 4))
Q = R.normal(size=(3, 3)) + 3 * np.eye(3)
IMAGES, F = R.normal(size=(5, 5, 2, 3)), R.normal(size=(2, 2, 2, 4))
P = M / M.sum(0)
T = np.eye(3)[:, [0, 2, 1, 0]]
TRUTH = np.array([[True, False, True, False]] * 3)
CB = {"DataFormat": "CB"}

ONE = (
    "abs acos asin asinh atan atanh ceil conj cos cosh cot csc eps erf exp expm1 fix floor gelu isfinite isinf "
    "isnan leakyrelu log log10 log1p log2 not_ real relu round sec sigmoid sign sin sinh sqrt square tan tanh uminus "
    "uplus all any cumprod cumsum max mean median min prod sort std sum var vecnorm ctranspose flip rot90 shiftdim "
    "squeeze transpose diag tril triu stripdims single double logical"
)
FACTS = (
    "size numel ndims length isempty isreal underlyingType extractdata isequal dims finddim imag categories "
    "onehotencode onehotdecode isUnderlyingType mustBeUnderlyingType isdlarray gather"
)
TWO = (
    "atan2 hypot plus minus times rdivide ldivide power realpow rem mod and_ or_ xor eq ne lt le gt ge max min dot"
)
CALLS = [
    *((name, (M,), {}) for name in ONE.split()),
    *((name, (M, N), {}) for name in TWO.split()),
    ("acosh", (M + 1,), {}), ("cast", (M, "double"), {}), ("dlarray", (M,), {}), ("dlarray", (M, "CB"), {}),
    ("reshape", (M, 4, 3), {}), ("permute", (M, 1, 0), {}), ("circshift", (M, 1), {}), ("repmat", (M, 2, 1), {}),
    ("repelem", (M, 2, 1), {}), ("cat", (0, M, N), {}), ("cat", (1, V, W), {}), ("vertcat", (M, N), {}),
    ("horzcat", (M, N), {}), ("where", (TRUTH, M, N), {}), ("mtimes", (M, N.T), {}), ("pagemtimes", (M, N.T), {}),
    ("mldivide", (Q, M), {}), ("mrdivide", (M.T, Q), {}), ("trace", (Q,), {}), ("softmax", (M,), CB),
    ("fullyconnect", (M, Q, V[:3]), CB), ("dlconv", (IMAGES, F, V), {"DataFormat": "SSCB"}),
    ("batchnorm", (M, V[:3], W[:3]), CB), ("crossentropy", (P, T), CB),
    ("crossentropy", (P, T, V), CB | {"WeightsFormat": "B"}),
    ("crossentropy", (P, T), CB | {"Mask": TRUTH}), ("mse", (M, N), CB), ("l1loss", (M, N), CB), ("l2loss", (M, N), CB),
    ("huber", (M, N), CB), ("logsoftmax", (M,), CB), ("logsumexp", (M,), {}), ("logsigmoid", (M,), {}),
    ("softplus", (M,), {}),
]  # fmt: skip
CALLS = [call for call in CALLS if call[0] in m.__all__]
NO_ARRAYS = (
    "KERNEL MAP DLArray AcceleratedFunction Precision Spec op rng struct clearCache dlaccelerate dlfeval dlgradient "
    "canUseGPU gpuArray eye ones zeros rand randi randn randperm arrayDatastore combine digitTest4DArrayData "
    "digitTrain4DArrayData hasdata minibatchqueue numpartitions partition preview read readall reset shuffle subset "
    "transform adamupdate sgdmupdate rmspropupdate dlupdate initializeGaussian initializeGlorot initializeHe "
    "initializeOnes initializeOrthogonal initializeUnitForgetGate initializeZeros stopgradient"
)

WAYS = {
    "nested": lambda x: [list(row) if row.ndim else row for row in x],
    "numbers": lambda x: [x[0], *m.extractdata(x)[1:].tolist()],
}
MORE_WAYS = {
    "list": lambda x: list(x),
    "tuple": lambda x: tuple(x),
    "deque": lambda x: collections.deque(x),
    "objects": lambda x: _objects(list(x)),
    "series": lambda x: pd.Series(list(x)),
    "arrays": lambda x: [x[0], *m.extractdata(x)[1:]],
}


def _objects(rows):
    found = np.empty(len(rows), object)
    for i, row in enumerate(rows):
        found[i] = row
    return found


def _scalar(y):
    """All numbers of a result, each times its own weight; a plain result as it is."""
    if not isinstance(y, DLArray):
        return y
    weights = np.random.default_rng(y.size).uniform(0.5, 1.5, y.shape)
    return m.sum(m.stripdims(y) * weights, "all")


def test_T1_every_public_function_is_tried():
    here = {name for name, _, _ in CALLS} | {*FACTS.split(), *NO_ARRAYS.split()}
    names = {name for name in m.__all__ if callable(getattr(m, name)) and not name.endswith(("Error", "Warning"))}
    assert names <= here, "a new function: add a call of it, with arrays, to CALLS"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name, args, options", CALLS, ids=[f"{name}-{i}" for i, (name, _, _) in enumerate(CALLS)])
def test_T1_lists_of_dlarrays_stay_traced(name, args, options, way):
    _check(name, args, options, way)


@pytest.mark.parametrize("way", MORE_WAYS)
def test_T1_so_do_other_containers(way):
    _check("sum", (M,), {}, way)
    _check("times", (M, N), {}, way)


def _check(name, args, options, way):
    fun = getattr(m, name)
    places = [i for i, a in enumerate(args) if isinstance(a, np.ndarray) and a.dtype.kind == "f"]
    for i in places:
        def call(x, as_list, i=i):
            return _scalar(fun(*args[:i], (WAYS | MORE_WAYS)[way](x) if as_list else x, *args[i + 1 :], **options))

        def gradient(x, as_list):
            y = call(x, as_list)
            is_traced = isinstance(y, DLArray) and y.dtype.kind == "f"
            return (y, dlgradient(y, x)) if is_traced else (y, None)

        whole = args[i]
        found, g = dlfeval(lambda x: gradient(x, True), dlarray(whole))
        wanted = call(dlarray(whole), False)
        if g is None:
            assert m.isequal(found, wanted)
            continue
        np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), rtol=1e-6)
        if name == "single":
            continue
        direction = np.random.default_rng(3).normal(size=whole.shape)
        if way in ("arrays", "numbers"):  # what is taken out has no derivative
            direction[1:] = 0
        h = 1e-6 * direction
        difference = (float(call(dlarray(whole + h), False)) - float(call(dlarray(whole - h), False))) / 2e-6
        np.testing.assert_allclose(np.sum(np.asarray(g) * direction), difference, rtol=1e-5, atol=1e-7)


def test_T1_facts_are_those_of_the_stacked_array():
    def fun(x):
        rows, whole = list(x), dlarray(m.extractdata(x))
        for fact in (
            m.size, m.numel, m.ndims, m.length, m.isempty, m.isreal, m.underlyingType, m.extractdata, m.categories,
            m.imag,
        ):  # fmt: skip
            assert m.isequal(fact(rows), fact(whole)), fact
        assert m.isequal(rows, M) and m.isUnderlyingType(rows, "double") and not m.isdlarray(rows)
        assert m.onehotdecode(rows, ["a", "b", "c"], 0).tolist() == m.onehotdecode(M, ["a", "b", "c"], 0).tolist()
        ones = [x[0, 0] / x[0, 0], 2.0]
        assert m.onehotencode(ones, 0, ClassNames=[1.0, 2.0]).tolist() == [[1.0, 0.0], [0.0, 1.0]]
        m.mustBeUnderlyingType(rows, "double")
        formatted = [dlarray(x, "CB"), dlarray(x, "CB")]
        assert m.dims(formatted) == "CBU" and m.finddim(formatted, "B") == (1,)
        assert m.gather(rows) is rows

    dlfeval(fun, dlarray(M))


# what a list is ---------------------------------------------------------------------------------------------------
def _slope(fun, at=3.0):
    """The derivative of a function of one number, after checking the value of its replays."""
    return float(dlfeval(lambda x: dlgradient(fun(x), x), dlarray(at)))


ARRAY = np.array([1.0, 2.0])
SLOPES = {  # at 3
    "dlarray": (lambda x: x**2 + m.sum(dlarray([x, 2 * x]), "all"), 9),
    "sum": (lambda x: m.sum([x, 2 * x], "all"), 3), "cat": (lambda x: m.sum(m.cat(0, [x], [x]), "all"), 2),
    "vertcat": (lambda x: m.sum(m.vertcat([x], [2.0], [x * x]), "all"), 7),
    "where": (lambda x: m.sum(m.where([True, False], [x, x], 0.0), "all"), 1),
    "condition": (lambda x: m.sum(m.where([x > 0, x < 0], [x, x], 0.0), "all"), 1),
    "dlarray * list": (lambda x: m.sum(dlarray(ARRAY) * [x, x * x], "all"), 13),
    "list * dlarray": (lambda x: m.sum([x, x * x] * dlarray(ARRAY), "all"), 13),
    "list - dlarray": (lambda x: m.sum([x, x * x] - dlarray(ARRAY), "all"), 7),
    "list @ dlarray": (lambda x: [x, x * x] @ dlarray(ARRAY), 13),
    "x / list": (lambda x: m.sum(x / [x, 1.0], "all"), 1),
    "x ** list": (lambda x: m.sum(x ** [x, 1.0], "all"), 57.66253179403897),
    "list / x": (lambda x: m.sum([9.0, x] / x, "all"), -1),
    "maximum": (lambda x: m.sum(m.max([x, 1.0], 2.0), "all"), 1),
    "array * x * list": (lambda x: m.sum(ARRAY * x * [x, 1.0], "all"), 8),
    "np.multiply": (lambda x: np.sum(np.multiply(dlarray(ARRAY), [x, x])), 3),
    "np.stack": (lambda x: np.sum(np.stack([[x], dlarray([1.0])])), 1),
    "np.concatenate": (lambda x: np.sum(np.concatenate([[x], dlarray(ARRAY)])), 1),
    "np.dot": (lambda x: np.dot(dlarray(ARRAY), [x, x]), 3),
    "np.clip": (lambda x: np.sum(np.clip(dlarray(ARRAY), [0.0, x], 9.0)), 1),
    "deep": (lambda x: m.sum([[[x, 1], [2, x]], [[x, x], [3.0, True]]], "all"), 4),
    "numbers of NumPy's": (lambda x: m.sum([x, np.float64(2), np.int64(1), np.float32(1)], "all"), 1),
    "shape 1": (lambda x: m.sum([m.reshape(x, 1), np.array([1])], "all"), 1),
    "subscript": (lambda x: m.sum((dlarray(ARRAY) * x)[[x - 3, x - 2]], "all"), 3),
}  # fmt: skip


def _assigned(key, value):
    def fun(x):
        z = dlarray(np.zeros(3))
        z[key] = value(x)
        return m.sum(z * [1.0, 2.0, 3.0], "all")

    return fun


SLOPES["z[0:2] = list"] = (_assigned(slice(2), lambda x: [x, x * x]), 13)
SLOPES["z[places] = list"] = (_assigned([2, 0], lambda x: [x, x * x]), 9)
SLOPES["z[mask] = list"] = (_assigned(np.array([True, False, True]), lambda x: [x, x * x]), 19)
SLOPES["z[:] = object array"] = (_assigned(slice(2), lambda x: _objects([x, x * x])), 13)


@pytest.mark.parametrize("name", SLOPES)
def test_T1_the_trace_is_not_lost_in_a_list(name):
    fun, wanted = SLOPES[name]
    np.testing.assert_allclose(_slope(fun), wanted, rtol=1e-12)


@pytest.mark.parametrize("numerics", ["exact", "fast"])
@pytest.mark.parametrize("name", ["dlarray", "deep", "z[0:2] = list", "array * x * list", "np.concatenate"])
def test_T1_lists_are_replayed(name, numerics):
    fun = SLOPES[name][0]
    acc = dlaccelerate(lambda x: dlgradient(fun(x), x), Numerics=numerics, Strict=True)
    for at in (3.0, 4.0, 0.5):
        np.testing.assert_allclose(float(dlfeval(acc, dlarray(at))), _slope(fun, at), rtol=1e-12)
    assert acc.HitRate > 60


def test_T1_formatted_arrays_are_stacked_along_a_new_last_dimension():
    x, y = dlarray(M, "CB"), dlarray(N, "CB")
    z = dlarray([x, y])
    assert z.dims() == "CBU" and np.array_equal(z, np.stack([M, N], -1))
    assert m.dims([x, y]) == "CBU" and m.size([x, y]) == (3, 4, 2)
    z = dlarray([x, y], "TCB")
    assert z.dims() == "CBT" and np.array_equal(z, np.stack([M, N], -1))
    assert dlarray([x, N]).dims() == "CBU"
    assert ([x, y] + dlarray([1.0, 2.0], "U")).shape == (3, 4, 2)
    with pytest.raises(LabelError, match="formats differ"):
        dlarray([x, dlarray(M, "CT")])


def test_T1_types_in_lists_are_those_of_cat():
    single, double, truth = dlarray(np.float32(1)), dlarray(1.0), dlarray(True)
    for xs, kind in [
        ([single, 2.0], "single"), ([single, double], "single"), ([double, 1], "double"), ([truth, True], "logical"),
        ([truth, 2.0], "double"), ([truth, single], "single"),
    ]:  # fmt: skip
        assert m.underlyingType(xs) == kind and dlarray(xs).tolist() == [float(x) for x in xs]


def test_T1_unlike_sizes_are_an_error_that_says_what_to_do():
    for bad in ([dlarray(1.0), dlarray([1.0])], [dlarray([1.0, 2.0]), [1.0]], [dlarray(1.0), []]):
        with pytest.raises(ShapeError, match="cat, vertcat or horzcat"):
            m.sum(bad, "all")
    endless = [dlarray(1.0)]
    endless.append(endless)
    for bad in (
        endless, [dlarray(1.0), None], [dlarray(1.0), "a"], [dlarray(1.0), {1.0}], [dlarray(1.0), np.ma.masked],
    ):  # fmt: skip
        with pytest.raises(DTypeError):
            m.sum(bad, "all")


def test_T1_a_class_derived_from_dlarray_stays_traced():
    class Mine(DLArray):
        pass

    assert _slope(lambda x: 2 * Mine(x._value) + dlarray(1.0) * Mine(x._value)) == 3


@pytest.mark.usefixtures("device")
def test_T1_lists_of_arrays_on_a_gpu():
    def fun(x):
        y = m.sum([x, 2 * x, dlarray(1.0), 4.0] * dlarray([1.0, 2.0, 3.0, 4.0]), "all")
        return y, dlgradient(y, x)

    y, g = dlfeval(fun, m.gpuArray(dlarray(3.0)))
    assert (y.device, float(y), float(g)) == ("gpu", 34.0, 5.0)
    assert m.gpuArray([m.gpuArray(dlarray(3.0)), 1.0]).device == "gpu"


def test_T1_an_object_array_of_no_dimensions_stays_traced():
    def held(x):
        found = np.empty((), object)
        found[()] = x
        return found

    assert _slope(lambda x: dlarray(held(x)) + dlarray(1.0) * held(x)) == 2
