"""S2: every file that somebody else has made answers with data or DataError, in bounded memory and time."""

from __future__ import annotations

import gzip
import importlib.util
import os
import secrets
import stat
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from data import damaged

from minidl.core.errors import DataError
from minidl.data import digitTrain4DArrayData, hdf5, matfile

COUNT = int(os.environ.get("MINIDL_DAMAGED_FILES", "300"))  # of each format; those with a process each are a quarter
SEED = os.environ.get("MINIDL_DAMAGED_SEED") or secrets.randbits(32)
IMAGES = np.arange(28 * 28 * 2, dtype=np.uint8).reshape(28, 28, 1, 2)
ANGLES = np.array([[3.0], [-45.0]])
LABELS = np.array([[3.0], [1.0]])


@pytest.mark.parametrize("kind", ["idx", "gz", "mat", "matz", "mat73"])
def test_S2_damaged_files_are_read_or_refused(tmp_path, kind):
    pytest.importorskip({"mat73": "h5py", "mat": "scipy", "matz": "scipy"}.get(kind, "numpy"))
    if kind == "mat73" and not hasattr(os, "fork"):
        pytest.skip("a process for each file takes too long here")
    count = COUNT // 4 if kind == "mat73" and "MINIDL_DAMAGED_FILES" not in os.environ else COUNT
    found = subprocess.run(
        [sys.executable, "-W", "error", damaged.__file__, kind, str(SEED), str(count), str(tmp_path)],
        capture_output=True, text=True, timeout=60 + COUNT * damaged.SECONDS,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    assert found.returncode == 0, f"MINIDL_DAMAGED_SEED={SEED}, file {found.stdout[-30:]}:\n{found.stderr[-2000:]}"
    assert not found.stdout.splitlines()[-1].startswith("0 read")


def refused(path, *words):
    start = time.perf_counter()
    with pytest.raises(DataError) as error:
        digitTrain4DArrayData(Path=path)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert len(str(error.value)) < 1000 and time.perf_counter() - start < 20
    return True


# IDX ----------------------------------------------------------------------------------------------------------------
def idx(folder, shape, pixels=None, labels=b"\3\1", pack=bytes, end=""):
    pixels = bytes(int(np.prod(shape))) if pixels is None else pixels
    (folder / f"train-images-idx3-ubyte{end}").write_bytes(pack(struct.pack(">4I", 0x803, *shape) + pixels))
    (folder / f"train-labels-idx1-ubyte{end}").write_bytes(pack(struct.pack(">2I", 0x801, len(labels)) + labels))


@pytest.mark.parametrize("shape", [(2, 0, 0), (2, 0, 28), (2, 28, 0), (2, 5000, 1), (2, 1, 5000)])
def test_S2_images_of_no_size_or_of_a_strange_one(tmp_path, shape):
    idx(tmp_path, shape)
    assert refused(tmp_path, "1x1 to 4096x4096", f"{shape[1]}x{shape[2]}")


@pytest.mark.parametrize("shape", [(2, 1, 1), (2, 4096, 1), (2, 300, 200), (0, 28, 28)])
def test_S2_sizes_at_the_edge(tmp_path, shape):
    idx(tmp_path, shape, labels=b"\3\1"[: shape[0]])
    if shape[0]:
        assert digitTrain4DArrayData(Path=tmp_path)[0].shape == (28, 28, 1, 2)
    else:
        assert refused(tmp_path, "0 images")


@pytest.mark.parametrize(("pack", "end"), [(bytes, ""), (gzip.compress, ".gz")])
@pytest.mark.parametrize("shape", [(2**32 - 1,) * 3, (2**20, 28, 28), (3, 28, 28)])
def test_S2_announced_sizes_are_not_believed(tmp_path, shape, pack, end):
    idx(tmp_path, shape, pixels=bytes(2 * 784), pack=pack, end=end)
    assert refused(tmp_path, "not a whole IDX file", "length 1584 bytes")


@pytest.mark.parametrize("end", ["", ".gz"])
def test_S2_a_file_without_end(tmp_path, end):
    idx(tmp_path, (2, 28, 28), end=end, pack=gzip.compress if end else bytes)
    os.truncate(tmp_path / f"train-images-idx3-ubyte{end}", 1 << 40)
    assert refused(tmp_path, "longer than 536870912 bytes")


def test_S2_gzip_that_unfolds_to_gigabytes(tmp_path):
    """Zeros without end behind what is announced: no more is unpacked than there should be."""
    many = zlib.compressobj(9, zlib.DEFLATED, 31)
    header = many.compress(struct.pack(">4I", 0x803, 2, 28, 28))
    piece, pieces = bytes(1 << 20), []
    for _ in range(64):
        pieces.append(many.compress(piece))
    idx(tmp_path, (2, 28, 28), end=".gz", pack=gzip.compress)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(header + b"".join(pieces) + many.flush())
    assert refused(tmp_path, "1585 bytes or more")


# MAT-files of version 5 ---------------------------------------------------------------------------------------------
def mat(folder, **changed):
    io = pytest.importorskip("scipy.io")
    fields = {"XTrain": IMAGES, "labelsTrain": LABELS, "anglesTrain": ANGLES} | changed
    io.savemat(folder / "DigitsDataTrain.mat", fields, do_compression=True)
    return folder


def with_nan(array, number):
    array = array.astype(float)
    array.flat[1] = number
    return array


@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan, 1e300])
@pytest.mark.parametrize(("name", "array"), [("XTrain", IMAGES), ("labelsTrain", LABELS), ("anglesTrain", ANGLES)])
def test_S2_numbers_that_are_none(tmp_path, name, array, number):
    assert refused(mat(tmp_path, **{name: with_nan(array, number)}), name)


