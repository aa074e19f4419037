"""minibatchqueue on a GPU: where its outputs go, and where its data come from."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from minidl import (
    DeviceError,
    DTypeError,
    arrayDatastore,
    combine,
    dlarray,
    gather,
    gpuArray,
    minibatchqueue,
    partition,
    read,
    readall,
    rng,
    shuffle,
    transform,
)
from minidl.core import device as devices

IMAGES, ANGLES = np.arange(24.0).reshape(2, 2, 6), np.arange(6.0).reshape(6, 1)
LABELS = np.array(list("abcdef"))


def queue(images=IMAGES, **options):
    ds = combine(arrayDatastore(images, IterationDimension=2), arrayDatastore(ANGLES), arrayDatastore(LABELS))
    options = {"OutputCast": ["single", "double", ""], "OutputAsDlarray": [True, False, False]} | options
    return minibatchqueue(ds, MiniBatchSize=4, MiniBatchFormat=["SSCB", "", ""], **options)


@pytest.mark.parametrize("environment", ["serial", "background"])
@pytest.mark.parametrize("place", ["auto", "gpu"])
def test_outputs_on_the_gpu(device, place, environment):
    expected = list(queue(OutputEnvironment="cpu"))
    found = list(queue(OutputEnvironment=place, PreprocessingEnvironment=environment))
    assert len(found) == len(expected) == 2
    for (X, angles, labels), (Y, numbers, texts) in zip(found, expected):
        assert (X.device, Y.device, X.dims(), X.dtype) == ("gpu", "cpu", "SSCB", "float32")
        assert isinstance(angles, device.library.ndarray) and isinstance(numbers, np.ndarray)
        assert np.array_equal(X, Y) and np.array_equal(gather(angles), numbers)
        assert isinstance(labels, np.ndarray) and list(labels) == list(texts)  # text stays on the host


def test_each_output_has_a_place(device):
    X, angles, _ = next(queue(OutputEnvironment=["cpu", "gpu", "cpu"], OutputAsDlarray=[True, True, False]))
    assert (X.device, angles.device) == ("cpu", "gpu")


def test_auto_without_a_gpu(device, monkeypatch):
    monkeypatch.setenv("MINIDL_DEVICE", "cpu")
    X, angles, _ = next(queue())
    assert X.device == "cpu" and isinstance(angles, np.ndarray)
    with pytest.raises(DeviceError, match='OutputEnvironment "gpu" needs a GPU.*MINIDL_DEVICE is cpu.*Or use "auto"'):
        queue(OutputEnvironment="gpu")


def test_the_gpu_is_looked_for_once(device, monkeypatch):
    asked = []
    module = importlib.import_module("minidl.data.minibatchqueue")
    monkeypatch.setattr(module, "gpu_complaint", lambda: asked.append(1) or devices.gpu_complaint())
    mbq = queue()
    assert not asked  # not before the first mini-batch
    assert len(list(mbq)) == 2 and len(asked) == 1
    assert len(list(queue(OutputEnvironment="cpu"))) == 2 and len(asked) == 1


def test_the_function_gets_host_data_and_may_return_any(device):
    seen = []

    def prepare(X, angles):
        seen.extend(map(type, [*X, *angles]))
        batch = np.stack(X, axis=2)
        return batch, gpuArray(np.concatenate(angles)), gpuArray(dlarray(batch[0]))

    for images in (IMAGES, gpuArray(IMAGES), gpuArray(dlarray(IMAGES))):
        ds = combine(arrayDatastore(images, IterationDimension=2), arrayDatastore(ANGLES))
        for place, kind in (("auto", device.library.ndarray), ("cpu", np.ndarray)):
            X, angles, Z = next(minibatchqueue(ds, 3, MiniBatchFcn=prepare, MiniBatchSize=3, OutputEnvironment=place,
                                               OutputAsDlarray=[True, False, True]))  # fmt: skip
            assert X.device == Z.device == ("gpu" if place == "auto" else "cpu") and isinstance(angles, kind)
            assert (X.dtype, Z.dtype, angles.dtype) == ("float32",) * 3
            assert np.array_equal(X, IMAGES[..., :3]) and np.array_equal(gather(angles), ANGLES[:3])
    assert set(seen) == {np.ndarray}


@pytest.mark.parametrize("put", [gpuArray, lambda x: gpuArray(dlarray(x))])
def test_data_on_the_gpu_stay_there(device, monkeypatch, put):
    images = put(IMAGES)
    host = []
    for environment in ("auto", "cpu"):
        rng(1)
        mbq = queue(images, OutputEnvironment=environment)
        shuffle(mbq)
        if environment == "auto" and device.name == "shim":
            with monkeypatch.context() as patch:  # nothing of the images goes through the host
                patch.setattr(device.library.ndarray, "get", lambda x, **options: pytest.fail("copied to the host"))
                batches = list(mbq)
        else:
            batches = list(mbq)
        assert {X.device for X, *_ in batches} == {"gpu" if environment == "auto" else "cpu"}
        host.append(np.concatenate([np.asarray(X) for X, *_ in batches], axis=3))
        order = [list(LABELS).index(x) for x in np.concatenate([labels for *_, labels in batches])]
        assert np.array_equal(host[-1][:, :, 0], IMAGES[:, :, order]) and sorted(order) != order
    assert np.array_equal(*host)


def test_reading_a_store_on_the_gpu(device):
    there, here = arrayDatastore(gpuArray(IMAGES), IterationDimension=2), arrayDatastore(IMAGES, IterationDimension=2)
    assert len(there) == 6 and all(map(np.array_equal, readall(there), readall(here)))
    assert isinstance(read(there)[0], np.ndarray)
    part = partition(there, 3, 1)
    assert all(map(np.array_equal, readall(part), readall(partition(here, 3, 1))))
    same = arrayDatastore(gpuArray(ANGLES), OutputType="same", ReadSize=4)
    assert np.array_equal(read(same), ANGLES[:4])
    cells = arrayDatastore([gpuArray(ANGLES[i]) for i in range(6)])
    assert np.array_equal(next(minibatchqueue(cells, MiniBatchSize=6, OutputEnvironment="cpu")), ANGLES[:, 0])
    made = transform(here, lambda cells: [gpuArray(x) for x in cells])
    assert next(minibatchqueue(made, MiniBatchSize=2)).device == "gpu"


def test_whole_numbers_on_the_gpu(device):
    counts = next(minibatchqueue(arrayDatastore(ANGLES), OutputCast="int32", OutputAsDlarray=False, MiniBatchSize=2))
    assert counts.dtype == "int32" and gather(counts).tolist() == [[0], [1]]
    mbq = minibatchqueue(arrayDatastore(gpuArray(ANGLES)), OutputCast="int32", OutputAsDlarray=False)
    with pytest.raises(DTypeError, match="cannot become int32 there"):
        next(mbq)
