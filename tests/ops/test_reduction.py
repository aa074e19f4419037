"""Reductions: values against NumPy for every way to name dimensions, labels, corners, derivatives, wrong input."""

import math

import numpy as np
import pytest
from finite_differences import check_derivatives

import minidl.ops as m
from minidl.autodiff import dlfeval, dlgradient
from minidl.core.dlarray import dlarray
from minidl.core.errors import LabelError, OptionError, ShapeError

nan, inf = math.nan, math.inf
R = np.random.default_rng(3)
X4 = R.normal(size=(3, 4, 2, 5))

REDUCE = {  # name: NumPy's function of (array, axes), which keeps dimensions
    "sum": lambda x, a: x.sum(a, keepdims=True), "mean": lambda x, a: x.mean(a, keepdims=True),
    "prod": lambda x, a: x.prod(a, keepdims=True), "max": lambda x, a: x.max(a, keepdims=True),
    "min": lambda x, a: x.min(a, keepdims=True), "median": lambda x, a: np.median(x, a, keepdims=True),
    "any": lambda x, a: (x != 0).any(a, keepdims=True), "all": lambda x, a: (x != 0).all(a, keepdims=True),
    "var": lambda x, a: x.var(a, keepdims=True, ddof=1), "std": lambda x, a: x.std(a, keepdims=True, ddof=1),
    "vecnorm": lambda x, a: np.sqrt((x * x).sum(a, keepdims=True)),
}  # fmt: skip

DIMS = [  # how a dimension is named for an SSCB array, the axes meant
    (0, (0,)), (2, (2,)), (-1, (3,)), ((0, 1), (0, 1)), ([2, 0], (0, 2)), (np.array([1, 3]), (1, 3)), ("C", (2,)),
    ("S", (0, 1)), ("SS", (0, 1)), ("CB", (2, 3)), ("BC", (2, 3)), (("S", 3), (0, 1, 3)), (np.int64(1), (1,)),
    (1.0, (1,)),
    ((), ()),
]  # fmt: skip


def call(name, x, dim):
    return getattr(m, name)(x, dim=dim)


@pytest.mark.parametrize("name", REDUCE)
@pytest.mark.parametrize("dim, axes", DIMS, ids=[str(dim) for dim, _ in DIMS])
def test_along_named_dimensions(name, dim, axes):
    if axes == () and name in ("var", "std", "median"):
        pytest.skip("NumPy divides by zero")
    y = call(name, dlarray(X4, "SSCB"), dim)
    assert y.dims() == "SSCB"
    np.testing.assert_allclose(y.numpy(), REDUCE[name](X4, axes), rtol=1e-13)
    if not isinstance(dim, str) and "S" not in str(dim):
        plain = call(name, dlarray(X4), dim)
        assert plain.dims() == "" and plain.shape == y.shape


@pytest.mark.parametrize("name", REDUCE)
def test_everything_and_by_default(name):
    y = call(name, dlarray(X4, "SSCB"), "all")
    assert (y.shape, y.dims()) == ((), "")
    np.testing.assert_allclose(y.numpy(), REDUCE[name](X4, None).reshape(()), rtol=1e-13)
    row = X4[:1]
    first = call(name, dlarray(row), None).numpy()  # along the first dimension that is not of size 1
    np.testing.assert_allclose(first, REDUCE[name](row, 1), rtol=1e-13)
    if hasattr(y, name):  # the method is the function
        np.testing.assert_array_equal(getattr(dlarray(row), name)().numpy(), first)
    scalar = call(name, dlarray(2.0), None)
    assert scalar.shape == () and scalar.item() == {"var": 0, "std": 0, "any": True, "all": True}.get(name, 2)


def test_trailing_dimensions_labelled_u_are_dropped():
    y = m.sum(dlarray(X4[0], "CBU"), "U")
    assert (y.shape, y.dims()) == ((4, 2), "CB")


EMPTY = {"sum": 0.0, "prod": 1.0, "mean": nan, "var": nan, "std": nan, "median": nan, "any": False, "all": True,
         "vecnorm": 0.0}  # fmt: skip


