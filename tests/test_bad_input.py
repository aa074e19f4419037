"""Wrong calls all over the public surface: a named error, a word of its message, and nothing is changed by it."""

from __future__ import annotations

import re

import numpy as np
import pytest
from accelerate.hidden import Hidden

import minidl as m
from minidl import DataError, DTypeError, EmptyDataError, LabelError, OptionError, ShapeError, TraceError
from minidl.core.tape import open_tapes

NAN, INF = float("nan"), float("inf")


def fresh() -> m.struct:
    """Inputs of the wrong calls, new for each of them."""
    s = m.struct()
    s.x = m.dlarray(np.arange(6.0).reshape(2, 3))  # unformatted
    s.cb = m.dlarray(np.arange(6.0).reshape(2, 3) / 10 + 0.1, "CB")
    s.image = m.dlarray(np.ones((5, 4, 3, 2), "f"), "SSCB")
    s.w = m.dlarray(np.ones((3, 3, 3, 8), "f"))
    s.b = m.dlarray(np.zeros((8, 1), "f"))
    s.array = np.arange(6.0).reshape(2, 3)
    s.params = m.struct(fc=m.struct(W=m.dlarray(np.ones((2, 3))), b=m.dlarray(np.zeros((2, 1)))))
    s.ds = m.arrayDatastore(np.arange(10.0).reshape(5, 2))
    s.long = m.arrayDatastore(np.arange(6.0).reshape(6, 1))
    s.mbq = m.minibatchqueue(s.ds, MiniBatchSize=2)
    s.acc = m.dlaccelerate(lambda x: x + x)
    return s


def set_item(x, key, value):
    x[key] = value


def grad(fun, *x):
    return m.dlfeval(fun, *x)


