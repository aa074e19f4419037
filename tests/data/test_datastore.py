"""Datastores: what a read gives, and that shuffling, splitting, combining and transforming keep rows together."""

from __future__ import annotations

import numpy as np
import pytest

from minidl.core.dlarray import dlarray
from minidl.core.errors import DataError, DTypeError, EmptyDataError, OptionError, ShapeError
from minidl.core.random import rng
from minidl.data import (
    arrayDatastore,
    combine,
    hasdata,
    minibatchqueue,
    numpartitions,
    partition,
    preview,
    read,
    readall,
    reset,
    shuffle,
    subset,
    transform,
)

A = np.arange(24.0).reshape(2, 3, 4)


def numbers(data):
    """The numbers in a list of observations, or of rows."""
    return [numbers(x) if isinstance(x, list) else np.asarray(x).ravel().tolist() for x in data]


def ten():
    return arrayDatastore(np.arange(10.0))


def three():
    return combine(ten(), arrayDatastore(np.arange(10.0)[:, None] * 10), arrayDatastore([*"abcdefghij"]))


# one array ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("data", "dim", "count", "shape", "second"),
    [
        (A, 0, 2, (1, 3, 4), A[1:2]),
        (A, 1, 3, (2, 1, 4), A[:, 1:2]),
        (A, 2, 4, (2, 3), A[:, :, 1]),
        (A, -1, 4, (2, 3), A[:, :, 1]),
        (A[0, 0], 0, 4, (1,), [1.0]),
        (A[0], 0, 3, (1, 4), A[0, 1:2]),
        (A[0], 1, 4, (3,), A[0, :, 1]),
        (np.array(["x", "y"]), 0, 2, (1,), ["y"]),
        ([[1, 2], [3, 4], [5, 6]], 0, 3, (1, 2), [[3, 4]]),
        (["x", "y"], 0, 2, (1,), ["y"]),
        ([A, A[0], A[1]], 0, 3, (2, 3, 4), A[0]),
        (dlarray(A[0], "CB"), 1, 4, (3,), A[0, :, 1]),
        (A.transpose(2, 0, 1), 0, 4, (1, 2, 3), A.transpose(2, 0, 1)[1:2]),
    ],
)
def test_observations(data, dim, count, shape, second):
    ds = arrayDatastore(data, IterationDimension=dim)
    assert len(ds) == numpartitions(ds) == count
    assert preview(ds)[0].shape == shape
    assert ds.read()[0].shape == shape
    assert np.array_equal(read(ds)[0], second)


def test_images_are_whole_and_in_one_piece():
    images = np.random.default_rng(0).random((6, 28, 28, 1), np.float32).transpose(1, 2, 3, 0)
    for data in (images, np.ascontiguousarray(images)):
        cells = readall(arrayDatastore(data, IterationDimension=3))
        assert all(cell.shape == (28, 28, 1) and cell.flags.c_contiguous for cell in cells)
        assert np.array_equal(np.stack(cells, axis=3), images)


def test_changing_an_observation_does_not_change_the_data():
    data = np.arange(3.0)
    cells = readall(arrayDatastore(data))
    cells[0][:] = 99
    assert data.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "reads"),
    [
        ({}, [[[0]], [[1]], [[2]], [[3]], [[4]]]),
        ({"ReadSize": 2}, [[[0], [1]], [[2], [3]], [[4]]]),
        ({"ReadSize": 9}, [[[0], [1], [2], [3], [4]]]),
        ({"ReadSize": 3, "OutputType": "same"}, [[0, 1, 2], [3, 4]]),
    ],
)
def test_reads_to_the_end(options, reads):
    ds = arrayDatastore(np.arange(5), **options)
    for _ in range(2):
        found = []
        while hasdata(ds):
            found.append([np.asarray(x).tolist() for x in read(ds)])
        assert found == reads
        with pytest.raises(EmptyDataError, match=r"all 5 observations have been read.*reset\(ds\)"):
            read(ds)
        reset(ds)


def test_second_output_says_which_observations():
    ds = arrayDatastore(np.arange(5), ReadSize=2)
    read(ds)
    _, info = read(ds, nargout=2)
    assert info.Observations.tolist() == [2, 3]


def test_readall_and_preview_do_not_move_the_store():
    ds = ten()
    read(ds)
    assert len(readall(ds)) == 10 and numbers(preview(ds)) == [[0]] and numbers(read(ds)) == [[1]]
    assert readall(arrayDatastore(A, OutputType="same")).shape == A.shape


