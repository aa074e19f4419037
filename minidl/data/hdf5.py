"""Variables of MAT-files of version 7.3, which are HDF5 files, read in a process of its own.

A damaged file can bring the HDF5 library down, or have it ask for any amount of memory. So this file is also a program:
it reads one file within limits of memory and time, and writes what it has found; whatever happens to it is a message to
the caller.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

LIMIT_BYTES = 1 << 29  # of one variable, unpacked
LIMIT_SECONDS = 60.0
MOST_TEXTS = 1 << 20  # of one variable
_PROGRAM = "import sys; sys.path[:] = sys.argv[2:]; import runpy; runpy.run_path(sys.argv[1], run_name='__main__')"


class Damaged(ValueError):
    """A file that cannot be read, or wants more memory or time than it may."""


def read_variables(file: Path, names: list[str]) -> dict[str, Any]:
    """The variables of these names: numbers as an array, text as a list with one for each row or cell, others as None.

    Raises Damaged and OSError.
    """
    if not sys.executable or getattr(sys, "frozen", False):  # Python inside of another program
        try:
            return {name: _shaped(*found) for name, found in _read(str(file), names, LIMIT_BYTES).items()}
        except Exception as error:
            raise Damaged(_one_line(error)) from error
    with tempfile.TemporaryFile() as answer:
        command = [sys.executable, "-I", "-c", _PROGRAM, __file__, *sys.path]
        request = json.dumps([str(file.absolute()), names, LIMIT_BYTES]).encode()
        try:
            ended = subprocess.run(
                command, input=request, stdout=answer, stderr=subprocess.PIPE, timeout=LIMIT_SECONDS,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise Damaged(f"it took longer than {LIMIT_SECONDS:.0f} seconds") from None
        answer.seek(0)
        if ended.returncode:
            said = ended.stderr.decode(errors="replace").strip().splitlines()
            raise Damaged(f"its reader came to an end with {said[-1] if said else ended.returncode}")
        try:
            return _received(answer)
        except (ValueError, KeyError, TypeError) as error:
            raise error if isinstance(error, Damaged) else Damaged("its reader was not understood") from error


def _received(answer: BinaryIO) -> dict[str, Any]:
    """What the other process has written: a line of JSON, then the arrays' bytes."""
    found = json.loads(answer.readline(LIMIT_BYTES))
    if "complaint" in found:
        raise Damaged(found["complaint"])
    variables = {}
    for name, (kind, what) in found["variables"].items():
        if kind == "numbers":
            dtype, size = np.dtype(what[0]), what[1]
            what = np.frombuffer(answer.read(math.prod(size) * dtype.itemsize), dtype).reshape(size)
        variables[name] = _shaped(kind, what)
    return variables


def _shaped(kind: str, value: Any) -> Any:
    return value.T if kind == "numbers" else value


# in the other process -------------------------------------------------------------------------------------------
def _read(file: str, names: list[str], limit: int) -> dict[str, tuple[str, Any]]:
    """(kind, value) of each variable: "numbers" with dimensions reversed, "texts", or "other" and None."""
    import h5py

    found: dict[str, tuple[str, Any]] = {}
    with h5py.File(file, "r") as f:
        for name in names:
            if name not in f:
                continue
            if not isinstance(f.get(name, getlink=True), h5py.HardLink):
                raise Damaged(f"{name} is a link to somewhere else")
            node = f[name]
            said = node.attrs.get("MATLAB_class", b"")
            kind = said.decode("latin-1") if isinstance(said, bytes) else str(said)
            if not isinstance(node, h5py.Dataset) or "MATLAB_object_decode" in node.attrs:
                found[name] = "other", None  # an object: told apart from text and numbers later
            elif kind == "cell":
                found[name] = "texts", _texts(f, _whole(node.id, limit).ravel(), limit)
            elif kind == "char":
                found[name] = "texts", [_text(row) for row in np.atleast_2d(_whole(node.id, limit).T)]
            elif node.dtype.kind in "fiub":
                numbers = _whole(node.id, limit)
                found[name] = "numbers", numbers.astype(bool) if kind == "logical" else numbers
            else:
                found[name] = "other", None
    return found


def _whole(node: Any, limit: int) -> np.ndarray:
    """The numbers of a dataset, by its number; its size is looked at first, and that they lie in this file."""
    from h5py import h5d, h5s

    facts = node.get_create_plist()
    layout = facts.get_layout()
    if layout == h5d.VIRTUAL or facts.get_external_count() or node.get_space().get_simple_extent_type() == h5s.NULL:
        raise Damaged("a variable that has its numbers elsewhere")
    for size in (node.shape, facts.get_chunk() if layout == h5d.CHUNKED else ()):
        if math.prod(size) * node.dtype.itemsize > limit:
            raise Damaged(f"a variable of {math.prod(size) * node.dtype.itemsize} bytes, where {limit} are read")
    numbers = np.empty(node.shape, node.dtype)
    if numbers.size:
        node.read(h5s.ALL, h5s.ALL, numbers)
    return numbers.astype(numbers.dtype.newbyteorder("="), copy=False)


def _texts(f: Any, references: np.ndarray, limit: int) -> list[str]:
    from h5py import h5a, h5d, h5r

    texts, left = [], limit
    if len(references) > MOST_TEXTS:
        raise Damaged(f"{len(references)} texts, where at most {MOST_TEXTS} are read")
    for reference in references:
        node = h5r.dereference(reference, f.id)
        if not isinstance(node, h5d.DatasetID):
            raise Damaged("a cell that is not there")
        codes = _whole(node, left).ravel()
        texts.append("" if codes.dtype == np.uint64 and h5a.exists(node, b"MATLAB_empty") else _text(codes))
        left -= codes.nbytes + 64
    return texts


def _text(codes: np.ndarray) -> str:
    if codes.dtype.kind != "u":
        raise Damaged(f"characters of type {codes.dtype}")
    return codes.astype("<u4").tobytes().decode("utf-32-le")  # which raises where a code is no character


def _one_line(error: Exception) -> str:
    return " ".join(f"{str(error) or type(error).__name__}".split())[:500]


def _bounded(limit: int) -> None:
    """Memory and time are limited where the system can do that."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for what, most in (("RLIMIT_AS", 6 * limit), ("RLIMIT_CPU", int(LIMIT_SECONDS) + 1), ("RLIMIT_CORE", 0)):
        number = getattr(resource, what)
        _, hard = resource.getrlimit(number)
        try:
            resource.setrlimit(number, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
        except (OSError, ValueError):  # not on this system
            pass


def _serve() -> None:
    """Read what standard input asks for, and write it to standard output."""
    file, names, limit = json.loads(sys.stdin.buffer.read())
    _bounded(limit)
    try:
        found = _read(file, names, limit)
    except Exception as error:  # whatever the library says of a damaged file
        answer: dict[str, Any] = {"complaint": _one_line(error)}
        found = {}
    else:
        described = {
            name: (kind, value if kind == "texts" else None if value is None else (value.dtype.str, value.shape))
            for name, (kind, value) in found.items()
        }
        answer = {"variables": described}
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
    for kind, value in found.values():
        if kind == "numbers":
            sys.stdout.buffer.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)


if __name__ == "__main__":
    _serve()
