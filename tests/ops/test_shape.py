"""Shapes: values against NumPy, labels, derivatives, wrong input; plain facts about arrays."""

import numpy as np
import pytest
from finite_differences import check_derivatives

import minidl.ops as m
from minidl.autodiff import dlfeval, dlgradient
from minidl.core.dlarray import DLArray, dlarray
from minidl.core.errors import DTypeError, LabelError, OptionError, ShapeError

R = np.random.default_rng(5)
A = R.normal(size=(2, 3, 4))
M = R.normal(size=(3, 4))
V = R.normal(size=5)

VALUES = [  # expression, NumPy's
    ("m.reshape(dlarray(A), 4, 6)", A.reshape(4, 6, order="F")),
    ("m.reshape(dlarray(A), [4, 6])", A.reshape(4, 6, order="F")),
    ("m.reshape(dlarray(A), (3, -1))", A.reshape(3, 8, order="F")),
    ("m.reshape(dlarray(A), [], 2)", A.reshape(12, 2, order="F")),
    ("m.reshape(dlarray(A), 2, None, 2)", A.reshape(2, 6, 2, order="F")),
    ("m.reshape(dlarray(A), 4, 6, Order='C')", A.reshape(4, 6)),
    ("dlarray(A).reshape(-1)", A.ravel(order="F")),
    ("m.reshape(dlarray(A), 2, 1, 3, 4)", A[:, None]),
    ("m.reshape(dlarray(A), size(A))", A),
    ("m.reshape(dlarray(2.0), 1, 1)", np.array([[2.0]])),
    ("m.reshape(dlarray(np.zeros((0, 3))), 3, 0)", np.zeros((3, 0))),
    ("m.squeeze(dlarray(A[:1]))", A[0]), ("m.squeeze(dlarray(M[:1]))", M[:1]), ("m.squeeze(dlarray(V))", V),
    ("m.squeeze(dlarray(A[:1, :1]))", A[0, 0][:, None]), ("m.squeeze(dlarray(A[:1, :1, :1]))", A[0, 0, :1][:, None]),
    ("m.shiftdim(dlarray(A), 1)", A.transpose(1, 2, 0)), ("m.shiftdim(dlarray(A), -2)", A[None, None]),
    ("m.shiftdim(dlarray(A[None]))", A), ("m.shiftdim(dlarray(A), 3)", A),
    ("m.permute(dlarray(A), 2, 0, 1)", A.transpose(2, 0, 1)),
    ("m.permute(dlarray(A), [0, 2, 1])", A.transpose(0, 2, 1)),
    ("m.permute(dlarray(M), (2, 1, 0))", M.T[None]), ("dlarray(A).permute(2, 0, 1)", A.transpose(2, 0, 1)),
    ("m.transpose(dlarray(M))", M.T), ("m.ctranspose(dlarray(M))", M.T), ("dlarray(M).T", M.T), ("dlarray(V).T", V),
    ("m.flip(dlarray(A))", A[::-1]), ("m.flip(dlarray(A), 1)", A[:, ::-1]),
    ("m.flip(dlarray(A), (0, 2))", A[::-1, :, ::-1]),
    ("m.flip(dlarray(A), 'all')", A[::-1, ::-1, ::-1]), ("dlarray(V).flip()", V[::-1]),
    ("m.rot90(dlarray(M))", np.rot90(M)), ("m.rot90(dlarray(M), 2)", np.rot90(M, 2)),
    ("m.rot90(dlarray(M), -1)", np.rot90(M, -1)),
    ("m.circshift(dlarray(V), 2)", np.roll(V, 2)), ("m.circshift(dlarray(V), -1)", np.roll(V, -1)),
    ("m.circshift(dlarray(V), 12)", np.roll(V, 12)), ("m.circshift(dlarray(M), 1, 1)", np.roll(M, 1, 1)),
    ("m.circshift(dlarray(M), [1, -1])", np.roll(M, (1, -1), (0, 1))),
    ("m.circshift(dlarray(M), [1, 2], (1, 0))", np.roll(M, (1, 2), (1, 0))),
    ("m.repmat(dlarray(M), 2)", np.tile(M, (2, 2))), ("m.repmat(dlarray(M), 1, 3)", np.tile(M, (1, 3))),
    ("m.repmat(dlarray(M), [2, 1, 2])", np.tile(M[:, :, None], (2, 1, 2))),
    ("m.repmat(dlarray(V), [2])", np.tile(V, 2)),
    ("m.repmat(dlarray(2.0), 2, 3)", np.full((2, 3), 2.0)), ("m.repmat(dlarray(M), 0, 1)", np.zeros((0, 4))),
    ("m.repelem(dlarray(V), 2)", np.repeat(V, 2)), ("m.repelem(dlarray(V[None]), 2)", np.repeat(V, 2)[None]),
    ("m.repelem(dlarray(M), 2, 3)", np.repeat(np.repeat(M, 2, 0), 3, 1)),
    ("m.cat(0, dlarray(M), M)", np.concatenate([M, M])), ("m.cat(1, dlarray(M), M[:, :1])", np.c_[M, M[:, :1]]),
    ("m.cat(-1, dlarray(M), M)", np.c_[M, M]), ("m.cat(2, dlarray(M), M)", np.stack([M, M], -1)),
    ("m.cat(0, [], dlarray(M))", M), ("m.cat(0, dlarray([]), [1.0])", np.array([1.0])),
    ("m.horzcat(dlarray(V), V)", np.stack([V, V], 1)), ("m.vertcat(dlarray(M), M[:1])", np.r_[M, M[:1]]),
    ("m.cat(0, dlarray([True]), [1.0])", np.array([1.0, 1.0])),
    ("m.cat(0, dlarray([True]), np.array([False]))", np.array([True, False])),
]  # fmt: skip
size = m.size


