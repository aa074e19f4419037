"""MATLAB's MAT-files of versions 5 to 7, read with care: every size is checked before memory is asked for.

A file is 128 bytes of header and then variables, each an element: a type, a number of bytes, and these, padded to 8.
A compressed element holds another one. A matrix is an element of elements: flags (its class), sizes, name, numbers; a
cell array has matrices in place of the numbers. Only the variables that are asked for are unpacked.
Source: MathWorks, MAT-File Format (the document of that name).
"""

from __future__ import annotations

import itertools
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minidl.data.hdf5 import LIMIT_BYTES, MOST_TEXTS, Damaged

_MOST_DIMENSIONS, _MOST_VARIABLES = 32, 1 << 16
_HEADER, _NAME_BYTES = 128, 1024

# types of elements
_MATRIX, _COMPRESSED, _INT8, _INT32, _UINT32 = 14, 15, 1, 5, 6
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
# classes of matrices
_CELL, _CHAR, _OPAQUE = 1, 4, 17
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}


class Element(NamedTuple):
    kind: int
    data: memoryview


def read_variables(file: Path, names: list[str]) -> dict[str, Any]:
    """The variables of these names: numbers as an array, text as a list with one for each row or cell, others as None.

    Raises Damaged and OSError.
    """
    found: dict[str, Any] = {}
    with file.open("rb") as f:
        left = os.fstat(f.fileno()).st_size - _HEADER
        header = f.read(_HEADER)
        if len(header) < _HEADER or header[126:] not in (b"IM", b"MI") or header[:4] == bytes(4):
            raise Damaged("it does not begin as one of version 5 to 7 does")
        order = "<" if header[126:] == b"IM" else ">"
        for number in itertools.count():
            if left < 8 or len(found) == len(names):
                break
            if number == _MOST_VARIABLES:
                raise Damaged(f"more than {_MOST_VARIABLES} variables")
            kind, size = struct.unpack(f"{order}II", f.read(8))
            left -= 8
            if kind not in (_MATRIX, _COMPRESSED) or size > left:
                raise Damaged(f"{size} bytes of type {kind} are announced where {left} are left")
            left -= size
            start = f.tell()
            beginning = f.read(min(size, _NAME_BYTES))
            if kind == _COMPRESSED:
                beginning = _unpacked(beginning, _NAME_BYTES)
            name = _matrix(beginning, order, kind == _COMPRESSED).name
            if name in names and name not in found:
                f.seek(start)
                found[name] = _value(_matrix(_whole(f.read(_small(size)), kind), order, kind == _COMPRESSED), order)
            f.seek(start + size)
    return found


def _whole(data: bytes, kind: int) -> bytes:
    if kind != _COMPRESSED:
        return data
    unpacked = _unpacked(data, LIMIT_BYTES + 1)
    _small(len(unpacked))
    return unpacked


def _unpacked(data: bytes, most: int) -> bytes:
    """The beginning of what compressed bytes unfold to."""
    try:
        return zlib.decompressobj().decompress(data, most)
    except zlib.error as error:
        raise Damaged(str(error)) from error


def _small(size: int) -> int:
    """A number of bytes that may be read."""
    if size > LIMIT_BYTES:
        raise Damaged(f"a variable of {size} bytes or more, where at most {LIMIT_BYTES} are read")
    return size


def _few(count: int) -> int:
    """A number of texts that may be read."""
    if count > MOST_TEXTS:
        raise Damaged(f"{count} texts, where at most {MOST_TEXTS} are read")
    return count