CREATION = [
    ("integers", DTypeError, "astype", lambda s: m.dlarray(np.arange(3))),
    ("bytes of an image", DTypeError, "255", lambda s: m.dlarray(np.zeros((2, 2), "u1"))),
    ("complex", DTypeError, "real", lambda s: m.dlarray(np.zeros(2, complex))),
    ("half precision", DTypeError, "float32", lambda s: m.dlarray(np.zeros(2, "f2"))),
    ("text", DTypeError, "onehotencode", lambda s: m.dlarray("cat")),
    ("nothing", DTypeError, "None", lambda s: m.dlarray(None)),
    ("ragged list", DTypeError, "rectangular", lambda s: m.dlarray([[1.0], [1.0, 2.0]])),
    ("a dict", DTypeError, "dict", lambda s: m.dlarray({"a": 1})),
]
LABELS = [
    ("unknown label", LabelError, "X", lambda s: m.dlarray(s.array, "XB")),
    ("lower case label", LabelError, "CB", lambda s: m.dlarray(s.array, "cb")),
    ("label twice", LabelError, "once", lambda s: m.dlarray(s.array, "CC")),
    ("too few labels", LabelError, "2 dimensions|3", lambda s: m.dlarray(np.ones((2, 3, 4)), "CB")),
    ("one label for a matrix", LabelError, "vector", lambda s: m.dlarray(s.array, "C")),
    ("sizes under labels that differ", ShapeError, "channel|3", lambda s: s.cb + m.dlarray(np.ones(4), "C")),
    ("sizes that differ", ShapeError, "equal or have a 1", lambda s: s.x + np.ones((2, 4))),
    ("more dimensions than labels", LabelError, "Label it|dlarray", lambda s: s.cb + np.ones((2, 3, 4))),
    ("finddim of no label", (LabelError, OptionError), "label", lambda s: m.finddim(s.cb, "Q")),
    ("stripdims in another order", LabelError, "CB|label", lambda s: m.stripdims(s.cb, "SC")),
    ("permute across labels", LabelError, "stripdims", lambda s: m.permute(s.cb, 1, 0)),
    ("transpose across labels", LabelError, "stripdims", lambda s: s.cb.T),
    ("cat of different formats", LabelError, "formats differ", lambda s: m.cat(0, s.cb, m.dlarray(s.array, "SC"))),
    ("mtimes of formatted", LabelError, "stripdims|fullyconnect", lambda s: m.mtimes(s.cb, s.x)),
    ("sum along a label that is not there", LabelError, "T", lambda s: m.sum(s.cb, "T")),
    ("sum along a label of an unformatted array", LabelError, "unformatted", lambda s: m.sum(s.x, "C")),
]
SHAPES = [
    ("truth of many", ShapeError, "any", lambda s: bool(s.x > 1)),
    ("number of many", ShapeError, "single number", lambda s: float(s.x)),
    ("length of a scalar", ShapeError, "length|scalar", lambda s: len(m.dlarray(1.0))),
    ("subscript that is no whole number", (DTypeError, ShapeError), "whole", lambda s: [1, 2][m.dlarray(0.5)]),
    ("reshape to another size", ShapeError, "elements", lambda s: m.reshape(s.x, 4, 2)),
    ("reshape with two unknowns", (ShapeError, OptionError), "one", lambda s: m.reshape(s.x, [], [])),
    ("permute without a dimension", OptionError, "order", lambda s: m.permute(s.x, 0)),
    ("permute twice the same", OptionError, "once", lambda s: m.permute(s.x, 0, 0)),
    ("sum along no dimension", ShapeError, "dimension 2", lambda s: m.sum(s.x, 2)),
    ("sum along half a dimension", OptionError, "dimension", lambda s: m.sum(s.x, 0.5)),
    ("mean along a wrong word", OptionError, "all", lambda s: m.mean(s.x, "everything")),
    ("weight of var", OptionError, "0|1", lambda s: m.var(s.x, 2)),
    ("matrices that do not multiply", ShapeError, "3 and 2", lambda s: m.mtimes(s.x, s.x)),
    ("@ with a scalar", ShapeError, r"\*", lambda s: s.x @ m.dlarray(2.0)),
    ("cat of different sizes", ShapeError, "equal", lambda s: m.cat(0, s.x, np.ones((2, 4)))),
    ("cat of nothing", OptionError, "at least one", lambda s: m.cat(0)),
    ("subscript out of range", IndexError, "range", lambda s: s.x[5]),
    ("too many subscripts", IndexError, "subscripts", lambda s: s.x[0, 0, 0]),
    ("subscript of half", IndexError, "whole", lambda s: s.x[0.5]),
    ("subscript by text", IndexError, "subscript", lambda s: s.x["a"]),
    ("mask of another size", IndexError, "mask", lambda s: s.x[np.ones(3, bool)]),
    ("assignment of another size", ShapeError, "size", lambda s: set_item(s.x, 0, np.ones(2))),
    ("assignment out of range", IndexError, "range", lambda s: set_item(s.x, (9, 9), 1.0)),
    ("assignment of text", DTypeError, "str", lambda s: set_item(s.x, 0, "a")),
]
DERIVATIVES = [
    ("dlgradient outside", TraceError, "dlfeval", lambda s: m.dlgradient(m.dlarray(1.0), s.x)),
    ("dlgradient of many", TraceError, "non-scalar", lambda s: grad(lambda x: m.dlgradient(x * x, x), s.x)),
    ("dlgradient by an array from outside", TraceError, "argument",
     lambda s: grad(lambda x: m.dlgradient(m.sum(x, "all"), s.x), s.x)),
    ("dlgradient of a number", TraceError, "float", lambda s: grad(lambda x: m.dlgradient(1.0, x), s.x)),
    ("dlgradient of a logical", TraceError, "logical", lambda s: grad(lambda x: m.dlgradient(m.any(x, "all"), x), s.x)),
    ("dlgradient twice", TraceError, "RetainData",
     lambda s: grad(lambda x: [m.dlgradient(y, x) for y in [m.sum(x * x, "all")] * 2], s.x)),
    ("dlgradient with a misspelt option", OptionError, "RetainData",
     lambda s: grad(lambda x: m.dlgradient(m.sum(x, "all"), x, Retaindata=True), s.x)),
    ("dlfeval of no function", DTypeError, "function", lambda s: m.dlfeval(s.x)),
    ("dlaccelerate of no function", DTypeError, "function", lambda s: m.dlaccelerate(s.x)),
    ("dlaccelerate with an unknown mode", OptionError, "exact", lambda s: m.dlaccelerate(abs, Numerics="best")),
    ("CacheSize of 0", OptionError, "CacheSize", lambda s: setattr(s.acc, "CacheSize", 0)),
    ("CheckMode", OptionError, "tolerance", lambda s: setattr(s.acc, "CheckMode", "strict")),
    ("CheckTolerance", OptionError, "CheckTolerance", lambda s: setattr(s.acc, "CheckTolerance", -1)),
    ("CheckTolerance of NaN", OptionError, "CheckTolerance", lambda s: setattr(s.acc, "CheckTolerance", NAN)),
    ("Enabled", OptionError, "Enabled", lambda s: setattr(s.acc, "Enabled", "yes")),
    ("clearCache of a function", DTypeError, "AcceleratedFunction", lambda s: m.clearCache(abs)),
]
LAYERS = [
    ("dlconv without labels", LabelError, "DataFormat", lambda s: m.dlconv(m.dlarray(np.ones((5, 5, 3))), s.w, s.b)),
    ("dlconv with labels twice", OptionError, "DataFormat", lambda s: m.dlconv(s.image, s.w, s.b, DataFormat="SSCB")),
    ("dlconv of other channels", ShapeError, "channels", lambda s: m.dlconv(s.image, np.ones((3, 3, 2, 8), "f"), s.b)),
    ("dlconv with a bias of another size", ShapeError, "bias", lambda s: m.dlconv(s.image, s.w, np.zeros(3, "f"))),
    ("dlconv with too large a filter", ShapeError, "Padding",
     lambda s: m.dlconv(s.image, np.ones((9, 9, 3, 8), "f"), s.b)),
    ("dlconv with stride 0", OptionError, "Stride", lambda s: m.dlconv(s.image, s.w, s.b, Stride=0)),
    ("dlconv with a wrong padding", OptionError, "same", lambda s: m.dlconv(s.image, s.w, s.b, Padding="full")),
    ("dlconv with a misspelt option", OptionError, "Stride", lambda s: m.dlconv(s.image, s.w, s.b, stride=2)),
    ("fullyconnect of other features", ShapeError, "features", lambda s: m.fullyconnect(s.cb, np.ones((4, 3)), 0)),
    ("fullyconnect without labels", LabelError, "DataFormat", lambda s: m.fullyconnect(s.x, np.ones((4, 2)), 0)),
    ("batchnorm without labels", LabelError, "DataFormat", lambda s: m.batchnorm(s.x, 0, 1)),
    ("batchnorm with a small epsilon", OptionError, "Epsilon",
     lambda s: m.batchnorm(s.cb, np.zeros(2), np.ones(2), Epsilon=1e-9)),
    ("batchnorm with mu alone", OptionError, "together",
     lambda s: m.batchnorm(s.cb, np.zeros(2), np.ones(2), np.zeros(2))),
    ("batchnorm with four results", OptionError, "nargout",
     lambda s: m.batchnorm(s.cb, np.zeros(2), np.ones(2), nargout=4)),
    ("batchnorm with an offset of another size", ShapeError, "offset",
     lambda s: m.batchnorm(s.cb, np.zeros(3), np.ones(2))),
    ("softmax without C", LabelError, "channel", lambda s: m.softmax(m.dlarray(s.array, "SB"))),
    ("relu of text", DTypeError, "str", lambda s: m.relu("x")),
    ("gelu by another formula", OptionError, "tanh", lambda s: m.gelu(s.x, Approximation="fast")),
    ("crossentropy of another size", ShapeError, "large|size", lambda s: m.crossentropy(s.cb, np.ones((2, 4)))),
    ("crossentropy without labels", LabelError, "DataFormat", lambda s: m.crossentropy(s.x, s.x)),
    ("crossentropy in a third mode", OptionError, "multilabel",
     lambda s: m.crossentropy(s.cb, s.array, ClassificationMode="many")),
    ("crossentropy with a wrong reduction", OptionError, "none",
     lambda s: m.crossentropy(s.cb, s.array, Reduction="mean")),
    ("mse of another size", ShapeError, "large|size", lambda s: m.mse(s.cb, np.ones((3, 3)))),
    ("huber with a transition of 0", OptionError, "TransitionPoint",
     lambda s: m.huber(s.cb, s.array, TransitionPoint=0)),
]  # fmt: skip
TRAINING = [
    ("adamupdate with iteration 0", OptionError, "1 for the first", lambda s: m.adamupdate(s.x, s.x, None, None, 0)),
    ("adamupdate with iteration NaN", OptionError, "nan", lambda s: m.adamupdate(s.x, s.x, None, None, NAN)),
    ("adamupdate with iteration Inf", OptionError, "inf", lambda s: m.adamupdate(s.x, s.x, None, None, INF)),
    ("adamupdate with iteration 1.5", OptionError, "whole", lambda s: m.adamupdate(s.x, s.x, None, None, 1.5)),
    ("adamupdate with other fields", ShapeError, "'b'",
     lambda s: m.adamupdate(s.params, m.struct(fc=m.struct(W=s.x)), None, None, 1)),
    ("adamupdate with another size", ShapeError, r"fc\.b",
     lambda s: m.adamupdate(s.params, m.struct(fc=m.struct(W=s.x, b=s.x)), None, None, 1)),
    ("adamupdate with another type", DTypeError, "single",
     lambda s: m.adamupdate(s.x, s.x.astype("single"), [], [], 1)),
    ("adamupdate without gradients", ShapeError, "dlgradient", lambda s: m.adamupdate(s.params, None, None, None, 1)),
    ("adamupdate with a decay of 1", OptionError, r"\[0, 1\)",
     lambda s: m.adamupdate(s.x, s.x, None, None, 1, gradDecay=1)),
    ("adamupdate with a misspelt option", OptionError, "sqGradDecay",
     lambda s: m.adamupdate(s.x, s.x, None, None, 1, SqGradDecay=0.9)),
    ("sgdmupdate with a rate below 0", OptionError, "learnRate", lambda s: m.sgdmupdate(s.x, s.x, None, -1)),
    ("sgdmupdate with many rates", ShapeError, "scalar", lambda s: m.sgdmupdate(s.x, s.x, None, s.x)),
    ("rmspropupdate with a rate of NaN", OptionError, "learnRate", lambda s: m.rmspropupdate(s.x, s.x, None, NAN)),
    ("rmspropupdate with a foreign state", ShapeError, "averageSqGrad",
     lambda s: m.rmspropupdate(s.x, s.x, m.dlarray(np.ones(2)))),
    ("dlupdate of different containers", ShapeError, "containers differ",
     lambda s: m.dlupdate(lambda a, b: a, s.params, s.x)),
    ("dlupdate with too few results", OptionError, "nargout", lambda s: m.dlupdate(lambda a: a, s.params, nargout=2)),
    ("initializeGlorot of size -1", ShapeError, "size", lambda s: m.initializeGlorot([-1, 2], 2, 2)),
    ("initializeGlorot of no inputs", OptionError, "numIn", lambda s: m.initializeGlorot([1, 2], 2, 0)),
    ("initializeZeros of integers", OptionError, "single", lambda s: m.initializeZeros([1], "int32")),
    ("initializeOrthogonal of a vector", ShapeError, "two dimensions", lambda s: m.initializeOrthogonal(3)),
    ("seed below 0", OptionError, "seed", lambda s: m.rng(-1)),
    ("seed of half", OptionError, "seed", lambda s: m.rng(0.5)),
    ("seed as a word", OptionError, "default", lambda s: m.rng("shuffled")),
    ("field that is missing", AttributeError, "fc", lambda s: s.params.fd),
    ("field that is missing, deleted", AttributeError, "fc", lambda s: delattr(s.params, "fd")),
]
DATA = [
    ("datastore of nothing", EmptyDataError, "observations", lambda s: m.arrayDatastore(np.ones((0, 3)))),
    ("datastore of an empty list", EmptyDataError, "observations", lambda s: m.arrayDatastore([])),
    ("datastore along no dimension", OptionError, "IterationDimension|dimension",
     lambda s: m.arrayDatastore(s.array, IterationDimension=5)),
    ("datastore with ReadSize 0", OptionError, "ReadSize", lambda s: m.arrayDatastore(s.array, ReadSize=0)),
    ("datastore with a misspelt option", OptionError, "ReadSize", lambda s: m.arrayDatastore(s.array, Readsize=1)),
    ("datastores of different length", DataError, "5|6", lambda s: m.combine(s.ds, s.long)),
    ("combine of nothing", DataError, "at least one", lambda s: m.combine()),
    ("combine with an array", DTypeError, "datastore", lambda s: m.combine(s.ds, s.array)),
    ("transform by no function", DTypeError, "function", lambda s: m.transform(s.ds, "double")),
    ("subset that is out of range", DataError, "0 to 4", lambda s: m.subset(s.ds, [7])),
    ("subset of nothing", EmptyDataError, "at least one", lambda s: m.subset(s.ds, [])),
    ("partition that does not exist", DataError, "0 to 1", lambda s: m.partition(s.ds, 2, 2)),
    ("read after the end", EmptyDataError, "reset", lambda s: [m.read(s.ds) for _ in range(6)]),
    ("queue of an array", (DTypeError, OptionError), "datastore", lambda s: m.minibatchqueue(s.array.tolist)),
    ("queue with MiniBatchSize 0", OptionError, "MiniBatchSize", lambda s: m.minibatchqueue(s.ds, MiniBatchSize=0)),
    ("queue with a misspelt option", OptionError, "MiniBatchSize", lambda s: m.minibatchqueue(s.ds, MinibatchSize=2)),
    ("queue with a wrong format", LabelError, "label", lambda s: m.minibatchqueue(s.ds, MiniBatchFormat="BX")),
    ("queue with a wrong type", OptionError, "single", lambda s: m.minibatchqueue(s.ds, OutputCast="int7")),
    ("queue with a wrong rest", OptionError, "discard", lambda s: m.minibatchqueue(s.ds, PartialMiniBatch="drop")),
    ("onehotencode of a class twice", OptionError, "different",
     lambda s: m.onehotencode(["a"], 1, ClassNames=["a", "a"])),
    ("onehotencode without classes", OptionError, "ClassNames", lambda s: m.onehotencode(["a", "b"], 1)),
    ("onehotencode without a dimension", ShapeError, "featureDim",
     lambda s: m.onehotencode(["a", "b"], -1, ClassNames=["a", "b"])),
    ("onehotdecode with other classes", ShapeError, "classes", lambda s: m.onehotdecode(s.array, ["a"], 0)),
    ("digits from nowhere", DataError, "nowhere", lambda s: m.digitTrain4DArrayData(Path="/nowhere")),
    ("digits from another source", OptionError, "handwritten", lambda s: m.digitTrain4DArrayData(Source="drawn")),
]  # fmt: skip
TABLE = {row[0]: row[1:] for row in [*CREATION, *LABELS, *SHAPES, *DERIVATIVES, *LAYERS, *TRAINING, *DATA]}