@pytest.mark.parametrize("text, expected", VALUES, ids=[text for text, _ in VALUES])
def test_values(text, expected):
    y = eval(text)
    np.testing.assert_array_equal(y.numpy(), expected)
    assert (y.shape, y.dtype, y.dims()) == (expected.shape, expected.dtype, "")


def test_joining_takes_the_common_type():
    single, double = np.float32([1]), np.float64([2])
    assert m.cat(0, dlarray(single), double).dtype == m.cat(0, dlarray([True]), single).dtype == np.float32


def make(fmt, *shape):
    return dlarray(R.normal(size=shape), fmt)


LABELS = [  # expression, labels and shape of the result
    ("m.reshape(make('CB', 2, 3), 3, 2)", "", (3, 2)), ("m.squeeze(make('SSCB', 1, 1, 4, 5))", "CB", (4, 5)),
    ("m.squeeze(make('SSCB', 1, 1, 4, 1))", "CU", (4, 1)), ("m.squeeze(make('SSC', 1, 1, 1))", "UU", (1, 1)),
    ("m.squeeze(make('CB', 1, 5))", "CB", (1, 5)), ("m.squeeze(make('SSTU', 3, 2, 1, 2))", "SSU", (3, 2, 2)),
    ("m.permute(make('SSCB', 2, 3, 4, 5), 1, 0, 2, 3)", "SSCB", (3, 2, 4, 5)),
    ("m.transpose(make('SS', 2, 3))", "SS", (3, 2)),
    ("m.flip(make('SSCB', 2, 3, 4, 5), 'S')", "SSCB", (2, 3, 4, 5)),
    ("m.circshift(make('CB', 2, 3), 1, 'B')", "CB", (2, 3)),
    ("m.repmat(make('CB', 2, 3), 2, 1)", "CB", (4, 3)), ("m.repmat(make('CB', 2, 3), 1, 1, 2)", "CBU", (2, 3, 2)),
    ("m.repelem(make('CB', 2, 3), 2, 1)", "CB", (4, 3)),
    ("m.cat('B', make('CB', 2, 3), make('CB', 2, 4))", "CB", (2, 7)),
    ("m.cat(0, make('CB', 2, 3), np.zeros((1, 3)))", "CB", (3, 3)),
    ("m.cat(2, make('CB', 2, 3), make('CB', 2, 3))", "CBU", (2, 3, 2)),
    ("m.horzcat(make('CB', 2, 3), make('CB', 2, 4))", "CB", (2, 7)), ("m.stripdims(make('CB', 2, 3))", "", (2, 3)),
    ("m.stripdims(make('BC', 2, 3))", "", (3, 2)), ("m.stripdims(make('BC', 2, 3), 'BC')", "", (2, 3)),
    ("m.stripdims(make('BSSC', 5, 2, 3, 4), 'BSSC')", "", (5, 2, 3, 4)),
    ("m.stripdims(make('CB', 2, 3), 'TBUC')", "", (1, 3, 1, 2)),
    ("m.stripdims(dlarray(M), 'CB')", "", (3, 4)), ("m.cast(make('CB', 2, 3), 'single')", "CB", (2, 3)),
    ("m.gather(make('CB', 2, 3))", "CB", (2, 3)), ("m.tril(make('CB', 2, 3))", "CB", (2, 3)),
]  # fmt: skip


@pytest.mark.parametrize("text, labels, shape", LABELS, ids=[row[0] for row in LABELS])
def test_labels(text, labels, shape):
    y = eval(text)
    assert (y.dims(), y.shape) == (labels, shape)


