"""T2: inside dlfeval the numbers of a traced array go nowhere in silence; N5: arrays that are more than numbers."""

import array
import copy
import decimal
import fractions
import math
import operator
import pickle
import statistics
import threading
import warnings
from math import sin

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import scipy.sparse
import scipy.special

import minidl as m
from minidl import DTypeError, MinidlError, TraceError, TraceWarning, dlaccelerate, dlarray, dlfeval, dlgradient, struct

A = np.arange(12.0).reshape(3, 4)
S = scipy.sparse.csr_array(A)
X = np.ones((4, 1))


def _put(key, value):
    found = np.zeros(4)
    found[key] = value
    return found


def _put_objects(x):
    found = np.empty(2, object)
    found[:] = [x[0, 0], x[1, 0]]
    return found


CONVERSIONS = {
    "A.dot(x)": lambda x: A.dot(x),
    "sparse @ x": lambda x: S @ x,
    "sparse.dot(x)": lambda x: S.dot(x),
    "np.asarray": lambda x: np.asarray(x),
    "np.array of elements": lambda x: np.array([x[0, 0], x[1, 0]]),
    "np.array of rows": lambda x: np.array([[x[0], x[1]], [x[2], x[3]]]),
    "np.array of objects": lambda x: np.array([x[0], x[1]], dtype=object),
    "np.sum of a list": lambda x: np.sum([x[0, 0], 2 * x[1, 0]]),
    "np.stack of lists": lambda x: np.stack([[x[0]], [x[1]]]),
    "np.where of lists": lambda x: np.where([True, False], [x[0, 0], x[1, 0]], 0.0),
    "array * list": lambda x: np.ones(2) * [x[0, 0], x[1, 0]],
    "np.vectorize": lambda x: np.vectorize(lambda v: 2 * v)(x),
    "scipy.special.softmax": lambda x: scipy.special.softmax(x),
    "masked * x": lambda x: np.ma.masked_array(X, X > 2) * x,
    "DLPack": lambda x: np.from_dlpack(x),
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "pickle in a struct": lambda x: pickle.dumps(struct(w=x)),
    "a[0] = x": lambda x: _put(0, x[0, 0]),
    "a[:] = x": lambda x: _put(slice(None), x[:, 0]),
    "a[:2] = [x, y]": lambda x: _put(slice(2), [x[0, 0], x[1, 0]]),
    "objects[:] = [x, y]": _put_objects,
    "math.sin": lambda x: math.sin(x[0, 0]),
    "sin, imported": lambda x: sin(x[0, 0]),
    "math.hypot": lambda x: math.hypot(*x[:, 0]),
    "statistics.fmean": lambda x: statistics.fmean(x[:, 0]),
    "z.fill": lambda x: _filled(x[0, 0]),
    "np.fromiter": lambda x: np.fromiter((v for v in x[:, 0]), float),
    "operator.setitem": lambda x: operator.setitem(np.zeros(2), 0, x[0, 0]),
    "__setitem__": lambda x: np.zeros(2).__setitem__(slice(2), [x[0, 0], x[1, 0]]),
    "array.array(x)": lambda x: array.array("d", x[:, 0]),
    "Series.astype": lambda x: pd.Series(list(x[:, 0])).astype(float),
    "scipy.optimize.brentq": lambda x: scipy.optimize.brentq(lambda t: t - x[0, 0], -5.0, 5.0),
    "np.random": lambda x: np.random.default_rng(0).normal(x),
    "array.array": lambda x: _fill(array.array("d", [0.0]), x[0, 0]),
}  # fmt: skip


def _filled(x):
    z = np.zeros(2)
    z.fill(x)
    return z


def _fill(a, x):
    a[0] = x
    return a


def _is_caused_by_trace_error(error):
    while error is not None and not isinstance(error, TraceError):
        error = error.__cause__ or error.__context__
    return error


@pytest.mark.parametrize("name", CONVERSIONS)
def test_T2_numbers_of_a_traced_array_do_not_leave_dlfeval_in_silence(name):
    convert = CONVERSIONS[name]
    convert(dlarray(X))  # what is not traced is converted freely, inside dlfeval too
    g = dlfeval(lambda x: (convert(dlarray(X)), dlgradient(m.sum(x**2, "all"), x))[1], dlarray(X))
    convert(g)
    assert np.array_equal(g, 2 * X)

    def fun(x):
        y = m.sum(x**2, "all")
        convert(x)
        return dlgradient(y, x)

    for run in (fun, fun, dlaccelerate(fun)):
        with pytest.raises(Exception) as found, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dlfeval(run, dlarray(X))
        error = _is_caused_by_trace_error(found.value)
        assert error is not None, found.value
        assert "test_foreign.py:" in str(error)
        assert all(word in str(error) for word in ("NumPy's", "extractdata(X)", "@op"))


