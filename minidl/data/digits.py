"""Digit images with labels and rotation angles: drawn (no download), from scikit-learn, or from files of your own."""

from __future__ import annotations

import gzip
import math
import os
import pathlib
import struct
import zlib
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from minidl.core.errors import DataError, choice
from minidl.core.options import options
from minidl.data.strokes import PER_CLASS, SIDE, Dice, draw

Array: TypeAlias = NDArray[Any]
Digits: TypeAlias = tuple[NDArray[np.float32], NDArray[np.str_], NDArray[np.float32]]

CLASSES = np.array(list("0123456789"))
_KEYS = {"Train": 1, "Test": 2}  # of the random streams
_IDX_STEMS = {"Train": "train", "Test": "t10k"}


@options
def digitTrain4DArrayData(
    *, Path: str | os.PathLike[str] | None = None, Source: Literal["generated", "handwritten"] = "generated"
) -> Digits:
    """Training images of handwritten-looking digits, with their labels and rotation angles.

    Returns (X, labels, angles):
    X      : 28x28x1x5000 float32, grey levels k/255 from 0 (paper) to 1 (ink). Dimension 3 counts the images and is the
             outermost in memory, so that a batch of images is one piece. single, since that is what a minibatchqueue
             makes of it by default; the numbers are the same as from double.
    labels : (5000,) text, "0" to "9", 500 of each, in random order.
    angles : 5000x1 float32, whole degrees from -45 to 45, by which a digit is turned clockwise from upright.

    Source : "generated": drawn from descriptions of pen strokes, in a fraction of a second, the same bits on every
             machine and at every call. "handwritten": enlarged and rotated real digits, from scikit-learn's
             `load_digits` (1,797 images of 8x8 pixels; each is used several times, at different angles). Training
             and test sets share no image and no original.
    Path   : read a data set of your own instead: MATLAB's DigitsDataTrain.mat (or the folder with it), or a folder
             with MNIST's IDX files (train-images-idx3-ubyte, train-labels-idx1-ubyte, also .gz), of which up to 500
             images of each class are taken and rotated by known random whole degrees, since MNIST knows no angles.
    Raises DataError if a file is missing, damaged or of the wrong size; OptionError for an unknown Source.
    Source: MathWorks, example page "Train Convolutional Neural Network for Regression" (the data set there).

    >>> X, labels, angles = digitTrain4DArrayData()
    >>> X.shape, labels.shape, angles.shape
    ((28, 28, 1, 5000), (5000,), (5000, 1))
    """
    return _digits("digitTrain4DArrayData", "Train", Path, Source)


@options
def digitTest4DArrayData(
    *, Path: str | os.PathLike[str] | None = None, Source: Literal["generated", "handwritten"] = "generated"
) -> Digits:
    """Test images of handwritten-looking digits, with their labels and rotation angles.

    The same shapes and options as `digitTrain4DArrayData`, and other digits: drawn from another random stream, or
    other originals. With Path: DigitsDataTest.mat, or MNIST's t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte.
    Raises DataError and OptionError as `digitTrain4DArrayData` does.
    Source: MathWorks, example page "Train Convolutional Neural Network for Regression" (the data set there).

    >>> X, labels, angles = digitTest4DArrayData()
    >>> int((labels == "7").sum()), float(angles.min()), float(angles.max())
    (500, -45.0, 45.0)
    """
    return _digits("digitTest4DArrayData", "Test", Path, Source)


def _digits(who: str, part: str, path: Any, source: str) -> Digits:
    source = choice(who, "Source", source, ["generated", "handwritten"])
    if path is not None:
        return _from_path(who, part, pathlib.Path(path))
    if source == "handwritten":
        return _from_scikit_learn(who, part)
    level, label, angle = draw(_KEYS[part])
    return _as_digits((np.arange(256, dtype=np.float32) / np.float32(255))[level], label, angle)


def _as_digits(grey: NDArray[np.float32], label: NDArray[np.str_], angle: Array) -> Digits:
    """Images (n, 28, 28) as 28x28x1xn, without moving them."""
    return grey[..., None].transpose(1, 2, 3, 0), label, angle.astype(np.float32).reshape(-1, 1)


# files ----------------------------------------------------------------------------------------------------------
def _from_path(who: str, part: str, path: pathlib.Path) -> Digits:
    mat = path / f"DigitsData{part}.mat" if path.is_dir() else path
    if mat.is_file():
        return _from_mat(who, part, mat)
    images, labels = _idx_file(path, part, "images", 3), _idx_file(path, part, "labels", 1)
    if images and labels:
        return _from_idx(who, part, images, labels)
    stem = _IDX_STEMS[part]
    raise DataError(
        f"{who}: expected DigitsData{part}.mat, or the folder with it, or a folder with {stem}-images-idx3-ubyte and "
        f"{stem}-labels-idx1-ubyte (or their .gz); found none at {path}. "
        "Give one of these as Path, or no Path for the generated digits."
    )