def test_stripdims_undoes_the_stored_order():
    x = R.normal(size=(5, 2, 3, 4))
    np.testing.assert_array_equal(m.stripdims(dlarray(x, "BSSC"), "BSSC").numpy(), x)
    np.testing.assert_array_equal(dlarray(x, "TSUS").stripdims("TSUS").numpy(), x)


SMOOTH = {
    "reshape": lambda x: m.reshape(x, 4, 3), "row by row": lambda x: m.reshape(x, 2, 6, Order="C"),
    "squeeze": lambda x: m.squeeze(m.reshape(x, 1, 3, 4)), "shiftdim": lambda x: m.shiftdim(x, 1),
    "permute": lambda x: m.permute(x, 1, 0), "transpose": m.transpose, "flip": lambda x: m.flip(x, (0, 1)),
    "rot90": m.rot90,
    "circshift": lambda x: m.circshift(x, [1, 2]), "repmat": lambda x: m.repmat(x, 2, 3, 2),
    "repelem": lambda x: m.repelem(x, 2, 3), "cat": lambda x: m.cat(1, x, x[:, :2], np.ones((3, 1)), m.square(x)),
    "stack": lambda x: m.cat(2, x, m.square(x)), "tril": m.tril, "triu": lambda x: m.triu(x, 1), "diag": m.diag,
    "diagonal matrix": lambda x: m.diag(x[:, :1], -1), "trace": lambda x: m.trace(x[:, :3]),
    "stripdims": lambda x: m.stripdims(dlarray(x, "SC"), "CS"), "relabelled": lambda x: dlarray(x, "BC"),
    "double": lambda x: m.double(x),
}  # fmt: skip


@pytest.mark.parametrize("name", SMOOTH)
def test_derivatives(name):
    check_derivatives(lambda x: m.square(SMOOTH[name](x)), M)


def test_other_types_pass_gradients_and_logical_none():
    def fun(x):
        y = m.sum(m.single(x) * m.double(m.logical(x)), "all")
        return dlgradient(y, x)

    g = dlfeval(fun, dlarray([2.0, 0.0]))
    assert (g.tolist(), g.dtype) == ([1.0, 0.0], np.float64)


def test_facts():
    x = dlarray(np.zeros((3, 4, 1, 2), np.float32), "SSCB")
    assert (m.size(x), m.size(x, 1), m.size(x, "B"), m.size(x, 7)) == ((3, 4, 1, 2), 4, 2, 1)
    assert (m.size(x, "S"), m.size(x, (0, 3)), m.size(x, m.finddim(x, "B"))) == ((3, 4), (3, 2), 2)
    assert (m.numel(x), m.ndims(x), m.length(x), m.isempty(x), m.isreal(x)) == (24, 4, 4, False, True)
    assert (m.dims(x), m.finddim(x, "S"), m.finddim(x, "T"), x.finddim("B")) == ("SSCB", (0, 1), (), (3,))
    assert m.underlyingType(x) == x.underlyingType() == "single" and m.isUnderlyingType(x, "single")
    assert (m.size([[1, 2]]), m.numel(3.0), m.length([]), m.isempty(dlarray([])), m.dims(3)) == ((1, 2), 1, 0, True, "")
    assert not np.shares_memory(m.extractdata(x), np.asarray(x)) and type(m.extractdata(x)) is np.ndarray
    assert m.gather(3.0) == 3.0
    assert m.length(dlarray(1.0)) == 1 and m.canUseGPU() is False
    m.mustBeUnderlyingType(x, "single")


def test_types_of_plain_arrays():
    assert m.single([1, 2]).dtype == np.float32 and m.double(np.uint8([3])).dtype == np.float64
    assert m.logical(np.array([0, 2])).tolist() == [False, True] and not isinstance(m.single(1.0), DLArray)
    x = dlarray([1.0])
    assert m.cast(x, float)._value is x._value and m.cast(x, np.float32).dtype == x.astype("single").dtype == np.float32
    assert m.cast(x, bool).dtype == bool


SAME = [
    "uplus(x)", "real(x)", "conj(x)", "power(x, 1)", "gather(x)", "cast(x, 'double')", "stripdims(x)", "squeeze(x)",
    "reshape(x, 2, 2)", "permute(x, 0, 1)", "shiftdim(x)", "rot90(x, 0)", "circshift(x, 0)", "cat(0, x)",
    "repmat(x, 1)", "sum(x, ())", "max(x, dim=())", "max(x[:0], dim=0)", "median(x, ())", "sort(x[0, 0])",
    "transpose(x[0])",
]  # fmt: skip


