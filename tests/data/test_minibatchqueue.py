"""minibatchqueue: batches in order, each as asked for; errors that teach; a thread that changes no result."""

from __future__ import annotations

import gc
import threading
import time
import traceback
from functools import partial

import numpy as np
import pytest

import minidl.ops.views  # noqa: F401  dlarray turns dimensions with these
from minidl.core.dlarray import DLArray
from minidl.core.errors import DataError, DTypeError, EmptyDataError, LabelError, OptionError, ShapeError
from minidl.core.random import rng
from minidl.data import (
    EndOfDataError,
    arrayDatastore,
    combine,
    hasdata,
    minibatchqueue,
    onehotencode,
    partition,
    reset,
    shuffle,
    subset,
    transform,
)

N = 10
IMAGES = np.random.default_rng(0).random((6, 5, 1, N))
LABELS = np.array([*"abcabcabca"])
ANGLES = np.arange(float(N))[:, None]


def store():
    return combine(arrayDatastore(IMAGES, IterationDimension=3), arrayDatastore(LABELS), arrayDatastore(ANGLES))


def predictors(XCell):
    return np.stack(XCell, axis=3)


def preprocess(XCell, YCell, angleCell):
    Y = onehotencode(np.concatenate(YCell), 0, ClassNames=["a", "b", "c"])
    return predictors(XCell), Y, np.concatenate(angleCell, axis=1)


def queue(**options):
    options = {"MiniBatchSize": 4, "MiniBatchFcn": preprocess, "MiniBatchFormat": ["SSCB", "", ""]} | options
    return minibatchqueue(store(), **options)


def angles(mbq):
    return [batch[2].extractdata().ravel().tolist() for batch in mbq]


def joined(lists):
    return [x for one in lists for x in one]


# the example's loop ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("environment", ["serial", "background"])
def test_the_loop_of_the_example(environment):
    mbq = queue(PreprocessingEnvironment=environment, PartialMiniBatch="discard")
    for _ in range(2):
        shuffle(mbq)
        seen = []
        while hasdata(mbq):
            X, T, angle = next(mbq)
            assert (X.shape, X.dims(), X.dtype) == ((6, 5, 1, 4), "SSCB", np.float32)
            assert (T.shape, T.dims(), angle.shape) == ((3, 4), "", (1, 4))
            rows = angle.extractdata().ravel().astype(int)
            assert np.array_equal(X.extractdata(), IMAGES[..., rows].astype(np.float32))
            assert np.array_equal(T.extractdata().argmax(0), rows % 3)
            seen += rows.tolist()
        assert len(set(seen)) == 8


def test_one_output_is_bare():
    mbq = minibatchqueue(store(), 1, MiniBatchSize=4, MiniBatchFcn=predictors, MiniBatchFormat="SSCB")
    assert [(type(X), X.shape[3]) for X in mbq] == [(DLArray, 4), (DLArray, 4), (DLArray, 2)]
    assert not hasdata(mbq)
    reset(mbq)
    assert np.array_equal(mbq.next().extractdata(), IMAGES[..., :4].astype(np.float32))


@pytest.mark.parametrize(
    ("partial_batch", "size", "sizes"),
    [
        ("return", 4, [4, 4, 2]),
        ("discard", 4, [4, 4]),
        ("discard", 5, [5, 5]),
        ("return", 128, [10]),
        ("discard", 11, []),
    ],
)
def test_partial_mini_batches(partial_batch, size, sizes):
    mbq = queue(PartialMiniBatch=partial_batch, MiniBatchSize=size)
    assert [len(batch) for batch in angles(mbq)] == sizes
    assert not hasdata(mbq)


def test_iteration_goes_on_from_the_position():
    mbq = queue()
    next(mbq)
    assert angles(mbq) == [[4, 5, 6, 7], [8, 9]]
    assert angles(mbq) == []
    mbq.reset()
    assert angles(mbq) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_end_of_data():
    mbq = queue()
    for _ in mbq:
        pass
    for error in (EndOfDataError, StopIteration, EmptyDataError):
        with pytest.raises(error, match=r"no further mini-batch.*hasdata\(mbq\).*reset\(mbq\)"):
            next(mbq)
    assert next(mbq, None) is None


def test_shuffle_is_of_the_queue_and_repeatable():
    mbq, other = queue(), queue()
    next(mbq)
    rng(3)
    shuffle(mbq)
    first = angles(mbq)
    assert first != angles(other) and sorted(joined(first)) == list(range(N))
    rng(3)
    other.shuffle()
    assert angles(other) == first
    reset(mbq)
    assert angles(mbq) == first  # the order stays until the next shuffle


