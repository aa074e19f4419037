"""The digit images: the same bits everywhere, learnable but not by a straight line; readers for files of one's own."""

from __future__ import annotations

import gzip
import hashlib
import struct

import numpy as np
import pytest

from minidl.core.errors import DataError, OptionError
from minidl.data import digitTest4DArrayData, digitTrain4DArrayData

LOADERS = {"Train": digitTrain4DArrayData, "Test": digitTest4DArrayData}
SHA256 = {
    "Train": "bee752418c5fea057dd5edd8dc5d973c8d075a575136f36b3dcb69000e6cf748",
    "Test": "6b7629626657ab29951da44eb8f408dd5ef986758daf158acde3ba09670c8074",
}


@pytest.fixture(scope="module")
def generated():
    return {part: load() for part, load in LOADERS.items()}


def assert_digits(digits, count=5000):
    X, labels, angles = digits
    assert (X.shape, X.dtype) == ((28, 28, 1, count), np.float32)
    assert X.transpose(3, 0, 1, 2).flags.c_contiguous
    assert X.min() >= 0 and 0.5 < X.max() <= 1
    assert labels.shape == (count,) and labels.dtype.kind == "U"
    assert (angles.shape, angles.dtype) == ((count, 1), np.float32)
    assert np.array_equal(angles, np.rint(angles)) and abs(angles).max() <= 45


@pytest.mark.parametrize("part", LOADERS)
def test_generated_bits(generated, part):
    X, labels, angles = generated[part]
    levels = np.rint(X.transpose(3, 0, 1, 2) * 255).astype(np.uint8)
    bits = levels.tobytes() + "".join(labels).encode() + angles.astype(np.int8).tobytes()
    assert hashlib.sha256(bits).hexdigest() == SHA256[part]
    assert np.array_equal(X.transpose(3, 0, 1, 2), (levels / 255).astype(np.float32))


@pytest.mark.parametrize("source", ["generated", "handwritten"])
@pytest.mark.parametrize("part", LOADERS)
def test_shapes_and_classes(part, source):
    if source == "handwritten":
        pytest.importorskip("sklearn")
    X, labels, angles = LOADERS[part](Source=source)
    assert_digits((X, labels, angles))
    classes, counts = np.unique(labels, return_counts=True)
    assert "".join(classes) == "0123456789" and set(counts) == {500}
    assert len(np.unique(angles)) == 91
    assert len(np.unique(labels[:100])) == 10  # not sorted by class


def test_train_and_test_share_no_image(generated):
    seen = [{image.tobytes() for image in X.transpose(3, 0, 1, 2)} for X, _, _ in generated.values()]
    assert len(seen[0]) == len(seen[1]) == 5000 and not seen[0] & seen[1]


def test_a_straight_line_does_not_solve_it(generated):
    """Softmax regression on the pixels stays well below what a small convolutional network reaches (99 %)."""
    (A, a, _), (B, b, _) = (generated[part] for part in ("Train", "Test"))
    A, B = A.reshape(784, -1).T - 0.1, B.reshape(784, -1).T - 0.1
    T = np.eye(10, dtype=np.float32)[a.astype(int)]
    w = velocity = np.zeros((784, 10), np.float32)
    for _ in range(300):
        ahead = w + 0.9 * velocity
        z = A @ ahead
        e = np.exp(z - z.max(1, keepdims=True))
        gradient = A.T @ (e / e.sum(1, keepdims=True) - T) / len(A) + 2e-4 * ahead
        velocity = 0.9 * velocity - 0.15 * gradient
        w = w + velocity
    trained, tested = ((X @ w).argmax(1) == y.astype(int) for X, y in ((A, a), (B, b)))
    assert trained.mean() > 0.9  # it did learn
    assert 0.85 < tested.mean() < 0.93


def test_a_positive_angle_is_clockwise(generated):
    """The principal axis of the ones follows the angle."""
    X, labels, angles = generated["Train"]
    ones = X[:, :, 0, labels == "1"].astype(np.float64)
    y, x = (np.mgrid[:28, :28] - 13.5)[..., None]
    mass = ones.sum((0, 1))
    y, x = y - (ones * y).sum((0, 1)) / mass, x - (ones * x).sum((0, 1)) / mass
    axis = np.degrees(0.5 * np.arctan2(-2 * (ones * x * y).sum((0, 1)), (ones * (y * y - x * x)).sum((0, 1))))
    assert np.median(abs(axis - angles[labels == "1", 0])) < 6


# files ----------------------------------------------------------------------------------------------------------
rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, (28, 28, 1, 6), dtype=np.uint8)
ANGLES = np.array([[3.0], [-45], [0], [7], [45], [1]])
NAMES = ["3", "1", "4", "1", "5", "9"]
LABEL_KINDS = {
    "numbers": np.array([3.0, 1, 4, 1, 5, 9])[:, None],
    "char rows": np.array(NAMES),
    "cellstr": np.array(NAMES, dtype=object)[:, None],
}


@pytest.mark.parametrize("kind", LABEL_KINDS)
@pytest.mark.parametrize("part", LOADERS)
def test_mat_file(tmp_path, part, kind):
    io = pytest.importorskip("scipy.io")
    file = tmp_path / f"DigitsData{part}.mat"
    io.savemat(file, {f"X{part}": IMAGES, f"labels{part}": LABEL_KINDS[kind], f"angles{part}": ANGLES})
    for path in (file, tmp_path, str(tmp_path)):
        X, labels, angles = LOADERS[part](Path=path)
        assert_digits((X, labels, angles), 6)
        assert np.array_equal(X, (IMAGES / 255).astype(np.float32))
        assert labels.tolist() == NAMES and np.array_equal(angles, ANGLES)