_as_float = float


def test_T2_what_says_what_it_does_is_allowed():
    def fun(x, say):
        y = m.sum(x**2, "all")
        say(x)
        return dlgradient(y, x)

    for say in SAID.values():
        assert np.array_equal(dlfeval(fun, dlarray(X), say), 2 * X)
    with pytest.raises(TraceError):
        dlfeval(fun, dlarray(X), np.asarray)


SAID = {
    "extractdata": lambda x: m.extractdata(x), "x.extractdata": lambda x: x.extractdata(), "numpy": lambda x: x.numpy(),
    "float": lambda x: float(x[0, 0]), "int": lambda x: int(x[0, 0]), "bool": lambda x: bool(x[0, 0] > 0),
    "format": lambda x: f"{x} {x[0, 0]:.3f}", "repr": lambda x: repr(x), "item": lambda x: x[0, 0].item(),
    "tolist": lambda x: x.tolist(), "isequal": lambda x: m.isequal(x, X), "array_equal": lambda x: np.array_equal(x, X),
    "onehotdecode": lambda x: m.onehotdecode(x, [1, 2, 3, 4], 0), "struct": lambda x: repr(struct(x=x)),
    "subscript": lambda x: x[m.dlarray([0.0, 1.0])], "dim": lambda x: m.sum(x, x[0, 0]),
    "onehotencode": lambda x: m.onehotencode(x[:, 0], 0, ClassNames=[1.0]), "categories": lambda x: m.categories(x),
    "extractdata of a list": lambda x: m.extractdata([x[0], x[1]]), "size": lambda x: m.size([x, x]),
    "np.float64": lambda x: np.float64(x[0, 0]), "complex": lambda x: complex(x[0, 0]),
    "map": lambda x: list(map(float, x[:, 0])), "key": lambda x: max(x[:, 0], key=float),
    "percent": lambda x: "%f" % x[0, 0], "steps": lambda x: math.isnan(x[0, 0]) or math.floor(x[0, 0]),  # noqa: UP031
    "comprehension": lambda x: [float(v) for v in x[:, 0]], "another name": lambda x: _as_float(x[0, 0]),
    "a mask": lambda x: np.asarray(x > 0),  # which has no derivative
    "a gradient": lambda x: np.asarray(dlgradient(m.sum(x**3, "all"), x, RetainData=True)),
}  # fmt: skip


def test_T2_copies_and_reflected_operators_stay_traced():
    for fun, wanted in [
        (lambda x: A @ x, A.T @ (A @ X)), (lambda x: np.matmul(A, x), A.T @ (A @ X)),
        (lambda x: np.dot(A, x), A.T @ (A @ X)), (lambda x: np.float64(3) * x, 9 * X), (lambda x: X * 2 * x, 4 * X),
        (lambda x: np.add(X, x), 2 * X), (copy.copy, X), (copy.deepcopy, X), (lambda x: x.copy(), X),
        (lambda x: copy.deepcopy({"a": [x]})["a"][0], X),
    ]:  # fmt: skip
        g = dlfeval(lambda x, fun=fun: dlgradient(m.sum(fun(x) ** 2, "all") / 2, x), dlarray(X))
        assert np.array_equal(g, wanted)
    with pytest.raises(TraceError, match="pickled"):
        dlfeval(lambda x: dlgradient(m.sum(pickle.loads(pickle.dumps(x)) ** 2, "all"), x), dlarray(X))


def test_T2_in_a_recording_without_dlfeval_a_conversion_is_a_look():
    acc = dlaccelerate(lambda x: m.sum(dlarray(A.dot(x)), "all"))
    with pytest.warns(TraceWarning):
        assert float(acc(dlarray(X))) == A.sum()
    assert float(acc(dlarray(2 * X))) == 2 * A.sum()
    assert acc.Occupancy == 0
    with pytest.raises(TraceError):
        dlfeval(lambda x: dlgradient(m.sum(x, "all") + acc(x), x), dlarray(X))


