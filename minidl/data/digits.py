"""Digit images with labels and rotation angles: drawn (no download), from scikit-learn, or from files of your own."""

from __future__ import annotations

import gzip
import importlib.util
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
from minidl.data import hdf5, matfile
from minidl.data.strokes import PER_CLASS, SIDE, Dice, draw

Array: TypeAlias = NDArray[Any]
Digits: TypeAlias = tuple[NDArray[np.float32], NDArray[np.str_], NDArray[np.float32]]

CLASSES = np.array(list("0123456789"))
_KEYS = {"Train": 1, "Test": 2}  # of the random streams
_LARGEST_SIDE, _LONGEST_LABEL = 4096, 100
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
    Raises DataError if a file is missing, damaged, of the wrong size or larger than 512 MiB unpacked, whoever has made
    it; OptionError for an unknown Source.
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
        try:
            folder = pathlib.Path(os.fsdecode(path))
        except TypeError:
            raise DataError(f"{who}: Path is the name of a folder or file; got {type(path).__name__}.") from None
        try:
            return _from_path(who, part, folder)
        except DataError as error:
            error.args = (_printable(str(error)),)
            raise
        except (OSError, MemoryError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise DataError(_printable(f"{who}: {folder} cannot be read ({reason}).")) from error
    if source == "handwritten":
        return _from_scikit_learn(who, part)
    level, label, angle = draw(_KEYS[part])
    return _as_digits((np.arange(256, dtype=np.float32) / np.float32(255))[level], label, angle)


def _printable(text: str) -> str:
    """The text where bytes of a file's name are no text."""
    return text.encode("utf-8", "backslashreplace").decode()


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
    if is_hdf5 and importlib.util.find_spec("h5py") is None:
        raise _missing_package(who, "MAT-files of version 7.3", "h5py")
    try:
        found = (hdf5 if is_hdf5 else matfile).read_variables(file, names)
    except ValueError as error:  # Damaged, or NumPy's of sizes that no array has
        raise DataError(f"{who}: {file} cannot be read as a MAT-file ({error}). Save it again in MATLAB.") from error
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(
            f"{who}: {file} has no variable {', '.join(missing)}. Expected {', '.join(names)}; "
            f'in MATLAB: save("{file.name}", "{names[0]}", "{names[1]}", "{names[2]}").'
        )
    for name, kinds in ((names[0], "fuib"), (names[2], "fui")):
        if not isinstance(found[name], np.ndarray) or found[name].dtype.kind not in kinds:
            raise DataError(f"{who}: {name} in {file} is expected to be real numbers; it is text, cells or an object.")
    X, labels, angles = (found[name] for name in names)
    if X.ndim not in (3, 4) or X.shape[:2] != (SIDE, SIDE) or (X.ndim == 4 and X.shape[2] != 1) or not X.size:
        raise DataError(
            f"{who}: {names[0]} in {file} is expected to be 28x28x1xN; it is {'x'.join(map(str, X.shape))}."
        )
    X = X.reshape(SIDE, SIDE, X.shape[-1])
    for name, numbers in ((names[1], labels), (names[2], angles)):
        count = X.shape[-1] if numbers is None else len(numbers) if isinstance(numbers, list) else numbers.size
        if count != X.shape[-1]:
            raise DataError(f"{who}: {file} has {X.shape[-1]} images, but {name} has {count} entries. One for each.")
    label = _labels(who, file, names[1], labels)
    with np.errstate(over="ignore"):
        grey = np.ascontiguousarray(X.transpose(2, 0, 1), dtype=np.float32)
        digits = _as_digits(grey, label, angles)
    for name, numbers in ((names[0], grey), (names[2], digits[2])):
        if not np.isfinite(numbers).all():
            raise DataError(f"{who}: {name} in {file} has numbers that are NaN, infinite or too large for single.")
    if X.dtype == np.uint8:
        grey /= np.float32(255)
    return digits


def _labels(who: str, file: pathlib.Path, name: str, labels: Any) -> NDArray[np.str_]:
    """Labels as text, from whole numbers or text."""
    if labels is None:
        raise DataError(
            f"{who}: {name} in {file} is a MATLAB object (categorical or string), which only MATLAB can read. "
            f'Save the labels as text there: S = load("{file.name}"); S.{name} = cellstr(S.{name}); '
            f'save("{file.name}", "-struct", "S").'
        )
    if isinstance(labels, np.ndarray):
        wrong = [x for x in labels.ravel().tolist() if not abs(x) < 2**53 or x != int(x)][:1]
        if wrong:
            raise DataError(
                f"{who}: labels in {file} are whole numbers or text; {name} has {wrong[0]!r}. In MATLAB, cellstr makes "
                "text of them."
            )
        labels = [str(int(x)) for x in labels.ravel().tolist()]
    longest = max(map(len, labels), default=0)
    if longest > _LONGEST_LABEL:
        raise DataError(
            f"{who}: labels in {file} have at most {_LONGEST_LABEL} characters; {name} has one of {longest}."
        )
    return np.array([text.strip() for text in labels], np.str_)


def _idx_file(folder: pathlib.Path, part: str, what: str, rank: int) -> pathlib.Path | None:
    stem = f"{_IDX_STEMS[part]}-{what}"
    candidates = (folder / f"{stem}{dot}idx{rank}-ubyte{end}" for end in ("", ".gz") for dot in "-.")
    return next((file for file in candidates if file.is_file()), None)


def _read_idx(who: str, file: pathlib.Path, rank: int) -> NDArray[np.uint8]:
    """Source: LeCun, Cortes and Burges, The MNIST database, "File formats"."""
    header = 4 * (1 + rank)
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as f:
            if os.fstat(f.fileno()).st_size > header + matfile.LIMIT_BYTES:
                raise OSError(f"it is longer than {matfile.LIMIT_BYTES} bytes")
            magic, *shape = struct.unpack(f">{1 + rank}I", f.read(header))
            count = math.prod(shape)
            data = _up_to(f, min(count, matfile.LIMIT_BYTES) + 1)  # one more, which must not be there
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise DataError(f"{who}: {file} cannot be read as an IDX file ({error}). Fetch it again.") from error
    if magic != 0x800 + rank or len(data) != count:
        size = f"{header + len(data)} bytes" + (" or more" if len(data) > count else "")
        raise DataError(
            f"{who}: {file} is not a whole IDX file of {rank} dimensions: its first word is {magic} (expected "
            f"{0x800 + rank}), its length {size} (expected {header + count}, at most {matfile.LIMIT_BYTES}). "
            "Fetch it again."
        )
    return np.frombuffer(data, np.uint8).reshape(shape)


def _up_to(f: Any, most: int) -> bytes:
    """What is in a file, but at most so many bytes; a file of few bytes takes little memory, whatever it announces."""
    pieces = []
    while most and (piece := f.read(min(most, 1 << 20))):
        pieces.append(piece)
        most -= len(piece)
    return b"".join(pieces)


def _from_idx(who: str, part: str, image_file: pathlib.Path, label_file: pathlib.Path) -> Digits:
    images, labels = _read_idx(who, image_file, 3), _read_idx(who, label_file, 1)
    if len(images) != len(labels) or not len(images) or labels.max() > 9:
        raise DataError(
            f"{who}: {image_file} has {len(images)} images, {label_file} {len(labels)} labels up to "
            f"{labels.max(initial=0)}; expected equally many, and digits 0 to 9. Do the two files belong together?"
        )
    if not 1 <= min(images.shape[1:]) <= max(images.shape[1:]) <= _LARGEST_SIDE:
        raise DataError(
            f"{who}: images of 1x1 to {_LARGEST_SIDE}x{_LARGEST_SIDE} pixels are expected in {image_file}; "
            f"they are {images.shape[1]}x{images.shape[2]}."
        )
    first = np.sort(np.concatenate([np.flatnonzero(labels == c)[:PER_CLASS] for c in range(10)]))
    angle = Dice(_KEYS[part]).angles(len(first))
    grey = _rotated(images[first], 255, angle, SIDE / max(images.shape[1:]))
    return _as_digits(grey, CLASSES[labels[first]], angle)


# scikit-learn ---------------------------------------------------------------------------------------------------
def _from_scikit_learn(who: str, part: str) -> Digits:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise _missing_package(who, 'Source="handwritten"', "scikit-learn") from error
    originals, target = load_digits(return_X_y=True)
    small = originals.reshape(-1, 8, 8)
    split, dice = Dice(0), Dice(_KEYS[part])  # one split for both sets, so that they share no original
    chosen = []
    for c in range(10):
        mine = np.flatnonzero(target == c)
        mine = mine[split.order(len(mine))]
        half = mine[: len(mine) // 2] if part == "Train" else mine[len(mine) // 2 :]
        chosen.append(np.resize(half, PER_CLASS))
    index = np.concatenate(chosen)[dice.order(10 * PER_CLASS)]
    angle = dice.angles(len(index))
    return _as_digits(_rotated(small[index], 16, angle, 2.5), CLASSES[target[index]], angle)


def _missing_package(who: str, what: str, package: str) -> DataError:
    return DataError(f"{who}: {what} needs {package}, which is not installed. Run: pip install {package}.")


def _rotated(images: Array, white: int, angle: NDArray[np.int64], scale: float) -> NDArray[np.float32]:
    """Images (n, h, w) of numbers up to `white`, enlarged by `scale` and turned clockwise by whole degrees, as
    (n, 28, 28) of numbers up to 1; bilinear."""
    n, h, w = images.shape
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
        padded = np.zeros((len(at), h + 2, w + 2), np.float32)
        padded[:, 1:-1, 1:-1] = images[at].astype(np.float32) / np.float32(white)
        mine = padded.reshape(len(at), -1)
        upper = mine[:, corner] * (1 - right) + mine[:, corner + 1] * right
        lower = mine[:, corner + w + 2] * (1 - right) + mine[:, corner + w + 3] * right
        result[at] = upper * (1 - low) + lower * low
    return result
