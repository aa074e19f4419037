"""M1 to M5: what minidl says and accepts at its borders: properties, name-value pairs, messages, names, printing."""

import builtins
import copy
import fractions
import math
import pickle
import re
import weakref

import numpy as np
import pytest

import minidl as m
from minidl import (
    AcceleratedFunction,
    DTypeError,
    LabelError,
    OptionError,
    Precision,
    PropertyError,
    ShapeError,
    TraceError,
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
    with pytest.raises(PropertyError, match=f"Did you mean {meant}"):
        setattr(x, name, 1)
    with pytest.raises(AttributeError):  # Python itself suggests a name there
        getattr(x, name)


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


# M3 -------------------------------------------------------------------------------------------------------------
class Image:  # as PIL's: an array interface, and a home of that name
    __array_interface__ = {"shape": (2, 2), "typestr": "|u1", "data": bytes(4), "version": 3}


Image.__module__ = "PIL.Image"
CB = dlarray(np.eye(3), "CB")
TORCH = np.zeros((16, 2, 3, 3))
MESSAGES = [
    (lambda: m.crossentropy(CB, np.array([0, 1, 2])), DTypeError, "onehotencode"),
    (lambda: m.crossentropy(CB, [0, 1, 2]), ShapeError, "onehotencode"),
    (lambda: m.crossentropy(CB, ["a", "b", "c"]), DTypeError, "onehotencode"),
    (lambda: m.crossentropy(CB, dlarray([[0.0, 1.0, 2.0]], "CB")), ShapeError, "onehotencode"),
    (lambda: m.reshape(np.zeros((2, 3, 4)), 5, 5), ShapeError, "2×3×4 has 24"),
    (lambda: m.reshape(np.zeros((2, 3, 4)), 5, 5, Order="C"), ShapeError, "2×3×4 has 24"),
    (lambda: dlconv(X, TORCH, np.zeros(16)), ShapeError, 'WeightsFormat="UCSS"'),
    (lambda: dlconv(X, TORCH, np.zeros(16), Padding="same"), ShapeError, 'WeightsFormat="UCSS"'),
    (lambda: dlconv(X, np.zeros((3, 2, 2, 2)), np.zeros(3)), ShapeError, 'WeightsFormat="UCSS"'),
    (lambda: dlarray(np.eye(2), ["C", "B"]), LabelError, 'Write "CB"'),
    (lambda: dlarray(np.eye(2), ("C", "B")), LabelError, 'Write "CB"'),
    (lambda: dlarray(np.eye(2), 3), LabelError, "a text"),
    (lambda: m.softmax(np.eye(2), DataFormat=["C", "B"]), LabelError, 'Write "CB"'),
    (lambda: CB.sum(axis=1), OptionError, "np.sum(X, axis=...)"),
    (lambda: m.max(CB, axis=1), OptionError, "Here it is dim"),
    (lambda: CB.mean(0, keepdims=True), OptionError, "np.mean(X, keepdims=...)"),
    (lambda: CB.flip(axis=0), OptionError, "np.flip"), (lambda: CB.squeeze(axis=0), OptionError, "np.squeeze"),
    (lambda: CB.transpose(1, 0), OptionError, "too many"), (lambda: CB.permute(dims=(1, 0)), OptionError, "dims"),
    (lambda: np.linalg.inv(CB), DTypeError, "np.linalg.inv:"), (lambda: np.fft.fft(CB), DTypeError, "np.fft.fft:"),
    (lambda: dlarray(None), DTypeError, "There is no value"), (lambda: dlarray(Image()), DTypeError, "255"),
    (lambda: dlarray(fractions.Fraction(1, 2)), DTypeError, "float(x)"),
    (lambda: dlarray({1.0}), DTypeError, "list(x)"),
    (lambda: dlarray(x for x in [1.0]), DTypeError, "list(x)"), (lambda: dlarray({"a": 1.0}), DTypeError, "dlupdate"),
    (lambda: dlarray([1.0, None]), DTypeError, "NoneType"), (lambda: dlarray(len), DTypeError, "call it"),
    (lambda: m.exp(CB, CB), OptionError, "exp: it takes 1 array;"), (lambda: m.exp(CB, out=CB), OptionError, "'out'"),
    (lambda: m.plus(CB), OptionError, "plus: it takes 2"),
    (lambda: m.diag(np.ones(2), 1.5), OptionError, "k is a whole"),
    (lambda: m.rot90(CB, "a"), OptionError, "k is a whole"),
    (lambda: m.circshift(CB, None), OptionError, "K is a whole"), (lambda: m.tril(CB, []), OptionError, "k is a whole"),
    (lambda: m.shiftdim(np.ones(2), 0.5), OptionError, "n is a whole"),
    (lambda: m.softmax(CB, DataFormat={}), OptionError, "formatted"),
    (lambda: m.softmax(np.eye(2), DataFormat={}), LabelError, "a text"),
    (lambda: m.round(CB, 0.5), OptionError, "decimals"), (lambda: m.round("a"), DTypeError, "round:"),
]  # fmt: skip


@pytest.mark.parametrize("call, error, word", MESSAGES)
def test_M3_messages_name_the_remedy(call, error, word, explained):
    found = explained(call, error, word)
    assert not re.search(r"<lambda>|\b_[a-z]", str(found).partition(": ")[0])


def test_M3_a_sparse_matrix_is_made_full():
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy is optional")
    with pytest.raises(DTypeError, match="toarray"):
        dlarray(sparse.eye(3))


ELSEWHERE = [
    ("backward", "dlgradient"), ("to", "gpuArray"), ("detach", "extractdata"), ("flatten", "np.ravel"),
    ("ravel", "np.ravel"),
    ("argmax", "np.argmax"), ("clip", "np.clip"), ("view", "np.reshape"), ("cpu", "gather"), ("cuda", "gpuArray"),
    ("requires_grad", "dlfeval"), ("grad", "dlgradient"), ("unsqueeze", "np.expand_dims"), ("exp", "exp(X)"),
    ("numel", "numel(X)"), ("round", "round(X)"),
]  # fmt: skip


@pytest.mark.parametrize("name, word", ELSEWHERE)
def test_M3_methods_of_other_libraries(name, word):
    assert not hasattr(CB, name)
    with pytest.raises(PropertyError, match=re.escape(word)):
        getattr(CB, name)


NAMES = [("lstm", "not have it"), ("tensor", "dlarray"), ("Adam", "adamupdate"), ("crossentropyy", "crossentropy"),
         ("nn", "struct"), ("conv2d", "dlconv")]  # fmt: skip


@pytest.mark.parametrize("name, word", NAMES)
def test_M3_functions_of_other_libraries(name, word):
    assert not hasattr(m, name)
    with pytest.raises(PropertyError, match=word):
        getattr(m, name)
    with pytest.raises(ImportError):
        exec(f"from minidl import {name}")
    assert not hasattr(m, "__nothing__")


def test_M3_what_is_said_instead_exists():
    """Functions named in the remedies are there."""
    from minidl.core import elsewhere

    for text in {*elsewhere.METHODS.values(), *elsewhere.FUNCTIONS.values()}:
        for module, name in re.findall(r"\b(np\.|np\.linalg\.|X\.)?([A-Za-z]\w*)\(", text):
            if name not in ("dir", "stopgradient", "fun"):
                assert hasattr({"np.": np, "np.linalg.": np.linalg, "X.": CB}.get(module, m), name), text


def fails(X):
    if X[0].item() == 4:
        raise KeyError("oops")
    return np.stack(X)


@pytest.mark.parametrize("environment", ["serial", "background"])
def test_M3_the_mini_batch_that_failed_is_named(environment):
    mbq = minibatchqueue(store(), MiniBatchSize=4, MiniBatchFcn=fails, PreprocessingEnvironment=environment)
    next(mbq)
    for _ in range(2):
        with pytest.raises(KeyError) as found:
            next(mbq)
        text = str(found.value) + "".join(getattr(found.value, "__notes__", ()))
        assert "MiniBatchFcn fails, mini-batch 1 (from 0), observations 4 to 7" in text
        assert text.count("mini-batch 1") == 1


def test_M4_remedies_name_packages(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(m.DataError, match=r"needs scikit-learn.*pip install scikit-learn\."):
        m.digitTrain4DArrayData(Source="handwritten")


# M5 -------------------------------------------------------------------------------------------------------------
SIZES = [((28, 28, 3, 128), "SSCB"), ((5, 5, 5, 5, 5, 5), None), ((1000, 1000), None), ((10**6,), None),
         ((40, 3), None), ((), None), ((2, 2, 2, 2, 2, 2, 2), None)]  # fmt: skip


@pytest.mark.parametrize("shape, fmt", SIZES)
def test_M5_what_is_printed_is_bounded(shape, fmt):
    x = dlarray(np.ones(shape), fmt)
    assert str(x).count("\n") <= 42 and len(str(x)) < 4000 and str(x).splitlines()[0].endswith("dlarray")
    assert "\n" not in repr(x) and len(repr(x)) < 300 and repr([x, x]).count("\n") == 0
    html = x._repr_html_()
    assert len(html) < 6000 and html.count("<tr>") <= 10 and str(x).splitlines()[0] in html


def test_M5_texts():
    assert repr(dlarray(2.5)) == "1×1 dlarray: 2.5"
    assert repr(dlarray([[1.0, 2.0]], "CB")) == "1(C) × 2(B) dlarray: [[1., 2.]]"
    assert str(dlarray([1.0, 2.0])) == f"{dlarray([1.0, 2.0])}" == "2×1 dlarray\n\n[1. 2.]"
    assert dlarray([[1.0, np.nan]])._repr_html_() == (
        "<div>1×2 dlarray</div><table><tr><td>1</td><td>nan</td></tr></table>"
    )
    assert dlarray(np.zeros((0, 3)))._repr_html_() == "<div>0×3 dlarray (empty)</div>"


PLAIN = """
max(3, 5) | max(3.5, 2, 7) | min([1, 2]) | max([1, 2], key=lambda x: -x) | max([], default=4) | sum([1, 2])
sum(range(5)) | sum(x for x in [1, 2]) | sum([1.5], start=2) | sum((x for x in [1]), 5) | any(x > 1 for x in [1, 2])
all([]) | any([]) | any([0, 1]) | all((1, 0)) | all({1: 2}) | round(2.567, 2) | round(2.5) | round(-1.5) | abs(-3)
abs(-2.5) | abs(True) | max("a", "b") | min(["b", "a"]) | max({3, 4}) | sum([]) | max([2.0, float("nan")])
sum({1: 2, 3: 4}) | sum([True, True]) | max(np.float64(3), 2) | sum([np.float32(1), 2]) | min(iter([2, 1]))
round(12345, -2) | abs(fractions.Fraction(-1, 2)) | sum([fractions.Fraction(1, 2)] * 2) | max({"a": 1, "b": 2}.values())
any([None, "a"])
"""
PLAIN = [text.strip() for line in PLAIN.strip().splitlines() for text in line.split(" | ")]


@pytest.mark.parametrize("text", PLAIN)
def test_M5_plain_values_are_served_as_pythons_functions_do(text):
    names = {"np": np, "fractions": fractions}
    ours = {name: getattr(m, name) for name in ("abs", "all", "any", "max", "min", "round", "sum")}
    expected, found = eval(text, dict(names)), eval(text, {**names, **ours})
    assert type(found) is type(expected) and (found == expected or math.isnan(expected))


def test_M5_arrays_keep_their_meaning():
    x = dlarray([1.0, 2.0])
    assert m.sum([x[0], x[1]]).tolist() == [3.0] and m.max([3.0, 1.0], [2.0, 5.0]).tolist() == [3.0, 5.0]
    assert m.max(3, x).tolist() == [3.0, 3.0] and m.max([1.0, 2.0], [], 0).tolist() == [2.0]
    assert m.sum([[1.0, 2.0], [3.0, 4.0]], 1).tolist() == [[3.0], [7.0]] and m.sum([1.0, 2.0], "all").item() == 3
    assert m.any(np.array([0.0, np.nan])).tolist() == [False] and m.all(np.ones(2)).tolist() == [True]
    assert m.round(np.array([2.5, -2.5])).tolist() == [3.0, -3.0] and m.abs([-1.0]).tolist() == [1.0]
    assert m.round(dlarray([1.235, 15.0]), 2).tolist() == [1.24, 15.0]
    assert m.round(x * 111, -2).tolist() == [100.0, 200.0]
    assert m.sum(x * k for k in [1, 2]).tolist() == [3.0, 6.0]
    assert dlfeval(lambda x: dlgradient(m.sum(x * k for k in [1, 2])[0], x), x).tolist() == [3.0, 0.0]
    with pytest.raises(OptionError, match=r"start=\.\.\."):
        m.sum([1, 2], 1)
    for name in ("max", "min", "sum"):
        with pytest.raises((TypeError, ValueError)) as ours:
            getattr(m, name)(iter(()) if name != "sum" else iter(["a"]))
        with pytest.raises(type(ours.value)):
            getattr(builtins, name)(iter(()) if name != "sum" else iter(["a"]))


def test_M5_traced_arrays_are_looked_at_by_displays():
    said = dlaccelerate(lambda x: x * len(x._repr_html_()))
    with pytest.warns(m.TraceWarning):
        said(dlarray([1.0]))
    with pytest.raises(TraceError, match="traced"):
        dlfeval(lambda x: x.to_numpy(), dlarray([1.0]))
    with pytest.raises(AttributeError):
        dlarray(1.0).nothing  # noqa: B018