@pytest.mark.parametrize("name", EMPTY)
def test_of_nothing(name):
    y = call(name, dlarray(np.zeros((0, 3))), 0)
    np.testing.assert_array_equal(y.numpy(), np.full((1, 3), EMPTY[name]))
    assert call(name, dlarray(np.zeros((3, 0))), 0).shape == (1, 0)
    np.testing.assert_array_equal(call(name, dlarray(np.zeros((0, 3))), "all").numpy(), EMPTY[name])


def test_the_largest_of_nothing_is_nothing():
    for f in (m.max, m.min):
        assert f(dlarray(np.zeros((0, 3))), dim=0).shape == (0, 3)
        assert f(dlarray(np.zeros((0, 3)), "CB"), "C").dims() == "CB"
        assert f(dlarray(np.zeros((0, 3))), dim=1).shape == (0, 1)
        assert f(dlarray(np.zeros(0)), "all").size == 0


CORNERS = [
    ("m.max(dlarray([1.0, nan, 3.0]))", [3.0]), ("m.min(dlarray([nan, nan]))", [nan]),
    ("m.max(dlarray([-inf, nan]))", [-inf]), ("m.sum(dlarray([1.0, nan]))", [nan]),
    ("m.mean(dlarray([inf, 1.0]))", [inf]),
    ("m.median(dlarray([1.0, nan, 3.0]))", [nan]), ("m.median(dlarray([1.0, inf]))", [inf]),
    ("m.any(dlarray([0.0, nan]))", [False]), ("m.all(dlarray([1.0, nan]))", [True]),
    ("m.any(dlarray([False, True]))", [True]), ("m.sum(dlarray([True, True]))", [2.0]),
    ("m.max(dlarray([True, False]))", [1.0]), ("m.var(dlarray([3.0]))", [0.0]),
    ("m.var(dlarray([1.0, 3.0]), 1)", [1.0]),
    ("m.var(dlarray([1.0, 3.0]), [])", [2.0]), ("m.std(dlarray([1.0, 3.0]), 1, 0)", [1.0]),
    ("m.var(dlarray([[1.0, 3.0]]), 'all')", 2.0), ("m.vecnorm(dlarray([-3.0, 4.0]), 1)", [7.0]),
    ("m.vecnorm(dlarray([-3.0, 4.0]), inf)", [4.0]), ("m.vecnorm(dlarray([3.0, 4.0]), 3)", [91.0 ** (1 / 3)]),
    ("m.max(dlarray([1.0, 5.0]), 2)", [2.0, 5.0]), ("m.max(dlarray([1.0, 5.0]), [], 0)", [5.0]),
    ("m.max(dlarray([1.0, 5.0]), None, 'all')", 5.0), ("m.max([3.0, 4.0], 'all')", 4.0),
    ("dlarray([3.0, 4.0]).max()", [4.0]),
    ("m.cumsum(dlarray([[1.0, 2.0], [3.0, 4.0]]), 1)", [[1.0, 3.0], [3.0, 7.0]]),
    ("m.cumsum(dlarray([1.0, 2.0]), 'reverse')", [3.0, 2.0]), ("m.cumprod(dlarray([2.0, 0.0, 3.0]))", [2.0, 0.0, 0.0]),
    ("m.cumprod(dlarray([2.0, 4.0, 3.0]), 0, 'reverse')", [24.0, 12.0, 3.0]), ("m.cumsum(dlarray(2.0))", 2.0),
    ("m.sort(dlarray([nan, 2.0, 1.0]))", [1.0, 2.0, nan]),
    ("m.sort(dlarray([1.0, nan, 2.0]), 'descend')", [nan, 2.0, 1.0]),
    ("m.sort(dlarray([[3.0, 1.0]]), 0)", [[3.0, 1.0]]), ("m.sort(dlarray(3.0))", 3.0),
]  # fmt: skip


@pytest.mark.parametrize("text, expected", CORNERS, ids=[text for text, _ in CORNERS])
def test_corners(text, expected):
    y = eval(text)
    np.testing.assert_allclose(y.numpy(), np.array(expected), rtol=1e-14)
    assert y.shape == np.shape(expected) and y.dtype == np.array(expected).dtype