def test_properties_can_be_set():
    ds = arrayDatastore(A[0])
    read(ds)
    ds.ReadSize = 2
    assert numbers(read(ds)) == [[4, 5, 6, 7], [8, 9, 10, 11]]  # goes on where it was
    ds.IterationDimension = 1
    assert (ds.IterationDimension, len(ds)) == (1, 4)
    assert numbers(read(ds)) == [[0, 4, 8], [1, 5, 9]]  # started anew
    ds.IterationDimension = 0
    read(ds)
    ds.OutputType = "same"
    assert read(ds).shape == (2, 4)
    for name, value in (("ReadSize", 0), ("IterationDimension", 2), ("IterationDimension", 1), ("OutputType", "table")):
        with pytest.raises(OptionError):
            setattr(ds, name, value)
    assert (ds.ReadSize, ds.IterationDimension, ds.OutputType) == (2, 0, "same")
    assert read(ds).shape == (1, 4)
    assert "IterationDimension: 0" in repr(ds)


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        (A, {"IterationDimension": 3}, OptionError, "0 to 2.*counted from 0: what MATLAB calls 4 is 3"),
        (A, {"IterationDimension": 1.0}, OptionError, "IterationDimension"),
        (A, {"IterationDimension": 1, "OutputType": "same"}, OptionError, "needs IterationDimension 0"),
        (A, {"iterationDimension": 1}, OptionError, "Did you mean IterationDimension"),
        (A, {"ReadSize": 0}, OptionError, "whole number of observations"),
        (A, {"OutputType": "table"}, OptionError, '"cell", "same"'),
        (A[:0], {}, EmptyDataError, "no observations"),
        ([], {}, EmptyDataError, "no observations"),
        (3.0, {}, DTypeError, "expected an array"),
        ("text", {}, DTypeError, "expected an array"),
        ([[1, 2], [3]], {}, ShapeError, "list of arrays"),
    ],
)
def test_what_an_array_datastore_refuses(data, options, error, message):
    with pytest.raises(error, match=message):
        arrayDatastore(data, **options)


# order ----------------------------------------------------------------------------------------------------------
STORES = {
    "array": ten,
    "combined": three,
    "sequential": lambda: combine(subset(ten(), range(4)), subset(ten(), range(4, 10)), ReadOrder="sequential"),
    "transformed": lambda: transform(ten(), lambda cells: cells),
}


@pytest.mark.parametrize("kind", STORES)
def test_shuffle_subset_partition(kind):
    ds = STORES[kind]()
    rows = numbers(readall(ds))
    rng(1)
    mixed = numbers(readall(shuffle(ds)))
    assert mixed != rows and sorted(mixed) == rows
    rng(1)
    assert numbers(readall(ds.shuffle())) == mixed  # the global seed repeats it
    assert numbers(readall(ds)) == rows  # the store itself is as it was
    assert numbers(readall(subset(ds, [7, 2, 2]))) == [rows[7], rows[2], rows[2]]
    assert numbers(readall(ds.subset(np.arange(10) > 6))) == rows[7:]
    parts = [numbers(readall(partition(ds, 3, i))) for i in range(3)]
    assert [len(part) for part in parts] == [3, 3, 4] and [row for part in parts for row in part] == rows
    assert numbers(readall(subset(subset(ds, [5, 6, 7]), [2]))) == [rows[7]]
    read(ds)
    assert hasdata(subset(ds, [1]))  # a new store stands at its beginning


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda ds: partition(ds, 3, 3), DataError, "counted from 0 to 2; got 3"),
        (lambda ds: partition(ds, 3, -1), DataError, "counted from 0 to 2; got -1"),
        (lambda ds: partition(ds, 11, 0), DataError, "1 to 10 for 10 observations; got 11"),
        (lambda ds: partition(ds, 0, 0), DataError, "got 0"),
        (lambda ds: subset(ds, [10]), DataError, "counted from 0 to 9; got 10"),
        (lambda ds: subset(ds, [-1]), DataError, "got -1"),
        (lambda ds: subset(ds, [0.5]), DataError, "whole numbers"),
        (lambda ds: subset(ds, []), EmptyDataError, "Choose at least one"),
    ],
)
def test_parts_that_do_not_exist(call, error, message):
    ds = ten()
    read(ds)
    with pytest.raises(error, match=message):
        call(ds)
    assert numbers(read(ds)) == [[1]]  # unchanged


@pytest.mark.parametrize("function", [hasdata, reset, shuffle, read, readall, preview, numpartitions])
def test_no_datastore(function):
    with pytest.raises(DTypeError, match=rf"{function.__name__}: expected a datastore.*got ndarray.*arrayDatastore"):
        function(A)