def _from_mat(who: str, part: str, file: pathlib.Path) -> Digits:
    names = [f"{field}{part}" for field in ("X", "labels", "angles")]
    with file.open("rb") as f:
        is_hdf5 = f.read(10) == b"MATLAB 7.3"
    try:
        found = _load_hdf5(who, file, names) if is_hdf5 else _load_mat(who, file, names)
    except DataError:
        raise
    except Exception as error:  # whatever a reader says of a damaged file
        raise DataError(f"{who}: {file} cannot be read as a MAT-file ({error}). Save it again in MATLAB.") from error
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(
            f"{who}: {file} has no variable {', '.join(missing)}. Expected {', '.join(names)}; "
            f'in MATLAB: save("{file.name}", "{names[0]}", "{names[1]}", "{names[2]}").'
        )
    X, labels, angles = found[names[0]], found[names[1]], np.asarray(found[names[2]])
    if X.ndim not in (3, 4) or X.shape[:2] != (SIDE, SIDE) or (X.ndim == 4 and X.shape[2] != 1) or not X.size:
        raise DataError(
            f"{who}: {names[0]} in {file} is expected to be 28x28x1xN; it is {'x'.join(map(str, X.shape))}."
        )
    if X.dtype.kind not in "fuib" or angles.dtype.kind not in "fui":
        raise DataError(
            f"{who}: images and angles in {file} are expected to be numbers; got {X.dtype}, {angles.dtype}."
        )
    X = X.reshape(SIDE, SIDE, X.shape[-1])
    label = _labels(who, file, names[1], labels)
    for name, count in ((names[1], label.size), (names[2], angles.size)):
        if count != X.shape[-1]:
            raise DataError(f"{who}: {file} has {X.shape[-1]} images, but {name} has {count} entries. One for each.")
    grey = np.ascontiguousarray(X.transpose(2, 0, 1), dtype=np.float32)
    if X.dtype == np.uint8:
        grey /= np.float32(255)
    return _as_digits(grey, label, angles)


def _load_mat(who: str, file: pathlib.Path, names: list[str]) -> dict[str, Array]:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise _missing_package(who, "MAT-files", "scipy") from error
    loaded = loadmat(file)
    found = {name: value for name, value in loaded.items() if name in names}
    if names[1] not in found and any(type(value).__name__ == "MatlabOpaque" for value in loaded.values()):
        found[names[1]] = np.array(None, dtype=object)  # an object, which loses its name on the way
    return found


def _load_hdf5(who: str, file: pathlib.Path, names: list[str]) -> dict[str, Array]:
    try:
        import h5py
    except ImportError as error:
        raise _missing_package(who, "MAT-files of version 7.3", "h5py") from error
    found: dict[str, Array] = {}
    with h5py.File(file, "r") as f:
        for name in names:
            if name not in f:
                continue
            node = f[name]
            kind = node.attrs.get("MATLAB_class", b"")
            kind = kind.decode() if isinstance(kind, bytes) else str(kind)
            if kind == "cell":
                texts = ["".join(map(chr, np.asarray(f[ref]).ravel())) for ref in np.asarray(node).ravel()]
                found[name] = np.array(texts)
            elif kind == "char":
                found[name] = np.array(["".join(map(chr, row)) for row in np.asarray(node).T])
            elif "MATLAB_object_decode" in node.attrs or not isinstance(node, h5py.Dataset):
                found[name] = np.array(None, dtype=object)  # an object: told apart from text and numbers later
            else:
                found[name] = np.asarray(node).T
    return found


def _labels(who: str, file: pathlib.Path, name: str, labels: Array) -> NDArray[np.str_]:
    """Labels as text, from numbers, char rows or a cell array of text."""
    flat = np.asarray(labels).ravel()
    if flat.dtype.names is None and flat.dtype.kind in "fui" and np.array_equal(flat, np.rint(flat)):
        return np.array([str(int(x)) for x in flat])
    if flat.dtype.kind == "U":
        return np.char.strip(flat).astype(np.str_)
    if flat.dtype.kind == "O" and all(isinstance(x, np.ndarray) and x.dtype.kind == "U" and x.size == 1 for x in flat):
        return np.array([str(x.item()).strip() for x in flat])
    raise DataError(
        f"{who}: {name} in {file} is a MATLAB object (categorical or string), which only MATLAB can read. "
        f'Save the labels as text there: S = load("{file.name}"); S.{name} = cellstr(S.{name}); '
        f'save("{file.name}", "-struct", "S").'
    )


