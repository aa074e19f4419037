"""Mini-batches picked on the GPU are those of the host: same batches, same order, same random numbers."""

from __future__ import annotations

import gc

import cusim
import numpy as np
import pytest

from minidl import (
    arrayDatastore,
    combine,
    dlarray,
    gpuArray,
    hasdata,
    minibatchqueue,
    partition,
    reset,
    rng,
    shuffle,
    subset,
)
from minidl.backends import cuda
from minidl.data import resident as rooms

R = np.random.default_rng(0)
IMAGES = R.normal(size=(5, 4, 1, 22)).astype(np.float32)
ANGLES, TARGETS = R.normal(size=(22, 1)), np.eye(10)[R.integers(0, 10, 22)] > 0
FORMATS = ["SSCB", "BC", "BC"]


def store(put=lambda x: x):
    return combine(
        arrayDatastore(put(IMAGES), IterationDimension=3), arrayDatastore(put(ANGLES)), arrayDatastore(put(TARGETS))
    )


def queue(ds, place, **options):
    return minibatchqueue(ds, MiniBatchSize=4, MiniBatchFormat=FORMATS, OutputEnvironment=place, **options)


def as_tuple(x):
    return x if isinstance(x, tuple) else (x,)


def assert_same_batches(found, expected, is_picked=True):
    """All batches of both queues, one after the other."""
    assert (found._resident is not None) == is_picked or not hasdata(found)
    while hasdata(expected):
        assert hasdata(found)
        for x, y in zip(as_tuple(next(found)), as_tuple(next(expected)), strict=True):
            assert x.device == "gpu" and (x.dims(), x.shape, x.dtype) == (y.dims(), y.shape, y.dtype)
            assert np.array_equal(x.numpy(), y.numpy())
    assert not hasdata(found) and (found._resident is not None) == is_picked


@pytest.mark.parametrize("put", [lambda x: x, gpuArray, lambda x: gpuArray(dlarray(x))])
@pytest.mark.parametrize("environment", ["serial", "background"])
def test_epochs_are_those_of_the_host(device, put, environment):
    casts = ["single", "double", "logical"]
    options = dict(PreprocessingEnvironment=environment, OutputCast=casts)
    if put(IMAGES) is not IMAGES:
        options["OutputCast"] = ["single", "", ""]
    states = []
    found, expected = queue(store(put), "auto", **options), queue(store(), "cpu", **options)
    for mbq in (found, expected):
        rng(3)
        batches = []
        for epoch in range(3):
            if epoch:
                shuffle(mbq)
            batches.append([[x.numpy() for x in batch] for batch in mbq])
        reset(mbq)
        batches.append([[x.numpy() for x in next(mbq)]])
        states.append((batches, rng()))
    assert found._resident is not None and states[0][1] == states[1][1]
    for one, other in zip(states[0][0], states[1][0], strict=True):
        for x, y in zip(one, other, strict=True):
            assert all(map(np.array_equal, x, y)) and [a.dtype for a in x] == [a.dtype for a in y]


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("fmt", ["", "SSB", "BSS", "SBS", "CBS", "SSCB", "SCSB"])
def test_any_dimension_and_format(device, dim, fmt):
    data = R.normal(size=(6, 8, 9))
    for put in (lambda x: x, gpuArray):
        queues = [
            minibatchqueue(arrayDatastore(p(data), IterationDimension=dim), MiniBatchSize=3, MiniBatchFormat=fmt,
                           OutputEnvironment=place, OutputCast="double")
            for p, place in ((put, "gpu"), (lambda x: x, "cpu"))
        ]  # fmt: skip
        first = [as_tuple(next(mbq))[0] for mbq in queues]
        assert np.array_equal(first[0].numpy(), first[1].numpy()) and first[0].dims() == first[1].dims()
        assert_same_batches(*queues)


def test_vectors_and_orders_of_their_own(device):
    numbers = np.arange(12.0)
    a, b = arrayDatastore(numbers), arrayDatastore(numbers * 10)
    rng(5)
    ds = subset(combine(shuffle(a), shuffle(b)), [3, 1, 4, 0, 5, 9, 2, 6])
    queues = [minibatchqueue(ds, MiniBatchSize=3, MiniBatchFormat=["B", ""], OutputEnvironment=place)
              for place in ("gpu", "cpu")]  # fmt: skip
    for x, y in zip(*map(next, queues), strict=True):
        assert np.array_equal(x.numpy(), y.numpy()) and x.dims() == y.dims()
    assert_same_batches(*queues)
    parts = [partition(mbq, 2, 1) for mbq in queues]
    assert np.array_equal(next(parts[0])[0].numpy(), next(parts[1])[0].numpy())
    assert_same_batches(*parts, is_picked=True)


