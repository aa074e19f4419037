"""dlarray: every rule of creation, display, numbers out, operators, copies, wrong data."""

import copy
import pickle
import random

import numpy as np
import pytest

import minidl.ops  # noqa: F401 (the operators live there)
from minidl.autodiff import dlfeval, dlgradient
from minidl.core.dlarray import DLArray, dlarray, isdlarray
from minidl.core.errors import DTypeError, LabelError, OptionError, ShapeError

R = np.random.default_rng(17)

CREATED = [  # shape of the data, format, labels, shape, order of the data's dimensions (None: reshaped)
    ((3, 4), "TS", "ST", (4, 3), (1, 0)), ((5, 2, 3, 4), "BSSC", "SSCB", (2, 3, 4, 5), (1, 2, 3, 0)),
    ((2, 3, 4), "USU", "SUU", (3, 2, 4), (1, 0, 2)), ((2, 3), "CB", "CB", (2, 3), (0, 1)),
    ((3, 4), "SCB", "SCB", (3, 4, 1), None), ((3, 4), "SSCB", "SSCB", (3, 4, 1, 1), None),
    ((3, 4), "BCS", "SCB", (1, 4, 3), None), ((3,), "C", "CU", (3, 1), None), ((1, 3), "C", "CU", (3, 1), None),
    ((3, 1), "B", "BU", (3, 1), None), ((3,), "U", "UU", (3, 1), None), ((), "C", "CU", (1, 1), None),
    ((3,), "CB", "CB", (3, 1), None), ((3,), "BC", "CB", (1, 3), None), ((), "SSCB", "SSCB", (1, 1, 1, 1), None),
    ((3, 2, 1, 2), "SSTU", "SSTU", (3, 2, 1, 2), None), ((3, 2, 1), "SCU", "SC", (3, 2), None),
    ((3, 2, 1, 1), "SCUU", "SC", (3, 2), None), ((1, 3, 2), "USC", "SC", (3, 2), None),
    ((3, 1), "SU", "SU", (3, 1), None),
    ((1, 1), "UU", "UU", (1, 1), None), ((3, 2, 1, 1), "SC", "SC", (3, 2), None), ((1, 1, 3), "C", "CU", (3, 1), None),
    ((0, 3), "CB", "CB", (0, 3), None), ((2, 3), "", "", (2, 3), (0, 1)),
]  # fmt: skip


@pytest.mark.parametrize("shape, fmt, labels, stored, order", CREATED)
@pytest.mark.parametrize("dtype", ["float64", "float32", "bool"])
def test_creation(shape, fmt, labels, stored, order, dtype):
    data = R.normal(size=shape).astype(dtype) if dtype != "bool" else np.asarray(R.random(shape) > 0.5)
    x = dlarray(data, fmt)
    assert (x.dims(), x.shape, x.dtype, x.ndim, x.size) == (labels, stored, dtype, len(stored), data.size)
    if order is not None:
        np.testing.assert_array_equal(x.extractdata(), data.transpose(order))
    again = dlarray(dlarray(data), fmt)
    assert (again.dims(), again.shape) == (labels, stored)
    assert isdlarray(x) and not isdlarray(data)


def test_images_stay_in_their_order_in_memory():
    data = R.normal(size=(5, 28, 28, 3)).astype(np.float32)
    for given in (data, np.asfortranarray(data), data.transpose(0, 2, 1, 3)):
        x = dlarray(given, "BSSC")
        assert np.asarray(x).strides == given.transpose(1, 2, 3, 0).strides
        assert not np.shares_memory(np.asarray(x), data)
        np.testing.assert_array_equal(x.numpy(), given.transpose(1, 2, 3, 0))


def frozen(data):
    data.flags.writeable = False
    return data


class Holder:
    """Data behind NumPy's protocol, as other libraries offer them."""

    def __init__(self, data):
        self.data = data

    def __array__(self, dtype=None, copy=None):
        return self.data