def _idx_file(folder: pathlib.Path, part: str, what: str, rank: int) -> pathlib.Path | None:
    stem = f"{_IDX_STEMS[part]}-{what}"
    candidates = (folder / f"{stem}{dot}idx{rank}-ubyte{end}" for end in ("", ".gz") for dot in "-.")
    return next((file for file in candidates if file.is_file()), None)


def _read_idx(who: str, file: pathlib.Path, rank: int) -> NDArray[np.uint8]:
    """Source: LeCun, Cortes and Burges, The MNIST database, "File formats"."""
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        magic, *shape = struct.unpack_from(f">{1 + rank}I", data)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise DataError(f"{who}: {file} cannot be read as an IDX file ({error}). Fetch it again.") from error
    expected = 4 * (1 + rank) + math.prod(shape)
    if magic != 0x800 + rank or len(data) != expected:
        raise DataError(
            f"{who}: {file} is not a whole IDX file of {rank} dimensions: its first word is {magic} (expected "
            f"{0x800 + rank}), its length {len(data)} bytes (expected {expected}). Fetch it again."
        )
    return np.frombuffer(data, np.uint8, offset=4 * (1 + rank)).reshape(shape)


def _from_idx(who: str, part: str, image_file: pathlib.Path, label_file: pathlib.Path) -> Digits:
    images, labels = _read_idx(who, image_file, 3), _read_idx(who, label_file, 1)
    if len(images) != len(labels) or not len(images) or labels.max() > 9:
        raise DataError(
            f"{who}: {image_file} has {len(images)} images, {label_file} {len(labels)} labels up to "
            f"{labels.max(initial=0)}; expected equally many, and digits 0 to 9. Do the two files belong together?"
        )
    first = np.sort(np.concatenate([np.flatnonzero(labels == c)[:PER_CLASS] for c in range(10)]))
    angle = Dice(_KEYS[part]).angles(len(first))
    grey = images[first].astype(np.float32) / np.float32(255)
    return _as_digits(_rotated(grey, angle, SIDE / max(images.shape[1:])), CLASSES[labels[first]], angle)


# scikit-learn ---------------------------------------------------------------------------------------------------
def _from_scikit_learn(who: str, part: str) -> Digits:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise _missing_package(who, 'Source="handwritten"', "scikit-learn") from error
    originals, target = load_digits(return_X_y=True)
    small = originals.reshape(-1, 8, 8).astype(np.float32) / np.float32(16)
    split, dice = Dice(0), Dice(_KEYS[part])  # one split for both sets, so that they share no original
    chosen = []
    for c in range(10):
        mine = np.flatnonzero(target == c)
        mine = mine[split.order(len(mine))]
        half = mine[: len(mine) // 2] if part == "Train" else mine[len(mine) // 2 :]
        chosen.append(np.resize(half, PER_CLASS))
    index = np.concatenate(chosen)[dice.order(10 * PER_CLASS)]
    angle = dice.angles(len(index))
    return _as_digits(_rotated(small[index], angle, 2.5), CLASSES[target[index]], angle)


def _missing_package(who: str, what: str, package: str) -> DataError:
    return DataError(f'{who}: {what} need {package}, which is not installed. Run: pip install "minidl[examples]".')


def _rotated(images: NDArray[np.float32], angle: NDArray[np.int64], scale: float) -> NDArray[np.float32]:
    """Images (n, h, w) enlarged by `scale` and turned clockwise by whole degrees, as (n, 28, 28); bilinear."""
    n, h, w = images.shape
    padded = np.zeros((n, h + 2, w + 2), np.float32)
    padded[:, 1:-1, 1:-1] = images
    flat = padded.reshape(n, -1)
    result = np.empty((n, SIDE, SIDE), np.float32)
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    for a in np.unique(angle):
        at = np.flatnonzero(angle == a)
        cos, sin = math.cos(math.radians(a)) / scale, math.sin(math.radians(a)) / scale
        column = np.clip(cos * x + sin * y + (w + 1) / 2, 0, w + 1)
        row = np.clip(cos * y - sin * x + (h + 1) / 2, 0, h + 1)
        left, top = np.minimum(column.astype(int), w), np.minimum(row.astype(int), h)
        right, low = (column - left).astype(np.float32), (row - top).astype(np.float32)
        corner = top * (w + 2) + left
        mine = flat[at]
        upper = mine[:, corner] * (1 - right) + mine[:, corner + 1] * right
        lower = mine[:, corner + w + 2] * (1 - right) + mine[:, corner + w + 3] * right
        result[at] = upper * (1 - low) + lower * low
    return result