def test_values_and_places():
    for f, g in ((m.max, np.argmax), (m.min, np.argmin)):
        for axis in range(4):
            values, places = f(dlarray(X4, "SSCB"), [], axis, nargout=2)
            np.testing.assert_array_equal(places.numpy(), np.expand_dims(g(X4, axis), axis))
            np.testing.assert_array_equal(values.numpy(), f(dlarray(X4), [], axis).numpy())
            assert (values.dims(), places.dims(), places.dtype) == ("SSCB", "SSCB", np.float64)
        values, places = f(dlarray(X4, "SSCB"), [], "S", nargout=2)  # counted with the first dimension fastest
        columns = np.moveaxis(X4, 1, 0).reshape(12, 2, 5)
        np.testing.assert_array_equal(places.numpy()[0, 0], g(columns, 0))
        _, place = f(dlarray(X4), [], "all", nargout=2)
        assert place.item() == g(X4.ravel(order="F"))
        assert dlarray(X4).reshape(-1)[place].item() == f(dlarray(X4), "all").item()
    _, places = m.max(dlarray([nan, 2.0, 5.0, 5.0]), nargout=2)
    assert places.tolist() == [2.0]
    _, places = m.max(dlarray([nan, nan]), nargout=2)
    assert places.tolist() == [0.0]
    ordered, places = m.sort(dlarray(X4, "SSCB"), 1, "descend", nargout=2)
    np.testing.assert_array_equal(places.numpy(), np.argsort(-X4, 1, kind="stable"))
    np.testing.assert_array_equal(ordered.numpy(), -np.sort(-X4, 1))
    assert ordered.dims() == places.dims() == "SSCB"


def test_sorting_is_stable_both_ways():
    x = dlarray([1.0, 0.0, 1.0, 0.0])
    assert m.sort(x, nargout=2)[1].tolist() == [1, 3, 0, 2]
    assert m.sort(x, "descend", nargout=2)[1].tolist() == [0, 2, 1, 3]


def test_long_single_sums_keep_their_digits():
    x = (1 + R.random((100000, 2))).astype(np.float32)
    for y, axis in ((m.sum(dlarray(x), 0), 0), (m.sum(dlarray(x.T), 1), 1)):
        expected = (x if axis == 0 else x.T).astype(np.float64).sum(axis, keepdims=True)
        np.testing.assert_allclose(y.numpy(), expected, rtol=2e-7)
        assert y.dtype == np.float32
    np.testing.assert_allclose(m.cumsum(dlarray(x), 0).numpy()[-1], x.astype(np.float64).sum(0), rtol=2e-7)
    far = x + 1000
    np.testing.assert_allclose(m.var(dlarray(far), 0, 0).numpy()[0], far.astype(np.float64).var(0, ddof=1), rtol=1e-5)


SMOOTH = {
    "sum": m.sum, "mean": m.mean, "prod": m.prod, "var": m.var, "std": m.std, "median": m.median, "max": m.max,
    "min": m.min,
    "vecnorm": m.vecnorm, "vecnorm 1": lambda x, dim: m.vecnorm(x, 1, dim), "vecnorm inf": lambda x,
    dim: m.vecnorm(x, inf, dim),
    "vecnorm 3": lambda x, dim: m.vecnorm(x, 3, dim), "population variance": lambda x, dim: m.var(x, 1, dim),
    "cumsum": m.cumsum, "cumprod": m.cumprod, "cumprod reverse": lambda x, dim: m.cumprod(x, dim, "reverse"),
    "sort": m.sort,
    "largest with places": lambda x, dim: m.max(x, dim=dim, nargout=2)[0],
}  # fmt: skip


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("dim", [0, 1, (0, 1), "all"])
def test_derivatives(name, dim):
    if name in ("cumsum", "cumprod", "cumprod reverse", "sort") and not isinstance(dim, int):
        pytest.skip("works along one dimension")
    f = SMOOTH[name]
    x = R.permutation(np.linspace(-1.7, 2.1, 12)).reshape(3, 4)
    keyword = {"dim": dim}
    check_derivatives(lambda x: m.square(f(x, **keyword)), x, rtol=1e-5)