def test_partition():
    mbq = queue(MiniBatchSize=3)
    shuffle(mbq)
    order = joined(angles(mbq))
    parts = [partition(mbq, 2, 0), mbq.partition(2, 1)]
    assert [angles(part) for part in parts] == [[order[0:3], order[3:5]], [order[5:8], order[8:]]]
    shuffle(parts[0])
    assert sorted(joined(angles(parts[0]))) == sorted(order[:5])
    with pytest.raises(DataError, match="counted from 0 to 1; got 2"):
        partition(mbq, 2, 2)


# collate --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("data", "dim", "fmt", "shape", "dims"),
    [
        (IMAGES, 3, "SSCB", (6, 5, 1, 4), "SSCB"),
        (IMAGES, 3, "", (6, 5, 1, 4), ""),
        (IMAGES[:, :, 0], 2, "SSB", (6, 5, 4), "SSB"),
        (IMAGES[:, :, 0], 2, "SSCB", (6, 5, 1, 4), "SSCB"),
        (IMAGES.transpose(3, 0, 1, 2), 0, "BSSC", (6, 5, 1, 4), "SSCB"),
        (IMAGES[0, :, 0].T, 0, "BC", (5, 4), "CB"),
        (IMAGES[0, :, 0], 1, "CB", (5, 4), "CB"),
        (ANGLES, 0, "BC", (1, 4), "CB"),
        (ANGLES[:, 0], 0, "", (4,), ""),
        (ANGLES[:, 0], 0, "B", (4, 1), "BU"),
        ([*IMAGES.transpose(3, 0, 1, 2)], 0, "SSCB", (6, 5, 1, 4), "SSCB"),
        ([*ANGLES], 0, "", (4,), ""),
        ([*ANGLES[:, None]], 0, "", (4, 1), ""),
    ],
)
def test_collate(data, dim, fmt, shape, dims):
    ds = arrayDatastore(data, IterationDimension=dim)
    for kind in (ds, subset(ds, range(N))):
        X = next(minibatchqueue(kind, MiniBatchSize=4, MiniBatchFormat=fmt))
        assert (X.shape, X.dims()) == (shape, dims)
        whole = minibatchqueue(kind, MiniBatchSize=N, OutputCast="", OutputAsDlarray=False)
        assert np.array_equal(next(whole), data if isinstance(data, np.ndarray) else next(whole.partition(1, 0)))


def test_collate_transformed():
    ds = transform(arrayDatastore(IMAGES, IterationDimension=3), lambda cells: [x + 1 for x in cells])
    X = next(minibatchqueue(ds, MiniBatchSize=3, MiniBatchFormat="SSCB"))
    assert np.array_equal(X.extractdata(), (IMAGES[..., :3] + 1).astype(np.float32))


def test_collate_takes_the_first_variables():
    X = next(minibatchqueue(store(), 1, MiniBatchFormat="SSCB"))
    assert X.dims() == "SSCB"
    with pytest.raises(OptionError, match="4 outputs are wanted, but the datastore has 3 variables"):
        minibatchqueue(store(), 4)


# the mini-batch function ----------------------------------------------------------------------------------------
def needs_one_has_option(X, scale=2):
    assert scale == 2
    return (np.stack(X, 3),)


class Callable3:
    def __call__(self, X, Y, angle):
        return np.stack(X, 3)


def scaled(X, *, scale):
    return np.stack(X, 3) * scale


@pytest.mark.parametrize(
    "fcn",
    [
        predictors,
        needs_one_has_option,
        partial(scaled, scale=1),
        Callable3(),
        lambda X, angle: np.stack(X, 3),
        lambda *cells: np.stack(cells[0], 3) if len(cells) == 3 else None,
    ],
)
def test_a_function_is_given_what_it_takes(fcn):
    X = next(minibatchqueue(store(), 1, MiniBatchFcn=fcn))
    assert X.shape == (6, 5, 1, N)


@pytest.mark.parametrize("result", [None, (), (1.0,), [1.0], (1.0, 2.0, 3.0), np.zeros(2)])
def test_a_function_that_returns_another_number_of_arrays(result):
    mbq = minibatchqueue(store(), 2, MiniBatchFcn=lambda X: result)
    with pytest.raises(ShapeError, match=r"expected to return 2 arrays as a tuple; got .*Give numOutputs"):
        next(mbq)
    assert hasdata(mbq)


def test_a_function_that_needs_more_than_there_is():
    with pytest.raises(OptionError, match="takes 3 variables, the datastore has 1"):
        minibatchqueue(arrayDatastore(ANGLES), MiniBatchFcn=preprocess)