def state_of(s: m.struct) -> list:
    """Everything that a wrong call must leave alone."""
    leaves = {name: s[name] for name in ("x", "cb", "image", "w", "b", "array")} | s.params.fc
    arrays = [(name, getattr(x, "dims", str)(), str(x.dtype), np.asarray(x).tobytes()) for name, x in leaves.items()]
    settings = [s.acc.Enabled, s.acc.CacheSize, s.acc.CheckMode, s.acc.CheckTolerance, s.acc.HitRate]
    return [arrays, list(s), list(s.params), m.rng(), settings, list(open_tapes())]


def test_the_table_is_large_and_its_rows_are_distinct():
    rows = [*CREATION, *LABELS, *SHAPES, *DERIVATIVES, *LAYERS, *TRAINING, *DATA]
    assert len(TABLE) == len(rows) >= 60


@pytest.mark.parametrize("name", TABLE)
def test_wrong_call(name):
    error, word, call = TABLE[name]
    s = fresh()
    before = state_of(s)
    with pytest.raises(error) as caught:
        call(s)
    assert isinstance(caught.value, m.MinidlError), f"{type(caught.value).__name__} is no error of minidl's"
    message = str(caught.value.args[0])
    assert re.search(word, message), message
    assert re.match(r"[\w.@\[\]]+.*?: .+[.?)\]]$", message, re.DOTALL), f"who, what is wrong, remedy: {message}"
    assert state_of(s) == before