@pytest.mark.parametrize(
    "changed",
    [
        {"XTrain": IMAGES + 1j}, {"XTrain": np.array(["text"])}, {"XTrain": {"a": 1}}, {"anglesTrain": np.array("x")},
        {"anglesTrain": np.array([[True], [False]])}, {"labelsTrain": {"a": 1}}, {"labelsTrain": LABELS + 1j},
        {"labelsTrain": np.array([["3"], [4.0]], dtype=object)},
        {"labelsTrain": np.array([["x" * 101], ["3"]], dtype=object)},
        {"labelsTrain": np.zeros((0, 0))}, {"XTrain": np.zeros((28, 28, 1, 0))}, {"XTrain": np.zeros((28, 28))},
        {"labelsTrain": np.array(["3", "1", "2"])}, {"XTrain": IMAGES[..., None]},
    ],
)  # fmt: skip
def test_S2_variables_of_the_wrong_kind(tmp_path, changed):
    assert refused(mat(tmp_path, **changed), next(iter(changed)))


def test_S2_labels_that_are_an_object_are_explained(tmp_path):
    """As MATLAB writes a categorical array: flags of an opaque matrix, then its name, system and class."""
    pytest.importorskip("scipy")
    file = mat(tmp_path) / "DigitsDataTrain.mat"
    parts = [struct.pack("<4I", 6, 8, 17, 0)]
    for text in (b"labelsTrain", b"MCOS", b"categorical"):
        parts.append(struct.pack("<2I", 1, len(text)) + text + bytes(-len(text) % 8))
    body = b"".join(parts)
    file.write_bytes(file.read_bytes()[:128] + struct.pack("<2I", 14, len(body)) + body + file.read_bytes()[128:])
    assert refused(tmp_path, "cellstr(S.labelsTrain)")


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("dtype", ["f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "?"])
def test_S2_own_reader_reads_what_scipy_writes(tmp_path, dtype, is_packed):
    io = pytest.importorskip("scipy.io")
    values = np.arange(-60, 60).reshape(2, 3, 4, 5).astype(dtype)
    texts = np.array(["a", "bc ", "ä€"], dtype=object)
    rows = np.array(["abc", "de"])
    fields = {"other": np.arange(5), "values": values, "texts": texts, "rows": rows, "none": {"a": 1}}
    io.savemat(tmp_path / "x.mat", fields, do_compression=is_packed)
    found = matfile.read_variables(tmp_path / "x.mat", ["values", "texts", "rows", "none", "missing"])
    assert found["values"].dtype == values.dtype and np.array_equal(found.pop("values"), values)
    assert found == {"texts": ["a", "bc ", "ä€"], "rows": ["abc", "de "], "none": None}


def test_S2_the_other_byte_order(tmp_path):
    """Written by hand: int16 in a matrix of class double, as MATLAB packs whole numbers, and text of UTF-16."""

    def element(kind, data):
        return struct.pack(">2I", kind, len(data)) + data + bytes(-len(data) % 8)

    def matrix(kind, name, shape, storage, data):
        parts = element(6, struct.pack(">2I", kind, 0)) + element(5, struct.pack(f">{len(shape)}i", *shape))
        return element(14, parts + element(1, name) + element(storage, data))

    body = matrix(6, b"x", (2, 2), 3, struct.pack(">4h", 1, -2, 300, 4))
    body += matrix(4, b"t", (1, 2), 4, "ö€".encode("utf-16-be"))
    (tmp_path / "x.mat").write_bytes(bytes("MATLAB".ljust(124), "ascii") + b"\1\0MI" + body)
    found = matfile.read_variables(tmp_path / "x.mat", ["x", "t"])
    assert found["x"].tolist() == [[1, 300], [-2, 4]] and found["x"].dtype == float and found["t"] == ["ö€"]


def test_S2_a_file_of_very_many_variables(tmp_path, monkeypatch):
    monkeypatch.setattr(matfile, "_MOST_VARIABLES", 3)
    assert digitTrain4DArrayData(Path=mat(tmp_path))[0].shape == (28, 28, 1, 2)
    assert refused(mat(tmp_path, missing=1, anglesTrain=[]), "2 images") and refused(rest(tmp_path), "more than 3")


def rest(folder):
    """The file with its first variable behind many others."""
    file = folder / "DigitsDataTrain.mat"
    whole = file.read_bytes()
    size = 136 + struct.unpack_from("<I", whole, 132)[0]
    file.write_bytes(whole[:128] + 4 * whole[128:size])
    return folder


@pytest.mark.parametrize("is_packed", [False, True])
def test_S2_variables_that_unfold_to_gigabytes(tmp_path, monkeypatch, is_packed):
    monkeypatch.setattr(matfile, "LIMIT_BYTES", 1 << 20)
    io = pytest.importorskip("scipy.io")
    fields = {"XTrain": np.zeros((28, 28, 1, 2000), np.uint8), "labelsTrain": LABELS, "anglesTrain": ANGLES}
    io.savemat(tmp_path / "DigitsDataTrain.mat", fields, do_compression=is_packed)
    assert refused(tmp_path, "1048576 are read")
    fields["XTrain"] = IMAGES
    io.savemat(tmp_path / "DigitsDataTrain.mat", fields | {"another": np.zeros(1 << 22)}, do_compression=is_packed)
    assert digitTrain4DArrayData(Path=tmp_path)[0].shape == (28, 28, 1, 2), "what is not asked for is not unpacked"


def test_S2_a_variable_with_a_size_of_its_own(tmp_path, monkeypatch):
    """Few bytes that announce many numbers: of no bytes, negative, or more than their product can count."""
    pytest.importorskip("scipy")
    file = tmp_path / "DigitsDataTrain.mat"
    from scipy.io import savemat

    savemat(file, {"XTrain": IMAGES, "labelsTrain": LABELS, "anglesTrain": ANGLES})
    whole = file.read_bytes()
    sizes = struct.pack("<4i", 28, 28, 1, 2)
    assert whole.count(sizes) == 1
    for changed in [(28, 28, 1, 2**31 - 1), (2**31 - 1,) * 4, (28, 28, 1, -2), (28, 28, -1, -2), (0, 2**31 - 1, 1, 2)]:
        file.write_bytes(whole.replace(sizes, struct.pack("<4i", *changed)))
        assert refused(tmp_path)


# MAT-files of version 7.3 -------------------------------------------------------------------------------------------
@pytest.fixture
def mat73(tmp_path):
    """A MAT-file of version 7.3, after `change` was done to it."""
    h5py = pytest.importorskip("h5py")

    def make(change):
        file = tmp_path / "DigitsDataTrain.mat"
        with h5py.File(file, "w", userblock_size=512) as f:
            f["XTrain"], f["labelsTrain"], f["anglesTrain"] = IMAGES.T, LABELS.T, ANGLES.T
            change(h5py, f)
        with file.open("r+b") as f:
            f.write(b"MATLAB 7.3 MAT-file")
        return tmp_path

    return make


def huge(h5py, f):
    del f["XTrain"]
    f.create_dataset("XTrain", (10**7, 1, 28, 28), "f8", chunks=(1000, 1, 28, 28), compression="gzip")


def huge_chunk(h5py, f):
    del f["XTrain"]
    f.create_dataset("XTrain", (2, 1, 28, 28), "u1", chunks=(10**6, 1, 28, 28), maxshape=(None, 1, 28, 28))


def linked(h5py, f):
    del f["XTrain"]
    f["XTrain"] = h5py.ExternalLink("/etc/passwd", "/x")


def linked_inside(h5py, f):
    f.move("XTrain", "moved")
    f["XTrain"] = h5py.SoftLink("/moved")


def outside(h5py, f):
    del f["XTrain"]
    f.create_dataset("XTrain", (2, 1, 28, 28), "u1", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def virtual(h5py, f):
    del f["XTrain"]
    layout = h5py.VirtualLayout((2, 1, 28, 28), "u1")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (2, 1, 28, 28))
    f.create_virtual_dataset("XTrain", layout)


def odd_text(h5py, f):
    del f["labelsTrain"]
    f.create_dataset("labelsTrain", data=np.array([[0xD800, 0xDC00]], np.uint16)).attrs["MATLAB_class"] = b"char"


def text(h5py, f):
    del f["XTrain"]
    f["XTrain"] = ["text", "and more"]


@pytest.mark.parametrize(("change", "words"), [
    (huge, "62720000000 bytes"), (huge_chunk, "784000000 bytes"), (linked, "a link"), (linked_inside, "a link"),
    (outside, "elsewhere"), (virtual, "elsewhere"), (odd_text, "cannot be read"), (text, "real numbers"),
])  # fmt: skip
def test_S2_hdf5_that_is_too_large_or_elsewhere(mat73, change, words):
    assert refused(mat73(change), words)


def test_S2_logical_images_stay_0_and_1(mat73):
    def logical(h5py, f):
        f["XTrain"][...] = IMAGES.T % 2
        f["XTrain"].attrs["MATLAB_class"] = b"logical"

    assert np.array_equal(digitTrain4DArrayData(Path=mat73(logical))[0], IMAGES % 2)


@pytest.mark.parametrize(("program", "seconds", "words"), [
    ("import os; os.kill(os.getpid(), 11)", 20, "came to an end with -11"),
    ("import time; time.sleep(60)", 0.5, "longer than"),
    ("raise SystemExit('memory is used up')", 20, "memory is used up"),
    ("print('[')", 20, "not understood"), ("print('{}')", 20, "not understood"), ("", 20, "not understood"),
])  # fmt: skip
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_S2_a_reader_that_is_brought_down(mat73, monkeypatch, program, seconds, words):
    monkeypatch.setattr(hdf5, "_PROGRAM", program)
    monkeypatch.setattr(hdf5, "LIMIT_SECONDS", seconds)
    assert refused(mat73(lambda h5py, f: None), words)


def test_S2_no_h5py(mat73, monkeypatch):
    folder = mat73(lambda h5py, f: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert refused(folder, "version 7.3 needs h5py")


# files that are none ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", [5, 1.5, [], object(), ("a", "b")])
def test_S2_a_path_that_is_none(path):
    assert refused(path, "Path is the name")


def test_S2_pipes_devices_and_folders_are_no_files(tmp_path):
    os.mkdir(tmp_path / "DigitsDataTrain.mat")
    assert refused(tmp_path, "found none")
    for place in ["\0", tmp_path / "nowhere" / "x.mat", b"bytes"]:
        assert refused(place, "found none")
    with pytest.raises(DataError, match="File name too long|found none"):
        digitTrain4DArrayData(Path="x" * 5000)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        os.mkfifo(tmp_path / "train-images-idx3-ubyte")
        assert refused(tmp_path / "pipe", "found none") and refused(tmp_path, "found none")
        assert refused("/dev/zero", "found none") and refused("/dev/null", "found none")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names are text elsewhere")
def test_S2_names_that_are_no_text(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
    folder.mkdir()
    idx(folder, (2, 28, 28))
    assert digitTrain4DArrayData(Path=folder)[0].shape == digitTrain4DArrayData(Path=os.fsencode(folder))[0].shape
    (folder / "train-labels-idx1-ubyte").write_bytes(b"")
    with pytest.raises(DataError) as error:
        digitTrain4DArrayData(Path=folder)
    assert r"\udcff\udcfe" in str(error.value).encode().decode()


def test_S2_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    idx(tmp_path, (2, 28, 28))

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", refuse)
    assert refused(tmp_path, "Permission denied")
    assert stat.S_ISREG((tmp_path / "train-images-idx3-ubyte").stat().st_mode)