@pytest.mark.parametrize("environment", ["serial", "background"])
def test_an_error_of_the_function_surfaces_and_can_be_repeated(environment):
    calls = []

    def fails_at_the_second(X):
        calls.append(len(X))
        if len(calls) == 2:
            raise KeyError("no such picture")
        return np.stack(X, 3)

    mbq = minibatchqueue(
        store(), 1, MiniBatchSize=4, MiniBatchFcn=fails_at_the_second, PreprocessingEnvironment=environment
    )
    next(mbq)
    with pytest.raises(KeyError, match="no such picture") as caught:
        next(mbq)
    assert "fails_at_the_second" in "".join(traceback.format_tb(caught.tb))
    assert next(mbq).shape == (6, 5, 1, 4)  # the failed one again
    assert next(mbq).shape == (6, 5, 1, 2)


@pytest.mark.parametrize("environment", ["serial", "background"])
def test_a_stop_iteration_of_the_function_does_not_end_a_loop(environment):
    mbq = minibatchqueue(store(), 1, MiniBatchFcn=lambda X: next(iter([])), PreprocessingEnvironment=environment)
    with pytest.raises(DataError, match="raised StopIteration"):
        for _ in mbq:
            pass


# outputs --------------------------------------------------------------------------------------------------------
def test_casts_and_wrapping():
    mbq = minibatchqueue(
        store(),
        MiniBatchSize=2,
        OutputCast=["double", "", "int8"],
        OutputAsDlarray=[True, False, False],
        MiniBatchFormat=["SSCB", "", ""],
        OutputEnvironment="cpu",
    )
    X, label, angle = next(mbq)
    assert (X.dtype, X.dims()) == (np.float64, "SSCB")
    assert type(label) is np.ndarray and label.tolist() == ["a", "b"]
    assert type(angle) is np.ndarray and angle.dtype == np.int8 and angle.tolist() == [[0], [1]]
    logical = next(minibatchqueue(arrayDatastore(ANGLES), OutputCast="logical"))
    assert logical.dtype == bool and logical.extractdata().sum() == 9


def test_a_list_is_one_output():
    mbq = minibatchqueue(store(), 1, MiniBatchSize=3, MiniBatchFcn=lambda X: X, OutputCast="", OutputAsDlarray=False)
    assert [x.shape for x in next(mbq)] == [(6, 5, 1)] * 3


def test_categoricals_become_codes():
    pandas = pytest.importorskip("pandas")
    labels = pandas.Categorical(["b", None, "a"], categories=["a", "b"])
    codes = next(minibatchqueue(arrayDatastore(np.zeros(3)), MiniBatchFcn=lambda X: labels))
    assert np.array_equal(codes.extractdata(), [1, np.nan, 0], equal_nan=True)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"MiniBatchFormat": ["SSB", "", ""]}, LabelError, "minibatchqueue: output 0: dlarray"),
        ({"MiniBatchFcn": "collate"}, DTypeError, "output 1 holds <U1.*onehotencode"),
        ({"MiniBatchFcn": lambda X, Y: (X, "text", 0)}, DTypeError, "output 1 holds <U4"),
    ],
)
@pytest.mark.parametrize("environment", ["serial", "background"])
def test_errors_while_reading_leave_the_queue_where_it_was(options, error, message, environment):
    mbq = queue(PreprocessingEnvironment=environment, **options)
    for _ in range(2):
        with pytest.raises(error, match=message):
            next(mbq)
    assert hasdata(mbq)