def test_T2_an_op_without_derivative_of_its_body_does_not_lose_it_in_silence():
    @m.op(m.KERNEL)
    def cubed_by_numpy_T2(x):
        """x to the power of 3."""
        return dlarray(np.asarray(x) ** 3)

    assert float(cubed_by_numpy_T2(dlarray(2.0))) == 8
    with pytest.raises(TraceError, match="NumPy array"):
        dlfeval(lambda x: dlgradient(cubed_by_numpy_T2(x), x), dlarray(2.0))


def _in_a_thread(fun):
    found = []

    def run():
        try:
            found.append(fun())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize("what", ["ops", "conversion"])
def test_T2_what_another_thread_computes_is_not_lost_in_silence(what):
    def fun(x):
        error = _in_a_thread(lambda: x * 2 if what == "ops" else np.asarray(x))
        own = _in_a_thread(lambda: dlfeval(lambda z: dlgradient(m.sum(z * z, "all"), z), dlarray(X)))
        return error, own, dlgradient(m.sum(x * x, "all"), x)

    error, own, g = dlfeval(fun, dlarray(X))
    assert isinstance(error, TraceError) and "extractdata" in str(error)
    assert np.array_equal(own, 2 * X) and np.array_equal(g, 2 * X)


@pytest.mark.parametrize(
    "fun", [lambda x: _in_a_thread(lambda: x * 2) + x, lambda x: x + 2 * _in_a_thread(lambda: float(x))]
)
def test_T2_what_another_thread_computes_or_looks_at_is_not_replayed(fun):
    acc = dlaccelerate(fun)
    with pytest.warns(TraceWarning):
        found = [float(acc(dlarray(x))) for x in (1.0, 2.0, 3.0)]
    assert found == [3.0, 6.0, 9.0]


SCALARS = {
    "huber": lambda x: m.huber(dlarray(X, "CB"), 0 * X, TransitionPoint=x),
    "batchnorm": lambda x: m.batchnorm(dlarray(X, "CB"), 0, 1, Epsilon=x),
    "batchnorm decay": lambda x: m.batchnorm(dlarray(X, "CB"), 0, 1, X, X, MeanDecay=x, nargout=3),
    "adamupdate": lambda x: m.adamupdate(dlarray(X), dlarray(X), None, None, 1, 0.1, x),
    "rmspropupdate": lambda x: m.rmspropupdate(dlarray(X), dlarray(X), None, 0.1, 0.9, x),
    "sgdmupdate": lambda x: m.sgdmupdate(dlarray(X), dlarray(X), None, 0.1, x),
    "vecnorm": lambda x: m.vecnorm(dlarray(X), x),
    "PaddingValue": lambda x: m.dlconv(
        dlarray(np.ones((3, 3, 1, 1)), "SSCB"), np.ones((2, 2)), 0, Padding=1, PaddingValue=x
    ),
}  # fmt: skip


def test_T1_an_option_is_not_differentiated_by_in_silence():
    for call in SCALARS.values():
        with pytest.raises(MinidlError):
            dlfeval(lambda x, call=call: call(x) and None, dlarray(0.5))


def test_T1_rates_and_fill_values_are_differentiated_by():
    p, g = dlarray([1.0, 2.0]), dlarray([3.0, 4.0])
    assert float(dlfeval(lambda r: dlgradient(m.sum(m.sgdmupdate(p, g, None, r)[0], "all"), r), dlarray(0.5))) == -7
    assert float(dlfeval(lambda x: dlgradient(m.sum(np.full_like(p, x), "all"), x), dlarray(0.5))) == 2


# N5 ---------------------------------------------------------------------------------------------------------------
class Tagged(np.ndarray):
    """An array with something beside its numbers."""


class Quantity:
    """A number with a unit, as libraries of units have it."""

    units = "metre"
    magnitude = property(lambda self: 2.0)

    def __array__(self, dtype=None, copy=None):
        return np.array([1.0, 2.0, 3.0, 4.0])