@pytest.mark.parametrize("text", SAME)
def test_what_comes_back_unchanged_can_be_assigned_to(text):
    x = dlarray([[1.0, 2.0], [3.0, 4.0]])
    y = eval(text, {**vars(m), "x": x})
    y[...] = 9
    assert x.tolist() == [[1, 2], [3, 4]]


EQUAL = [
    ("dlarray([1.0, 2.0]), [1.0, 2.0]", True), ("dlarray([1.0]), dlarray([2.0])", False),
    ("dlarray([1.0]), dlarray(1.0)", False),
    ("make('CB', 1, 1) * 0, make('BT', 1, 1) * 0", False), ("make('CB', 1, 1) * 0, np.zeros((1, 1))", True),
    ("dlarray(np.nan), np.nan", False), ("{'a': [dlarray(1.0)]}, {'a': [1.0]}", True), ("{'a': 1}, {'b': 1}", False),
    ("1, 1, 1", True), ("1, 1, 2", False), ("'a', 'a'", True), ("dlarray(1.0), 'a'", False),
]  # fmt: skip


@pytest.mark.parametrize("text, expected", EQUAL)
def test_isequal(text, expected):
    assert eval(f"m.isequal({text})") is expected


CB = make("CB", 2, 3)
BAD = [
    (lambda: m.reshape(dlarray(M), 5, 2), ShapeError, "12 elements"),
    (lambda: m.reshape(dlarray(M), 5, []), ShapeError, "does not divide"),
    (lambda: m.reshape(dlarray(M), [], []), OptionError, "one size at most"),
    (lambda: m.reshape(dlarray(M), 2.5, 2), OptionError, "whole numbers"),
    (lambda: m.reshape(dlarray(M), -2, 2), OptionError, "from 0 on"),
    (lambda: m.reshape(dlarray(M), 3, 4, Order="rows"), OptionError, "Order"),
    (lambda: m.reshape(dlarray(M), 3, 4, order="C"), OptionError, "Did you mean Order"),
    (lambda: m.permute(CB, 1, 0), LabelError, "stripdims"),
    (lambda: m.permute(CB, 0, 1, 2), LabelError, "stripdims"),
    (lambda: m.permute(dlarray(M), 0), OptionError, "each of the 2"),
    (lambda: m.permute(dlarray(M), 1, 2), OptionError, "counting from 0"),
    (lambda: m.permute(dlarray(M), "CB"), OptionError, "order"),
    (lambda: m.transpose(CB), LabelError, "stripdims"),
    (lambda: m.transpose(dlarray(A)), ShapeError, "permute"),
    (lambda: m.shiftdim(CB, 1), LabelError, "stripdims"),
    (lambda: m.rot90(dlarray(A)), ShapeError, "matrix"),
    (lambda: m.flip(CB, "S"), LabelError, "no dimension"),
    (lambda: m.circshift(dlarray(M), [1, 2, 3]), OptionError, "one shift for each"),
    (lambda: m.repmat(dlarray(M), -1, 2), OptionError, "from 0 on"),
    (lambda: m.repelem(dlarray(M), 2), OptionError, "each dimension"),
    (lambda: m.cat(0), OptionError, "at least one"),
    (lambda: m.cat(0, dlarray(M), M[:, :2]), ShapeError, "do not join"),
    (lambda: m.cat(0, CB, make("CT", 2, 3)), LabelError, "formats differ"),
    (lambda: m.cat("T", CB, CB), LabelError, "no dimension"),
    (lambda: m.cat("S", make("SS", 2, 3)), OptionError, "one dimension"),
    (lambda: m.cat(20, CB, CB), ShapeError, "no dimension 20"),
    (lambda: m.diag(CB), LabelError, "stripdims"),
    (lambda: m.trace(dlarray(M)), ShapeError, "square"),
    (lambda: m.tril(dlarray(A)), ShapeError, "matrix"),
    (lambda: m.finddim(CB, "SS"), LabelError, "one label"),
    (lambda: m.stripdims(CB, "CT"), LabelError, "lacks B"),
    (lambda: m.stripdims(CB, "CBB"), LabelError, "once"),
    (lambda: m.cast(CB, "int8"), DTypeError, "single, double or logical"),
    (lambda: m.cast(CB, "singel"), OptionError, "Did you mean"),
    (lambda: m.single("text"), DTypeError, "Encode"),
    (lambda: m.single([1j]), DTypeError, "real"),
    (lambda: m.mustBeUnderlyingType(CB, "single"), DTypeError, "double"),
]


@pytest.mark.parametrize("call, error, word", BAD)
def test_bad_input(call, error, word, explained):
    explained(call, error, word)
