"""M1 to M5: what minidl says and accepts at its borders: properties, name-value pairs, messages, names, printing."""

import copy
import pickle
import weakref

import numpy as np
import pytest

import minidl as m
from minidl import (
    AcceleratedFunction,
    OptionError,
    Precision,
    PropertyError,
    arrayDatastore,
    combine,
    dlaccelerate,
    dlarray,
    dlconv,
    dlfeval,
    dlgradient,
    minibatchqueue,
    transform,
)

R = np.random.default_rng(5)


def twice(x):
    return x * 2


def store():
    return arrayDatastore(np.arange(10.0))


def objects():
    accelerated = dlaccelerate(twice)
    return {
        "AcceleratedFunction": accelerated, "MiniBatchQueue": minibatchqueue(store(), MiniBatchSize=4),
        "ArrayDatastore": store(), "CombinedDatastore": combine(store(), store()),
        "TransformedDatastore": transform(store(), twice), "Precision": Precision("float32"),
        "DLArray": dlarray([1.0]),
    }  # fmt: skip


# M1 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", objects())
def test_M1_an_unknown_property_is_refused(kind):
    x = objects()[kind]
    with pytest.raises(AttributeError):
        x.Colour = 3
    with pytest.raises(AttributeError):
        x.Colour  # noqa: B018
    assert not hasattr(x, "Colour") and not hasattr(x, "__colour__")


MISSPELT = [
    ("AcceleratedFunction", "CheckMod", "CheckMode"), ("AcceleratedFunction", "cachesize", "CacheSize"),
    ("MiniBatchQueue", "MiniBatchSiz", "MiniBatchSize"), ("ArrayDatastore", "Readsize", "ReadSize"),
    ("CombinedDatastore", "ReadOrdr", "ReadOrder"), ("TransformedDatastore", "Includeinfo", "IncludeInfo"),
]  # fmt: skip


@pytest.mark.parametrize("kind, name, meant", MISSPELT)
def test_M1_the_property_that_was_meant_is_named(kind, name, meant):
    x = objects()[kind]
    for use in (lambda: setattr(x, name, 1), lambda: getattr(x, name)):
        with pytest.raises(PropertyError, match=f"Did you mean {meant}"):
            use()


READ_ONLY = [
    ("AcceleratedFunction", "HitRate"), ("AcceleratedFunction", "Function"), ("MiniBatchQueue", "MiniBatchSize"),
    ("CombinedDatastore", "ReadOrder"), ("CombinedDatastore", "ReadSize"), ("TransformedDatastore", "Transforms"),
    ("AcceleratedFunction", "clearCache"), ("MiniBatchQueue", "next"), ("Precision", "current"),
]  # fmt: skip


@pytest.mark.parametrize("kind, name", READ_ONLY)
def test_M1_what_cannot_be_set_says_so(kind, name):
    x = objects()[kind]
    with pytest.raises(PropertyError, match="cannot be set"):
        setattr(x, name, 1)
    with pytest.raises(PropertyError, match="cannot be deleted"):
        delattr(x, name)


WRONG = [
    ("AcceleratedFunction", "CheckTolerance", -1), ("AcceleratedFunction", "CheckTolerance", np.nan),
    ("AcceleratedFunction", "CacheSize", 0), ("AcceleratedFunction", "CacheSize", 2.5),
    ("AcceleratedFunction", "CheckMode", "loose"), ("AcceleratedFunction", "Enabled", "no"),
    ("AcceleratedFunction", "Strict", 2), ("ArrayDatastore", "ReadSize", 0), ("ArrayDatastore", "ReadSize", "a"),
    ("ArrayDatastore", "IterationDimension", 5), ("ArrayDatastore", "OutputType", "table"),
]  # fmt: skip


@pytest.mark.parametrize("kind, name, value", WRONG)
def test_M1_a_wrong_value_is_refused_and_changes_nothing(kind, name, value):
    x = objects()[kind]
    before = getattr(x, name)
    with pytest.raises(OptionError, match=name):
        setattr(x, name, value)
    assert getattr(x, name) == before


@pytest.mark.parametrize("value", [0, 2.5, "a", -1, True, None])
def test_M1_a_wrong_size_of_mini_batches_is_refused(value):
    with pytest.raises(OptionError, match="MiniBatchSize"):
        minibatchqueue(store(), MiniBatchSize=value)


@pytest.mark.parametrize("option", ["DispatchInBackground", "OutputAsDlarray"])
def test_M1_a_flag_is_a_flag(option):
    with pytest.raises(OptionError, match=option):
        minibatchqueue(store(), **{option: 2})
    with pytest.raises(OptionError, match="IncludeInfo"):
        transform(store(), twice, IncludeInfo="no")


def test_M1_an_ops_attributes_are_known():
    with pytest.raises(PropertyError, match="Did you mean text"):
        m.exp.txt = "exp({0})"
    with pytest.raises(PropertyError, match=r"@exp\.vjp"):
        m.exp.vjp = twice