# a matrix -------------------------------------------------------------------------------------------------------
class _Parts:
    """Elements that follow one another in memory."""

    def __init__(self, data: memoryview, order: str) -> None:
        self._data, self._order, self._at = data, order, 0

    def next(self, is_cut: bool = False) -> Element:
        """The next element; is_cut: bytes may be missing at its end."""
        first, size = self._words(2)
        if first >> 16:  # a small one: its size is in the upper half of the first word, its bytes are the second
            kind, size, start, step = first & 0xFFFF, first >> 16, self._at + 4, 8
            if size > 4:
                raise Damaged(f"a small element of {size} bytes")
        else:
            kind, start, step = first, self._at + 8, 8 + -(-size // 8) * 8
        if not is_cut and start + size > len(self._data):
            raise Damaged(f"{size} bytes of type {kind} are announced where {len(self._data) - start} are left")
        self._at += step
        return Element(kind, self._data[start : start + size])

    def _words(self, count: int) -> tuple[int, ...]:
        if self._at + 4 * count > len(self._data):
            raise Damaged("it ends within a variable")
        return struct.unpack_from(f"{self._order}{count}I", self._data, self._at)

    def of(self, *kinds: int) -> memoryview:
        """The next element's bytes; it has one of these types."""
        element = self.next()
        if element.kind not in kinds:
            raise Damaged(f"an element of type {element.kind} where {kinds} are expected")
        return element.data


class _Matrix(NamedTuple):
    kind: int
    is_complex: bool
    is_logical: bool
    size: tuple[int, ...]
    name: str
    rest: _Parts


def _matrix(data: bytes, order: str, is_unpacked: bool) -> _Matrix:
    """What a variable says of itself; is_unpacked: its tag comes first."""
    view = memoryview(data)
    if is_unpacked:
        element = _Parts(view, order).next(is_cut=True)
        if element.kind != _MATRIX:
            raise Damaged(f"a variable of type {element.kind}")
        view = element.data
    return _described(_Parts(view, order), order)


def _described(parts: _Parts, order: str) -> _Matrix:
    flags = parts.of(_UINT32)
    if len(flags) != 8:
        raise Damaged("flags of a matrix that are none")
    (bits, _) = struct.unpack(f"{order}II", flags)
    kind = bits & 0xFF
    size: tuple[int, ...] = ()
    if kind != _OPAQUE:  # an object has no size here
        sizes = parts.of(_INT32)
        count = len(sizes) // 4
        if len(sizes) % 4 or not 2 <= count <= _MOST_DIMENSIONS:
            raise Damaged(f"{count} dimensions")
        size = struct.unpack(f"{order}{count}i", sizes)
        if min(size) < 0:
            raise Damaged(f"a size of {min(size)}")
    name = bytes(parts.of(_INT8)).decode("latin-1")
    return _Matrix(kind, bool(bits & 0x800), bool(bits & 0x200), size, name, parts)


def _value(matrix: _Matrix, order: str) -> Any:
    if matrix.kind in _CLASSES and not matrix.is_complex:
        return _numbers(matrix, order)
    if matrix.kind == _CHAR:
        return _rows(matrix, order)
    if matrix.kind == _CELL:
        return _cells(matrix, order)
    return None  # structs, objects, sparse and complex matrices


def _numbers(matrix: _Matrix, order: str) -> np.ndarray:
    dtype = np.dtype(bool if matrix.is_logical else _CLASSES[matrix.kind])
    count = math.prod(matrix.size)
    _small(count * dtype.itemsize)
    element = matrix.rest.next()
    if element.kind not in _NUMBERS:
        raise Damaged(f"numbers of type {element.kind}")
    stored = np.dtype(order + _NUMBERS[element.kind])
    if len(element.data) != count * stored.itemsize:
        raise Damaged(f"{len(element.data)} bytes for {count} numbers of type {stored}")
    with np.errstate(all="ignore"):  # a damaged number may be too large for its class
        return np.frombuffer(element.data, stored).astype(dtype).reshape(matrix.size, order="F")


def _rows(matrix: _Matrix, order: str) -> list[str]:
    """The rows of a matrix of characters."""
    element = matrix.rest.next()
    _small(8 * len(element.data))  # as much memory as characters may need
    if len(matrix.size) != 2 or element.kind not in _TEXTS:
        raise Damaged(f"characters of type {element.kind} in {len(matrix.size)} dimensions")
    code = _TEXTS[element.kind]
    code += {"<": "-le", ">": "-be"}[order] if code[-2:] in ("16", "32") else ""
    try:
        text = bytes(element.data).decode(code)
    except UnicodeDecodeError as error:
        raise Damaged(str(error)) from error
    rows, columns = matrix.size
    _few(rows)
    if len(text) != rows * columns:
        raise Damaged(f"{len(text)} characters in a matrix of {rows}x{columns}")
    return [text[row::rows] for row in range(rows)] if columns else [""] * min(rows, 1)


def _cells(matrix: _Matrix, order: str) -> list[str] | None:
    """The texts of a cell array; None if one of its cells is something else."""
    texts: list[str] = []
    for _ in range(_few(math.prod(matrix.size))):
        cell = _described(_Parts(matrix.rest.of(_MATRIX), order), order)
        rows = _rows(cell, order) if cell.kind == _CHAR else None
        if rows is None or len(rows) > 1:
            return None
        texts.append(rows[0] if rows else "")
    return texts