def mat73(file, labels, X=None):
    """A MAT-file of version 7.3 as MATLAB lays it out: dimensions reversed, text as codes, cells as references."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(file, "w", userblock_size=512) as f:
        f["XTrain"] = (IMAGES / 255 if X is None else X).T
        f["anglesTrain"] = ANGLES.T
        if isinstance(labels, list):
            refs = np.empty((1, len(labels)), h5py.ref_dtype)
            for i, text in enumerate(labels):
                refs[0, i] = f.create_dataset(f"#refs#/{i}", data=np.array([[ord(c)] for c in text], np.uint16)).ref
            f.create_dataset("labelsTrain", data=refs, dtype=h5py.ref_dtype).attrs["MATLAB_class"] = b"cell"
        else:
            f["labelsTrain"] = labels.T
            kind = {"u": b"char", "f": b"double", "i": b"categorical"}[labels.dtype.kind]
            f["labelsTrain"].attrs["MATLAB_class"] = kind
            if kind == b"categorical":
                f["labelsTrain"].attrs["MATLAB_object_decode"] = 3
    with open(file, "r+b") as f:
        f.write(b"MATLAB 7.3 MAT-file")


@pytest.mark.parametrize("labels", [NAMES, np.array([[ord(c)] for c in NAMES], np.uint16), LABEL_KINDS["numbers"]])
def test_mat_file_of_version_73(tmp_path, labels):
    mat73(tmp_path / "DigitsDataTrain.mat", labels)
    digits = digitTrain4DArrayData(Path=tmp_path)
    assert_digits(digits, 6)
    assert np.array_equal(digits[0], (IMAGES / 255).astype(np.float32)) and digits[1].tolist() == NAMES


def test_categorical_labels_are_explained(tmp_path):
    mat73(tmp_path / "DigitsDataTrain.mat", np.arange(6)[:, None])
    with pytest.raises(DataError, match=r"labelsTrain = cellstr\(S\.labelsTrain\)"):
        digitTrain4DArrayData(Path=tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"XTrain": None}, "has no variable XTrain"),
        ({"XTrain": IMAGES[:20]}, "28x28x1xN; it is 20x28x1x6"),
        ({"XTrain": IMAGES[..., :5]}, "has 5 images, but labelsTrain has 6"),
        ({"anglesTrain": ANGLES[:4]}, "anglesTrain has 4 entries"),
        ({"labelsTrain": np.array([1.5] * 6)}, "cellstr"),
    ],
)
def test_mat_file_that_does_not_fit(tmp_path, changed, message):
    io = pytest.importorskip("scipy.io")
    fields = {"XTrain": IMAGES, "labelsTrain": LABEL_KINDS["numbers"], "anglesTrain": ANGLES} | changed
    io.savemat(tmp_path / "DigitsDataTrain.mat", {name: x for name, x in fields.items() if x is not None})
    with pytest.raises(DataError, match=message):
        digitTrain4DArrayData(Path=tmp_path)


def write_idx(folder, images, labels, stem="train", gz=False, dot="-"):
    for what, array in (("images", images), ("labels", labels)):
        data = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()
        name = f"{stem}-{what}{dot}idx{array.ndim}-ubyte" + (".gz" if gz else "")
        (folder / name).write_bytes(gzip.compress(data) if gz else data)


@pytest.mark.parametrize(("stem", "gz", "dot"), [("train", False, "-"), ("train", True, "-"), ("t10k", False, ".")])
def test_idx_files(tmp_path, stem, gz, dot):
    labels = rng.integers(0, 10, 1000).astype(np.uint8)
    labels[:600] = 7
    images = np.zeros((1000, 28, 28), np.uint8)
    images[:, 13:15, 13:15] = 255  # a dot in the middle stays there, however it is turned
    write_idx(tmp_path, images, labels, stem, gz, dot)
    load = LOADERS["Train" if stem == "train" else "Test"]
    X, names, angles = load(Path=tmp_path)
    assert_digits((X, names, angles), int(np.minimum(np.bincount(labels), 500).sum()))
    assert (names == "7").sum() == 500
    assert (X[13:15, 13:15] > 0.7).all() and X[:11].max() == 0
    assert len(np.unique(angles)) > 80
    assert np.array_equal(load(Path=tmp_path)[2], angles)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "not a whole IDX file"),
        (lambda data: b"\0\0\0\0" + data[4:], "first word is 0"),
        (lambda data: data[:3], "cannot be read as an IDX file"),
    ],
)
def test_damaged_idx_files(tmp_path, damage, message):
    write_idx(tmp_path, np.zeros((3, 28, 28), np.uint8), np.zeros(3, np.uint8))
    file = tmp_path / "train-images-idx3-ubyte"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=message):
        digitTrain4DArrayData(Path=tmp_path)


def test_idx_files_that_do_not_belong_together(tmp_path):
    write_idx(tmp_path, np.zeros((3, 28, 28), np.uint8), np.zeros(4, np.uint8))
    with pytest.raises(DataError, match=r"3 images.*4 labels"):
        digitTrain4DArrayData(Path=tmp_path)


def test_damaged_mat_file(tmp_path):
    pytest.importorskip("scipy")
    (tmp_path / "DigitsDataTrain.mat").write_bytes(b"no MAT-file")
    with pytest.raises(DataError, match="cannot be read as a MAT-file"):
        digitTrain4DArrayData(Path=tmp_path)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"Path": "no/such/folder"}, DataError, "expected DigitsDataTrain.mat.*found none at"),
        ({"Source": "drawn"}, OptionError, 'one of "generated", "handwritten"'),
        ({"source": "generated"}, OptionError, "Did you mean Source"),
    ],
)
def test_wrong_options(options, error, message):
    with pytest.raises(error, match=message):
        digitTrain4DArrayData(**options)