def test_observations_of_different_shape():
    mbq = minibatchqueue(arrayDatastore([np.zeros((3, 4)), np.zeros((3, 5))]))
    with pytest.raises(ShapeError, match=r"got \(3, 4\) and \(3, 5\).*pads or crops"):
        next(mbq)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"MiniBatchSize": 0}, "MiniBatchSize is a whole number of observations >= 1; got 0"),
        ({"MiniBatchSize": 2.5}, "got 2.5"),
        ({"miniBatchSize": 4}, "Did you mean MiniBatchSize"),
        ({"MinibatchFormat": "SSCB"}, "Did you mean MiniBatchFormat"),
        ({"PartialMiniBatch": "drop"}, '"return", "discard"'),
        ({"PreprocessingEnvironment": "parallel"}, '"serial", "background"'),
        ({"MiniBatchFcn": "stack"}, '"collate" or a function'),
        ({"OutputCast": "float"}, "OutputCast is one of"),
        ({"OutputCast": "int8"}, "a dlarray cannot hold int8.*OutputAsDlarray=False"),
        ({"OutputCast": ["single"]}, "a list of 3, one for each; got 1"),
        ({"OutputAsDlarray": "yes"}, "True or False"),
        ({"OutputEnvironment": "tpu"}, '"auto", "cpu", "gpu"'),
        ({"MiniBatchFormat": 3}, "MiniBatchFormat is text"),
        ({"numOutputs": 0}, "numOutputs is a whole number >= 1"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(OptionError, match=message):
        queue(**options)


def test_wrong_formats_and_stores():
    with pytest.raises(LabelError, match='Write "SSCB"'):
        queue(MiniBatchFormat=["sscb", "", ""])
    with pytest.raises(DTypeError, match=r"minibatchqueue: expected a datastore; got ndarray. Wrap it"):
        minibatchqueue(IMAGES)


def test_display():
    assert repr(minibatchqueue(arrayDatastore(ANGLES))).splitlines() == [
        "minibatchqueue with 1 output and properties:",
        "   Mini-batch creation:",
        "               MiniBatchSize: 128",
        "            PartialMiniBatch: 'return'",
        "                MiniBatchFcn: 'collate'",
        "    PreprocessingEnvironment: 'serial'",
        "   Outputs:",
        "                  OutputCast: {'single'}",
        "             OutputAsDlarray: 1",
        "             MiniBatchFormat: {''}",
        "           OutputEnvironment: {'auto'}",
    ]
    text = repr(queue())
    for line in ("with 3 outputs", "MiniBatchFcn: @preprocess", "OutputAsDlarray: [1 1 1]", "{'SSCB'  ''  ''}"):
        assert line in text


def test_properties():
    mbq = queue(DispatchInBackground=True)
    assert (mbq.MiniBatchSize, mbq.PartialMiniBatch, mbq.MiniBatchFcn) == (4, "return", preprocess)
    assert (mbq.PreprocessingEnvironment, mbq.DispatchInBackground, mbq.NumOutputs) == ("background", True, 3)
    assert (mbq.OutputCast, mbq.OutputEnvironment) == (["single"] * 3, ["auto"] * 3)
    with pytest.raises(AttributeError):
        mbq.MiniBatchSize = 5


def test_later_changes_of_the_store_do_not_reach_the_queue():
    ds = arrayDatastore(IMAGES[:, :, 0], IterationDimension=2)
    mbq = minibatchqueue(ds, MiniBatchSize=4)
    ds.IterationDimension = 0
    assert next(mbq).shape == (6, 5, 4)


# background -----------------------------------------------------------------------------------------------------
def workers():
    return [thread for thread in threading.enumerate() if thread.name == "minibatchqueue"]


def gone(patience_s=5.0):
    """Whether all worker threads end (they may have to finish a mini-batch)."""
    deadline = time.monotonic() + patience_s
    while workers() and time.monotonic() < deadline:
        time.sleep(0.002)
    return not workers()


def test_background_gives_what_serial_gives():
    found = []
    for environment in ("serial", "background"):
        rng(5)
        mbq = queue(PreprocessingEnvironment=environment, MiniBatchSize=3)
        epochs = []
        for _ in range(3):
            shuffle(mbq)
            epochs.append([[y.extractdata() for y in batch] for batch in mbq])
        found.append(epochs)
    for a, b in zip(*found, strict=True):
        for one, other in zip(a, b, strict=True):
            assert all(np.array_equal(x, y) for x, y in zip(one, other, strict=True))
    assert gone()


def test_background_prepares_two_ahead_and_no_more():
    prepared = []

    def fcn(X):
        prepared.append(len(X))
        return np.stack(X, 3)

    mbq = minibatchqueue(store(), 1, MiniBatchSize=1, MiniBatchFcn=fcn, PreprocessingEnvironment="background")
    assert not workers()  # nothing runs before it is asked for
    next(mbq)
    deadline = time.monotonic() + 5
    while len(prepared) < 3 and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(0.02)
    assert len(prepared) == 3
    mbq.reset()
    assert gone()
    assert len(list(mbq)) == N


@pytest.mark.parametrize("how", ["reset", "shuffle", "collect", "end"])
def test_the_thread_ends(how):
    mbq = queue(PreprocessingEnvironment="background", MiniBatchSize=1)
    next(mbq)
    if how == "collect":
        del mbq
        gc.collect()
    elif how == "end":
        list(mbq)
    else:
        getattr(mbq, how)()
    assert gone()


def test_an_interrupt_while_waiting_leaves_the_queue_usable(monkeypatch):
    mbq = queue(PreprocessingEnvironment="background")
    next(mbq)

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(mbq._ahead, "next", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(mbq)
    assert angles(mbq) == [[4, 5, 6, 7], [8, 9]] and gone()