HANDED_OVER = {  # what is given of some data, whether dlarray copies it
    "array": (lambda data: data, True),
    "view": (lambda data: data[:, ::2], True),
    "read-only view": (lambda data: frozen(data[:]), True),
    "memoryview": (memoryview, True),
    "read-only memoryview": (lambda data: memoryview(data).toreadonly(), True),
    "read-only buffer": (lambda data: frozen(np.frombuffer(data).reshape(data.shape)), True),
    "array of a protocol": (Holder, True),
    "subclass": (lambda data: data.view(np.matrix), True),
    "another byte order": (lambda data: data.astype(">f8"), True),
    "list of rows": (list, True),
    "frozen": (frozen, False),
    "view of frozen": (lambda data: frozen(data).T[1:], False),
}


@pytest.mark.parametrize("way", HANDED_OVER)
@pytest.mark.parametrize("fmt", [None, "UU"])
def test_only_what_cannot_change_is_not_copied(way, fmt):
    data = np.arange(12.0).reshape(3, 4).copy()
    hand_over, is_copied = HANDED_OVER[way]
    given = hand_over(data)
    expected = np.array(given).copy()
    x = dlarray(given, fmt)
    assert np.shares_memory(np.asarray(x), data) is not is_copied
    if is_copied:
        data[...] = -1
    np.testing.assert_array_equal(x.numpy(), expected.astype(float))


def test_nobody_can_write_into_a_value():
    x = dlarray(np.float32([[1, 2], [3, 4]]), "CB")
    given = np.ones((2, 2), np.float32)
    for view in (np.asarray(x), np.asarray(x).view(), np.asarray(x)[...], np.asarray(x).T, np.asarray(x).reshape(-1)):
        with pytest.raises(ValueError, match="WRITEABLE"):
            view.flags.writeable = True
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 5
        with pytest.raises(ValueError, match="read-only"):
            np.copyto(view, 5)
        with pytest.raises(ValueError, match="read-only"):
            np.add(view, 1, out=view)
        assert not isinstance(view.base, np.ndarray) or not view.base.flags.writeable
        assert memoryview(view).readonly
    for copied in (x.extractdata(), x.numpy(), np.array(x), np.from_dlpack(x).copy(), np.asarray(x, "float64")):
        copied[...] = 5
    for call in (lambda: memoryview(x), lambda: np.frombuffer(x, np.float32)):
        with pytest.raises(TypeError, match="bytes-like|buffer"):
            call()
    for call in (
        lambda: np.add(given, given, out=x), lambda: np.exp(x, out=x), lambda: np.copyto(x, given),
        lambda: np.add.at(x, 0, given), lambda: np.put(x, 0, 1), lambda: np.putmask(x, given > 0, 1),
        lambda: np.place(x, given > 0, 1), lambda: np.fill_diagonal(x, 1), lambda: np.sum(given, 0, out=x),
        lambda: np.add.reduce(given, out=x), lambda: np.add.accumulate(given, out=x),
        lambda: np.add(given, x, out=given), lambda: np.concatenate([given, given], out=x),
    ):  # fmt: skip
        with pytest.raises((DTypeError, OptionError)):
            call()
    assert x.tolist() == [[1, 2], [3, 4]] and given.tolist() == [[1, 1], [1, 1]]


def test_other_libraries_get_a_copy():
    x = dlarray(np.float32([[1, 2], [3, 4]]), "CB")
    assert not np.shares_memory(np.from_dlpack(x), np.asarray(x))
    with pytest.raises(BufferError, match="copy"):
        x.__dlpack__(copy=False)


def test_pickled_buffers_stay_the_callers():
    x, buffers = dlarray(np.arange(3.0)), []
    stream = pickle.dumps(x, protocol=5, buffer_callback=buffers.append)
    memory = [bytearray(buffer) for buffer in buffers]
    y = pickle.loads(stream, buffers=memory)
    memory[0][:] = bytes(len(memory[0]))
    assert y.tolist() == [0, 1, 2]