@pytest.mark.parametrize("zeros", [(), (1,), (0, 2), (0, 1, 2)])
def test_derivatives_of_products_with_zeros(zeros):
    x = np.array([1.5, -2.0, 0.7])
    x[list(zeros)] = 0
    check_derivatives(lambda x: m.square(m.prod(x) + 1), x)
    check_derivatives(lambda x: m.square(m.cumprod(x) + 1), x)
    check_derivatives(lambda x: m.prod(x), x)


TIES = [  # function, x, gradient
    (lambda x: m.max(x), [2.0, 5.0, 5.0], [0, 1, 0]), (lambda x: m.min(x), [2.0, 2.0, 5.0], [1, 0, 0]),
    (lambda x: m.max(x, nargout=2)[0], [5.0, 5.0], [1, 0]), (lambda x: m.vecnorm(x), [0.0, 0.0], [0, 0]),
    (lambda x: m.vecnorm(x, 3), [0.0, 0.0], [0, 0]), (lambda x: m.std(x), [2.0, 2.0], [0, 0]),
    (lambda x: m.max(x, dim="all"), [nan, 1.0], [0, 1]), (lambda x: m.sum(m.any(x)) * x, [1.0, 1.0], [1, 1]),
]  # fmt: skip


@pytest.mark.parametrize("function, x, expected", TIES)
def test_gradients_at_corners(function, x, expected):
    g = dlfeval(lambda x: dlgradient(m.sum(function(x), "all"), x), dlarray(x))
    assert g.tolist() == expected


def test_labels_survive_derivatives():
    g = dlfeval(lambda x: dlgradient(m.sum(m.square(m.mean(x, "SB")), "all"), x), dlarray(X4, "SSCB"))
    assert (g.dims(), g.shape) == ("SSCB", X4.shape)


CB = dlarray(np.ones((2, 3)), "CB")
BAD = [
    (lambda: m.sum(CB, "T"), LabelError, "no dimension of X has the label T"),
    (lambda: m.sum(dlarray([1.0]), "C"), LabelError, "unformatted"),
    (lambda: m.sum(CB, 2), ShapeError, "count from 0"),
    (lambda: m.mean(CB, -3), ShapeError, "no dimension -3"),
    (lambda: m.sum(CB, "c"), OptionError, "SCBTU"),
    (lambda: m.sum(CB, (0, 0)), OptionError, "twice"),
    (lambda: m.sum(CB, 0.5), OptionError, "whole number"),
    (lambda: (m.sum(CB, 1), m.sum(CB, True)), OptionError, "whole number"),
    (lambda: (m.sum(CB, (0, 1)), m.sum(CB, (0, True))), OptionError, "whole number"),
    (lambda: m.sum(CB, {}), OptionError, "whole number"),
    (lambda: m.sum(CB, axis=0), OptionError, "there is no option 'axis'"),
    (lambda: m.mean(CB, Dim=0), OptionError, "Did you mean dim"),
    (lambda: m.var(CB, 2), OptionError, "weight"),
    (lambda: m.std(CB, 0.5), OptionError, "n - 1"),
    (lambda: m.vecnorm(CB, -1), OptionError, "above 0"),
    (lambda: m.vecnorm(CB, "fro"), OptionError, "norm"),
    (lambda: m.max(CB, nargout=3), OptionError, "nargout"),
    (lambda: m.sort(CB, 0, "up"), OptionError, "ascend"),
    (lambda: m.sort(CB, "CB"), OptionError, "one dimension"),
    (lambda: m.cumsum(CB, (0, 1)), OptionError, "one dimension"),
    (lambda: m.cumsum(CB, 0, "back"), OptionError, "reverse"),
    (lambda: m.cumprod(CB, "all"), OptionError, "one dimension"),
]


@pytest.mark.parametrize("call, error, word", BAD)
def test_bad_input(call, error, word, explained):
    explained(call, error, word)