MASKED = np.ma.masked_array([1.0, 2.0, 3.0, 4.0], [0, 1, 0, 0])
STRANGE = {
    "masked": (MASKED, "filled"), "masked without a mask": (np.ma.masked_array([1.0, 2.0, 3.0, 4.0]), "filled"),
    "the masked number": (np.ma.masked, "filled"), "subclass": (np.arange(4.0).view(Tagged), "np.asarray"),
    "units": (Quantity(), "magnitude"),
    "record": (np.rec.fromarrays([[1.0], [2.0]]), "np.asarray"), "in a list": ([MASKED, MASKED], "filled"),
    "masked numbers in a list": ([1.0, 2.0, np.ma.masked, 3.0], "filled"),
    "structured": (np.zeros(2, [("a", float)]), ""), "objects": (np.array([1, None], object), ""),
    "times": (np.array(["2020-01-01"], "datetime64[D]"), ""), "durations": (np.array([1], "timedelta64[s]"), ""),
    "fraction": (fractions.Fraction(1, 2), ""), "decimal": (decimal.Decimal(1), ""),
    "decimals": ([decimal.Decimal(1)], ""),
    "sparse": (S, ""), "text": ("abc", ""), "bytes": (b"abc", ""), "None": (None, ""),
    "None in a list": ([1.0, None], ""),
    "categorical": (pd.Categorical(["a", "b"]), ""),
    "a set": ({1.0, 2.0}, ""), "a dict": ({"a": 1.0}, ""), "a generator": ((i for i in [1.0]), ""),
    "complex": (1j, ""), "integers": (np.array([1, 2]), ""),
}  # fmt: skip
Z = dlarray([1.0, 2.0, 3.0, 4.0])
DOORS = {
    "dlarray": lambda x: dlarray(x), "right operand": lambda x: Z * x, "left operand": lambda x: m.times(x, Z),
    "comparison": lambda x: m.lt(Z, x), "function": lambda x: m.mean(x),
    "value": lambda x: Z.copy().__setitem__(slice(4), x),
    "target": lambda x: m.mse(Z, x, DataFormat="C"), "np": lambda x: np.add(Z, x), "matmul": lambda x: Z @ x,
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
def test_N5_arrays_that_are_more_than_numbers_are_refused_by_name(door):
    for strange, remedy in STRANGE.values():
        with pytest.raises(MinidlError) as found:
            DOORS[door](strange)
        assert remedy in str(found.value)


def test_N5_what_is_no_more_than_its_numbers_is_taken(tmp_path):
    mapped = np.memmap(tmp_path / "x", np.float64, "w+", shape=(4,))
    mapped[:] = 1
    for x in (mapped, pd.Series([1.0] * 4), pd.array([1.0] * 4, dtype="Float64"), memoryview(np.ones(4)), range(1, 2)):
        assert (Z * x).tolist() == [1.0, 2.0, 3.0, 4.0]
    with pytest.raises(DTypeError, match="np.asarray"):
        Z * np.asarray(mapped).view(Tagged)


def test_N5_masks_are_not_lost_by_data_code_either():
    for call in (
        lambda: m.arrayDatastore(MASKED), lambda: m.onehotencode(MASKED, 0, ClassNames=[1.0, 2.0]),
        lambda: m.categories(MASKED), lambda: m.extractdata(MASKED), lambda: m.cast(MASKED, "single"),
        lambda: Z[MASKED],
        lambda: m.onehotdecode(MASKED, [1, 2, 3, 4], 0), lambda: m.arrayDatastore([MASKED, MASKED]).readall() and
        m.minibatchqueue(m.arrayDatastore([MASKED, MASKED], OutputType="same")).next(),
        lambda: m.transform(m.arrayDatastore(A, OutputType="same"), lambda x: np.ma.masked_array(x, x > 3)).read(),
    ):  # fmt: skip
        with pytest.raises(DTypeError, match="filled"):
            call()


def test_N5_a_matrix_gives_its_numbers_but_is_no_operand():
    M = np.matrix([[1.0, 2.0], [3.0, 4.0]])
    assert dlarray(M).tolist() == [[1.0, 2.0], [3.0, 4.0]]
    for call in (lambda: M * dlarray(M), lambda: dlarray(M) * M, lambda: m.sgdmupdate(M, M, None)):
        with pytest.raises(DTypeError, match="matrix product"):
            call()


def test_N5_an_accelerated_function_knows_masks_apart():
    acc = dlaccelerate(lambda x, a: x * a.filled(0.0))
    for mask in ([0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]):
        a = np.ma.masked_array([1.0, 2.0, 3.0, 1e20], mask)  # 1e20 is what NumPy puts in the place of masked ones
        assert acc(Z, a).tolist() == (np.array([1.0, 2.0, 3.0, 4.0]) * a.filled(0.0)).tolist()