def test_handles_are_rebound_not_written():
    x = dlarray([1.0, 2.0, 3.0])
    y, seen = +x, np.asarray(x)
    x[0] = 9
    x += 1
    random.shuffle(x)
    assert sorted(x.tolist()) == [3, 4, 10] and y.tolist() == seen.tolist() == [1, 2, 3]


def test_relabelling_replaces_labels():
    x = dlarray(R.normal(size=(2, 3)), "CB")
    y = dlarray(x, "BT")
    assert (y.dims(), y.shape) == ("BT", (2, 3)) and dlarray(x).dims() == "CB" and x.dims() == "CB"
    z = dlarray(x, "BC")
    assert (z.dims(), z.shape) == ("CB", (3, 2))
    np.testing.assert_array_equal(z.extractdata(), x.extractdata().T)
    assert dlarray(x, "").dims() == ""


def test_relabelling_is_traced():
    g = dlfeval(lambda x: dlgradient((dlarray(x, "BC") * dlarray([1.0, 2.0], "B")).sum("all"), x),
                dlarray(np.ones((2, 3))))
    assert g.tolist() == [[1, 1, 1], [2, 2, 2]]


WRAPPED = [(1, "float64"), (True, "bool"), (2.5, "float64"), ([1, 2], "float64"), ([[1.5], [2]], "float64"),
           ((1, 2), "float64"),
           (np.float32(1), "float32"), ([True], "bool"), (np.array([1, 2], ">f4"), "float32"),
           ([np.float32(1)], "float32"),
           ([], "float64"), (range(3), "float64")]  # fmt: skip


@pytest.mark.parametrize("data, dtype", WRAPPED)
def test_what_can_be_wrapped(data, dtype):
    x = dlarray(data)
    assert x.dtype == dtype and x.dtype.isnative
    np.testing.assert_array_equal(x.numpy(), np.array(data, dtype))


BAD = [
    (lambda: dlarray(np.arange(3)), DTypeError, "astype"), (lambda: dlarray(np.zeros(2, np.uint8)), DTypeError, "255"),
    (lambda: dlarray(1j), DTypeError, "real(x)"), (lambda: dlarray("text"), DTypeError, "onehotencode"),
    (lambda: dlarray(None), DTypeError, "double, single or logical"),
    (lambda: dlarray(np.zeros(2, np.float16)), DTypeError, "float32"),
    (lambda: dlarray([[1], [1, 2]]), DTypeError, "rectangular"), (lambda: dlarray({}), DTypeError, "dict"),
    (lambda: dlarray(np.array(["a"])), DTypeError, "onehotencode"),
    (lambda: dlarray(np.zeros((2, 3)), "C"), LabelError, "vector"),
    (lambda: dlarray(np.zeros((2, 3, 4)), "CB"), LabelError, "labels 2"),
    (lambda: dlarray([1.0], "Z"), LabelError, "'Z'"),
    (lambda: dlarray([1.0], "CC"), LabelError, "once"), (lambda: dlarray([1.0], "cb"), LabelError, '"CB"'),
    (lambda: dlarray([1.0, 2.0]).item(), ShapeError, "sum(X, 'all')"),
    (lambda: float(dlarray([1.0, 2.0])), ShapeError, "single number"),
    (lambda: bool(dlarray([1.0, 2.0])), ShapeError, "any"), (lambda: len(dlarray(1.0)), ShapeError, "numel"),
    (lambda: [0][dlarray(0.5)], DTypeError, "whole"),
    (lambda: list(dlarray(1.0)), DTypeError, "scalar"),
]  # fmt: skip


@pytest.mark.parametrize("call, error, word", BAD)
def test_bad_input(call, error, word, explained):
    explained(call, error, word)


SHOWN = [
    (dlarray(np.zeros((28, 28, 1, 2)), "SSCB"), "28(S) × 28(S) × 1(C) × 2(B) dlarray"),
    (dlarray(np.float32([[1, 2]])), "1×2 single dlarray"), (dlarray(True), "1×1 logical dlarray"),
    (dlarray(2.0), "1×1 dlarray"),
    (dlarray(np.zeros((0, 3))), "0×3 dlarray (empty)"),
    (dlarray(np.float32([1, 2]), "C"), "2(C) × 1(U) single dlarray"),
]  # fmt: skip