def test_a_wrong_read_leaves_the_datastore_where_it_was():
    ds = m.arrayDatastore(np.arange(6.0).reshape(3, 2))
    m.read(ds)
    with pytest.raises(DataError):
        m.subset(ds, [9])
    with pytest.raises(DataError):
        m.partition(ds, 99, 0)
    assert m.hasdata(ds) and np.array_equal(np.ravel(m.read(ds)), [2, 3])


def test_a_failing_function_leaves_an_accelerated_one_usable():
    fails, runs = [True], Hidden("runs", default=0)  # what is changed where it is seen would not be replayed

    @m.dlaccelerate
    def fun(x):
        runs.set(runs.get() + 1)
        if fails:
            raise ValueError("once")
        return x * 2

    x = m.dlarray(3.0)
    with pytest.raises(ValueError, match="once"):
        fun(x)
    assert open_tapes() == [] and fun.Occupancy == 0
    fails.clear()
    assert [fun(x).item() for _ in range(3)] == [6, 6, 6] and runs.get() == 3  # failed, recorded, audited


def test_a_wrong_call_inside_an_accelerated_function_is_the_same_error():
    fun = m.dlaccelerate(lambda x: m.reshape(x, 4, 2))
    before = m.rng()
    for _ in range(2):
        with pytest.raises(ShapeError, match="elements"):
            fun(m.dlarray(np.ones((2, 3))))
    assert open_tapes() == [] and m.rng() == before