def test_batches_that_are_held_keep_their_numbers(device):
    found, expected = queue(store(), "gpu"), queue(store(), "cpu")
    kept = [(next(found), next(expected)) for _ in range(5)]
    for ours, theirs in kept:
        assert all(np.array_equal(x.numpy(), y.numpy()) for x, y in zip(ours, theirs))
    views = []
    reset(found)
    for _ in range(5):
        x, angles, _ = next(found)
        views.append((x[1:3], np.array(x.numpy())[1:3], angles))
        del x
    assert all(np.array_equal(view.numpy(), before) for view, before, _ in views)


def test_a_batch_that_is_changed_in_place_is_the_users(device):
    found, expected = queue(store(), "gpu"), queue(store(), "cpu")
    changed = []
    for _ in range(5):
        (x, angles, _), (y, *_) = next(found), next(expected)
        assert np.array_equal(x.numpy(), y.numpy())
        x[0, 0] = 7.0
        angles[0] = 1.0
        changed.append(x)
    assert all((x.numpy()[0, 0] == 7).all() for x in changed)


def test_a_loop_needs_two_slots_and_a_launch_a_batch(device):
    mbq = queue(store(), "gpu", PartialMiniBatch="discard")
    for epoch in range(4):
        shuffle(mbq)
        while hasdata(mbq):
            before = dict(cusim.RawModule.launches) if epoch > 1 else None
            x, angles, t = next(mbq)
            if before is not None and device.name == "shim":
                now = {k: n - before.get(k, 0) for k, n in cusim.RawModule.launches.items() if n != before.get(k, 0)}
                assert now == {"pick_rows": 1}
    assert len(mbq._resident._slots) == 2


def test_what_is_not_picked(device):
    def prepared(x, a, t):
        return np.stack(x, axis=3), np.concatenate(a), np.concatenate(t)

    for ds, options in [
        (store(), dict(MiniBatchFcn=prepared)), (store(), dict(OutputAsDlarray=[True, True, False])),
        (store(), dict(OutputEnvironment=["gpu", "gpu", "cpu"])),
        (combine(arrayDatastore(list(IMAGES.T)), arrayDatastore(ANGLES), arrayDatastore(TARGETS)), {}),
    ]:  # fmt: skip
        mbq = minibatchqueue(ds, **{"MiniBatchSize": 4, "OutputEnvironment": "gpu", **options})
        assert len(list(mbq)) == 6 and mbq._resident is None
    if device.name == "shim":
        with cusim.limit_memory(4 * IMAGES.nbytes):
            mbq = queue(store(), "gpu")
            assert len(list(mbq)) == 6 and mbq._resident is None


def test_the_owners_array_is_read_again_at_reset_and_shuffle(device):
    angles = ANGLES.copy()
    mbq = minibatchqueue(arrayDatastore(angles), MiniBatchSize=4, OutputEnvironment="gpu", OutputCast="double")
    assert np.array_equal(next(mbq).numpy(), angles[:4])
    angles *= 2
    reset(mbq)
    assert np.array_equal(next(mbq).numpy(), angles[:4])
    angles += 1
    rng(2)
    shuffle(mbq)
    order = np.concatenate([x.numpy() for x in mbq])
    assert np.array_equal(np.sort(order[:, 0]), np.sort(angles[:, 0])) and not np.array_equal(order, angles)


def test_copies_on_the_gpu_are_shared_and_go_with_their_store(device):
    rooms._copies.clear()
    ds = store()
    mbq = queue(ds, "gpu")
    other = partition(mbq, 1, 0)
    next(mbq), next(other)
    assert len(rooms._copies) == 1 and mbq._resident._rows[0] is other._resident._rows[0]
    del ds, mbq, other
    gc.collect()
    assert not rooms._copies


def test_F2_rows_of_bools_at_odd_addresses_are_read_by_single_bytes(device):
    """A part of an array of bools may begin anywhere; words of four bytes may not."""
    if device.name != "shim":
        pytest.skip("looks at the table of the launch")
    flags = np.arange(1, 1 + 4 * 12) % 3 == 0
    odd = device.array(np.arange(1 + 4 * 12) % 3 == 0)[1:].reshape(12, 4)
    assert int(odd.data) % 4
    tables = []

    def noted(rows):
        tables.append(rows)
        return table_of(rows)

    table_of, cuda.rows.new_table = cuda.rows.new_table, noted
    try:
        order, target = device.array(np.array([3, 0, 11])), device.empty((3, 4), np.dtype(bool))
        cuda.bind_rows([odd], [target], [order], 3)(0)
    finally:
        cuda.rows.new_table = table_of
    assert np.array_equal(target.get(), flags.reshape(12, 4)[[3, 0, 11]])
    assert [row[-2:] for rows in tables for row in rows] == [[4, 1]]