@pytest.mark.parametrize("x, head", SHOWN)
def test_display(x, head):
    assert str(x).splitlines()[0] == head
    assert repr(x).startswith(head) and "\n" not in repr(x) and len(repr(x)) < 300


def test_numbers_out():
    x = dlarray(2.0)
    assert (float(x), int(x), x.item(), bool(x), f"{x:.1f}", [0, 1, 2][x]) == (2.0, 2, 2.0, True, "2.0", 2)
    assert dlarray([[1.0, 2.0]]).tolist() == [[1.0, 2.0]] and len(dlarray([1.0, 2.0])) == 2
    assert np.asarray(dlarray([1.0])).dtype == np.float64 and f"{dlarray([1.0])}".startswith("1×1")


OPERATORS = ["a + b", "a - b", "a * b", "a / b", "a // b", "a % b", "a ** b", "-a", "+a", "abs(a)", "a == b", "a != b",
             "a < b",
             "a <= b", "a > b", "a >= b", "a @ b.T"]  # fmt: skip


@pytest.mark.parametrize("text", OPERATORS)
def test_operators(text):
    a, b = R.uniform(0.5, 2, (2, 3)), R.uniform(0.5, 2, (2, 3))
    expected = eval(text)
    for names in ({"a": dlarray(a), "b": dlarray(b)}, {"a": dlarray(a), "b": b}, {"a": a, "b": dlarray(b)}):
        if " b" in text or isinstance(names["a"], DLArray):
            y = eval(text, names)
            assert isinstance(y, DLArray)
            np.testing.assert_allclose(y.numpy(), expected, rtol=1e-14)
    if "@" not in text and " b" in text:
        for name, other in (("a", "b"), ("b", "a")):
            values = {"a": a, "b": b}
            y = eval(text, {name: dlarray(values[name]), other: 1.5})
            np.testing.assert_allclose(y.numpy(), eval(text, {name: values[name], other: 1.5}), rtol=1e-14)


def test_logic():
    a, b = dlarray([True, True, False]), dlarray([True, False, False])
    assert (a & b).tolist() == [True, False, False] and (a | b).tolist() == [True, True, False]
    assert (a ^ b).tolist() == [False, True, False] and (~a).tolist() == [False, False, True]
    assert (a & True).tolist() == (True & a).tolist() == a.tolist()


def test_in_place_operators_make_new_values():
    x = y = dlarray([1.0, 2.0])
    y += 1
    assert x.tolist() == [1, 2] and y.tolist() == [2, 3]


@pytest.mark.parametrize("fmt", [None, "CB"])
def test_copies_and_pickles(fmt):
    x = dlarray(np.float32([[1, 2], [3, 4]]).T, fmt)
    for y in (copy.copy(x), copy.deepcopy(x), x.copy(), pickle.loads(pickle.dumps(x)), copy.deepcopy({"x": x})["x"]):
        assert (y.tolist(), y.dims(), y.dtype) == (x.tolist(), x.dims(), x.dtype)
        y[0, 0] = 9
        assert x[0, 0].item() == 1
    with pytest.raises(TypeError):
        hash(x)


def test_methods_are_the_functions():
    x = dlarray(R.normal(size=(2, 3)), "CB")
    for name in ("sum", "mean", "prod", "max", "min", "std", "var", "median", "any", "all", "cumsum"):
        np.testing.assert_array_equal(getattr(x, name)().numpy(), getattr(minidl.ops, name)(x).numpy())
        assert getattr(x, name)("B").dims() == "CB"
    assert x.underlyingType() == "double" and x.gather()._value is x._value and x.stripdims().dims() == ""
    assert x.reshape(3, 2).shape == (3, 2) and x.squeeze().dims() == "CB" and x.repmat(1, 2).shape == (2, 6)
    assert x.flip("B").dims() == "CB" and x.finddim("B") == (1,) and x.astype("single").dtype == np.float32