# combined -------------------------------------------------------------------------------------------------------
def test_combined_rows():
    ds = three()
    [[x, y, label]] = read(ds)
    assert (x.tolist(), y.tolist(), label.tolist()) == ([0], [[0]], ["a"])
    assert len(readall(ds)) == 10 and "3" not in repr(ds)
    wide = combine(
        arrayDatastore(A[0], ReadSize=2, OutputType="same"), arrayDatastore(A[1], ReadSize=2, OutputType="same")
    )
    assert np.array_equal(read(wide), np.hstack([A[0], A[1]])[:2])
    assert np.array_equal(wide.readall(), np.hstack([A[0], A[1]]))


def test_reading_a_part_does_not_move_the_whole():
    part = ten()
    ds = part.combine(ten())
    read(part)
    part.ReadSize = 5
    assert numbers(read(ds)) == [[[0], [0]]]


def test_sequential():
    ds = combine(subset(ten(), [3, 4]), subset(ten(), [7]), ReadOrder="sequential")
    assert len(ds) == 3
    assert [numbers(read(ds)) for _ in range(3)] == [[[3]], [[4]], [[7]]]
    pairs = combine(three(), subset(three(), [1]), ReadOrder="sequential")
    assert numbers(subset(pairs, [10, 0]).readall()) == [[[1], [10], ["b"]], [[0], [0], ["a"]]]
    with pytest.raises(DataError, match="rows of different length"):
        combine(ten(), three(), ReadOrder="sequential").readall()


@pytest.mark.parametrize(
    ("stores", "options", "error", "message"),
    [
        (lambda: [ten(), arrayDatastore(np.arange(9))], {}, DataError, r"have 10 and 9.*subset\(ds, range\(9\)\)"),
        (lambda: [ten(), arrayDatastore(np.arange(10), ReadSize=2)], {}, DataError, "same ReadSize; they have 1 and 2"),
        (lambda: [], {}, DataError, "at least one"),
        (lambda: [ten(), A], {}, DTypeError, "combine: expected a datastore"),
        (lambda: [ten()], {"ReadOrder": "random"}, OptionError, '"associated", "sequential"'),
        (lambda: [ten()], {"readorder": "associated"}, OptionError, "Did you mean ReadOrder"),
    ],
)
def test_what_combine_refuses(stores, options, error, message):
    with pytest.raises(error, match=message):
        combine(*stores(), **options)


# transformed ----------------------------------------------------------------------------------------------------
def test_transform():
    ds = transform(ten(), lambda cells: [x * 2 for x in cells])
    assert numbers(read(ds)) == [[0]] and numbers(read(ds)) == [[2]]
    assert numbers(readall(ds)) == [[2.0 * i] for i in range(10)]
    assert numbers(three().transform(lambda rows: [[y, x] for x, y, _ in rows]).readall())[3] == [[30], [3]]
    same = transform(arrayDatastore(A, OutputType="same"), lambda a: a + 1)
    assert np.array_equal(readall(same), A + 1)
    with pytest.raises(DTypeError, match="expected a function"):
        transform(ten(), 3)


def test_transform_with_info():
    ds = transform(ten(), lambda cells, info: (cells, {"seen": info.Observations}), IncludeInfo=True)
    cells, info = read(shuffle(ds), nargout=2)
    assert cells[0].tolist() == info["seen"].tolist()
    with pytest.raises(DataError, match=r"returns \(data, info\)"):
        transform(ten(), lambda cells, info: cells, IncludeInfo=True).read()


@pytest.mark.parametrize(
    ("fcn", "columns"),
    [
        (lambda rows: rows, 3),
        (lambda rows: [row[:2] for row in rows], 2),
        (lambda rows: tuple(rows[0]), 3),
        (lambda rows: [rows[0][0] * 2], 1),
        (lambda rows: rows[0][1], 1),
    ],
)
def test_a_queue_takes_what_transforms_return(fcn, columns):
    ds = shuffle(transform(three(), fcn))
    mbq = minibatchqueue(
        ds, MiniBatchSize=4, MiniBatchFcn=lambda *cells: tuple(cells), OutputCast="", OutputAsDlarray=False
    )
    batch = next(mbq)
    batch = batch if columns > 1 else (batch,)
    assert len(batch) == columns and all(len(cells) == 4 for cells in batch)


def test_a_queue_needs_an_entry_for_each_observation():
    with pytest.raises(DataError, match=r"from 1 observations the function made 2.*\[\[X, T\]\]"):
        minibatchqueue(transform(three(), lambda rows: rows[0][:2]))