def test_M1_classes_of_the_users_own_have_attributes_of_their_own():
    class Mine(AcceleratedFunction):
        limit = 3

        def __init__(self, function):
            super().__init__(function)
            self.calls = 0

    x = Mine(twice)
    x.calls, x.limit, x.CacheSize = 1, 4, 7
    assert (x.calls, x.limit, x.CacheSize, x(dlarray(2.0)).item()) == (1, 4, 7, 4.0)
    del x.calls
    assert not hasattr(x, "calls")
    with pytest.raises(PropertyError):
        x.HitRate = 3


def test_M1_objects_are_copied_and_pickled():
    for kind, x in objects().items():
        weakref.ref(x)
        if kind != "Precision":
            copy.copy(x)
        if kind in ("ArrayDatastore", "CombinedDatastore", "TransformedDatastore", "AcceleratedFunction"):
            y = pickle.loads(pickle.dumps(x))
            assert repr(y) == repr(x)


# M2 -------------------------------------------------------------------------------------------------------------
X = dlarray(R.normal(size=(6, 6, 2, 3)), "SSCB")
W, b = dlarray(R.normal(size=(3, 3, 2, 4))), dlarray(np.zeros((4, 1)))
Y, T = m.softmax(dlarray(R.normal(size=(3, 4)), "CB")), dlarray(np.eye(3)[:, [0, 1, 2, 0]], "CB")

PAIRS = [
    (lambda *o, **k: dlconv(X, W, b, *o, **k), {"Padding": "same", "Stride": 2}),
    (lambda *o, **k: m.crossentropy(Y, T, *o, **k), {"Reduction": "none"}),
    (lambda *o, **k: m.batchnorm(X, np.zeros(2), np.ones(2), *o, **k), {"Epsilon": 0.1}),
    (lambda *o, **k: m.batchnorm(X, np.zeros(2), np.ones(2), np.zeros(2), np.ones(2), *o, **k), {"Epsilon": 0.1}),
    (lambda *o, **k: m.softmax(np.eye(3), *o, **k), {"DataFormat": "CB"}),
    (lambda *o, **k: m.fullyconnect(np.eye(3), np.eye(3), np.zeros(3), *o, **k), {"DataFormat": "CB"}),
    (lambda *o, **k: m.gelu(X, *o, **k), {"Approximation": "tanh"}),
    (lambda *o, **k: m.zeros(2, 3, *o, **k), {"like": dlarray(np.float32(1))}),
    (lambda *o, **k: m.reshape(T, 4, 3, *o, **k), {"Order": "C"}),
    (lambda *o, **k: next(iter(minibatchqueue(store(), *o, **k))), {"MiniBatchSize": 3, "MiniBatchFormat": "B"}),
    (lambda *o, **k: dlarray(arrayDatastore(np.eye(3), *o, **k).read()[0]), {"IterationDimension": 1}),
    (lambda *o, **k: dlarray(combine(store(), store(), *o, **k).read()[0]), {"ReadOrder": "sequential"}),
    (lambda *o, **k: dlarray(m.onehotencode(["a", "b"], 0, *o, **k)), {"ClassNames": ["a", "b", "c"]}),
]  # fmt: skip


@pytest.mark.parametrize("call, options", PAIRS)
def test_M2_options_are_given_as_pairs_of_name_and_value(call, options):
    expected = call(**options)
    found = call(*[part for pair in options.items() for part in pair])
    assert found.shape == expected.shape and found.dims() == expected.dims()
    np.testing.assert_array_equal(found.numpy(), expected.numpy())
    name, value = next(iter(options.items()))
    for wrong in (name[:-1], name.swapcase()):
        with pytest.raises(OptionError, match=f"Did you mean {name}"):
            call(wrong, value)
    with pytest.raises(OptionError, match="given twice"):
        call(name, value, name, value)
    with pytest.raises(OptionError, match="given twice"):
        call(name, value, **{name: value})


def test_M2_a_name_without_value_is_refused():
    with pytest.raises(OptionError, match="'Padding' has no value"):
        dlconv(X, W, b, "Padding")
    with pytest.raises(OptionError, match="'Padding' has no value"):
        dlconv(X, W, b, "Stride", 2, "Padding")
    with pytest.raises(OptionError, match="too many"):
        dlconv(X, W, b, 1, 2)


def test_M2_higher_derivatives_by_pair():
    def fun(x):
        g = dlgradient(m.sum(x**3, "all"), x, "EnableHigherDerivatives", True)
        return dlgradient(m.sum(g, "all"), x)

    assert dlfeval(fun, dlarray([2.0])).tolist() == [12.0]


def test_M2_texts_of_another_meaning_stay_what_they_are():
    x = dlarray([[3.0, 1.0], [2.0, 5.0]], "CB")
    assert m.sum(x, "all").item() == 11 and m.max(x, [], "C").shape == (1, 2)
    assert m.sort(x, "C", "descend").tolist() == [[3.0, 5.0], [2.0, 1.0]]
    assert m.cumsum(x, "B", "reverse").tolist() == [[4.0, 1.0], [7.0, 5.0]]
    assert m.zeros(2, "single").dtype == np.float32 and m.var(x, "C").shape == (1, 2)
    assert m.vecnorm(x, 1, "B").shape == (2, 1) and m.max(x, "all").item() == 5
