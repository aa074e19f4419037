"""Where compiled code is kept between runs: one folder, which is ours alone, or none.

Whoever can write there can have us run code. So a folder that is not private (`kernels/private.py`) is not used, and a
warning says so once. Processes and threads read, write and delete files at the same time. Nothing here raises because
of a file: what cannot be read is not there, and what cannot be written is not kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
import tempfile
import time
from pathlib import Path

from minidl.kernels import private

LIMIT_BYTES = 64 << 20  # of all kept files of a kind together
LEFTOVER_SECONDS = 3600  # a temporary file of this age belongs to a process that died

_MAGIC = b"minidl object 1\n"
_HEADER_BYTES = len(_MAGIC) + 8 + 32
_TEMPORARY = re.compile(r"minidl-\w+\.tmp")
_TROUBLE = (OSError, RuntimeError, ValueError)  # RuntimeError: no home; ValueError: a path with a zero byte


def cache_folder(*names: str, is_made: bool = True) -> Path | None:
    """The folder where code is kept between runs, or, by `names`, one in it; None if there is none that is ours alone.

    is_made : make it if it is not there; otherwise that is None, too.
    """
    place = "in the user's home"
    try:
        place = str(_chosen())
        folder = Path(os.path.realpath(place))
        inside = folder.joinpath(*names)
        complaint = private.complaint_about(folder, is_made) or private.complaint_about(inside, is_made)
        if complaint is None:
            return inside
    except _TROUBLE as error:
        if isinstance(error, FileNotFoundError) and not is_made:
            return None
        complaint = str(error).rstrip(".") + "."
    private.tell(
        f"minidl's cache folder {place} is not used: {complaint} Or name a folder of yours by MINIDL_CACHE_DIR. "
        "Until then code is compiled anew in each process."
    )
    return None


def _chosen() -> Path:
    """Where the user wants it; by default in the user's cache folder."""
    chosen = os.environ.get("MINIDL_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home()) / "minidl"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "minidl"
    usual = os.environ.get("XDG_CACHE_HOME", "")
    return Path(usual if os.path.isabs(usual) else Path.home() / ".cache") / "minidl"


def read(path: Path, limit: int = LIMIT_BYTES) -> bytes | None:
    """What is in a file of the cache folder; None if it is not there, not ours alone, or longer than the limit."""
    try:
        return private.read(path, limit)
    except _TROUBLE:
        return None


def write(path: Path, data: bytes) -> bool:
    """Put a file into the cache folder, for us alone; whether it was possible. Readers see the old one or all of it."""
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix="minidl-", suffix=".tmp", delete=False) as file:
            temporary = file.name
            file.write(data)
        os.chmod(temporary, 0o600)  # whatever the umask
        os.replace(temporary, path)
        return True
    except _TROUBLE:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        return False


class Shelf:
    """Compiled code of one kind, each piece under a key, a SHA-256 in hexadecimal: checked, and bounded in size.

    name   : of its folder in the cache folder.
    suffix : of its files' names.
    """

    def __init__(self, name: str, suffix: str) -> None:
        self._name, self._suffix = name, suffix
        self._ours = re.compile(r"[0-9a-f]{64}" + re.escape(suffix))  # others' files may lie in a chosen folder

    def get(self, key: str) -> bytes | None:
        """What `put` wrote under this key; None if it is not there or damaged."""
        folder = cache_folder(self._name, is_made=False)
        whole = folder and read(folder / f"{key}{self._suffix}", 2 * LIMIT_BYTES)
        if not folder or not whole:
            return None
        data = whole[_HEADER_BYTES:]
        if whole[:_HEADER_BYTES] != _header(key, data):
            return None
        with contextlib.suppress(OSError):
            os.utime(folder / f"{key}{self._suffix}")  # used now
        return data

    def put(self, key: str, data: bytes) -> None:
        """Write code for other processes and later runs; the least recently used pieces make room."""
        folder = cache_folder(self._name)
        if folder and write(folder / f"{key}{self._suffix}", _header(key, data) + data):
            with contextlib.suppress(*_TROUBLE):
                _tidy(folder, self._ours, f"{key}{self._suffix}")


def _header(key: str, data: bytes) -> bytes:
    return _MAGIC + len(data).to_bytes(8, "little") + hashlib.sha256(key.encode() + data).digest()


def _tidy(folder: Path, ours: re.Pattern[str], newest: str) -> None:
    """Delete leftover temporary files and, above the limit, the least recently used files of ours."""
    found, total, now = [], 0, time.time()
    for entry in list(os.scandir(folder)):
        with contextlib.suppress(OSError):  # another process deleted it
            facts = entry.stat()
            if ours.fullmatch(entry.name):
                found.append((facts.st_mtime_ns, facts.st_size, entry))
                total += facts.st_size
            elif _TEMPORARY.fullmatch(entry.name) and now - facts.st_mtime > LEFTOVER_SECONDS:
                os.unlink(entry)
    for _, size, entry in sorted(found, key=lambda facts: facts[0]):
        if total <= LIMIT_BYTES:
            return
        if entry.name != newest:
            with contextlib.suppress(OSError):  # open elsewhere, on Windows
                Path(entry).unlink(missing_ok=True)
                total -= size
